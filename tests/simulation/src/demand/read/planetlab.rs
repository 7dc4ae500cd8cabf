//! The format of a day of PlanetLab, many VMs in one file.

use std::path::Path;
use std::time::Duration;

use super::row::rows;
use super::{MOST_PERCENT, name};
use crate::demand::problem::TraceProblem;
use crate::demand::trace::{Sample, Trace, TraceMemory};

/// A day of five minutes each.
const SAMPLES: usize = 288;
const RESOLUTION: Duration = Duration::from_secs(300);

pub(super) fn parse(path: &Path, text: &str) -> Result<Vec<Trace>, TraceProblem> {
    let file = name(path);
    let mut traces = Vec::new();
    for row in rows(path, text, b',') {
        let row = row?;
        row.has(SAMPLES)?;
        let sample = |index: usize| {
            row.amount(index, index.saturating_add(1), MOST_PERCENT).map(Sample::derived)
        };
        let samples: Vec<Sample> = (0..SAMPLES).map(sample).collect::<Result<_, _>>()?;
        traces.push(Trace {
            name: format!("{file}:{}", row.line).into(),
            samples: samples.into(),
            resolution: RESOLUTION,
            memory: TraceMemory::Derived,
        });
    }
    Ok(traces)
}
