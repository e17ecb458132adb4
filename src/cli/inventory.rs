//! `unbundle inventory`: lists the blobs and files that a site has.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::base::output_file::{Access, OutputFile};
use crate::base::units::human_bytes;
use crate::cli::console::Text;
use crate::cli::exit::{Code, Failure};
use crate::cli::output::print_document;
use crate::cli::progress::Output;
use crate::cli::trust::SiteTrustArgs;
use crate::commands::inventory::scan;
use crate::documents::inventory::Inventory as Document;
use crate::site::record::RECORD;

/// List what a site has, so that the next bundle can omit it (`airbundle pack --base`)
#[derive(Debug, Args)]
pub(crate) struct Inventory {
    /// Site directory
    site: PathBuf,
    /// Inventory to write [default: stdout]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Hash all contents; corrupt blobs and files are omitted
    ///
    /// Without this option, only sizes are compared.
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    trust: SiteTrustArgs,
    #[command(flatten)]
    out: Output,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(super) struct InventorySummary {
    /// Number of blobs.
    blobs: usize,
    /// Their size in bytes.
    blob_bytes: u64,
    /// Number of files.
    files: usize,
    /// Their size in bytes.
    file_bytes: u64,
}

impl Inventory {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let output = self.output.as_deref().filter(|path| *path != Path::new("-"));
        if output.is_none() && self.out.json {
            let failure = Failure::new(Code::Usage, "cannot write both the inventory and `--json` to stdout");
            return Err(failure.with_hint("write the inventory to a file with `--output`"));
        }
        if let Some(path) = output.filter(|path| is_record(path, &self.site)) {
            let message = format!("cannot overwrite `{}`: it is the record of the site", path.display());
            return Err(Failure::new(Code::Usage, message).with_hint("choose another `--output`"));
        }
        output.map_or(Ok(()), OutputFile::check)?;
        let policy = self.trust.policy()?;
        let inventory = self.out.report(|report| scan(&self.site, &policy, self.check, report))?;
        let Some(path) = output else {
            print_document(inventory.to_json())?;
            return Ok(Code::Success);
        };
        OutputFile::write(path, Access::Default, &inventory.to_json())?;
        let summary = InventorySummary::of(&inventory);
        let text = || {
            let InventorySummary { blobs, blob_bytes, files, file_bytes } = &summary;
            let [blob_bytes, file_bytes] = [blob_bytes, file_bytes].map(|bytes| human_bytes(*bytes));
            let path = path.display();
            Text::of(format_args!("{path}: {blobs} blobs ({blob_bytes}) and {files} files ({file_bytes})"))
        };
        self.out.print(&summary, text)?;
        Ok(Code::Success)
    }
}

impl InventorySummary {
    fn of(inventory: &Document) -> Self {
        Self {
            blobs: inventory.blobs.len(),
            blob_bytes: inventory.blobs.values().sum(),
            files: inventory.files.len(),
            file_bytes: inventory.files.values().sum(),
        }
    }
}

/// True if `path` is the `site.json` of the site, also through symlinks.
fn is_record(path: &Path, site: &Path) -> bool {
    let resolve = |path: &Path| path.canonicalize().ok();
    resolve(&site.join(RECORD)).is_some_and(|record| resolve(path) == Some(record))
}
