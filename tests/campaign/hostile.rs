//! Bundles that state what is not there, or expand without end. A writer of its own makes them, from the format's page.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::program::unbundle_command;
use crate::report::Report;
use crate::scenario::{badly_ended, run_within};
use crate::support::process::{append_command, run as run_command};
use crate::support::sha256;
use crate::world::World;

/// Name of this part.
pub const PART: &str = "hostile bundles";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const FRAME: usize = 4 << 20;
/// Private memory of each command, in bytes, and its processor time in seconds.
const MEMORY: &str = "--data=402653184";
const TIME: &str = "--cpu=20";

/// Bundles that are strange and right.
const INTACT: &[&str] = &["20,000 images of one manifest", "100,000 layers", "100,000 files of one blob"];

/// A frame of these bytes, with content size and checksum.
fn frame(content: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::bulk::Compressor::new(3).expect("a compressor");
    encoder.include_checksum(true).and_then(|()| encoder.include_contentsize(true)).expect("parameters");
    encoder.compress(content).expect("compress")
}

fn skippable(magic: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("a short frame");
    [&magic.to_le_bytes()[..], &length.to_le_bytes(), content].concat()
}

/// A seek table of these pairs of sizes.
fn seek_table(entries: &[(u32, u32)], count: u32) -> Vec<u8> {
    let mut content: Vec<u8> =
        entries.iter().flat_map(|(from, to)| [from.to_le_bytes(), to.to_le_bytes()].concat()).collect();
    content.extend(count.to_le_bytes());
    content.push(0);
    content.extend(0x8F92_EAB1_u32.to_le_bytes());
    skippable(0x184D_2A5E, &content)
}

/// A tar header. A size above 8 GiB is a binary number.
fn header(name: &str, size: u64, kind: u8, link: &str) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    for (at, text) in [(100, "0000644\0"), (108, "0000000\0"), (116, "0000000\0"), (136, "00000000000\0")] {
        put(at, text.as_bytes());
    }
    if size < 8 << 30 {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        put(124, &[&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat());
    }
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:07o}\0").as_bytes());
    header
}

fn entry(name: &str, content: &[u8]) -> Vec<u8> {
    let mut entry = header(name, content.len() as u64, b'0', "");
    entry.extend(content);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

fn blob(content: &[u8]) -> Vec<u8> {
    entry(&format!("blobs/sha256/{}", &sha256(content)[7..]), content)
}

fn layout() -> Vec<u8> {
    entry("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
}

fn frames(stream: &[u8]) -> Vec<u8> {
    stream.chunks(FRAME).flat_map(frame).collect()
}

/// A bundle of an index and blobs, and the sizes of its frames.
fn bundle(index: &[u8], blobs: &[Vec<u8>]) -> Vec<u8> {
    let head = [layout(), entry("index.json", index)].concat();
    let tail = [blobs.iter().flat_map(|content| blob(content)).collect(), vec![0; 1024]].concat();
    let mut entries = Vec::new();
    let mut bytes = Vec::new();
    for chunk in head.chunks(FRAME).chain(tail.chunks(FRAME)) {
        let frame = frame(chunk);
        let size = |length: usize| u32::try_from(length).expect("a size of a frame");
        entries.push((size(frame.len()), size(chunk.len())));
        bytes.extend(frame);
    }
    let count = u32::try_from(entries.len()).expect("few frames");
    [bytes, seek_table(&entries, count)].concat()
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": sha256(content), "size": content.len() })
}

fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] =
        json!({ "org.opencontainers.image.ref.name": name, "io.containerd.image.name": name });
    descriptor
}

fn index(manifests: &[Value]) -> Vec<u8> {
    json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests,
        "annotations": { "dev.airbundle.format": "1.0" },
    })
    .to_string()
    .into_bytes()
}

const CONFIG: &[u8] = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;

fn manifest(layers: &[Value]) -> Vec<u8> {
    let config = descriptor("application/vnd.oci.image.config.v1+json", CONFIG);
    json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers })
        .to_string()
        .into_bytes()
}

