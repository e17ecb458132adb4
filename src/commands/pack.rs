//! `airbundle pack` as a library call: lists or a lock in, one bundle out.

mod attempt;
pub(crate) mod error;
mod old_output;
mod omission;
pub(crate) mod options;
mod other_form;
mod partial_guard;
pub(crate) mod summary;
mod validators;
pub(crate) mod volume_command;
pub(crate) mod write;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use crate::base::error_chain::chain;
use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::base::output_file::{Access, OutputFile};
use crate::bundle::format::layout::{Blob, LayoutError};
use crate::bundle::reuse::ReusableBundle;
use crate::bundle::write::accepted::{AcceptedFile, Opened};
use crate::bundle::write::claim::Claim;
use crate::bundle::write::head::BundleHead;
use crate::bundle::write::manifest_cache::ManifestCache;
use crate::bundle::write::parts::volume_path;
use crate::bundle::write::sums::listed;
use crate::bundle::write::writer::{BundleWriter, WrittenBundle};
use crate::commands::pack::attempt::{Attempt, write_options};
use crate::commands::pack::error::PackError;
use crate::commands::pack::old_output::{OldFile, OldOutput, pin};
use crate::commands::pack::options::{Input, Missing, PackOptions};
use crate::commands::pack::other_form::remove_other_form;
use crate::commands::pack::partial_guard::PartialGuard;
use crate::commands::pack::summary::{PackSummary, PackedVolume};
use crate::commands::pack::validators::Validators;
use crate::commands::pack::volume_command::VolumeCommand;
use crate::commands::pack::write::{WriteFailure, WrittenBlobs};
use crate::documents::list::Checksum;
use crate::fetch::known::KnownDocuments;
use crate::fetch::queue::{self, FetchContext};
use crate::fetch::resolve::context::ResolveContext;
use crate::fetch::resolve::locked::resolve_lock;
use crate::fetch::resolve::{Resolved, resolve};
use crate::fetch::web;
use crate::net::error::{FetchError, FetchProblem};
use crate::net::http::{Http, RequestContext};
use crate::oci::digest::Digest;
use crate::plan::bundle_plan::{BundlePlan, CompletePlan, PlanError, file_task};
use crate::plan::site_contents::SiteContents;

/// Packs the entries of `input`. The bundle appears at `options.output` only when it is complete and on the
/// disk.
pub(crate) fn pack(
    input: &Input,
    options: &PackOptions,
    report: &dyn Report,
) -> Result<PackSummary, PackError> {
    let start = Instant::now();
    options.write_lock.as_deref().map_or(Ok(()), OutputFile::check)?;
    let claim = Claim::new(&options.output, report)?;
    let mut partial = PartialGuard::new(&claim, report)?;
    let base = read_base(options)?;
    let older = open_older(options)?;
    let old = OldOutput::open(options, report);
    let http = options.upstream.http();
    let cache = ManifestCache::open(&claim.partial)?;
    let bundles = older.iter().chain(old.as_ref().map(|old| &old.bundle)).collect();
    let known = KnownDocuments::new(bundles, base.manifests(), &cache);
    let (resolved, failures) = resolve_input(&http, input, options, report, known);
    // A bundle without entries must not replace an existing one.
    if !failures.is_empty() && (options.missing == Missing::Stop || resolved.is_empty()) {
        return Err(partial.fetch_failed(failures));
    }
    let context = FetchContext::new(&http, &options.upstream, report);
    let run = PackRun {
        start,
        input,
        options,
        context,
        base,
        older,
        failures,
        volume_command: None,
        partial,
        validators: Validators::default(),
        compared: 0,
    };
    run.run(claim, resolved, old)
}

fn read_base(options: &PackOptions) -> Result<SiteContents, PackError> {
    let mut contents = SiteContents::default();
    for path in &options.base {
        contents.add(path, &options.policy).map_err(|error| PackError::Base(path.clone(), error))?;
    }
    Ok(contents)
}

