//! [`RepositoryTemplate`]: maps an image to its repository on the site.

use std::fmt;
use std::str::FromStr;

use crate::oci::reference::DEFAULT_PREFIX;
use crate::oci::reference::{MAX_NAME, Reference, is_repository_name};
use crate::oci::repository::RepositoryName;

/// A repository name with the placeholders `{repository}` (required) and `{host}`, which are replaced by
/// those of an image. The default is `k8s/{host}/{repository}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryTemplate(String);

/// A text that is not a valid [`RepositoryTemplate`], or an image for which the template has no valid name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// An unknown placeholder, or an unbalanced brace.
    #[error("unknown placeholder `{placeholder}`: expected `{{host}}` or `{{repository}}`")]
    Placeholder {
        /// The placeholder, with braces.
        placeholder: String,
    },
    /// The template lacks `{repository}`.
    #[error("the template lacks `{{repository}}`: all images would get the same name")]
    NoRepository,
    /// The name is invalid for all images.
    #[error("invalid template `{template}`: it never results in a valid repository name")]
    NeverValid {
        /// The template.
        template: String,
    },
    /// The name is invalid for this image.
    #[error("invalid repository name `{name}` for `{image}`")]
    Name {
        /// Reference of the image.
        image: String,
        /// The result of the template.
        name: String,
    },
    /// The name for this image exceeds [`MAX_NAME`].
    #[error("the repository name for `{image}` has {len} bytes, more than {MAX_NAME}")]
    NameTooLong {
        /// Reference of the image.
        image: String,
        /// Length of the name in bytes.
        len: usize,
    },
}

const HOST: &str = "{host}";
const REPOSITORY: &str = "{repository}";

impl RepositoryTemplate {
    /// Returns the repository name for `image`. In the host, `:` becomes `_` and the brackets of an IPv6
    /// address are removed, because a repository name cannot contain them: `localhost:5000` becomes
    /// `localhost_5000`. An address that begins or ends with `::` gets the zero that it omits: `[::1]:5000` becomes
    /// `0__1_5000`.
    pub fn apply(&self, image: &Reference) -> Result<RepositoryName, TemplateError> {
        self.name(image, image.repository())
    }

    /// Returns the other name under which clients request `image`. `None`: there is none.
    ///
    /// kubeadm with an `imageRepository` omits the first component of `registry.k8s.io/coredns/coredns`.
    #[must_use]
    pub fn alias(&self, image: &Reference) -> Option<RepositoryName> {
        let has_alias = image.host() == "registry.k8s.io" && image.repository() == "coredns/coredns";
        has_alias.then(|| self.name(image, "coredns").ok()).flatten()
    }

    fn name(&self, image: &Reference, repository: &str) -> Result<RepositoryName, TemplateError> {
        let host = image.host().replace("[::", "[0::").replace("::]", "::0]").replace(['[', ']'], "");
        let host = host.replace(':', "_");
        let name = self.0.replace(HOST, &host).replace(REPOSITORY, repository);
        if name.len() > MAX_NAME {
            return Err(TemplateError::NameTooLong { image: image.to_string(), len: name.len() });
        }
        name.parse().map_err(|_| TemplateError::Name { image: image.to_string(), name })
    }
}

impl Default for RepositoryTemplate {
    fn default() -> Self {
        Self(format!("{DEFAULT_PREFIX}/{{host}}/{{repository}}"))
    }
}

impl fmt::Display for RepositoryTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RepositoryTemplate {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The shortest host and repository: if these result in an invalid name, all others do too.
        let name = text.replace(HOST, "a").replace(REPOSITORY, "a");
        if let Some(brace) = name.find(['{', '}']) {
            let end = name[brace..].find('}').map_or(name.len(), |end| brace + end + 1);
            return Err(TemplateError::Placeholder { placeholder: name[brace..end].to_owned() });
        }
        if !text.contains(REPOSITORY) {
            return Err(TemplateError::NoRepository);
        }
        if !is_repository_name(&name) {
            return Err(TemplateError::NeverValid { template: text.to_owned() });
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> Reference {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_template_replaces_the_host_and_the_repository() {
        let default = RepositoryTemplate::default();
        assert_eq!(default.to_string().parse(), Ok(default.clone()));
        for (template, image, name) in [
            (
                "k8s/{host}/{repository}",
                "registry.k8s.io/kube-apiserver:v1",
                "k8s/registry.k8s.io/kube-apiserver",
            ),
            ("k8s/{host}/{repository}", "docker.io/nginx:1", "k8s/docker.io/library/nginx"),
            ("{repository}", "quay.io/calico/node:v3", "calico/node"),
            ("{host}/{repository}", "localhost:5000/a:1", "localhost_5000/a"),
            ("{host}/{repository}", "[2001:db8::1]:5000/a:1", "2001_db8__1_5000/a"),
            ("{host}/{repository}", "[::1]:5000/a:1", "0__1_5000/a"),
            ("{host}/{repository}", "[fd00::]:5000/a:1", "fd00__0_5000/a"),
            ("{host}/{repository}", "[::]/a:1", "0__0/a"),
            ("m-{host}.{repository}-x", "quay.io/a/b:1", "m-quay.io.a/b-x"),
        ] {
            let template: RepositoryTemplate = template.parse().unwrap();
            let result = template.apply(&reference(image)).unwrap();
            assert_eq!(&*result, name);
            assert!(is_repository_name(&result));
        }
    }

    #[test]
    fn a_template_without_a_valid_result_is_an_error() {
        for (template, message) in [
            ("k8s/{host}", "the template lacks `{repository}`: all images would get the same name"),
            ("", "the template lacks `{repository}`: all images would get the same name"),
            ("{tag}/{repository}", "unknown placeholder `{tag}`: expected `{host}` or `{repository}`"),
            ("{repository}/{host", "unknown placeholder `{host`: expected `{host}` or `{repository}`"),
            ("{repository}}", "unknown placeholder `}`: expected `{host}` or `{repository}`"),
            (
                "/{repository}",
                "invalid template `/{repository}`: it never results in a valid repository name",
            ),
            (
                "K8s/{repository}",
                "invalid template `K8s/{repository}`: it never results in a valid repository name",
            ),
            (
                "{host}:5000/{repository}",
                "invalid template `{host}:5000/{repository}`: it never results in a valid repository name",
            ),
        ] {
            assert_eq!(template.parse::<RepositoryTemplate>().unwrap_err().to_string(), message);
        }
        let long = format!("{}/{{repository}}", "a".repeat(254));
        assert!(matches!(long.parse::<RepositoryTemplate>(), Err(TemplateError::NeverValid { .. })));
    }

    #[test]
    fn an_image_without_a_valid_name_is_an_error() {
        let image = format!("quay.io/{}:1", "a".repeat(250));
        let message = format!("the repository name for `{image}` has 262 bytes, more than 255");
        let error = RepositoryTemplate::default().apply(&reference(&image)).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}
