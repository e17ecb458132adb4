//! `unbundle receive`: streams that lose, change and repeat frames.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use airbundle::bundle::format::skippable::VOLUME_MAGIC;
use airbundle::bundle::read::frame_reader::{FrameReader, buffers};
use tempfile::tempdir;

use crate::media::Random;
use crate::pack_job::{FILES, PackJob};
use crate::program::{Finished, unbundle, unbundle_command};
use crate::support::fake::{Content, Fake};
use crate::support::random_bytes;
use crate::support::tree::Tree;
use crate::volumes::{file_with_recovery, volume_sets, volumes};

const INCOMPLETE: i32 = 16;

/// Splits a volume into its frames.
fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
    let buffers = buffers();
    let mut reader = FrameReader::new(bytes, 0, &buffers);
    let (mut all, mut start) = (Vec::new(), 0);
    while reader.next_frame().expect("an intact volume").is_some() {
        let end = usize::try_from(reader.offset()).expect("in memory");
        all.push(bytes[start..end].to_vec());
        start = end;
    }
    all
}

/// Returns the frames of all volumes in a directory.
fn stream_of(directory: &Path) -> Vec<Vec<u8>> {
    volumes(directory)
        .iter()
        .flat_map(|name| frames(&fs::read(directory.join(name)).expect("read")))
        .collect()
}

fn is_label(frame: &[u8]) -> bool {
    frame.starts_with(&VOLUME_MAGIC.to_le_bytes())
}

