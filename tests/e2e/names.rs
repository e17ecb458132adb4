//! Names of files and tags in lists and locks: `name=`, URLs with secrets, two meanings of one tag, and outputs that
//! cannot be written.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::pack_job::{FILES, LIST, OUTPUT, PackJob, REGISTRY, mirrors_to};
use crate::program::{Finished, airbundle, run, unbundle};
use crate::support::fake::{Content, Fake, Reply};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::web::free_port;
use crate::support::{process, sha256};

const SECRET: &str = "SECRETSIGNATURE0123456789abcdef";
const LOCK: &str = "airbundle.lock.json";

/// Returns the query of a presigned URL, longer than any file name.
fn query() -> String {
    let token = format!("{SECRET}{}", "T".repeat(500));
    format!("X-Amz-Expires=300&X-Amz-Security-Token={token}&X-Amz-Signature={SECRET}%2B")
}

/// A server that sends files only to requests with the signature, and quotes the requests that it rejects.
fn storage(content: &[(&str, &[u8])]) -> Fake {
    let mut all = Content::default();
    for (path, bytes) in content {
        all.file(&format!("https://{FILES}/{path}?{}", query()), bytes.to_vec());
    }
    Fake::start(all, |seen, reply| {
        if seen.path.contains(SECRET) && reply.status < 400 {
            return reply;
        }
        let message = format!("signature of {} does not match", seen.path);
        let body = serde_json::json!({"errors": [{"code": "DENIED", "message": message}]});
        Reply { status: 403, ..Reply::ok(body.to_string().as_bytes()) }
    })
}

fn line(path: &str, attributes: &str) -> String {
    format!("https://{FILES}/{path}?{} {attributes}\n", query())
}

/// Runs `airbundle VERB` for `lists` in the directory of the job, from `fake`.
fn airbundle_from(job: &PackJob, fake: &Fake, verb: &[&str], lists: &[&str], more: &[&str]) -> Finished {
    let args = verb.iter().map(|word| (*word).to_owned());
    let args = args.chain(lists.iter().map(|list| job.text(list)));
    airbundle(args.chain(PackJob::options_from(fake, more)))
}

/// Asserts that the secret is in none of the outputs.
#[track_caller]
fn assert_no_secret(finished: &Finished) {
    for text in [&finished.stdout, &finished.stderr] {
        assert!(!text.contains(SECRET), "{text}");
    }
}

/// Asserts that no file in the directory of the job but its lists contains the secret. Bundles are decompressed.
#[track_caller]
fn assert_no_secret_in_files(job: &PackJob) {
    for name in job.file_names().iter().filter(|name| !name.contains("list")) {
        let path = job.path(name);
        let mut bytes = fs::read(&path).expect("read a file");
        if name == OUTPUT {
            bytes.extend(process::run(Command::new("zstd").args(["-dcq"]).arg(&path)).stdout);
        }
        for word in [SECRET, "X-Amz"] {
            let found = bytes.windows(word.len()).any(|window| window == word.as_bytes());
            assert!(!found, "`{word}` is in {name}");
        }
    }
}

