//! Whose demand it is: names of archetypes, or traces in files, as the command line says them.

use std::path::Path;
use std::str::FromStr as _;

use guest_units::{Moment, Size};

use crate::demand::{Archetype, Demand, Trace, TraceProblem, read_traces};

/// The demand of one VM, ready to begin anew as often as wanted.
#[derive(Debug, Clone)]
pub enum Source {
    /// Generated.
    Archetype(Archetype),
    /// Of a real machine, with bursts.
    Trace(Trace),
}

impl Source {
    /// The demand of the VM with this number.
    #[must_use]
    pub fn demand(&self, max: Size, seed: u64, vm: u64, end: Moment) -> Demand {
        match self {
            Self::Archetype(archetype) => Demand::of_archetype(*archetype, max, seed, vm, end),
            Self::Trace(trace) => Demand::of_trace(trace, seed, vm, end),
        }
    }

    /// How long it lasts; archetypes go on for ever.
    #[must_use]
    pub fn lasts(&self) -> Option<std::time::Duration> {
        match self {
            Self::Archetype(_) => None,
            Self::Trace(trace) => Some(trace.duration()),
        }
    }
}

/// Sources that belong together: an archetype, or the VMs of a file.
#[derive(Debug, Clone)]
pub struct Group {
    /// Name of the archetype or of the file.
    pub name: String,
    /// Its VMs, or the one archetype.
    pub sources: Vec<Source>,
    /// How many of the VMs of a mixed fleet have it, by comparison.
    pub weight: u32,
}

/// The largest weight of a workload in a mixed fleet.
const MOST_WEIGHT: u32 = 10_000;

/// Why a name is no workload.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadProblem {
    /// Neither archetype nor file.
    #[error("{text:?} is neither a file or folder nor one of {}", names())]
    Unknown {
        /// What was given.
        text: String,
    },
    /// The weight is no number.
    #[error("the weight in {0:?} is no whole number from 1 to {MOST_WEIGHT}")]
    Weight(String),
    /// A file is wrong.
    #[error(transparent)]
    Trace(#[from] TraceProblem),
}

fn names() -> String {
    Archetype::all().iter().map(|it| it.name()).collect::<Vec<_>>().join(", ")
}

/// Reads `idle`, `idle=99,diurnal=1`, `all` (every archetype), or the path of a trace or of a folder of traces.
pub fn parse(text: &str) -> Result<Vec<Group>, WorkloadProblem> {
    if text == "all" {
        return Ok(Archetype::all().iter().map(|it| of_archetype(*it, 1)).collect());
    }
    if Path::new(text).exists() {
        return Ok(by_file(read_traces(Path::new(text))?));
    }
    text.split(',').map(part).collect()
}

fn part(text: &str) -> Result<Group, WorkloadProblem> {
    let (name, weight) = text.split_once('=').unwrap_or((text, "1"));
    let weight = weight.trim().parse().ok().filter(|weight| (1..=MOST_WEIGHT).contains(weight));
    let weight = weight.ok_or_else(|| WorkloadProblem::Weight(text.to_owned()))?;
    let archetype = Archetype::from_str(name.trim());
    let archetype = archetype.map_err(|_| WorkloadProblem::Unknown { text: name.to_owned() })?;
    Ok(of_archetype(archetype, weight))
}

fn of_archetype(archetype: Archetype, weight: u32) -> Group {
    let sources = vec![Source::Archetype(archetype)];
    Group { name: archetype.name().to_owned(), sources, weight }
}

/// A file may hold many VMs, named `file:line`.
fn by_file(traces: Vec<Trace>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for trace in traces {
        let name = trace.name().split(':').next().unwrap_or_default().to_owned();
        match groups.last_mut().filter(|group| group.name == name) {
            Some(group) => group.sources.push(Source::Trace(trace)),
            None => groups.push(Group { name, sources: vec![Source::Trace(trace)], weight: 1 }),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_weights_and_mistakes() {
        let groups = parse("idle=99,diurnal").unwrap();
        let seen: Vec<_> = groups.iter().map(|group| (group.name.as_str(), group.weight)).collect();
        assert_eq!(seen, [("idle", 99), ("diurnal", 1)]);
        assert_eq!(parse("all").unwrap().len(), Archetype::all().len());
        for (wrong, says) in [
            ("idle=0", "from 1 to 10000"),
            ("idle=x", "weight"),
            ("idle=4000000000", "from 1 to 10000"),
            ("bogus", "neither"),
        ] {
            let problem = parse(wrong).unwrap_err().to_string();
            assert!(problem.contains(says), "{problem}");
        }
    }
}
