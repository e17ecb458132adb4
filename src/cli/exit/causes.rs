//! A table of all errors that contain a failed file call, with the exit codes of a full disk and of unreadable media.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::{Code, Failure};
use crate::base::fs::FsError;
use crate::base::ownership::ForeignFile;
use crate::bundle::read::discover_error::DiscoverError;
use crate::bundle::read::error::ReadError;
use crate::bundle::read::frame_error::FrameError;
use crate::bundle::read::problem::Position;
use crate::bundle::read::select::SelectError;
use crate::bundle::recovery::RecoveryError;
use crate::bundle::write::claim::ClaimError;
use crate::commands::cat::CatError;
use crate::commands::image::error::ImageError;
use crate::commands::images::LoadError;
use crate::commands::images::blobs::{BlobError, CopyError};
use crate::commands::images::engine::EngineError;
use crate::commands::images::site_image::SiteImageError;
use crate::commands::lists::KubesprayError;
use crate::commands::pack::error::PackError;
use crate::commands::pack::volume_command::CommandError;
use crate::commands::prune::error::PruneError;
use crate::commands::receive::ReceiveError;
use crate::commands::repair::RepairError;
use crate::commands::site::ConfError;
use crate::commands::unpack::error::UnpackError;
use crate::conf::ca::CaError;
use crate::conf::host_record::HostRecordError;
use crate::conf::tls::TlsError;
use crate::conf::users::UserError;
use crate::documents::list::ListError;
use crate::oci::digest::Digest;
use crate::plan::site_contents::BaseError;
use crate::site::record::RecordError;
use crate::site::root::RootError;
use crate::site::roots::RootsError;
use crate::site::signed_index::SignedIndexError;

