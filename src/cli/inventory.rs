//! `unbundle inventory`: what does this site really have?

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::base::error_chain::chain;
use crate::base::fs;
use crate::base::units::human_bytes;
use crate::cli::exit::{Code, Failure};
use crate::cli::output::{print, summary_json};
use crate::cli::progress::Output;
use crate::commands::inventory::scan;
use crate::documents::inventory::Inventory as Document;
use crate::site::record::RECORD;

/// Write down what a site has, so that the next bundle can leave it out (airbundle pack --base)
#[derive(Debug, Args)]
pub(crate) struct Inventory {
    /// The directory of the site
    site: PathBuf,
    /// Where the inventory goes [default: stdout]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Hash everything, instead of looking at sizes; what is damaged is left out
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    out: Output,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    blobs: usize,
    blob_bytes: u64,
    files: usize,
    file_bytes: u64,
}

impl Inventory {
    /// Looks.
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let output = self.output.as_deref().filter(|path| *path != Path::new("-"));
        if output.is_none() && self.out.json {
            let message =
                "`--json` tells of the inventory, which is JSON itself: write it to a file with `-o`";
            return Err(Failure::new(Code::Usage, message));
        }
        if let Some(path) = output.filter(|path| is_record(path, &self.site)) {
            let message = format!(
                "`{}` is the site's own record: write the inventory somewhere else, to a stick for example",
                path.display()
            );
            return Err(Failure::new(Code::Usage, message));
        }
        let reporter = self.out.reporter();
        let result = scan(&self.site, self.check, &*reporter);
        drop(reporter);
        let inventory = result?;
        let Some(path) = output else {
            let text = inventory.to_json();
            print(&String::from_utf8(text).expect("JSON is UTF-8; please report"))?;
            return Ok(Code::Success);
        };
        fs::write_durably(path, &inventory.to_json())
            .map_err(|error| Failure::new(Code::File, chain(&error)))?;
        let summary = Summary::of(&inventory);
        let text = || {
            let Summary { blobs, blob_bytes, files, file_bytes } = &summary;
            let [blob_bytes, file_bytes] = [blob_bytes, file_bytes].map(|bytes| human_bytes(*bytes));
            format!("{}: {blobs} blobs ({blob_bytes}) and {files} files ({file_bytes})\n", path.display())
        };
        print(&self.out.result(text, || summary_json(&summary)))?;
        Ok(Code::Success)
    }
}

impl Summary {
    fn of(inventory: &Document) -> Self {
        Self {
            blobs: inventory.blobs.len(),
            blob_bytes: inventory.blobs.values().sum(),
            files: inventory.files.len(),
            file_bytes: inventory.files.values().sum(),
        }
    }
}

/// Whether `path` is what the site itself has under this name.
fn is_record(path: &Path, site: &Path) -> bool {
    let found = |path: &Path| path.canonicalize().ok();
    found(&site.join(RECORD)).is_some_and(|record| found(path) == Some(record))
}