/// A bundle with one image of these layers, of which only the first `present` are there.
fn with_layers(layers: &[Value], present: &[Vec<u8>]) -> Vec<u8> {
    let manifest = manifest(layers);
    let index = index(&[named(descriptor(MANIFEST, &manifest), "a.example/b:1")]);
    bundle(&index, &[&[manifest, CONFIG.to_vec()], present].concat())
}

fn layer(size: u64) -> Value {
    json!({ "mediaType": LAYER, "digest": sha256(b"x"), "size": size })
}

/// A bundle with the files of this list of paths, all of one blob.
fn with_files(paths: &[String]) -> Vec<u8> {
    let content = b"x".to_vec();
    let file = |path: &String| {
        let mut layer = descriptor("application/octet-stream", &content);
        layer["annotations"] = json!({ "dev.airbundle.source-url": "https://a.example/x", "org.opencontainers.image.title": path });
        layer
    };
    let layers: Vec<Value> = paths.iter().map(file).collect();
    let empty = descriptor("application/vnd.oci.empty.v1+json", b"{}");
    let kind = "application/vnd.airbundle.files.v1";
    let set = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "config": empty, "layers": layers,
    });
    let set = set.to_string().into_bytes();
    let mut root = descriptor(MANIFEST, &set);
    root["artifactType"] = kind.into();
    bundle(&index(&[root]), &[set, b"{}".to_vec(), content])
}

/// A bundle that is intact.
fn intact() -> Vec<u8> {
    let content = b"layer".to_vec();
    with_layers(&[descriptor(LAYER, &content)], &[content])
}

/// A head with an entry of this stated size, and zeros that seem to follow.
fn stated(name: &str, size: u64, megabytes: usize) -> Vec<u8> {
    let zeros = frame(&vec![0; FRAME]);
    let mut head =
        if name == "index.json" { layout() } else { [layout(), entry("index.json", &index(&[]))].concat() };
    head.extend(header(name, size, b'0', ""));
    [frames(&head), zeros.repeat(megabytes / 4)].concat()
}

/// All bundles by name.
fn all() -> Vec<(&'static str, Vec<u8>)> {
    let many = |count: usize, line: &dyn Fn(usize) -> String| (0..count).map(line).collect::<Vec<String>>();
    let image = manifest(&[]);
    let root = descriptor(MANIFEST, &image);
    let images = |count: usize| {
        let roots: Vec<Value> =
            (0..count).map(|number| named(root.clone(), &format!("a.example/b:{number}"))).collect();
        bundle(&index(&roots), &[image.clone(), CONFIG.to_vec()])
    };
    let deep = |depth: usize| bundle(format!("{}{}", "[".repeat(depth), "]".repeat(depth)).as_bytes(), &[]);
    let link = {
        let head = [
            layout(),
            entry("index.json", &index(&[])),
            header("blobs/x", 0, b'2', "/etc/passwd"),
            vec![0; 1024],
        ];
        frames(&head.concat())
    };
    let table = |entries: Vec<(u32, u32)>| {
        let count = u32::try_from(entries.len()).expect("a count");
        [intact(), seek_table(&entries, count)].concat()
    };
    let empty = frame(&[]);
    vec![
        ("intact", intact()),
        ("layer of 2^53 bytes", with_layers(&[layer(1 << 53)], &[])),
        ("layer of 2^63 bytes", with_layers(&[layer(u64::MAX >> 1)], &[])),
        ("layer of 2^64 - 1 bytes", with_layers(&[layer(u64::MAX)], &[])),
        ("layers with a sum above 2^64", with_layers(&vec![layer(1 << 63); 4], &[])),
        (
            "manifest of 4 GiB",
            bundle(
                &index(&[named(
                    json!({ "mediaType": MANIFEST, "digest": sha256(b"x"), "size": 4_u64 << 30 }),
                    "a.example/b:1",
                )]),
                &[],
            ),
        ),
        ("index of 64 MiB of zeros", stated("index.json", 64 << 20, 64)),
        ("index of 2^63 bytes", stated("index.json", u64::MAX >> 1, 512)),
        ("blob of 1 TiB of zeros", stated(&format!("blobs/sha256/{}", "0".repeat(64)), 1 << 40, 4096)),
        ("nested JSON, 100 levels", deep(100)),
        ("nested JSON, 1 million levels", deep(1_000_000)),
        ("20,000 images of one manifest", images(20_000)),
        ("100,000 layers", with_layers(&vec![descriptor(LAYER, b"x"); 100_000], &[b"x".to_vec()])),
        ("100,000 files of one blob", with_files(&many(100_000, &|number| format!("a.example/{number}")))),
        ("path of 2,000 directories", with_files(&["a.example/".to_owned() + &"d/".repeat(2000) + "x"])),
        ("path of 5,000 bytes", with_files(&["a.example/".to_owned() + &"d".repeat(5000)])),
        ("path that leaves the site", with_files(&["../../outside".to_owned()])),
        ("absolute path", with_files(&["/tmp/outside".to_owned()])),
        ("path below a file", with_files(&["a.example/x".to_owned(), "a.example/x/y".to_owned()])),
        ("symlink in the archive", link),
        ("2 million empty frames", [empty.repeat(2_000_000), intact()].concat()),
        ("2 million skippable frames", [skippable(0x184D_2A50, &[]).repeat(2_000_000), intact()].concat()),
        (
            "skippable frame of 4 GiB",
            [intact(), [0x184D_2A50_u32.to_le_bytes(), u32::MAX.to_le_bytes()].concat()].concat(),
        ),
        ("seek table of 8 million entries", table(vec![(0, 0); 8_000_000])),
        ("seek table of overlapping frames", table(vec![(100, 4 << 20), (10, 4 << 20), (u32::MAX, 1)])),
        ("seek table with a count of 2^32 - 1", [intact(), seek_table(&[], u32::MAX)].concat()),
        ("seek table alone", seek_table(&[], 0)),
        ("only zeros", vec![0; 1 << 20]),
        ("nothing", Vec::new()),
    ]
}