fn open_older(options: &PackOptions) -> Result<Vec<ReusableBundle>, PackError> {
    let open = |path: &PathBuf| {
        ReusableBundle::open(path, &options.policy).map_err(|error| PackError::Reuse(path.clone(), error))
    };
    options.reuse.iter().map(open).collect()
}

/// Requests the metadata of all entries. Returns the failures of those that cannot be resolved, too.
fn resolve_input(
    http: &Http,
    input: &Input,
    options: &PackOptions,
    report: &dyn Report,
    known: KnownDocuments<'_>,
) -> (Resolved, Vec<FetchError>) {
    let PackOptions { upstream, images, .. } = options;
    let context = ResolveContext::new(http, upstream, report, known);
    match input {
        Input::Lists(lists) => resolve(&context, images, lists.clone()),
        Input::Lock(lock, lists) => resolve_lock(&context, lock, lists.clone()),
    }
}

/// A run of `pack` after its entries are resolved.
struct PackRun<'a> {
    start: Instant,
    input: &'a Input,
    options: &'a PackOptions,
    context: FetchContext<'a>,
    base: SiteContents,
    older: Vec<ReusableBundle>,
    /// The failures of entries that are omitted.
    failures: Vec<FetchError>,
    volume_command: Option<VolumeCommand>,
    partial: PartialGuard<'a>,
    /// The versions of unpinned files, for the next run.
    validators: Validators,
    /// Bytes of unpinned files that were fetched to compare them with the old output.
    compared: u64,
}

