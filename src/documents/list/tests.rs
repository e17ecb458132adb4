//! Tests of the list parser.

use super::*;
use crate::base::path::PathError;

const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn parse(texts: &[(&str, &str)]) -> (Lists, Vec<String>) {
    let mut lists = Lists::default();
    let mut problems = Vec::new();
    for (list, text) in texts {
        lists.parse_into(Path::new(list), text, &mut problems);
    }
    (lists, problems.iter().map(ListProblem::to_string).collect())
}

fn manifest(directory: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests").join(directory)
}

/// A temporary directory.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("airbundle-list-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.0.join(name), bytes).unwrap();
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_shipped_kubespray_lists_parse_without_problems() {
    for (directory, files, sha256, sha512, images) in [
        ("kubespray-v2.25.0", 23, 23, 0, 57),
        ("kubespray-v2.25.0/arm64", 23, 21, 0, 57),
        ("kubespray-v2.31.0", 24, 22, 2, 48),
        ("kubespray-v2.31.0/arm64", 24, 22, 2, 48),
    ] {
        let lists = Lists::read(&[manifest(directory)]).unwrap();
        let count = |is_counted: fn(&Checksum) -> bool| {
            lists.files.iter().filter_map(|file| file.checksum.as_ref()).filter(|sum| is_counted(sum)).count()
        };
        assert_eq!((lists.files.len(), lists.images.len()), (files, images), "{directory}");
        assert_eq!(count(|sum| matches!(sum, Checksum::Sha256(_))), sha256, "{directory}");
        assert_eq!(count(|sum| matches!(sum, Checksum::Sha512(_))), sha512, "{directory}");
        assert!(
            lists.images.iter().all(|image| image.reference.tag().is_some() && image.platforms.is_empty())
        );
    }
}

/// These URLs have no port, query, escape or doubled slash.
#[test]
fn the_paths_of_the_shipped_lists_are_their_urls_without_the_scheme() {
    for directory in
        ["kubespray-v2.25.0", "kubespray-v2.25.0/arm64", "kubespray-v2.31.0", "kubespray-v2.31.0/arm64"]
    {
        for file in Lists::read(&[manifest(directory)]).unwrap().files {
            assert_eq!(Some(file.path.as_str()), file.url.as_str().strip_prefix("https://"));
        }
    }
}

#[test]
fn the_output_of_generate_list_is_valid_and_keeps_its_names() {
    for directory in ["kubespray-v2.25.0", "kubespray-v2.31.0"] {
        for name in NAMES {
            let shipped = std::fs::read_to_string(manifest(directory).join(name)).unwrap();
            let plain: Vec<_> = shipped.lines().skip(2).filter_map(|line| line.split(' ').next()).collect();
            let (lists, problems) = parse(&[(name, &plain.join("\n"))]);
            assert_eq!(problems, [""; 0]);
            let files = lists.files.iter().map(|file| file.url.to_string());
            let images = lists.images.iter().map(|image| image.reference.to_string());
            assert_eq!(files.chain(images).collect::<Vec<_>>(), plain);
        }
    }
}

fn wget_path(url: &Url) -> Result<RelPath, PathError> {
    let mut url = url.clone();
    url.set_fragment(None);
    url.set_username("").and_then(|()| url.set_password(None)).unwrap();
    source_url(&url).wget_path()
}