#[test]
fn presigned_url_is_packed_under_its_name_and_its_query_appears_nowhere() {
    let fake = storage(&[("b/tool.tar.gz", b"tool"), ("b/other", b"other")]);
    let list = line("b/tool.tar.gz", "name=tools/tool.tar.gz")
        + &line("b/other", &format!("{} name={FILES}/b/other", sha256(b"other")));
    let job = PackJob::new(&list);
    for output in [&["--json"][..], &[]] {
        let write_lock = job.text(LOCK);
        let packed = job.pack_from(&fake, &[output, &["--write-lock", &write_lock]].concat()).ok();
        assert_no_secret(&packed);
        assert_no_secret_in_files(&job);
    }
    let bundle = job.bundle();
    let site = job.text("site");
    for args in [
        &["ls", &job.text(OUTPUT), "--json"][..],
        &["ls", &job.text(OUTPUT), "--lock"],
        &["sbom", &job.text(OUTPUT)],
        &["sbom", &job.text(OUTPUT), "--format", "cyclonedx"],
        &["unpack", &job.text(OUTPUT), &site],
    ] {
        assert_no_secret(&unbundle(args).ok());
    }
    assert_eq!(fs::read(job.path("site/files/k8s/tools/tool.tar.gz")).expect("a file"), b"tool");
    assert_eq!(fs::read(job.path(&format!("site/files/k8s/{FILES}/b/other"))).expect("a file"), b"other");
    unbundle(["site", &site, "--host", "localhost", "--tls", "off"]).ok();
    let page = fs::read_to_string(job.path("site/files/index.html")).expect("the catalog");
    assert!(page.contains("tools/tool.tar.gz") && !page.contains(SECRET) && !page.contains("X-Amz"));

    let lock: Value = serde_json::from_slice(&fs::read(job.path(LOCK)).expect("the lock")).expect("JSON");
    let files: Vec<_> =
        lock["files"].as_array().expect("a list").iter().map(|file| (&file["url"], &file["path"])).collect();
    let (other, tool) = (format!("https://{FILES}/b/other"), format!("https://{FILES}/b/tool.tar.gz"));
    assert_eq!(*files[0].0, other.as_str());
    assert_eq!(files[0].1, &Value::Null, "the path follows from the URL");
    assert_eq!((files[1].0, files[1].1), (&Value::from(tool), &Value::from("tools/tool.tar.gz")));
    let printed = unbundle(["ls", &job.text(OUTPUT), "--lock"]).ok().stdout;
    assert_eq!(printed.as_bytes(), fs::read(job.path(LOCK)).expect("the lock"));

    // The lock has no signature: it is from the list, or from an option.
    fs::remove_dir_all(job.path("site")).expect("remove the site");
    let output = job.text(OUTPUT);
    let pack = ["pack", "-o", &output];
    let failed = airbundle_from(&job, &fake, &pack, &[LOCK], &[]).failed(4, &["403", "b/other"]);
    assert_no_secret(&failed);
    fs::remove_file(job.output()).expect("remove the bundle");
    let failed =
        airbundle_from(&job, &fake, &pack, &[LOCK], &["--keep-going"]).failed(4, &["403", "tool.tar.gz"]);
    assert!(failed.stderr.contains("hint: a lock does not contain the query"), "{failed:#?}");
    assert_no_secret(&failed);
    let url = |path: &str, name: &str| format!("{name}=https://{FILES}/{path}?{}", query());
    let (tool, other) =
        (url("b/tool.tar.gz", "tools/tool.tar.gz"), url("b/other", &format!("{FILES}/b/other")));
    for (lists, options) in [(&[LOCK, LIST][..], &[][..]), (&[LOCK], &["--url", &tool, "--url", &other])] {
        let packed = airbundle_from(&job, &fake, &pack, lists, options).ok();
        assert_no_secret(&packed);
        assert!(job.bundle() == bundle, "the bundle of the lock has the same bytes");
        fs::remove_file(job.output()).expect("remove the bundle");
    }
    let check = ["lock", "--check"];
    let checked = airbundle_from(&job, &fake, &check, &[LOCK], &["--url", &tool, "--url", &other]).ok();
    assert_no_secret(&checked);
    let checked = airbundle_from(&job, &fake, &check, &[LOCK], &[]);
    assert_eq!(checked.code, Some(13), "{checked:#?}");
    assert!(
        checked.stdout.contains(&format!("gone    https://{FILES}/b/tool.tar.gz name=tools/tool.tar.gz"))
    );
    assert_no_secret(&checked);
    assert_no_secret_in_files(&job);
}