impl PackRun<'_> {
    fn run(
        mut self,
        claim: Claim,
        mut resolved: Resolved,
        old: Option<OldOutput>,
    ) -> Result<PackSummary, PackError> {
        if let Some(old) = old {
            if let Some(summary) = self.keep_old(&old, &mut resolved)? {
                return Ok(summary);
            }
            self.older.push(old.bundle);
        }
        let (plan, resolved, writer, mut written) = self.write_blobs(claim, resolved)?;
        if !self.failures.is_empty() && self.options.missing == Missing::KeepGoing {
            return Err(self.partial.fetch_failed(self.failures));
        }
        for (file, (entry, remote)) in plan.files.files.iter().zip(&resolved.files) {
            if let Some(blob) = written.resolved.get(&file.digest)
                && written.from_first.contains(&file.digest)
                && entry.checksum.is_none()
            {
                self.validators.add(entry, remote, *blob);
            }
        }
        let plan = plan.complete(&written.resolved);
        let (head, mut bundle) = self.finish(&plan, writer)?;
        bundle.volumes.append(&mut written.volumes);
        bundle.volumes.sort_by_key(|volume| volume.number);
        self.write_validators();
        Ok(self.summary(&plan, &head, written, bundle))
    }

    /// Keeps the old output if it is what would be written, and verifies it. Otherwise pins the files that did not
    /// change, so that they are copied.
    fn keep_old(
        &mut self,
        old: &OldOutput,
        resolved: &mut Resolved,
    ) -> Result<Option<PackSummary>, PackError> {
        old.pin_unchanged(&mut resolved.files, &mut self.validators);
        if !self.failures.is_empty() && self.options.missing != Missing::Allow {
            return Ok(None);
        }
        let unvalidated = old.unvalidated(&resolved.files);
        let mut same = resolved.clone();
        pin_files(&mut same, &unvalidated);
        // The run itself reports contradictions.
        let Ok(plan) = self.plan(same) else { return Ok(None) };
        let volumes = write_options(&plan, self.options)?.volumes;
        let complete = plan.complete(&HashMap::new());
        if plan.pending_count() > 0 || !old.is_of(&complete, self.options, volumes) {
            return Ok(None);
        }
        let count = unvalidated.len();
        let unchanged = self.compare(resolved, unvalidated);
        pin_files(resolved, &unchanged);
        if unchanged.len() < count {
            return Ok(None);
        }
        let report = self.context.report;
        let problem = match old.verify(self.options.quick, self.options, report) {
            Ok(verdict) if verdict.worst().is_none() && verdict.repaired.is_empty() => None,
            Ok(_) => Some("it is damaged".to_owned()),
            Err(error) => Some(chain(&error)),
        };
        if let Some(problem) = problem {
            let output = self.options.output.display();
            let message = format!("`{output}` is written again, because {problem}");
            report.event(&Event::Warning { message });
            return Ok(None);
        }
        self.partial.discard()?;
        remove_other_form(&self.options.output, self.options.volume_size.is_some())?;
        if let Some(path) = &self.options.write_lock {
            let lock = complete.lock().to_json();
            if !OutputFile::is_current(path, &lock) {
                OutputFile::write(path, Access::Default, &lock)?;
            }
        }
        self.write_validators();
        Ok(Some(self.summary_of_old(old, &plan)))
    }

    /// Fetches unpinned files that may have their old content, and returns those that have it.
    fn compare(&mut self, resolved: &Resolved, files: Vec<OldFile>) -> Vec<OldFile> {
        if files.is_empty() {
            return files;
        }
        let task = |file: &OldFile| {
            let (entry, remote) = &resolved.files[file.index];
            file_task(entry, remote, None)
        };
        let tasks: Vec<_> = files.iter().map(task).collect();
        self.context.report.event(&Event::Stage {
            name: "comparing",
            bytes: tasks.iter().map(|task| task.size).sum(),
            objects: Some(tasks.len() as u64),
        });
        // If one cannot be fetched, the run itself reports it.
        let found: Vec<(Blob, bool)> = queue::run(&self.context, tasks, Vec::new(), |queue| {
            let found = |task| Some((queue.read_to_end(task).ok()?, queue.uses_first_endpoint(task)));
            (0..files.len()).map_while(found).collect()
        });
        let mut unchanged = Vec::new();
        for (file, (blob, is_from_first)) in files.into_iter().zip(found) {
            self.compared += blob.size;
            if blob == file.blob {
                let (entry, remote) = &resolved.files[file.index];
                if is_from_first {
                    self.validators.add(entry, remote, blob);
                }
                unchanged.push(file);
            }
        }
        unchanged
    }

    /// Writes the versions of unpinned files, which only save time, unless no later run uses the old output.
    fn write_validators(&mut self) {
        if self.options.on_volume.is_some() {
            return;
        }
        let validators = std::mem::take(&mut self.validators);
        if let Err(error) = validators.write(&self.options.output) {
            let message = format!("unpinned files will be fetched again by the next run: {}", chain(&error));
            self.context.report.event(&Event::Warning { message });
        }
    }

    /// Writes all blobs. If a blob cannot be fetched and this is allowed, starts over without the entries
    /// that need it; what is written already is reused.
    fn write_blobs(
        &mut self,
        mut claim: Claim,
        mut resolved: Resolved,
    ) -> Result<(BundlePlan, Resolved, BundleWriter, WrittenBlobs), PackError> {
        loop {
            let plan = match self.plan(resolved.clone()) {
                Err(PackError::Plan(PlanError::Layout(LayoutError::Sizes(blob, ..)))) => {
                    self.remove_contradictions(&mut resolved, blob)?;
                    continue;
                }
                plan => plan?,
            };
            let mut attempt = Attempt::begin(claim, &plan, self.options, self.context.report)?;
            self.partial.keep = true;
            self.start_volume_command(&mut attempt)?;
            let older: Vec<&ReusableBundle> = self.older.iter().chain(&attempt.set_aside).collect();
            let failure = match attempt.job.write(&plan, &older, &self.context, self.volume_command.as_mut())
            {
                Ok(written) => return Ok((plan, resolved, attempt.job.writer, written)),
                Err(failure) => failure,
            };
            self.partial.keep = !attempt.is_worthless();
            match failure {
                WriteFailure::Command(error) => return Err(error.into()),
                WriteFailure::Fs(error) => return Err(self.partial.failed(error).into()),
                WriteFailure::Fetch { blob, failure }
                    if has_mismatch(&failure) && next_size(&self.context, &mut resolved, blob) =>
                {
                    claim = attempt.claim;
                }
                WriteFailure::Fetch { failure, .. } if self.options.missing == Missing::Stop => {
                    return Err(self.partial.fetch_failed(vec![*failure]));
                }
                WriteFailure::Fetch { blob, failure } => {
                    self.failures.extend(resolved.remove_owners(&plan, blob, *failure));
                    // A bundle without entries must not replace an existing one.
                    if resolved.is_empty() {
                        return Err(self.partial.fetch_failed(std::mem::take(&mut self.failures)));
                    }
                    claim = attempt.claim;
                }
            }
        }
    }

    /// Starts the command of `--on-volume`. The bundle does not hand over again what the same command has accepted of the
    /// same bundle in an earlier run.
    fn start_volume_command(&mut self, attempt: &mut Attempt) -> Result<(), FsError> {
        let Some(command) = &self.options.on_volume else { return Ok(()) };
        let key = Digest::of(format!("{} {command}", attempt.fingerprint).as_bytes());
        let Opened { file, volumes, forgotten } = AcceptedFile::open(&attempt.claim.partial, key)?;
        if forgotten > 0 {
            let message = format!(
                "the `--on-volume` command has accepted {forgotten} volumes, and the lists, the options or the command have \
                 changed since: all volumes are handed over; discard the earlier ones"
            );
            self.context.report.event(&Event::Warning { message });
        }
        if volumes.len() > 0 {
            let message = format!(
                "{} volumes that the `--on-volume` command has accepted are not handed over again",
                volumes.len()
            );
            self.context.report.event(&Event::Note { message });
        }
        attempt.job.set_accepted(volumes);
        self.volume_command = Some(VolumeCommand::start(command.clone(), file));
        Ok(())
    }

    /// Removes images whose manifests state different sizes for `blob`, if entries may be missing.
    fn remove_contradictions(&mut self, resolved: &mut Resolved, blob: Digest) -> Result<(), PackError> {
        self.failures.extend(resolved.remove_contradictions(blob));
        // A bundle without entries must not replace an existing one.
        if self.options.missing == Missing::Stop || resolved.is_empty() {
            return Err(self.partial.fetch_failed(std::mem::take(&mut self.failures)));
        }
        Ok(())
    }

    fn plan(&self, resolved: Resolved) -> Result<BundlePlan, PackError> {
        let plan = BundlePlan::new(resolved, self.options.about.clone(), &self.base)?;
        if let Input::Lock(lock, _) = self.input {
            lock.agrees(&plan.lock_of_images())?;
        }
        Ok(plan)
    }

    /// Writes the header and makes the bundle durable under its final name.
    fn finish(
        &mut self,
        plan: &CompletePlan<'_>,
        writer: BundleWriter,
    ) -> Result<(BundleHead, WrittenBundle), PackError> {
        self.context.report.event(&Event::Stage { name: "finishing", bytes: None, objects: None });
        let mut head = plan.head();
        head.signature = self.options.sign.as_ref().map(|signer| signer.sign(&head.index));
        let bundle = writer.finish(&head).map_err(|error| self.partial.failed(error))?;
        self.partial.remove()?;
        remove_other_form(&self.options.output, self.options.volume_size.is_some())?;
        if let Some(command) = &mut self.volume_command {
            let report = self.context.report;
            bundle.volumes.iter().try_for_each(|volume| command.run_for_volume(volume, report))?;
            bundle.sums.iter().try_for_each(|path| command.run_for_file(path.clone()))?;
            command.finish()?;
        }
        self.partial.forget_accepted()?;
        if let Some(path) = &self.options.write_lock {
            OutputFile::write(path, Access::Default, &plan.lock().to_json())?;
        }
        Ok((head, bundle))
    }

    fn summary(
        self,
        plan: &CompletePlan<'_>,
        head: &BundleHead,
        written: WrittenBlobs,
        bundle: WrittenBundle,
    ) -> PackSummary {
        let WrittenBlobs { blobs, fetched, resumed, reused, .. } = written;
        let external = plan.external();
        let external_bytes = external.iter().map(|blob| blob.size).sum();
        let file_set_len = head.files.as_ref().map(|files| files.len() as u64);
        PackSummary {
            identity: bundle.identity,
            files: plan.file_count(),
            images: plan.image_count(),
            blobs: blobs.len() - external.len() + usize::from(file_set_len.is_some()),
            bytes: blobs.values().sum::<u64>() - external_bytes + file_set_len.unwrap_or(0),
            blobs_left_out: external.len(),
            bytes_left_out: external_bytes,
            is_up_to_date: false,
            bytes_fetched: fetched + self.compared,
            bytes_resumed: resumed,
            bytes_reused: reused,
            bytes_shared: plan.shared_bytes(&blobs),
            bundle_size: bundle.size,
            time: self.start.elapsed(),
            volumes: bundle.volumes.into_iter().map(PackedVolume::from).collect(),
            missing: self.failures,
        }
    }

    /// Returns the result of a run that kept the old output, which is that of `plan`.
    fn summary_of_old(&mut self, old: &OldOutput, plan: &BundlePlan) -> PackSummary {
        let layout = old.layout();
        let (all, external) = (layout.manifests.iter().chain(&layout.blobs), &layout.external);
        let blobs = all.chain(external).map(|blob| (blob.digest, blob.size)).collect();
        let digests = listed(&self.options.output);
        let volumes = old.bundle.volumes().volumes().iter().zip(1..).filter_map(|(volume, number)| {
            let (path, digest) = (volume_path(&self.options.output, number), *digests.get(&volume.name)?);
            Some(PackedVolume::new(&path, volume.len, digest))
        });
        let requested = plan.image_manifests().iter().filter(|blob| !plan.known.contains(&blob.digest));
        PackSummary {
            identity: old.identity(),
            files: layout.files.len(),
            images: layout.images.len(),
            blobs: layout.manifests.len() + layout.blobs.len(),
            bytes: layout.total_size(),
            blobs_left_out: external.len(),
            bytes_left_out: external.iter().map(|blob| blob.size).sum(),
            is_up_to_date: true,
            bytes_fetched: requested.map(|blob| blob.size).sum::<u64>() + self.compared,
            bytes_resumed: 0,
            bytes_reused: 0,
            bytes_shared: plan.complete(&HashMap::new()).shared_bytes(&blobs),
            bundle_size: old.bundle.volumes().len(),
            time: self.start.elapsed(),
            volumes: if self.options.volume_size.is_some() { volumes.collect() } else { Vec::new() },
            missing: std::mem::take(&mut self.failures),
        }
    }
}