/// The paths were recorded with GNU Wget 1.21.3.
#[test]
fn paths_equal_those_of_wget() {
    for (url, path) in [
        ("http://H.Example.com/a/B?x=y", "h.example.com/a/B?x=y"),
        ("http://h.example.com:8080/a", "h.example.com:8080/a"),
        ("http://h.example.com:80/a", "h.example.com/a"),
        ("https://h.example.com:443/a", "h.example.com/a"),
        ("https://h.example.com:80/a", "h.example.com:80/a"),
        ("http://u:p@h.example.com/a#frag", "h.example.com/a"),
        ("http://h.example.com./a", "h.example.com./a"),
        ("http://[::1]:8080/a", "::1:8080/a"),
        ("http://[::1]/a", "::1/a"),
        ("http://bücher.example/a", "xn--bcher-kva.example/a"),
        ("http://h.example.com/a%2Bb+c", "h.example.com/a+b+c"),
        ("http://h.example.com/a%20b/%C3%A9", "h.example.com/a b/é"),
        ("http://h.example.com/%C5%99/ř", "h.example.com/ř/ř"),
        ("http://h.example.com/a%2Fb", "h.example.com/a%2Fb"),
        ("http://h.example.com/a%2fb", "h.example.com/a%2Fb"),
        ("http://h.example.com/a%252Fb", "h.example.com/a%2Fb"),
        ("http://h.example.com/a%3Fb%23c", "h.example.com/a?b#c"),
        ("http://h.example.com/a%25b%c", "h.example.com/a%b%c"),
        (r#"http://h.example.com/a:b*"<>|{}[]^`~"#, r#"h.example.com/a:b*"<>|{}[]^`~"#),
        ("http://h.example.com/a//b///c", "h.example.com/a/b/c"),
        ("http://h.example.com//a", "h.example.com/a"),
        ("http://h.example.com", "h.example.com/index.html"),
        ("http://h.example.com/a/", "h.example.com/a/index.html"),
        ("http://h.example.com/a//", "h.example.com/a/index.html"),
        ("http://h.example.com?q=1", "h.example.com/index.html?q=1"),
        ("http://h.example.com/a/?q=1", "h.example.com/a/index.html?q=1"),
        ("http://h.example.com/a?", "h.example.com/a?"),
        ("http://h.example.com/a?u=http://x/y", "h.example.com/a?u=http:%2F%2Fx%2Fy"),
        ("http://h.example.com/a?u=x%2fy%20z+%2B?", "h.example.com/a?u=x%2Fy z++?"),
        ("http://h.example.com/a/../b/./c", "h.example.com/b/c"),
        ("http://h.example.com/../b", "h.example.com/b"),
        ("http://h.example.com/a/..", "h.example.com/index.html"),
        ("http://h.example.com/a;b=c/d", "h.example.com/a;b=c/d"),
    ] {
        assert_eq!(wget_path(&Url::parse(url).unwrap()).unwrap().as_str(), path, "{url}");
    }
}

#[test]
fn urls_without_a_valid_file_path_are_refused() {
    for (url, error) in [
        ("http://h/a%00b", PathError::Character { character: '\0', offset: 3 }),
        ("http://h/a%0Ab", PathError::Character { character: '\n', offset: 3 }),
        ("http://h/a%5C..%5Cb", PathError::Character { character: '\\', offset: 3 }),
        ("http://h/%FF", PathError::NotUtf8),
        (&format!("http://h/{}", "x".repeat(256)), PathError::LongComponent { len: 256 }),
    ] {
        assert_eq!(wget_path(&Url::parse(url).unwrap()), Err(error), "{url}");
    }
}

#[test]
fn no_url_escapes_the_directory_of_its_host() {
    for url in
        ["http://h/%2e%2e/%2E./a", "http://h/..%2f..%2fa", "http://h/%252e%252e/a", "http://h/a/../../../b"]
    {
        let path = wget_path(&Url::parse(url).unwrap()).unwrap();
        assert!(path.as_str().starts_with("h/"), "{path}");
    }
}

#[test]
fn a_list_can_mix_files_images_comments_and_attributes() {
    let text = format!(
        "\u{feff}# nginx:1 in a comment is no image\r\n\
         \r\n \thttps://h/a#part sha256:{HEX}\t# why\r\n\
         HTTP://h/b sha512:{}\r\n\
         \t# more\n\
         quay.io/a:1 platform=linux/amd64,linux/aarch64,linux/amd64 #x\n\
         quay.io/b:1",
        "0F".repeat(64)
    );
    let (lists, problems) = parse(&[("x.list", &text)]);
    assert_eq!(problems, [""; 0]);
    let files: Vec<_> = lists
        .files
        .iter()
        .map(|file| format!("{} {} {}", file.origin, file.url, file.checksum.as_ref().unwrap()))
        .collect();
    let sha512 = "0f".repeat(64);
    assert_eq!(
        files,
        [format!("x.list:3 https://h/a sha256:{HEX}"), format!("x.list:4 http://h/b sha512:{sha512}")]
    );
    let platforms: Vec<_> = lists.images[0].platforms.iter().map(Platform::to_string).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
    assert!(lists.images[1].platforms.is_empty());
}

#[test]
fn problems_have_a_position_and_name_what_is_expected() {
    let missing_tag = "expected `:` and a tag, or `@` and a digest: an implicit `latest` is not accepted";
    let tag =
        "expected a tag: at most 128 of letters, digits, `_`, `.` and `-`, not beginning with `.` or `-`";
    let plus =
        "a tag cannot contain `+`: write `_` instead, as Helm does when it pushes a chart (`1.2.3_k8s.4`)";
    let plus_too = "a tag cannot contain `+`: write `_` instead, as Helm does when it pushes a chart (`1_b`)";
    let hub = "the host of the registry is missing: write `docker.io/library/nginx:1` if Docker Hub is meant";
    let scheme = "expected `http://` or `https://` for a file, or an image reference without a scheme";
    let user = "the URL contains a user name or password: credentials do not belong in a list";
    let file = "unknown attribute of a file: expected `sha256:` and 64 hex digits, or `sha512:` and 128; or `name=` and a path";
    let image = "unknown attribute of an image: expected `platform=` and comma-separated platforms";
    let platform =
        "expected `os/architecture` or `os/architecture/variant` in lower case, such as `linux/amd64`";
    for (text, position, message) in [
        ("nginx:1", "1:1", hub),
        ("\n\t quay.io/a", "2:12", missing_tag),
        ("quay.io/a:1#x", "1:12", tag),
        ("quay.io/charts/a:1.2.3+k8s.4", "1:23", plus),
        ("quay.io/a:1+b c:d", "1:12", plus_too),
        ("quay.io/a:+1#x", "1:11", tag),
        ("ftp://h/a", "1:1", scheme),
        ("http://", "1:1", "invalid URL: empty host"),
        ("https:///a", "1:9", "expected a host"),
        ("https://h\\a", "1:10", "expected `/` instead of `\\`"),
        ("https://h:99999/a", "1:1", "invalid URL: invalid port number"),
        ("https://u@h/a", "1:1", user),
        ("https://:p@h/a", "1:1", user),
        ("https://h/a%0a", "1:1", "the URL has no valid file name: the path contains `\\n` at byte 3"),
        ("https://h/é\u{a0}b", "1:12", "unexpected character U+00A0"),
        ("https://h/a\rhttps://h/b", "1:12", "unexpected character U+000D"),
        ("quay.io/a:1 \u{1b}[2J", "1:13", "unexpected character U+001B"),
        ("quay.io/a:1 \u{202e}x", "1:13", "unexpected character U+202E"),
        ("https://h/é sha1:00", "1:13", file),
        ("https://h/a platform=linux/amd64", "1:13", file),
        ("https://h/a sha256:00", "1:20", "expected 64 hex digits after `sha256:`"),
        ("https://h/a sha512:00", "1:20", "expected 128 hex digits after `sha512:`"),
        ("quay.io/a:1 sha256:00", "1:13", image),
        ("quay.io/a:1 platform=linux/amd64,arm64", "1:34", platform),
        ("quay.io/a:1 platform=", "1:22", platform),
        ("quay.io/a:1 platform=a/b platform=a/c", "1:26", "expected one such attribute, not two"),
    ] {
        let (lists, problems) = parse(&[("x.list", text)]);
        assert_eq!(problems, [format!("x.list:{position}: {message}")], "{text:?}");
        assert_eq!(lists, Lists::default(), "{text:?}");
    }
}

#[test]
fn a_named_file_has_its_path_and_no_query_but_in_the_request() {
    let text = format!(
        "https://h/a.tgz?X-Amz-Signature=SECRET name=tools/a.tgz sha256:{HEX}\n\
         https://h/a.tgz?X-Amz-Signature=SECRET name=b\n\
         https://h/c?v=1 name=h/c\n\
         https://h/c?v=2\n\
         https://h/a.tgz?X-Amz-Signature=SECRET name=b\n"
    );
    let (lists, problems) = parse(&[("x.list", &text)]);
    assert_eq!(problems, [""; 0]);
    let files: Vec<_> = lists
        .files
        .iter()
        .map(|file| format!("{} {} {} {}", file.path, file.url, file.request_url.reveal(), file.name()))
        .collect();
    let signed = "https://h/a.tgz?X-Amz-Signature=SECRET";
    assert_eq!(
        files,
        [
            format!("tools/a.tgz https://h/a.tgz {signed} https://h/a.tgz name=tools/a.tgz"),
            format!("b https://h/a.tgz {signed} https://h/a.tgz name=b"),
            "h/c https://h/c https://h/c?v=1 https://h/c".to_owned(),
            "h/c?v=2 https://h/c?v=2 https://h/c?v=2 https://h/c?v=2".to_owned(),
        ]
    );
    assert!(lists.files[0].checksum.is_some());
    assert!(!format!("{lists:?}").contains("SECRET"));
}

#[test]
fn a_query_with_a_secret_or_without_a_file_name_needs_a_name() {
    let long = format!("https://h/a?x={}", "y".repeat(300));
    let secret = "a secret would be in the bundle: add `name=PATH`, the path of the file on the site";
    for (text, position, message) in [
        ("https://h/a?v=1&Sig=SECRET", "1:1", format!("the query contains `Sig`, {secret}")),
        (
            &long,
            "1:1",
            "the URL has no valid file name: the path has a component of 304 bytes, more than 255; add \
             `name=PATH`, the path of the file on the site"
                .to_owned(),
        ),
        ("https://h/a name=", "1:18", "invalid path: the path is empty".to_owned()),
        (
            "https://h/a name=/b",
            "1:18",
            "invalid path: the path is absolute: expected a relative path".to_owned(),
        ),
        ("https://h/a name=a/../b", "1:18", "invalid path: the path has the component `..`".to_owned()),
        ("https://h/a name=b name=c", "1:20", "expected one such attribute, not two".to_owned()),
        (&format!("https://h/{}a", "/".repeat(17_000)), "1:1", "invalid URL: too long".to_owned()),
    ] {
        let (lists, problems) = parse(&[("x.list", text)]);
        assert_eq!(problems, [format!("x.list:{position}: {message}")]);
        assert_eq!(lists, Lists::default());
    }
    let (_, problems) =
        parse(&[("x.list", "https://h/a name=X\nhttps://h/b name=x\nhttps://h/c?sig=1 name=X")]);
    assert_eq!(
        problems,
        [
            "x.list:2:1: the path `x` collides with `X` at x.list:1",
            "x.list:3:1: the path `X` is already used by another URL at x.list:1",
        ]
    );
}

#[test]
fn duplicate_entries_are_merged() {
    let a = format!("https://h/a\nhttps://h/b sha256:{HEX}\nquay.io/a:1 platform=linux/amd64\nquay.io/b:1\n");
    let b = format!(
        "https://H:443/a#x sha256:{HEX}\nhttps://h/b\nquay.io/a:1 platform=linux/arm64,linux/amd64\n"
    );
    let c = "quay.io/b:1 platform=linux/amd64\n\
             index.docker.io/nginx:1 platform=linux/amd64\ndocker.io/library/nginx:1";
    let (lists, problems) = parse(&[("a.list", &a), ("b.list", &b), ("c.list", c)]);
    assert_eq!(problems, [""; 0]);
    let files: Vec<_> =
        lists.files.iter().map(|file| format!("{} {}", file.origin, file.checksum.is_some())).collect();
    assert_eq!(files, ["a.list:1 true", "a.list:2 true"]);
    let images: Vec<_> = lists
        .images
        .iter()
        .map(|image| format!("{} {} {}", image.origin, image.reference, image.platforms.len()))
        .collect();
    assert_eq!(
        images,
        ["a.list:3 quay.io/a:1 2", "a.list:4 quay.io/b:1 0", "c.list:2 docker.io/library/nginx:1 0"]
    );
}

#[test]
fn conflicts_name_both_lines() {
    let sha512 = "0".repeat(128);
    let a = format!("https://h/a sha256:{HEX}\nhttps://h/dir/x\nhttps://h/a sha512:{sha512}\n");
    let b = " http://h/a\nhttps://h/dir\nhttps://h/A\nhttps://h/Dir/x/y\nhttps://h/b\n.h/a:1\nhttps://h/%62";
    let (lists, problems) = parse(&[("a.list", &a), ("b.list", b)]);
    assert_eq!(
        problems,
        [
            "a.list:3:1: checksum conflict: the URL has a different checksum at a.list:1",
            "b.list:1:2: the path `h/a` is already used by another URL at a.list:1",
            "b.list:2:1: the path `h/dir` collides with `h/dir/x` at a.list:2",
            "b.list:3:1: the path `h/A` collides with `h/a` at a.list:1",
            "b.list:4:1: the path `h/Dir/x/y` collides with `h/dir` at b.list:2",
            "b.list:6:1: expected a host: a domain name, an IPv4 address, or an IPv6 address in brackets",
            "b.list:7:1: the path `h/b` is already used by another URL at b.list:5",
        ]
    );
    let paths: Vec<_> = lists.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["h/a", "h/dir/x", "h/b"]);
}

