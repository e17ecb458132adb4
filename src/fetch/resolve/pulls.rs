//! [`Pulls`]: counts the requests for manifests, which registries limit.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use crate::base::event::{Event, Report};
use crate::documents::list::Lists;
use crate::net::http::quota::Quota;

/// The requests for manifests, by the host of the images.
#[derive(Default)]
pub(crate) struct Pulls(Mutex<BTreeMap<String, HostPulls>>);

#[derive(Default)]
struct HostPulls {
    /// Number of images in the lists.
    images: u64,
    /// Number of successful requests.
    made: u64,
    /// The last one that the registry stated.
    quota: Option<Quota>,
}

impl Pulls {
    /// Counts the images of `lists`.
    pub(crate) fn plan(&self, lists: &Lists) {
        let mut hosts = self.lock();
        for image in &lists.images {
            hosts.entry(image.reference.host().to_owned()).or_default().images += 1;
        }
    }

    /// Counts a request to the registry `host`. Reports the quota when a registry states it first; `is_partly_known`:
    /// not every image needs a request.
    pub(crate) fn count(&self, host: &str, quota: Option<Quota>, is_partly_known: bool, report: &dyn Report) {
        let mut hosts = self.lock();
        let pulls = hosts.entry(host.to_owned()).or_default();
        pulls.made += 1;
        let Some(quota) = quota else { return };
        let is_first = pulls.quota.is_none();
        // Responses overtake each other.
        let remaining = pulls.quota.map_or(quota.remaining, |earlier| earlier.remaining.min(quota.remaining));
        pulls.quota = Some(Quota { remaining, ..quota });
        if is_first {
            let (images, made) = (pulls.images, pulls.made);
            let is_enough = is_partly_known || images.saturating_sub(made) <= quota.remaining;
            let message = plan_text(host, images, is_partly_known, is_enough, quota);
            drop(hosts);
            report.event(&if is_enough { Event::Note { message } } else { Event::Warning { message } });
        }
    }

    /// Reports the requests to registries with a quota.
    pub(crate) fn report(&self, report: &dyn Report) {
        for (host, pulls) in &*self.lock() {
            if let Some(quota) = pulls.quota {
                let message = format!("`{host}`: {} pulls made, {}", pulls.made, left_text(quota));
                report.event(&Event::Note { message });
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, HostPulls>> {
        self.0.lock().expect("nothing panics while it holds this; please report")
    }
}

/// Returns the number of pulls that the images of a host need, and the number that is left.
fn plan_text(host: &str, images: u64, is_partly_known: bool, is_enough: bool, quota: Quota) -> String {
    let left = left_text(quota);
    let images = if images == 1 { "1 image".to_owned() } else { format!("{images} images") };
    if is_partly_known {
        return format!("`{host}` limits pulls: {left}; of {images}, only those that changed need any");
    }
    let end = if is_enough {
        ""
    } else {
        "; `pack` keeps manifests that it has, so that the same command continues later"
    };
    format!("`{host}` limits pulls: {left}; {images} need one or more each{end}")
}

/// Describes a quota: `76 of 100 left (per 6 h)`.
fn left_text(quota: Quota) -> String {
    let of = quota.limit.map(|limit| format!(" of {limit}")).unwrap_or_default();
    let period = quota.period.map(|period| format!(" (per {})", period_text(period))).unwrap_or_default();
    format!("{}{of} left{period}", quota.remaining)
}

fn period_text(period: Duration) -> String {
    match period.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}