/// Reads each bundle by each command, within limits of memory and processor time.
pub fn run(world: &World, step: usize, report: &Report) {
    let commands: &[(&str, &[&str], bool)] = &[
        ("ls", &["ls"], false),
        ("verify", &["verify", "-q"], false),
        ("verify --quick", &["verify", "-q", "--quick"], false),
        ("verify -", &["verify", "-q"], true),
        ("unpack", &["unpack", "-q"], false),
        ("unpack -", &["unpack", "-q"], true),
        ("sbom", &["sbom"], false),
        ("repair", &["repair", "-q"], false),
    ];
    for (name, bytes) in all().into_iter().step_by(step) {
        let top = world.cases("hostile");
        fs::create_dir(&top).expect("create a directory");
        let path = top.join("bundle.tar.zst");
        fs::write(&path, &bytes).expect("write a bundle");
        for (group, arguments, is_piped) in commands {
            let place = top.join("in");
            fs::create_dir(&place).expect("create a directory");
            let mut program = unbundle_command();
            program.args(*arguments).arg(if *is_piped { Path::new("-") } else { &path });
            match arguments[0] {
                "unpack" => _ = program.arg(place.join("site")),
                "repair" => _ = program.arg("-o").arg(place.join("good")),
                _ => {}
            }
            let mut limited = Command::new("prlimit");
            append_command(limited.args([MEMORY, TIME]), &program);
            let input =
                if *is_piped { fs::File::open(&path).expect("open a bundle").into() } else { Stdio::null() };
            let ended = run_within("60", input, &limited);
            let mut violations = badly_ended(&ended);
            let entries = |path: &Path| fs::read_dir(path).expect("list a directory").count();
            if entries(&top) != 2 || top.join("outside").exists() || Path::new("/tmp/outside").exists() {
                violations.push("something outside has changed".to_owned());
            }
            if (name == "intact") != (ended.code == 0) && *group == "verify" && !INTACT.contains(&name) {
                violations.push(format!("exit code {}: {}", ended.code, ended.stderr));
            }
            report.add(PART, group, name, ended.code, &violations);
            // Paths can be longer than one call accepts.
            run_command(Command::new("rm").arg("-rf").arg(&place));
        }
        fs::remove_dir_all(&top).expect("remove a directory");
    }
}