#[test]
fn query_with_a_secret_needs_a_name_and_no_error_contains_it() {
    let fake = storage(&[("a", b"a")]);
    for (list, code, words) in [
        (line("a", ""), 3, ["all.list:1:1", "`X-Amz-Expires`"]),
        (format!("https://{FILES}/a?sig={SECRET}\n"), 3, ["`sig`", "name=PATH"]),
        (format!("https://{FILES}/a?x={}{SECRET}\n", "y".repeat(300)), 3, ["255", "name=PATH"]),
        (line("a", "name=../a"), 3, ["all.list:1:", "`..`"]),
        (line("a", "name=a") + &line("b", "name=A"), 3, ["`A`", "collides"]),
        (line("missing", "name=a"), 4, ["403", "/missing"]),
        (line("a", &format!("name=a {}", sha256(b"other"))), 5, ["checksum mismatch", "/a"]),
    ] {
        let job = PackJob::new(&list);
        for options in [&["--require-pins"][..], &["--json"], &[]] {
            let finished = job.pack_from(&fake, options);
            assert_no_secret(&finished);
            if options.is_empty() {
                finished.failed(code, &words);
            }
        }
        assert_no_secret_in_files(&job);
    }
    // Neither does a refused option.
    let job = PackJob::new(&line("a", "name=a"));
    for (value, words) in [
        (format!("b=https://{FILES}/a?{SECRET}"), "no file has this path"),
        (format!("a=ftp://{FILES}/a?{SECRET}"), "expected a path"),
        (format!("a=https://u:{SECRET}@{FILES}/a"), "user name or password"),
        (format!("a=https://{FILES}:x/a?{SECRET}"), "invalid URL"),
    ] {
        let finished = job.pack_from(&fake, &["--url", &value]).failed(2, &["--url", words]);
        assert_no_secret(&finished);
    }
    // Nor the connection that fails, by name or after a redirect.
    let port = free_port();
    let redirects = Fake::start(Content::default(), move |_, _| {
        Reply::redirect(&format!("http://127.0.0.1:{port}/moved?X-Amz-Signature={SECRET}"))
    });
    for host in [format!("127.0.0.1:{port}"), redirects.addr()] {
        let job = PackJob::new(&format!("http://{host}/a?{} name=a\n", query()));
        let finished = job.pack_with(&["--retries", "0"]).failed(4, &["127.0.0.1", "failed"]);
        assert_no_secret(&finished);
    }
}

#[test]
fn lists_beside_a_lock_only_renew_its_urls() {
    let fake = storage(&[("a", b"a"), ("b", b"b")]);
    let job = PackJob::new(&line("a", "name=a"));
    let lock = job.text(LOCK);
    airbundle_from(&job, &fake, &["lock", "-o", &lock], &[LIST], &[]).ok();
    let output = job.text(OUTPUT);
    let pack = ["pack", "-o", &output];
    let other = format!("{REGISTRY}/team/app:1");
    for (list, words) in [
        (line("b", "name=b"), ["b.list:1", "name=b` is not in the lock"]),
        (format!("{}{other}\n", line("a", "name=a")), ["b.list:2", "app:1` is not in the lock"]),
        (line("a", &format!("name=a {}", sha256(b"x"))), ["b.list:1", "another checksum"]),
    ] {
        job.write("b.list", list);
        let finished = airbundle_from(&job, &fake, &pack, &[LOCK, "b.list"], &[]).failed(3, &words);
        assert_no_secret(&finished);
    }
    airbundle_from(&job, &fake, &pack, &[LOCK, LOCK], &[]).failed(2, &["cannot combine", LOCK]);
    // A new URL of another host has no effect on the content: the lock pins it.
    job.write("b.list", line("b", "name=a"));
    airbundle_from(&job, &fake, &pack, &[LOCK, "b.list"], &[]).failed(5, &["mismatch"]);
}

#[test]
fn one_url_can_have_several_names_and_names_tell_urls_apart() {
    let mut content = Content::default();
    for file in ["one", "two"] {
        content.file(&format!("https://{FILES}/get?file={file}"), file.as_bytes().to_vec());
    }
    let fake = Fake::honest(content);
    let job = PackJob::new(&format!(
        "https://{FILES}/get?file=one name=1\nhttps://{FILES}/get?file=one name=uno\n\
         https://{FILES}/get?file=two name=2\n"
    ));
    let lock = job.text(LOCK);
    job.pack_from(&fake, &["--write-lock", &lock]).ok();
    let site = job.text("site");
    unbundle(["unpack", &job.text(OUTPUT), &site]).ok();
    for (name, bytes) in [("1", "one"), ("uno", "one"), ("2", "two")] {
        assert_eq!(fs::read_to_string(job.path(&format!("site/files/k8s/{name}"))).expect("a file"), bytes);
    }
    let diff = airbundle(["diff", &lock, &job.text(OUTPUT)]).ok().stdout;
    assert_eq!(diff, "no difference\n");
}

