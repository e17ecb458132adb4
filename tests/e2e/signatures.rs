//! Signatures: compatibility with minisign in both directions, and nothing of a bundle without a trusted
//! signature reaches the disk.

use airbundle::bundle::format::skippable;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use airbundle::bundle::format::seek_table;
use airbundle::bundle::format::skippable::{PADDING_MAGIC, SIGNATURE_MAGIC};
use tempfile::{TempDir, tempdir};

use crate::program::{Finished, airbundle_command, run, unbundle, unbundle_command, unbundle_from};
use crate::support::fake::{Content, Fake};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::process;

const UNSIGNED: i32 = 14;
const SIGNER: i32 = 15;
const PASSPHRASE: &str = "korrekt pferd batterie";

/// A directory with keys, an upstream and bundles.
struct SigningJob {
    directory: TempDir,
    fake: Fake,
}

impl SigningJob {
    /// Generates the keys `ours` and `other` without a passphrase.
    fn new() -> Self {
        let mut content = Content::default();
        let image = Image::new(Format::Oci, "linux/amd64", &[Layer::random(1, 3000, Compression::None)]);
        content.image("registry.example/a:1", &image);
        content.file("https://files.example/one", b"one".to_vec());
        content.file("https://files.example/two", b"two".to_vec());
        let job = Self { directory: tempdir().unwrap(), fake: Fake::honest(content) };
        for name in ["ours", "other"] {
            job.airbundle(&["keygen", "--no-passphrase", "-o", &job.text(&format!("{name}.key"))]).ok();
        }
        job
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn airbundle(&self, args: &[&str]) -> Finished {
        run(airbundle_command().current_dir(self.directory.path()).args(args))
    }

    fn pack_command(&self, name: &str, file: &str, more: &[&str]) -> Command {
        let list = self.path(&format!("{name}.list"));
        fs::write(&list, format!("registry.example/a:1\nhttps://files.example/{file}\n")).unwrap();
        let mut command = airbundle_command();
        command.arg("pack").arg(list).arg("-o").arg(self.path(name)).args(more).arg("--mirrors-only");
        command.args(self.fake.mirror("registry.example")).args(self.fake.mirror("files.example"));
        command
    }

    /// Packs and returns the bundle.
    #[track_caller]
    fn pack(&self, name: &str, more: &[&str]) -> PathBuf {
        run(&mut self.pack_command(name, "one", more)).ok();
        self.path(name)
    }

    fn signed(&self) -> PathBuf {
        self.pack("signed.tar.zst", &["--sign", &self.text("ours.key")])
    }

    /// Extracts `index.json` with standard tools.
    fn index(&self, bundle: &Path) -> PathBuf {
        let path = self.path("index.json");
        let out = fs::File::create(&path).unwrap();
        let mut tar = Command::new("tar");
        tar.args(["--zstd", "-xOf"]).arg(bundle).arg("index.json").stdout(out);
        assert!(tar.status().unwrap().success());
        path
    }

    /// Asserts that no verb accepts the bundle or leaves anything on the disk.
    #[track_caller]
    fn assert_refused(&self, bundle: &Path, trusted: &str, code: i32, words: &[&str]) {
        let (site, key) = (self.text("site"), self.text(trusted));
        let name = bundle.to_str().unwrap();
        unbundle(["unpack", "--trusted-key", &key, name, &site]).failed(code, words);
        unbundle_from_pipe(bundle, &["unpack", "--trusted-key", &key, "-", &site]).failed(code, words);
        for verb in ["verify", "ls"] {
            let finished = unbundle([verb, "--trusted-key", &key, name]).failed(code, words);
            assert_eq!(finished.stdout, "", "{finished:#?}");
        }
        let image = self.text("image.tar");
        self.airbundle(&["image", "--kind", "files", "-o", &image, "--trusted-key", &key, name])
            .failed(code, words);
        for path in [&site, &image, &format!("{image}.partial")] {
            assert!(!Path::new(path).exists(), "{path}");
        }
    }

    #[track_caller]
    fn assert_accepted(&self, bundle: &Path, trusted: &str) {
        let (site, key) = (self.text("site"), self.text(trusted));
        let name = bundle.to_str().unwrap();
        unbundle(["unpack", "--trusted-key", &key, name, &site]).ok();
        fs::remove_dir_all(site).unwrap();
        let finished = unbundle(["verify", "--trusted-key", &key, name]).ok();
        assert!(finished.stdout.contains(", which is trusted\n"), "{finished:#?}");
    }
}

/// A program that refuses its input does not read the pipe to its end.
fn unbundle_from_pipe(input: &Path, args: &[&str]) -> Finished {
    run(unbundle_command().args(args).stdin(process_pipe(input)))
}

fn process_pipe(input: &Path) -> Stdio {
    let mut cat = Command::new("cat").arg(input).stdout(Stdio::piped()).spawn().unwrap();
    let pipe = cat.stdout.take().unwrap();
    std::thread::spawn(move || cat.wait());
    pipe.into()
}

/// Returns the offset and length of the signature in a bundle.
fn signature(bundle: &[u8]) -> (usize, usize) {
    let magic = SIGNATURE_MAGIC.to_le_bytes();
    let at = bundle.windows(4).position(|window| window == magic).expect("a signature");
    let len = u32::from_le_bytes(bundle[at + 4..at + 8].try_into().unwrap());
    (at + 8, at + 8 + len as usize)
}

/// Returns the bundle with other bytes in place of its signature and the padding, as if it had never been
/// signed.
fn with_signature_frame(bundle: &[u8], signature_frame: &[u8]) -> Vec<u8> {
    let table = seek_table::read(&mut std::io::Cursor::new(bundle)).unwrap().unwrap();
    let first = table.iter().position(|entry| entry.decompressed == 0).unwrap();
    let skipped = 1 + usize::from(table[first + 1].decompressed == 0);
    let len =
        |entries: &[seek_table::FrameEntry]| entries.iter().map(|e| e.compressed as usize).sum::<usize>();
    let (begin, room) = (len(&table[..first]), len(&table[first..first + skipped]));
    let padding = skippable::encode(PADDING_MAGIC, &vec![0; room - signature_frame.len() - 8]);
    let entry = |len: usize| seek_table::FrameEntry { compressed: len.try_into().unwrap(), decompressed: 0 };
    let mut entries = table[..first].to_vec();
    entries.extend((!signature_frame.is_empty()).then(|| entry(signature_frame.len())));
    entries.push(entry(padding.len()));
    entries.extend(&table[first + skipped..]);
    let body = &bundle[begin + room..len(&table)];
    [&bundle[..begin], signature_frame, &padding, body, &seek_table::encode(&entries)].concat()
}

#[test]
fn minisign_verifies_our_signature_with_standard_tools_alone() {
    let job = SigningJob::new();
    let bundle = job.signed();
    let bytes = fs::read(&bundle).unwrap();
    let (begin, end) = signature(&bytes);
    fs::write(job.path("sig"), &bytes[begin..end]).unwrap();
    let mut minisign = Command::new("minisign");
    minisign.args(["-V", "-m"]).arg(job.index(&bundle));
    minisign.arg("-x").arg(job.path("sig")).arg("-p").arg(job.path("ours.pub"));
    let printed = String::from_utf8(process::run(&mut minisign).stdout).unwrap();
    let identity = unbundle(["ls", "--json", bundle.to_str().unwrap()]).ok().json()["identity"].clone();
    assert!(printed.contains(identity.as_str().unwrap()), "{printed}");
    for arguments in [["zstd", "-tq"], ["tar", "--zstd"]] {
        let mut tool = Command::new(arguments[0]);
        tool.arg(arguments[1]).args((arguments[0] == "tar").then_some("-tf")).arg(&bundle);
        process::run(&mut tool);
    }
}

#[test]
fn unbundle_verifies_a_detached_minisign_signature() {
    let job = SigningJob::new();
    let bundle = job.pack("plain.tar.zst", &[]);
    process::run(
        Command::new("minisign")
            .args(["-G", "-W", "-f", "-p"])
            .arg(job.path("mini.pub"))
            .arg("-s")
            .arg(job.path("mini.key")),
    );
    job.assert_refused(&bundle, "mini.pub", UNSIGNED, &["not signed"]);
    let sign = |extra: &[&str]| {
        let mut minisign = Command::new("minisign");
        minisign.arg("-S").args(extra).arg("-s").arg(job.path("mini.key")).arg("-m").arg(job.index(&bundle));
        process::run(minisign.arg("-x").arg(job.path("plain.tar.zst.minisig")));
    };
    sign(&["-l"]);
    let key = job.path("mini.pub");
    let verify = ["verify".as_ref(), bundle.as_os_str(), "--trusted-key".as_ref(), key.as_os_str()];
    unbundle(verify).failed(SIGNER, &["older form", "plain.tar.zst.minisig", "`minisign -S -H`"]);
    sign(&["-H"]);
    job.assert_accepted(&bundle, "mini.pub");
    sign(&[]);
    job.assert_accepted(&bundle, "mini.pub");
    // Also of a bundle that was signed by another key.
    let signed = job.signed();
    fs::copy(job.path("plain.tar.zst.minisig"), job.path("signed.tar.zst.minisig")).unwrap();
    job.assert_accepted(&signed, "mini.pub");
    job.assert_accepted(&signed, "ours.pub");
    // Our programs sign with keys of minisign.
    let other = job.pack("other.tar.zst", &["--sign", &job.text("mini.key")]);
    job.assert_accepted(&other, "mini.pub");
    fs::write(job.path("plain.tar.zst.minisig"), "junk").unwrap();
    let name = bundle.to_str().unwrap();
    unbundle(["verify", "--trusted-key", &job.text("mini.pub"), name])
        .failed(SIGNER, &["plain.tar.zst.minisig"]);
    unbundle(["verify", name]).ok();
}

#[test]
fn bundle_without_a_trusted_signature_is_not_unpacked() {
    let job = SigningJob::new();
    let plain = job.pack("plain.tar.zst", &[]);
    let signed = job.signed();
    job.assert_accepted(&signed, "ours.pub");
    job.assert_refused(&plain, "ours.pub", UNSIGNED, &["not signed"]);
    job.assert_refused(&signed, "other.pub", SIGNER, &["signed by key", "not trusted"]);

    let bytes = fs::read(&signed).unwrap();
    let changed = job.path("changed.tar.zst");
    fs::write(&changed, with_signature_frame(&bytes, b"")).unwrap();
    unbundle(["verify", changed.to_str().unwrap()]).ok();
    job.assert_refused(&changed, "ours.pub", UNSIGNED, &["not signed"]);

    // The signature of another bundle.
    run(&mut job.pack_command("two.tar.zst", "two", &["--sign", &job.text("ours.key")])).ok();
    let two = fs::read(job.path("two.tar.zst")).unwrap();
    let (begin, end) = signature(&two);
    fs::write(&changed, with_signature_frame(&bytes, &two[begin - 8..end])).unwrap();
    job.assert_refused(&changed, "ours.pub", SIGNER, &["does not match this `index.json`"]);
    fs::write(&changed, with_signature_frame(&bytes, &skippable::encode(SIGNATURE_MAGIC, b"junk"))).unwrap();
    job.assert_refused(&changed, "ours.pub", SIGNER, &["not a minisign signature"]);
    unbundle(["verify", changed.to_str().unwrap()]).failed(7, &["1 part of"]);
}

#[test]
fn any_flipped_bit_in_a_signature_is_detected() {
    let job = SigningJob::new();
    let bundle = job.signed();
    let bytes = fs::read(&bundle).unwrap();
    let (begin, end) = signature(&bytes);
    let text = String::from_utf8(bytes[begin..end].to_vec()).unwrap();
    // The untrusted comment is not signed and may change.
    let begin = begin + text.find('\n').unwrap() + 1;
    let (site, key) = (job.text("site"), job.text("ours.pub"));
    let changed = job.path("changed.tar.zst");
    for at in begin..end - 1 {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 7);
        fs::write(&changed, bytes).unwrap();
        let finished = unbundle(["unpack", "--trusted-key", &key, changed.to_str().unwrap(), &site]);
        assert_eq!(finished.code, Some(SIGNER), "byte {at}: {finished:#?}");
        assert!(!Path::new(&site).exists(), "byte {at}");
    }
    // Magic number and length.
    let frame = signature(&bytes).0 - 8;
    for bit in 0..8 * 8 {
        let mut bytes = bytes.clone();
        bytes[frame + bit / 8] ^= 1 << (bit % 8);
        fs::write(&changed, bytes).unwrap();
        let finished = unbundle(["unpack", "--trusted-key", &key, changed.to_str().unwrap(), &site]);
        assert_ne!(finished.code, Some(0), "bit {bit}: {finished:#?}");
        assert!(!Path::new(&site).exists(), "bit {bit}");
    }
}