fn receive(stream: &[u8], output: &Path) -> Finished {
    let mut command = unbundle_command();
    command.args(["receive", "--name", "all.tar.zst", "-o"]).arg(output);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(stream).expect("everything is read");
    drop(stdin);
    let output = child.wait_with_output().expect("wait");
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// Asserts that `received` has the volumes of `original`, byte for byte, their checksums, and nothing else.
#[track_caller]
fn assert_received(received: &Path, original: &Path) {
    let visible = |directory: &Path| {
        let mut tree = Tree::of(directory);
        tree.0.retain(|path, _| !path.to_string_lossy().ends_with(".validators.json"));
        tree
    };
    assert_eq!(visible(received).difference(&visible(original)), Vec::<String>::new());
}

/// Asserts that every visible file is a volume of `original`, byte for byte.
#[track_caller]
fn assert_only_intact(received: &Path, original: &Path) {
    for name in volumes(received) {
        assert!(fs::read(received.join(&name)).ok() == fs::read(original.join(&name)).ok(), "{name}");
    }
}

#[test]
fn received_volumes_are_those_that_were_sent() {
    for directory in [volume_sets().plain(), volume_sets().with_recovery()] {
        let temporary = tempdir().unwrap();
        let output = temporary.path().join("received");
        let stream = stream_of(&directory).concat();
        let finished = receive(&stream, &output).ok();
        assert!(finished.stdout.contains("all.tar.zst.001: intact"), "{finished:#?}");
        assert_received(&output, &directory);
        // Once more: everything is there.
        receive(&stream, &output).ok();
        assert_received(&output, &directory);
    }
    // From files and FIFOs, one volume each, in any order.
    let temporary = tempdir().unwrap();
    let output = temporary.path().join("received");
    let directory = volume_sets().plain();
    let paths = volumes(&directory).into_iter().rev().map(|name| directory.join(name));
    let args = ["receive".into(), "--name=all.tar.zst".into(), "-o".into(), output.clone()];
    unbundle(args.into_iter().chain(paths)).ok();
    assert_received(&output, &directory);
    // A bundle in one file.
    let output = temporary.path().join("single");
    let file = fs::read(file_with_recovery()).unwrap();
    receive(&file, &output).ok();
    assert!(fs::read(output.join("all.tar.zst")).unwrap() == file);
}

#[test]
fn lost_and_changed_frames_are_computed_from_recovery_data() {
    let directory = volume_sets().with_recovery();
    let all = stream_of(&directory);
    for seed in 1..=8 {
        let mut random = Random(seed * 7919);
        let temporary = tempdir().unwrap();
        let output = temporary.path().join("received");
        let mut stream = Vec::new();
        let mut lost = 0;
        // In each volume, a small frame is lost or changed. A large frame has more bytes than the recovery data can replace.
        let mut candidates: Vec<usize> = Vec::new();
        let mut damaged = Vec::new();
        for (number, frame) in all.iter().enumerate() {
            if is_label(frame) && !candidates.is_empty() {
                damaged.push(candidates[random.below(candidates.len())]);
                candidates.clear();
            }
            let is_small = frame.len() < 250_000 && !is_label(frame) && frame.starts_with(&[0x28, 0xb5]);
            candidates.extend(is_small.then_some(number));
        }
        for (number, frame) in all.iter().enumerate() {
            let mut frame = frame.clone();
            if damaged.contains(&number) {
                lost += 1;
                match random.below(3) {
                    0 => frame.clear(),
                    1 => {
                        let middle = frame.len() / 2;
                        frame[middle] ^= 0x40;
                    }
                    _ => frame.truncate(frame.len() / 2),
                }
            }
            stream.extend(frame);
        }
        assert!(lost >= 3, "{lost}");
        let finished = receive(&stream, &output).ok();
        assert!(finished.stdout.contains(": repaired"), "{finished:#?}");
        assert_received(&output, &directory);
    }
}

#[test]
fn another_transmission_fills_the_gaps_of_the_first_one() {
    for directory in [volume_sets().plain(), volume_sets().with_recovery()] {
        let all = stream_of(&directory);
        // The first transmission loses every 7th frame, labels included; the second one another 7th.
        let lossy = |phase: usize| {
            let kept = all.iter().enumerate().filter(|(number, _)| number % 7 != phase);
            kept.map(|(_, frame)| frame.clone()).collect::<Vec<_>>().concat()
        };
        let temporary = tempdir().unwrap();
        let output = temporary.path().join("received");
        let first = receive(&lossy(3), &output).failed(INCOMPLETE, &["send again", "all.tar.zst.0"]);
        assert!(first.stderr.contains("hint:"), "{first:#?}");
        assert_only_intact(&output, &directory);
        assert!(!output.join("SHA256SUMS").exists());
        receive(&lossy(5), &output);
        assert_only_intact(&output, &directory);
        // Everything that is still missing is sent once more.
        let missing: Vec<u8> = (volumes(&directory).into_iter())
            .filter(|name| !output.join(name).exists())
            .flat_map(|name| fs::read(directory.join(name)).unwrap())
            .collect();
        receive(&missing, &output).ok();
        assert_received(&output, &directory);

        // The same in one stream.
        let output = temporary.path().join("repeated");
        let stream = [lossy(3), lossy(4), all.concat()].concat();
        receive(&stream, &output).ok();
        assert_received(&output, &directory);
    }
}

#[test]
fn nothing_that_was_received_is_wrong() {
    let sets = [volume_sets().plain(), volume_sets().with_recovery()];
    for seed in 1..=12 {
        let mut random = Random(seed * 104_729);
        let directory = &sets[random.below(2)];
        let temporary = tempdir().unwrap();
        let output = temporary.path().join("received");
        for _ in 0..2 {
            let mut stream = Vec::new();
            for frame in stream_of(directory) {
                match random.below(40) {
                    0 => {}
                    1 => stream.extend([&frame[..], &frame[..]].concat()),
                    2 => stream.extend(&frame[..random.below(frame.len())]),
                    3 => {
                        let mut changed = frame.clone();
                        changed[random.below(frame.len())] ^= 1 << random.below(8);
                        stream.extend(changed);
                    }
                    4 => stream.extend([b"\x28\xb5\x2f\xfd\x24\x01 garbage", &frame[..]].concat()),
                    _ => stream.extend(frame),
                }
            }
            let finished = receive(&stream, &output);
            match finished.code {
                Some(0) => assert_received(&output, directory),
                _ => drop(finished.failed(INCOMPLETE, &["send again"])),
            }
            assert_only_intact(&output, directory);
        }
        receive(&stream_of(directory).concat(), &output).ok();
        assert_received(&output, directory);
    }
}

#[test]
fn volumes_of_another_bundle_are_ignored_with_a_warning() {
    let temporary = tempdir().unwrap();
    let output = temporary.path().join("received");
    let (plain, safe) = (volume_sets().plain(), volume_sets().with_recovery());
    let stream = [stream_of(&plain).concat(), stream_of(&safe).concat()].concat();
    let finished = receive(&stream, &output).ok();
    assert!(finished.stderr.contains("volumes of another bundle"), "{finished:#?}");
    assert_received(&output, &plain);
    // Two receivers of one name.
    fs::create_dir(temporary.path().join("twice")).unwrap();
    let output = temporary.path().join("twice");
    let mut command = unbundle_command();
    command.args(["receive", "-o"]).arg(&output).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut first = command.spawn().unwrap();
    while !output.join("bundle.tar.zst.partial").exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    unbundle([
        "receive".as_ref(),
        "-o".as_ref(),
        output.as_os_str(),
        plain.join("all.tar.zst.001").as_os_str(),
    ])
    .failed(9, &["another process"]);
    drop(first.stdin.take());
    assert_eq!(first.wait().unwrap().code(), Some(INCOMPLETE));
}

#[test]
fn a_repeated_frame_in_place_of_a_lost_one_is_not_taken_for_a_volume() {
    // Large blobs have frames of equal size: one is sent twice, the next one not at all.
    let url = format!("https://{FILES}/large");
    let mut content = Content::default();
    content.file(&url, random_bytes(5, 20_000_000));
    let job = PackJob::new(&url);
    job.pack_from(&Fake::honest(content), &["--volume-size", "14MiB"]).ok();
    let directory = job.path("volumes");
    fs::create_dir(&directory).unwrap();
    for name in volumes(&job.path("")) {
        fs::rename(job.path(&name), directory.join(name.replace("out.", "all."))).unwrap();
    }
    let sums = fs::read_to_string(job.path("SHA256SUMS")).unwrap();
    fs::write(directory.join("SHA256SUMS"), sums.replace("  out.", "  all.")).unwrap();
    let all = stream_of(&directory);
    let twin = (1..all.len()).find(|number| {
        let (one, two) = (&all[number - 1], &all[*number]);
        one.len() == two.len() && one != two && one.len() > 1_000_000
    });
    let frames: Vec<Vec<u8>> = match twin {
        Some(twin) => {
            let mut all = all.clone();
            all[twin] = all[twin - 1].clone();
            all
        }
        None => panic!("the volumes have no two frames of the same size"),
    };
    let temporary = tempdir().unwrap();
    let output = temporary.path().join("received");
    receive(&frames.concat(), &output).failed(INCOMPLETE, &["send again"]);
    assert_only_intact(&output, &directory);
    receive(&all.concat(), &output).ok();
    assert_received(&output, &directory);
}
