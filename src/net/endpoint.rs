//! [`Endpoint`]: a host and a path to send requests to.

/// A host and a path, for images or for a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `https` or `http`. `None`: HTTPS, or HTTP if only that is available and allowed.
    pub scheme: Option<&'static str>,
    /// Host, with its port unless that is the default one.
    pub host: String,
    /// Repository or path of the file, without a leading slash.
    pub path: String,
    /// True if certificates are not verified and plain HTTP is allowed.
    pub insecure: bool,
    /// True if the endpoint is a mirror.
    pub is_mirror: bool,
}