#[test]
fn signing_changes_no_other_byte_and_is_reproducible() {
    let job = SigningJob::new();
    let plain = fs::read(job.pack("plain.tar.zst", &[])).unwrap();
    assert!(!plain.windows(4).any(|window| window == SIGNATURE_MAGIC.to_le_bytes()));
    let signed = fs::read(job.signed()).unwrap();
    assert!(signed == fs::read(job.signed()).unwrap());
    let identity = |name: &str| unbundle(["ls", "--json", &job.text(name)]).ok().json()["identity"].clone();
    assert_eq!(identity("plain.tar.zst"), identity("signed.tar.zst"));
    // With a date, the signature has a timestamp.
    let mut command = job.pack_command("dated.tar.zst", "one", &["--sign", &job.text("ours.key")]);
    run(command.env("SOURCE_DATE_EPOCH", "1700000000")).ok();
    let key = job.text("ours.pub");
    let json = unbundle(["ls", "--json", "--trusted-key", &key, &job.text("dated.tar.zst")]).ok().json();
    let comment = json["signature"]["comment"].as_str().unwrap();
    assert!(comment.starts_with("timestamp:1700000000\t"), "{comment}");
    // A complete unsigned partial of an earlier run is reused.
    fs::rename(job.path("plain.tar.zst"), job.path("signed.tar.zst.partial")).unwrap();
    job.signed();
    assert!(signed == fs::read(job.path("signed.tar.zst")).unwrap());
    let left = job.pack(
        "signed.tar.zst",
        &["--sign", &key.replace(".pub", ".key"), "--reuse", &job.text("signed.tar.zst")],
    );
    assert!(signed == fs::read(left).unwrap());
}

