//! What is tested on a real cluster: a list of scenarios, each with a deadline, and what is collected when one fails.

mod api;
mod approval;
mod books;
mod claims;
mod cluster_itself;
mod crash;
mod ends;
mod evidence;
mod failover;
mod full;
mod https;
mod identity;
mod life;
mod load;
mod manifests;
mod ordinary;
mod race;
mod resize;
mod rivals;
mod room;
mod scheduler;
mod space;
mod victim;
mod vm;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::cache::Cache;
use crate::cluster::Cluster;
use crate::interrupt;
use crate::progress::Progress;
use crate::tally::Part;

/// What a scenario finds when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// A cluster.
    Cluster,
    /// A cluster with the system on it.
    System,
}

/// One scenario.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// What it shows, as a sentence.
    pub name: &'static str,
    /// What it finds when it begins.
    pub needs: Needs,
    /// By when it has ended, well or badly.
    pub deadline: Duration,
    /// What it does.
    pub run: fn(&Cluster) -> Result<()>,
}

/// All scenarios in the order in which they run; the last one takes the cluster away.
pub fn all() -> Vec<Scenario> {
    let [mut first, last] = cluster_itself::scenarios();
    for feature in [
        life::scenarios,
        manifests::scenarios,
        resize::scenarios,
        ends::scenarios,
        identity::scenarios,
        approval::scenarios,
        full::scenarios,
        race::scenarios,
        room::scenarios,
        rivals::scenarios,
        load::scenarios,
        failover::scenarios,
        crash::scenarios,
    ] {
        first.extend(feature());
    }
    first.extend(last);
    first
}

impl Scenario {
    /// Whether the cluster is gone afterwards.
    pub fn takes_the_cluster_away(&self) -> bool {
        self.name == cluster_itself::DOWN
    }
}

/// How a scenario ended.
#[derive(Debug)]
pub struct Outcome {
    /// Which one.
    pub name: &'static str,
    /// How long it took.
    pub took: Duration,
    /// Why it failed, and where the evidence lies.
    pub failure: Option<(anyhow::Error, PathBuf)>,
}

/// Runs one scenario within its deadline; collects the evidence when it fails.
pub fn run(cache: &Cache, cluster: &Cluster, scenario: Scenario) -> Outcome {
    let begun = Instant::now();
    let result = within(cluster, scenario);
    let took = begun.elapsed();
    let failure = result.err().map(|err| (err, evidence::collect(cache, cluster, scenario.name)));
    Outcome { name: scenario.name, took, failure }
}

/// What scenarios have measured since the last one ended.
static FIGURES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Something measured that people want to read; no check depends on it.
fn figure(text: String) {
    FIGURES.lock().unwrap_or_else(PoisonError::into_inner).push(text);
}

/// Runs one scenario and says how it went: the line of the table.
pub fn part(cache: &Cache, progress: &Progress, cluster: &Cluster, scenario: Scenario) -> Part {
    progress.note(&format!("scenario: {} ...", scenario.name));
    let Outcome { name, took, failure } = run(cache, cluster, scenario);
    for figure in FIGURES.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        progress.note(&format!("  {figure}"));
    }
    match &failure {
        Some((err, evidence)) => {
            progress.note(&format!("FAILED: {name}: {err:#}"));
            progress.note(&format!("  evidence: {}", evidence.display()));
        }
        None => progress.note(&format!("passed in {:.1} s", took.as_secs_f64())),
    }
    Part::scenario(name, took, failure.is_none())
}

fn within(cluster: &Cluster, scenario: Scenario) -> Result<()> {
    let (report, ended) = mpsc::channel();
    let cluster = cluster.clone();
    // Not scoped: a scenario that hangs is left behind, so that the others still run.
    let thread = thread::spawn(move || {
        let _nobody_waits_any_more = report.send((scenario.run)(&cluster));
    });
    let begun = Instant::now();
    loop {
        match ended.recv_timeout(Duration::from_millis(100)) {
            Ok(result) => return result,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let panic = thread.join().err();
                let text = panic.as_ref().and_then(|panic| panic.downcast_ref::<String>().cloned());
                return Err(anyhow!("panicked: {}", text.unwrap_or_default()));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => interrupt::check()?,
        }
        if begun.elapsed() > scenario.deadline {
            return Err(anyhow!("did not end within {:?}", scenario.deadline));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn scenarios_have_names_of_their_own_and_the_cluster_goes_last() {
        let all = all();
        let names: BTreeSet<_> = all.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), all.len());
        let away = |scenario: &&Scenario| scenario.takes_the_cluster_away();
        assert_eq!(all.iter().filter(away).count(), 1);
        assert!(all.last().unwrap().takes_the_cluster_away());
    }
}
