//! Signatures: what minisign makes of ours, what we make of minisign's, and that nothing of a bundle reaches the disk which
//! nobody has signed who is trusted.

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
struct Desk {
    directory: TempDir,
    fake: Fake,
}

impl Desk {
    /// With the keys `ours` and `other`, which need no passphrase.
    fn new() -> Self {
        let mut content = Content::default();
        let image = Image::new(Format::Oci, "linux/amd64", &[Layer::random(1, 3000, Compression::None)]);
        content.image("registry.example/a:1", &image);
        content.file("https://files.example/one", b"one".to_vec());
        content.file("https://files.example/two", b"two".to_vec());
        let desk = Self { directory: tempdir().unwrap(), fake: Fake::honest(content) };
        for name in ["ours", "other"] {
            desk.airbundle(&["keygen", "--no-passphrase", "-o", &desk.text(&format!("{name}.key"))]).ok();
        }
        desk
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

    /// Packs, and gives back the bundle.
    #[track_caller]
    fn pack(&self, name: &str, more: &[&str]) -> PathBuf {
        run(&mut self.pack_command(name, "one", more)).ok();
        self.path(name)
    }

    fn signed(&self) -> PathBuf {
        self.pack("signed.tar.zst", &["--sign", &self.text("ours.key")])
    }

    /// `index.json` as anybody can take it out.
    fn index(&self, bundle: &Path) -> PathBuf {
        let path = self.path("index.json");
        let out = fs::File::create(&path).unwrap();
        let mut tar = Command::new("tar");
        tar.args(["--zstd", "-xOf"]).arg(bundle).arg("index.json").stdout(out);
        assert!(tar.status().unwrap().success());
        path
    }

    /// No way takes the bundle, and none leaves anything on the disk.
    #[track_caller]
    fn refused(&self, bundle: &Path, trusted: &str, code: i32, words: &[&str]) {
        let (site, key) = (self.text("site"), self.text(trusted));
        let name = bundle.to_str().unwrap();
        unbundle(["unpack", "--trusted-key", &key, name, &site]).failed(code, words);
        unbundle_from_broken(bundle, &["unpack", "--trusted-key", &key, "-", &site]).failed(code, words);
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
    fn accepted(&self, bundle: &Path, trusted: &str) {
        let (site, key) = (self.text("site"), self.text(trusted));
        let name = bundle.to_str().unwrap();
        unbundle(["unpack", "--trusted-key", &key, name, &site]).ok();
        fs::remove_dir_all(site).unwrap();
        let finished = unbundle(["verify", "--trusted-key", &key, name]).ok();
        assert!(finished.stdout.contains(", which is trusted\n"), "{finished:#?}");
    }
}

/// Who is refused does not read the pipe to its end.
fn unbundle_from_broken(input: &Path, args: &[&str]) -> Finished {
    run(unbundle_command().args(args).stdin(process_pipe(input)))
}

fn process_pipe(input: &Path) -> Stdio {
    let mut cat = Command::new("cat").arg(input).stdout(Stdio::piped()).spawn().unwrap();
    let pipe = cat.stdout.take().unwrap();
    std::thread::spawn(move || cat.wait());
    pipe.into()
}

/// The signature that stands in a bundle, and where.
fn signature(bundle: &[u8]) -> (usize, usize) {
    let magic = SIGNATURE_MAGIC.to_le_bytes();
    let at = bundle.windows(4).position(|window| window == magic).expect("a signature");
    let len = u32::from_le_bytes(bundle[at + 4..at + 8].try_into().unwrap());
    (at + 8, at + 8 + len as usize)
}

/// The bundle with other bytes where its signature and the padding are, as if nobody had ever signed it.
fn replaced(bundle: &[u8], signature_frame: &[u8]) -> Vec<u8> {
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
fn minisign_verifies_what_we_sign_with_standard_tools_alone() {
    let desk = Desk::new();
    let bundle = desk.signed();
    let bytes = fs::read(&bundle).unwrap();
    let (begin, end) = signature(&bytes);
    fs::write(desk.path("sig"), &bytes[begin..end]).unwrap();
    let mut minisign = Command::new("minisign");
    minisign.args(["-V", "-m"]).arg(desk.index(&bundle));
    minisign.arg("-x").arg(desk.path("sig")).arg("-p").arg(desk.path("ours.pub"));
    let said = String::from_utf8(process::run(&mut minisign).stdout).unwrap();
    let identity = unbundle(["ls", "--json", bundle.to_str().unwrap()]).ok().json()["identity"].clone();
    assert!(said.contains(identity.as_str().unwrap()), "{said}");
    for arguments in [["zstd", "-tq"], ["tar", "--zstd"]] {
        let mut tool = Command::new(arguments[0]);
        tool.arg(arguments[1]).args((arguments[0] == "tar").then_some("-tf")).arg(&bundle);
        process::run(&mut tool);
    }
}

#[test]
fn we_verify_what_minisign_signs_beside_the_bundle() {
    let desk = Desk::new();
    let bundle = desk.pack("plain.tar.zst", &[]);
    process::run(
        Command::new("minisign")
            .args(["-G", "-W", "-f", "-p"])
            .arg(desk.path("mini.pub"))
            .arg("-s")
            .arg(desk.path("mini.key")),
    );
    desk.refused(&bundle, "mini.pub", UNSIGNED, &["not signed"]);
    let sign = |extra: &[&str]| {
        let mut minisign = Command::new("minisign");
        minisign
            .arg("-S")
            .args(extra)
            .arg("-s")
            .arg(desk.path("mini.key"))
            .arg("-m")
            .arg(desk.index(&bundle));
        process::run(minisign.arg("-x").arg(desk.path("plain.tar.zst.minisig")));
    };
    sign(&[]);
    desk.accepted(&bundle, "mini.pub");
    // Also of a bundle that somebody else had signed before.
    let signed = desk.signed();
    fs::copy(desk.path("plain.tar.zst.minisig"), desk.path("signed.tar.zst.minisig")).unwrap();
    desk.accepted(&signed, "mini.pub");
    desk.accepted(&signed, "ours.pub");
    // Our programs sign with its keys.
    let other = desk.pack("other.tar.zst", &["--sign", &desk.text("mini.key")]);
    desk.accepted(&other, "mini.pub");
    fs::write(desk.path("plain.tar.zst.minisig"), "junk").unwrap();
    let name = bundle.to_str().unwrap();
    unbundle(["verify", "--trusted-key", &desk.text("mini.pub"), name])
        .failed(SIGNER, &["plain.tar.zst.minisig"]);
    unbundle(["verify", name]).ok();
}

#[test]
fn what_nobody_trusted_has_signed_does_not_reach_the_disk() {
    let desk = Desk::new();
    let plain = desk.pack("plain.tar.zst", &[]);
    let signed = desk.signed();
    desk.accepted(&signed, "ours.pub");
    desk.refused(&plain, "ours.pub", UNSIGNED, &["not signed"]);
    desk.refused(&signed, "other.pub", SIGNER, &["signed by key", "not trusted"]);

    let bytes = fs::read(&signed).unwrap();
    let changed = desk.path("changed.tar.zst");
    fs::write(&changed, replaced(&bytes, b"")).unwrap();
    unbundle(["verify", changed.to_str().unwrap()]).ok();
    desk.refused(&changed, "ours.pub", UNSIGNED, &["not signed"]);

    // The signature of another bundle.
    run(&mut desk.pack_command("two.tar.zst", "two", &["--sign", &desk.text("ours.key")])).ok();
    let two = fs::read(desk.path("two.tar.zst")).unwrap();
    let (begin, end) = signature(&two);
    fs::write(&changed, replaced(&bytes, &two[begin - 8..end])).unwrap();
    desk.refused(&changed, "ours.pub", SIGNER, &["does not match this `index.json`"]);
    fs::write(&changed, replaced(&bytes, &skippable::encode(SIGNATURE_MAGIC, b"junk"))).unwrap();
    desk.refused(&changed, "ours.pub", SIGNER, &["not a minisign signature"]);
    unbundle(["verify", changed.to_str().unwrap()]).failed(7, &["1 of"]);
}

#[test]
fn one_flipped_bit_in_a_signature_is_one_too_many() {
    let desk = Desk::new();
    let bundle = desk.signed();
    let bytes = fs::read(&bundle).unwrap();
    let (begin, end) = signature(&bytes);
    let text = String::from_utf8(bytes[begin..end].to_vec()).unwrap();
    // The comment that nobody has signed does not matter.
    let begin = begin + text.find('\n').unwrap() + 1;
    let (site, key) = (desk.text("site"), desk.text("ours.pub"));
    let changed = desk.path("changed.tar.zst");
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
fn a_signature_changes_nothing_else_and_is_the_same_every_time() {
    let desk = Desk::new();
    let plain = fs::read(desk.pack("plain.tar.zst", &[])).unwrap();
    assert!(!plain.windows(4).any(|window| window == SIGNATURE_MAGIC.to_le_bytes()));
    let signed = fs::read(desk.signed()).unwrap();
    assert!(signed == fs::read(desk.signed()).unwrap());
    let identity = |name: &str| unbundle(["ls", "--json", &desk.text(name)]).ok().json()["identity"].clone();
    assert_eq!(identity("plain.tar.zst"), identity("signed.tar.zst"));
    // With a date there is a time in it.
    let mut command = desk.pack_command("dated.tar.zst", "one", &["--sign", &desk.text("ours.key")]);
    run(command.env("SOURCE_DATE_EPOCH", "1700000000")).ok();
    let key = desk.text("ours.pub");
    let json = unbundle(["ls", "--json", "--trusted-key", &key, &desk.text("dated.tar.zst")]).ok().json();
    let comment = json["signature"]["comment"].as_str().unwrap();
    assert!(comment.starts_with("timestamp:1700000000\t"), "{comment}");
    // An earlier run that left all of it, unsigned, is made use of.
    fs::rename(desk.path("plain.tar.zst"), desk.path("signed.tar.zst.partial")).unwrap();
    desk.signed();
    assert!(signed == fs::read(desk.path("signed.tar.zst")).unwrap());
    let left = desk.pack(
        "signed.tar.zst",
        &["--sign", &key.replace(".pub", ".key"), "--reuse", &desk.text("signed.tar.zst")],
    );
    assert!(signed == fs::read(left).unwrap());
}

#[test]
fn without_a_trusted_key_a_signature_is_told_and_not_believed() {
    let desk = Desk::new();
    let bundle = desk.signed();
    let name = bundle.to_str().unwrap();
    let told = unbundle(["verify", name]).ok();
    assert!(
        told.stdout.contains("signed by key ") && told.stdout.contains("not verified: no trusted key"),
        "{told:#?}"
    );
    let told = unbundle(["ls", name]).ok();
    assert!(told.stderr.contains("not verified: no trusted key"), "{told:#?}");
    for verb in ["ls", "verify"] {
        let signature = unbundle([verb, "--json", name]).ok().json()["signature"].clone();
        assert_eq!((&signature["trusted"], &signature["comment"]), (&false.into(), &serde_json::Value::Null));
    }
    let told = unbundle_from(&bundle, ["verify", "--trusted-key", &desk.text("ours.pub"), "-"]).ok();
    assert!(told.stdout.contains("which is trusted"), "{told:#?}");
}

#[test]
fn the_key_comes_by_flag_by_environment_or_from_the_host() {
    let desk = Desk::new();
    let (bundle, plain) = (desk.signed(), desk.pack("plain.tar.zst", &[]));
    let text = fs::read_to_string(desk.path("ours.pub")).unwrap();
    let line = text.lines().nth(1).unwrap();
    let verify = |bundle: &Path, keys: &[&str], variable: &str| {
        let mut command = unbundle_command();
        command.arg("verify").args(keys.iter().flat_map(|key| ["--trusted-key", key])).arg(bundle);
        run(command.env("UNBUNDLE_TRUSTED_KEY", variable))
    };
    verify(&bundle, &[line], "").ok();
    verify(&bundle, &[&desk.text("other.pub"), line], "").ok();
    for variable in [line, &desk.text("ours.pub")] {
        verify(&bundle, &[], variable).ok();
        verify(&plain, &[], variable).failed(UNSIGNED, &[]);
    }
    verify(&bundle, &[&desk.text("other.pub")], line).failed(SIGNER, &[]);
    verify(&plain, &[], "").ok();
    let script = r#"set -eu
mount -t tmpfs tmpfs /etc && mkdir -p /etc/airbundle/trusted-keys.d
verify() { code=0; "$UNBUNDLE" verify "$@" >/dev/null || code=$?; echo $code; }
verify "$PLAIN"
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
        unshare.env("OURS", desk.path("ours.pub")).env("OTHER", desk.path("other.pub")).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["0", "15", "14", "0", "0", "2", "6"]);
}

#[test]
fn files_that_are_no_keys_are_told_apart() {
    let desk = Desk::new();
    let bundle = desk.signed();
    let name = bundle.to_str().unwrap();
    let trusted = |key: &str| unbundle(["ls", "--trusted-key", key, name]);
    fs::write(desk.path("junk"), [0xff, 0, 1]).unwrap();
    fs::write(desk.path("empty"), "").unwrap();
    trusted(&desk.text("junk")).failed(2, &["junk", "not a minisign public key"]);
    trusted(&desk.text("empty")).failed(2, &["no key found"]);
    trusted(&desk.text("ours.key")).failed(2, &["secret key"]);
    trusted(&desk.text("nothing")).failed(6, &["neither a public key nor a file"]);
    let sign = |key: &str| run(&mut desk.pack_command("new.tar.zst", "one", &["--sign", key]));
    sign(&desk.text("junk")).failed(2, &["not a minisign secret key"]);
    sign(&desk.text("empty")).failed(2, &["not a minisign secret key"]);
    sign(&desk.text("ours.pub")).failed(2, &["public key"]);
    sign(&desk.text("nothing")).failed(6, &["nothing"]);
    let mut text = fs::read_to_string(desk.path("ours.key")).unwrap();
    let at = text.len() - 60;
    text.replace_range(at..=at, if &text[at..=at] == "A" { "B" } else { "A" });
    fs::write(desk.path("junk"), text).unwrap();
    sign(&desk.text("junk")).failed(2, &["not a minisign secret key"]);
    assert!(!desk.path("new.tar.zst.partial").exists());
}

#[test]
fn a_passphrase_comes_from_the_environment_stdin_or_a_terminal() {
    let desk = Desk::new();
    let key = desk.text("safe.key");
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
    desk.airbundle(&["keygen", "-o", &key]).failed(2, &["passphrase"]);
    with_stdin(airbundle_command().args(["keygen", "--passphrase-stdin", "-o", &key]), "\n")
        .failed(2, &["empty"]);
    with_stdin(
        airbundle_command().args(["keygen", "--passphrase-stdin", "-o", &key]),
        &format!("{PASSPHRASE}\n"),
    )
    .ok();
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    desk.airbundle(&["keygen", "--no-passphrase", "-o", &key]).failed(6, &["there already"]);
    let pack =
        |more: &[&str]| desk.pack_command("safe.tar.zst", "one", &[&["--sign", key.as_str()], more].concat());
    let accepted = || {
        desk.accepted(&desk.path("safe.tar.zst"), "safe.pub");
        fs::remove_file(desk.path("safe.tar.zst")).unwrap();
    };
    with_stdin(&mut pack(&["--passphrase-stdin"]), PASSPHRASE).ok();
    accepted();
    run(pack(&[]).env("AIRBUNDLE_PASSPHRASE", PASSPHRASE)).ok();
    accepted();
    run(pack(&[]).env("AIRBUNDLE_PASSPHRASE", "falsch")).failed(2, &["wrong passphrase"]);
    run(&mut pack(&[])).failed(2, &["needs a passphrase"]);
    // On a terminal, where it is not shown.
    let command = pack(&[]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let mut terminal = Command::new("sh");
    let typed =
        format!("(sleep 1; echo '{PASSPHRASE}'; sleep 1) | script -qec \"{}\" /dev/null", line.join(" "));
    let said = terminal.args(["-c", &typed]).env_remove("AIRBUNDLE_PASSPHRASE").output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("Passphrase: ") && said.contains("identity sha256:"), "{said}");
    accepted();
    // minisign opens what protects our key, too.
    let mut minisign = Command::new("minisign");
    fs::write(desk.path("text"), "x").unwrap();
    minisign.args(["-S", "-s", &key, "-m"]).arg(desk.path("text"));
    with_stdin(&mut minisign, &format!("{PASSPHRASE}\n")).ok();
    process::run(
        Command::new("minisign").arg("-Vm").arg(desk.path("text")).arg("-p").arg(desk.path("safe.pub")),
    );
}
