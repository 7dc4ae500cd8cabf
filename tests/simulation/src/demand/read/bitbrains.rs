//! The format of the GWA-T-12 Bitbrains traces.

use std::path::Path;

use super::row::rows;
use super::series::Series;
use super::{MOST_PERCENT, name};
use crate::demand::problem::{TraceFault, TraceProblem, ValueFault};
use crate::demand::trace::{Sample, Trace, TraceMemory};

const TIME: &str = "Timestamp [ms]";
const CPU: &str = "CPU usage [%]";
const MEMORY: &str = "Memory usage [KB]";
/// 64 TiB in KB.
const MOST_MEMORY: f64 = (1_u64 << 36) as f64;
/// The year 5138 in seconds and 1973 in milliseconds.
const MILLISECONDS_FROM: i64 = 100_000_000_000;

pub(super) fn parse(path: &Path, text: &str) -> Result<Trace, TraceProblem> {
    let mut rows = rows(path, text, b';');
    let Some(header) = rows.next().transpose()? else {
        return Err(TraceProblem::Whole { path: path.to_owned(), fault: TraceFault::Empty });
    };
    let (time, cpu) = (header.column(TIME)?, header.column(CPU)?);
    let memory = header.column(MEMORY)?;
    let mut series = Series::new(TIME);
    let mut millis_per_unit = None;
    for row in rows {
        let row = row?;
        row.has(header.len())?;
        let not_a_time = || row.wrong(time, TIME, ValueFault::NotATime);
        let at: i64 = row.text(time).parse().map_err(|_| not_a_time())?;
        if at < 0 {
            return Err(row.wrong(time, TIME, ValueFault::Negative));
        }
        // The first row decides for all: a unit that changes shows as a gap.
        let unit = *millis_per_unit.get_or_insert(if at < MILLISECONDS_FROM { 1000 } else { 1 });
        let at = at.checked_mul(unit).ok_or_else(not_a_time)?;
        let percent = row.amount(cpu, CPU, MOST_PERCENT)?;
        let kilobytes = row.amount(memory, MEMORY, MOST_MEMORY)?;
        let sample = Sample::recorded(percent, kilobytes * 1024.0);
        series.push(&row, at, row.text(time), sample)?;
    }
    let (samples, resolution) = series.finish(path)?;
    let memory = TraceMemory::Recorded;
    Ok(Trace { name: name(path), samples: samples.into(), resolution, memory })
}