#[test]
fn one_run_reports_all_problems_of_all_lists() {
    let scratch = Scratch::new("problems");
    let utf8 = scratch.write("a.list", b"nginx:1\nquay.io/\xc3\xa9\xff:1 x\nhttps://h/a x");
    let utf16 = scratch.write("b.list", b"\xff\xfeh\0t\0\n\0");
    let error = Lists::read(&[utf8.clone(), utf16.clone()]).unwrap_err();
    let ListError::Problems(problems) = &error else { panic!("{error}") };
    let positions: Vec<_> =
        problems.iter().map(|problem| (&problem.list, problem.line, problem.column)).collect();
    assert_eq!(positions, [(&utf8, 1, 1), (&utf8, 2, 10), (&utf8, 3, 13), (&utf16, 1, 1)]);
    assert_eq!(problems[1].message, "the line is not UTF-8");
    assert_eq!(problems[3].message, "the list is UTF-16: save it as UTF-8");
    assert!(error.to_string().lines().eq(problems.iter().map(ListProblem::to_string)));
}

#[test]
fn a_directory_is_replaced_by_the_lists_in_it() {
    let scratch = Scratch::new("directory");
    let directory = scratch.0.clone();
    let read = || Lists::read(std::slice::from_ref(&directory));
    assert_eq!(
        read().unwrap_err().to_string(),
        format!("no `files.list` or `images.list` in directory `{}`", directory.display())
    );
    scratch.write("images.list", b"# nothing yet\n");
    assert_eq!(read().unwrap_err().to_string(), "the lists are empty: no file and no image");
    scratch.write("images.list", b"quay.io/a:1\n");
    scratch.write("files.list", b"https://h/a\n");
    let lists = read().unwrap();
    assert_eq!(lists.files[0].origin.list, directory.join("files.list"));
    assert_eq!(lists.images[0].origin.list, directory.join("images.list"));
}

#[test]
fn missing_and_oversized_lists_have_their_own_errors() {
    let scratch = Scratch::new("large");
    let missing = Lists::read(&[scratch.0.join("missing.list")]).unwrap_err();
    assert!(matches!(missing, ListError::Read { path, .. } if path.ends_with("missing.list")));
    let large = scratch.write("large.list", b"");
    File::options().write(true).open(&large).unwrap().set_len(MAX_LIST + 1).unwrap();
    assert!(matches!(Lists::read(&[large]), Err(ListError::TooLarge { .. })));
}

#[test]
fn a_conflict_of_git_is_named() {
    let text = "<<<<<<< HEAD\nquay.io/a/b:1\n||||||| base\n=======\nquay.io/a/b:2\n>>>>>>> next\n";
    let (_, problems) = parse(&[("list", text)]);
    let expected = [(1, "<<<<<<<"), (3, "|||||||"), (4, "======="), (6, ">>>>>>>")];
    let expected =
        expected.map(|(line, mark)| format!("list:{line}:1: unresolved conflict of git: `{mark}`"));
    assert_eq!(problems, expected);
}