/// True if a source may have sent bytes that do not match.
fn has_mismatch(failure: &FetchError) -> bool {
    matches!(failure.problem, FetchProblem::Mismatch { .. } | FetchProblem::AllFailed { .. })
}

/// Removes endpoints of the files that the list pins to `blob` and that no source delivers, up to the first endpoint that
/// states another size: the plan has the size that the first one stated, and its content does not match the checksum.
/// Returns false if there is no such endpoint.
fn next_size(context: &FetchContext<'_>, resolved: &mut Resolved, blob: Digest) -> bool {
    let FetchContext { http, report, .. } = *context;
    let mut is_changed = false;
    for (entry, remote) in &mut resolved.files {
        if entry.checksum != Some(Checksum::Sha256(blob)) || remote.content.is_some() {
            continue;
        }
        let object = entry.name();
        let request = RequestContext { http, report, object: &object };
        let mut endpoints = remote.endpoints.get(1..).unwrap_or_default().to_vec();
        while !endpoints.is_empty() {
            let Ok(next) = web::probe(request, &endpoints, None) else { break };
            if next.size != remote.size {
                *remote = next;
                is_changed = true;
                break;
            }
            endpoints = next.endpoints[1..].to_vec();
        }
    }
    is_changed
}

/// Pins `files` to their old content.
fn pin_files(resolved: &mut Resolved, files: &[OldFile]) {
    for file in files {
        pin(&mut resolved.files[file.index].1, file.blob);
    }
}