/// A variant of an error, the failure that it becomes, and its exit code if media cannot be read. `None`: no media is
/// read there, or its code is that of the operation.
type Row = (&'static str, fn(io::Error) -> Failure, Option<Code>);

const UNREADABLE: Option<Code> = Some(Code::Unreadable);

const ROWS: &[Row] = &[
    ("BaseError::Fs", |error| PackError::Base(path(), BaseError::Fs(call(error))).into(), UNREADABLE),
    ("BlobError::Fs", |error| site_image(BlobError::Fs(call(error))), UNREADABLE),
    ("CaError::Fs", |error| ConfError::Ca(CaError::Fs(call(error))).into(), UNREADABLE),
    ("CatError::Fs", |error| CatError::Fs(call(error)).into(), UNREADABLE),
    ("CatError::Stream", |error| CatError::Stream(error).into(), None),
    ("ClaimError::Fs", |error| PackError::from(ClaimError::Fs(call(error))).into(), UNREADABLE),
    ("CommandError::Record", |error| command(CommandError::Record(call(error))), UNREADABLE),
    ("CommandError::Start", |error| command(CommandError::Start(path(), error)), None),
    ("ConfError::Fs", |error| ConfError::Fs(call(error)).into(), UNREADABLE),
    ("CopyError::Output", |error| Failure::of(Code::Engine, &CopyError::Output(error)), None),
    ("DiscoverError::Fs", |error| ReadError::from(DiscoverError::Fs(call(error))).into(), UNREADABLE),
    ("EngineError::Start", |error| load(EngineError::Start("docker", error).into()), None),
    (
        "ForeignFile::Fs",
        |error| load(EngineError::Foreign("docker", ForeignFile::Fs(call(error))).into()),
        None,
    ),
    ("FrameError::Read", |error| frame(FrameError::Read(error)).into(), UNREADABLE),
    ("HostRecordError::Fs", |error| ConfError::Unknown(HostRecordError::Fs(call(error))).into(), UNREADABLE),
    ("ImageError::Fs", |error| ImageError::Fs(call(error)).into(), UNREADABLE),
    ("KubesprayError::Fs", |error| KubesprayError::Fs(call(error)).into(), UNREADABLE),
    ("ListError::Read", |source| ListError::Read { path: path(), source }.into(), None),
    ("LoadError::Fs", |error| load(LoadError::Fs(call(error))), UNREADABLE),
    ("LoadError::Stdout", |error| load(LoadError::Stdout("image".to_owned(), error)), None),
    ("PackError::Fs", |error| PackError::Fs(call(error)).into(), UNREADABLE),
    ("PruneError::Fs", |error| PruneError::Fs(call(error)).into(), UNREADABLE),
    ("ReadError::Fs", |error| ReadError::Fs(call(error)).into(), UNREADABLE),
    ("ReceiveError::Fs", |error| ReceiveError::Fs(call(error)).into(), UNREADABLE),
    ("ReceiveError::Stream", |error| ReceiveError::Stream(error).into(), None),
    ("RecordError::Fs", |error| RecordError::Fs(call(error)).into(), UNREADABLE),
    (
        "RecoveryError::Write",
        |error| repair(RepairError::Recovery(String::new(), RecoveryError::Write(error))),
        None,
    ),
    ("RepairError::Fs", |error| repair(RepairError::Fs(call(error))), None),
    ("RepairError::Unreadable", |error| repair(RepairError::Unreadable(call(error))), None),
    ("RootError::Fs", |error| UnpackError::from(RootError::Fs(call(error))).into(), UNREADABLE),
    ("RootsError::Fs", |error| RecordError::Roots(path(), RootsError::Fs(call(error))).into(), UNREADABLE),
    ("SelectError::Fs", |error| UnpackError::from(SelectError::Fs(call(error))).into(), UNREADABLE),
    ("SignedIndexError::Fs", |error| signed_index(SignedIndexError::Fs(call(error))), UNREADABLE),
    ("TlsError::Fs", |error| ConfError::Tls(TlsError::Fs(call(error))).into(), UNREADABLE),
    ("UnpackError::Fs", |error| UnpackError::Fs(call(error)).into(), UNREADABLE),
    ("UserError::Fs", |error| ConfError::User(UserError::Fs(call(error))).into(), UNREADABLE),
];

fn path() -> PathBuf {
    PathBuf::from("x")
}

fn call(error: io::Error) -> FsError {
    FsError::at("read", "x")(error)
}

fn command(error: CommandError) -> Failure {
    PackError::Command(error).into()
}

fn frame(source: FrameError) -> ReadError {
    ReadError::Damaged { object: "x".to_owned(), position: Position::at(0).into(), source }
}

fn load(error: LoadError) -> Failure {
    vec![error].into()
}

fn repair(error: RepairError) -> Failure {
    Failure::all(Code::Damaged, &[error])
}

fn signed_index(error: SignedIndexError) -> Failure {
    RecordError::Index(path(), Digest::of(b"x"), error.into()).into()
}

fn site_image(source: BlobError) -> Failure {
    load(SiteImageError::Blob { reference: "x".to_owned(), source }.into())
}

#[test]
fn a_full_disk_and_unreadable_media_have_their_exit_codes_in_every_error() {
    for (name, failure, unreadable) in ROWS {
        for full in [Errno::NOSPC, Errno::DQUOT] {
            assert_eq!(failure(full.into()).code, Code::File, "{name}: {full}");
        }
        if let Some(code) = unreadable {
            assert_eq!(failure(Errno::IO.into()).code, *code, "{name}");
        }
        let failure = failure(Errno::NOSPC.into());
        assert!(failure.messages[0].contains("No space left on device"), "{name}: {failure}");
    }
    let wrapped = io::Error::other(io::Error::from(Errno::NOSPC));
    assert_eq!(Failure::of(Code::Usage, &CatError::Stream(wrapped)).code, Code::File);
    let sync = FsError::at("sync", "x")(Errno::IO.into());
    assert_eq!(Failure::from(sync).code, Code::File, "what is written is no media to read");
}

#[test]
fn every_error_that_contains_a_failed_file_call_is_in_the_table() {
    let mut found = BTreeSet::new();
    variants_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    let rows: BTreeSet<String> = ROWS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(rows, found);
}

/// Adds the variants of all error enums below `directory` that contain a failed file call, as `Enum::Variant`.
fn variants_below(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            variants_below(&path, found);
        } else {
            variants_in(&fs::read_to_string(path).unwrap(), found);
        }
    }
}

fn variants_in(source: &str, found: &mut BTreeSet<String>) {
    let (mut is_error, mut error, mut variant) = (false, None, "");
    for line in source.lines().filter(|line| !line.trim_start().starts_with("//")) {
        if line.starts_with("#[derive(") {
            is_error = line.contains("thiserror::Error");
        } else if let Some((_, name)) =
            line.split_once("enum ").filter(|_| is_error && !line.starts_with(' '))
        {
            error = name.split_whitespace().next();
        } else if line == "}" {
            (is_error, error) = (false, None);
        } else if let Some(error) = error {
            if line.starts_with("    ") && line[4..].starts_with(char::is_uppercase) {
                variant = line[4..].split(|char: char| !char.is_alphanumeric()).next().unwrap();
            }
            if line.contains("FsError") || line.contains("io::Error") {
                found.insert(format!("{error}::{variant}"));
            }
        }
    }
}