#[test]
fn tag_with_two_meanings_is_an_error_before_the_site() {
    let image =
        |seed: u64| Image::new(Format::Oci, "linux/amd64", &[Layer::random(seed, 1000, Compression::Gzip)]);
    let (old, new) = (image(1), image(2));
    let mut content = Content::default();
    content.image(&format!("{REGISTRY}/r/a:old"), &old);
    content.image(&format!("{REGISTRY}/r/a:v1"), &new);
    let fake = Fake::honest(content);
    let name = format!("{REGISTRY}/r/a:v1");
    let (at_old, at_new) = (format!("{name}@{}", old.root.digest), format!("{name}@{}", new.root.digest));
    for list in [format!("{at_old}\n{name}\n"), format!("{at_old}\n{at_new}\n")] {
        let job = PackJob::new(&list);
        let finished = job.pack_with(&mirrors_to(&fake)).failed(3, &[&name, &at_old, &new.root.digest]);
        assert!(finished.stderr.contains("write its digest without the tag"), "{finished:#?}");
        assert_eq!(job.file_names(), [LIST]);
        let lock = job.text(LOCK);
        let locked = airbundle_from(&job, &fake, &["lock", "-o", &lock], &[LIST], &[]);
        locked.failed(3, &[&name, &at_old, &new.root.digest]);
        assert!(!Path::new(&lock).exists());
    }
    // The same image under both names, and the older one by its digest alone.
    let bare = format!("{REGISTRY}/r/a@{}", old.root.digest);
    let job = PackJob::new(&format!("{at_new}\n{name}\n{bare}\n"));
    job.pack_with(&mirrors_to(&fake)).ok();
    unbundle(["unpack", &job.text(OUTPUT), &job.text("site")]).ok();
}

#[test]
fn version_of_a_chart_with_a_plus_sign_is_explained() {
    let job = PackJob::new("quay.io/charts/app:1.2.3+k8s.4\n");
    let finished = job.fails(&[], 3, &["all.list:1:25", "`_`", "`1.2.3_k8s.4`"]);
    assert!(!finished.stderr.contains("128 of letters"), "{finished:#?}");
}

/// Runs a program as a user who may not write to `directory`.
fn run_as_nobody(program: &str, args: &[&str], directory: &Path) -> Finished {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", program]).args(args);
    command.current_dir(directory).env_remove("HOME");
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "no_proxy"] {
        command.env_remove(name);
    }
    run(&mut command)
}

#[test]
fn output_that_cannot_be_written_is_an_error_before_the_work() {
    let (airbundle, unbundle) = (env!("CARGO_BIN_EXE_airbundle"), env!("CARGO_BIN_EXE_unbundle"));
    let mut content = Content::default();
    content.file(&format!("https://{FILES}/a"), b"a".to_vec());
    let image = Image::new(Format::Oci, "linux/amd64", &[Layer::random(1, 1000, Compression::Gzip)]);
    content.image(&format!("{REGISTRY}/r/a:1"), &image);
    let fake = Fake::honest(content);
    let list = format!("https://{FILES}/a\n{REGISTRY}/r/a:1\n");
    let job = PackJob::new(&list);
    job.pack_from(&fake, &[]).ok();
    let (site, bundle) = (job.text("site"), job.text(OUTPUT));
    crate::program::unbundle(["unpack", &bundle, &site]).ok();
    let directory = job.path("readonly");
    fs::create_dir(&directory).expect("create a directory");
    for path in [job.path(""), directory.clone()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("change the mode");
    }
    let before = fake.seen().len();
    let (lists, mirrors) = (job.text(LIST), mirrors_to(&fake));
    let mirrors: Vec<&str> = mirrors.iter().map(String::as_str).collect();
    let shown = directory.to_str().expect("UTF-8");
    for (program, args) in [
        (airbundle, [&["lock", &lists, "-o", "x.json"][..], &mirrors].concat()),
        (airbundle, [&["pack", &lists, "-o", "x.tar.zst"][..], &mirrors].concat()),
        (
            airbundle,
            [&["pack", &lists, "-o", "/dev/null/x", "--write-lock", "x.json"][..], &mirrors].concat(),
        ),
        (unbundle, vec!["sbom", &bundle, "-o", "x.json"]),
        (unbundle, vec!["inventory", &site, "-o", "x.json"]),
        (unbundle, vec!["images", &site, "--load", "oci-archive"]),
        (unbundle, vec!["images", &site, "--load", "oci-archive", "-o", "x.tar"]),
    ] {
        let finished = run_as_nobody(program, &args, &directory).failed(6, &["cannot create"]);
        if !args.contains(&"x.tar.zst") {
            assert!(finished.stderr.contains(shown), "no directory in {finished:#?}");
        }
    }
    assert_eq!(fake.seen().len(), before, "nothing was requested");
    assert_eq!(fs::read_dir(&directory).expect("list").count(), 0);
}
