//! `unbundle ls`: lists the images and files of a bundle.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;

use crate::base::text::escape;
use crate::base::units::human_bytes;
use crate::bundle::format::layout::Totals;
use crate::cli::console::{self, Text};
use crate::cli::exit::{Code, Failure};
use crate::cli::input::{Gaps, InputArgs};
use crate::cli::listing::{ListedImage, Listing};
use crate::cli::output::{print, print_document, print_json};
use crate::documents::lock::Lock;
use crate::oci::reference::Reference;

/// List the images and files of a bundle
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Bundle file, first volume, directories with volumes, or - for stdin
    #[arg(value_name = "BUNDLE", required = true)]
    bundle: Vec<PathBuf>,
    #[command(flatten)]
    input: InputArgs,
    /// Print JSON to stdout
    #[arg(long)]
    json: bool,
    /// Print the lock of the bundle; `airbundle pack` accepts it
    #[arg(long, conflicts_with = "json")]
    lock: bool,
}

impl Ls {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let mut reader = self.input.open(&self.bundle, Gaps::Allow)?;
        if self.lock {
            let contents = reader.contents()?;
            let lock = Lock::of(&contents.layout, &contents.layout.files, &contents.manifests);
            print_document(lock.to_json())?;
            return Ok(Code::Success);
        }
        let listing = Listing::read(reader)?;
        if let Some(signed) = listing.signed.as_ref().filter(|_| !self.json) {
            // Scripts read the table on stdout. If stderr is closed, the exit code still tells the result.
            console::report(&Text::of(signed));
        }
        if self.json {
            print_json(&listing)?;
        } else {
            print(&text(&listing))?;
        }
        Ok(Code::Success)
    }
}

fn text(listing: &Listing) -> Text {
    let files = listing
        .files
        .iter()
        .map(|file| [file.path.clone(), human_bytes(file.size), String::new(), file.digest.to_string()]);
    let mut text = image_table(listing.images.iter().map(|detailed| &detailed.image));
    if !listing.images.is_empty() && !listing.files.is_empty() {
        text.line("");
    }
    table(&mut text, ["FILE", "SIZE", "", "SHA256"], &files.collect::<Vec<_>>());
    if !listing.external.is_empty() {
        let Totals { blobs, bytes } = listing.contained;
        text.line("");
        text.line(format_args!(
            "delta: contains {blobs} blobs ({}); the site must already have {} more ({})",
            human_bytes(bytes),
            listing.external.len(),
            human_bytes(listing.external.iter().map(|blob| blob.size).sum())
        ));
    }
    text
}

/// Formats a table of images. Referrers and cosign artifacts are only counted, because their names are
/// digests.
pub(super) fn image_table<'a>(images: impl Iterator<Item = &'a ListedImage> + Clone) -> Text {
    let is_artifact = |image: &&ListedImage| {
        image.reference.parse().is_ok_and(|reference: Reference| reference.is_referrer())
    };
    let artifacts = images.clone().filter(is_artifact).count();
    let rows = images.filter(|image| !is_artifact(image)).map(|image| {
        let platforms = if image.platforms.is_empty() { "-".into() } else { image.platforms.join(",") };
        [image.reference.clone(), human_bytes(image.size), platforms, image.digest.to_string()]
    });
    let mut text = Text::new();
    table(&mut text, ["IMAGE", "SIZE", "PLATFORMS", "DIGEST"], &rows.collect::<Vec<_>>());
    if artifacts > 0 {
        text.line(format_args!("and {artifacts} referrers and cosign artifacts: --json lists them"));
    }
    text
}

/// Writes columns as wide as their widest cell. The second column is aligned to the right.
fn table(text: &mut Text, header: [&str; 4], rows: &[[String; 4]]) {
    if rows.is_empty() {
        return;
    }
    let header = header.map(str::to_owned);
    // Before the widths are computed.
    let rows =
        rows.iter().map(|row| row.each_ref().map(|cell| escape(cell).into_owned())).collect::<Vec<_>>();
    let width = |column: usize| {
        std::iter::once(&header).chain(&rows).map(|row| row[column].chars().count()).max().unwrap_or(0)
    };
    let widths = [width(0), width(1), width(2)];
    for [first, second, third, last] in std::iter::once(&header).chain(&rows) {
        let mut line = format!("{first:0$}  {second:>1$}", widths[0], widths[1]);
        if widths[2] > 0 {
            let _ = write!(line, "  {third:0$}", widths[2]); // into memory
        }
        text.line(format_args!("{line}  {last}"));
    }
}