#[test]
fn signature_is_reported_but_not_trusted_without_a_trusted_key() {
    let job = SigningJob::new();
    let bundle = job.signed();
    let name = bundle.to_str().unwrap();
    let result = unbundle(["verify", name]).ok();
    assert!(
        result.stdout.contains("signed by key ") && result.stdout.contains("not verified: no trusted key"),
        "{result:#?}"
    );
    let result = unbundle(["ls", name]).ok();
    assert!(result.stderr.contains("not verified: no trusted key"), "{result:#?}");
    for verb in ["ls", "verify"] {
        let signature = unbundle([verb, "--json", name]).ok().json()["signature"].clone();
        assert_eq!((&signature["trusted"], &signature["comment"]), (&false.into(), &serde_json::Value::Null));
    }
    let result = unbundle_from(&bundle, ["verify", "--trusted-key", &job.text("ours.pub"), "-"]).ok();
    assert!(result.stdout.contains("which is trusted"), "{result:#?}");
}

#[test]
fn trusted_key_comes_from_option_environment_or_host() {
    let job = SigningJob::new();
    let (bundle, plain) = (job.signed(), job.pack("plain.tar.zst", &[]));
    let text = fs::read_to_string(job.path("ours.pub")).unwrap();
    let line = text.lines().nth(1).unwrap();
    let verify = |bundle: &Path, keys: &[&str], variable: &str| {
        let mut command = unbundle_command();
        command.arg("verify").args(keys.iter().flat_map(|key| ["--trusted-key", key])).arg(bundle);
        run(command.env("UNBUNDLE_TRUSTED_KEY", variable))
    };
    verify(&bundle, &[line], "").ok();
    verify(&bundle, &[&job.text("other.pub"), line], "").ok();
    for variable in [line, &job.text("ours.pub")] {
        verify(&bundle, &[], variable).ok();
        verify(&plain, &[], variable).failed(UNSIGNED, &[]);
    }
    verify(&bundle, &[&job.text("other.pub")], line).failed(SIGNER, &[]);
    verify(&plain, &[], "").ok();
    let script = r#"set -eu
mount -t tmpfs tmpfs /etc
verify() { code=0; "$UNBUNDLE" verify "$@" >/dev/null || code=$?; echo $code; }
verify "$PLAIN"
mkdir -p /etc/airbundle/trusted-keys.d; verify "$PLAIN"
cp "$OTHER" /etc/airbundle/trusted-keys.d/other.pub
verify "$SIGNED" "$PLAIN"; verify "$SIGNED"; verify "$PLAIN"
cp "$OURS" /etc/airbundle/trusted.pub
verify "$SIGNED"
echo junk >/etc/airbundle/trusted-keys.d/junk.txt
verify "$SIGNED"
: >/etc/airbundle/trusted-keys.d/empty.pub
verify "$SIGNED"
rm -r /etc/airbundle/trusted-keys.d/* && rm /etc/airbundle/trusted.pub && ln -s nowhere /etc/airbundle/trusted.pub
verify "$PLAIN""#
        .replace(r#"verify "$SIGNED" "$PLAIN"; "#, "");
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", &script]).env("UNBUNDLE", env!("CARGO_BIN_EXE_unbundle"));
    unshare.env("PLAIN", &plain).env("SIGNED", &bundle).env_remove("UNBUNDLE_TRUSTED_KEY");
    let output =
        unshare.env("OURS", job.path("ours.pub")).env("OTHER", job.path("other.pub")).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed.split_whitespace().collect::<Vec<_>>(), ["0", "2", "15", "14", "0", "0", "2", "6"]);
}

#[test]
fn invalid_key_files_are_told_apart() {
    let job = SigningJob::new();
    let bundle = job.signed();
    let name = bundle.to_str().unwrap();
    let trusted = |key: &str| unbundle(["ls", "--trusted-key", key, name]);
    fs::write(job.path("junk"), [0xff, 0, 1]).unwrap();
    fs::write(job.path("empty"), "").unwrap();
    trusted(&job.text("junk")).failed(2, &["junk", "not a minisign public key"]);
    trusted(&job.text("empty")).failed(2, &["no key found"]);
    trusted(&job.text("ours.key")).failed(2, &["secret key"]);
    trusted(&job.text("nothing")).failed(6, &["neither a public key nor a file"]);
    let sign = |key: &str| run(&mut job.pack_command("new.tar.zst", "one", &["--sign", key]));
    sign(&job.text("junk")).failed(2, &["not a minisign secret key"]);
    sign(&job.text("empty")).failed(2, &["not a minisign secret key"]);
    sign(&job.text("ours.pub")).failed(2, &["public key"]);
    sign(&job.text("nothing")).failed(6, &["nothing"]);
    let mut text = fs::read_to_string(job.path("ours.key")).unwrap();
    let at = text.len() - 60;
    text.replace_range(at..=at, if &text[at..=at] == "A" { "B" } else { "A" });
    fs::write(job.path("junk"), text).unwrap();
    sign(&job.text("junk")).failed(2, &["not a minisign secret key"]);
    assert!(!job.path("new.tar.zst.partial").exists());
}

#[test]
fn exposed_key_and_unpinned_files_are_named_when_a_bundle_is_signed() {
    let job = SigningJob::new();
    let key = job.text("ours.key");
    let pack = |more: &[&str]| run(&mut job.pack_command("new.tar.zst", "one", more));
    let finished = pack(&["--sign", &key]).ok();
    assert!(!finished.stderr.contains("the secret key"), "{finished:#?}");
    assert!(finished.stderr.contains("the signature covers 1 file without a checksum"), "{finished:#?}");
    for (mode, is_exposed) in [(0o640, true), (0o604, true), (0o400, false)] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let finished = pack(&["--sign", &key]).ok();
        let is_named = finished.stderr.contains("other users can read or write the secret key")
            && finished.stderr.contains(&format!("chmod 600 {key}"));
        assert_eq!(is_named, is_exposed, "{mode:o}: {finished:#?}");
    }
    std::os::unix::fs::chown(&key, Some(65534), None).unwrap();
    let finished = pack(&["--sign", &key]).ok();
    assert!(finished.stderr.contains("belongs to another user (UID 65534)"), "{finished:#?}");
    assert!(!pack(&[]).ok().stderr.contains("without a checksum"));

    // The option is an error before anything is fetched, also without a signature.
    fs::remove_file(job.path("new.tar.zst")).unwrap();
    let before = job.fake.seen().len();
    let finished =
        pack(&["--require-pins"]).failed(3, &["new.tar.zst.list:2: no checksum for", "files.example/one"]);
    assert!(finished.stderr.contains("hint: add the checksum"), "{finished:#?}");
    assert_eq!(job.fake.seen().len(), before);
    assert!(!job.path("new.tar.zst").exists() && !job.path("new.tar.zst.partial").exists());
    let lock = job.text("new.lock.json");
    pack(&["--write-lock", &lock]).ok();
    let mut locked = airbundle_command();
    locked.args([
        "pack",
        &lock,
        "-o",
        &job.text("new.tar.zst"),
        "--require-pins",
        "--sign",
        &key,
        "--mirrors-only",
    ]);
    locked.args(job.fake.mirror("registry.example")).args(job.fake.mirror("files.example"));
    let finished = run(&mut locked).ok();
    assert!(!finished.stderr.contains("without a checksum"), "{finished:#?}");
}

#[test]
fn passphrase_comes_from_environment_stdin_or_terminal() {
    let job = SigningJob::new();
    let key = job.text("safe.key");
    let with_stdin = |command: &mut Command, text: &str| {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
        let output = child.wait_with_output().unwrap();
        Finished {
            code: output.status.code(),
            stdout: String::new(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    };
    job.airbundle(&["keygen", "-o", &key]).failed(2, &["passphrase"]);
    with_stdin(airbundle_command().args(["keygen", "--passphrase-stdin", "-o", &key]), "\n")
        .failed(2, &["empty"]);
    with_stdin(
        airbundle_command().args(["keygen", "--passphrase-stdin", "-o", &key]),
        &format!("{PASSPHRASE}\n"),
    )
    .ok();
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    job.airbundle(&["keygen", "--no-passphrase", "-o", &key]).failed(6, &["file exists"]);
    let pack =
        |more: &[&str]| job.pack_command("safe.tar.zst", "one", &[&["--sign", key.as_str()], more].concat());
    let assert_accepted = || {
        job.assert_accepted(&job.path("safe.tar.zst"), "safe.pub");
        fs::remove_file(job.path("safe.tar.zst")).unwrap();
    };
    with_stdin(&mut pack(&["--passphrase-stdin"]), PASSPHRASE).ok();
    assert_accepted();
    run(pack(&[]).env("AIRBUNDLE_PASSPHRASE", PASSPHRASE)).ok();
    assert_accepted();
    run(pack(&[]).env("AIRBUNDLE_PASSPHRASE", "falsch")).failed(2, &["wrong passphrase"]);
    run(&mut pack(&[])).failed(2, &["cannot read the passphrase"]);
    // On a terminal, which does not echo it.
    let command = pack(&[]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let mut terminal = Command::new("sh");
    let typed =
        format!("(sleep 1; echo '{PASSPHRASE}'; sleep 1) | script -qec \"{}\" /dev/null", line.join(" "));
    let printed = terminal.args(["-c", &typed]).env_remove("AIRBUNDLE_PASSPHRASE").output().unwrap();
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(printed.contains("Passphrase: ") && printed.contains("identity sha256:"), "{printed}");
    assert_accepted();
    // minisign accepts the passphrase of our key.
    let mut minisign = Command::new("minisign");
    fs::write(job.path("text"), "x").unwrap();
    minisign.args(["-S", "-s", &key, "-m"]).arg(job.path("text"));
    with_stdin(&mut minisign, &format!("{PASSPHRASE}\n")).ok();
    process::run(
        Command::new("minisign").arg("-Vm").arg(job.path("text")).arg("-p").arg(job.path("safe.pub")),
    );
}
