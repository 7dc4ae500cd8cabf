//! The format of the Numenta Anomaly Benchmark.

use std::path::Path;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::name;
use super::row::rows;
use super::series::Series;
use crate::demand::problem::{TraceFault, TraceProblem, ValueFault};
use crate::demand::trace::{Sample, Trace, TraceMemory};

const TIME: &str = "timestamp";
const VALUE: &str = "value";
/// Nothing that is counted is more.
const MOST: f64 = 1e15;
/// The part of the values that is not above 100 percent, in thousandths.
const SCALED_BY: usize = 999;

pub(super) fn parse(path: &Path, text: &str) -> Result<Trace, TraceProblem> {
    let whole = |fault| TraceProblem::Whole { path: path.to_owned(), fault };
    let mut rows = rows(path, text, b',');
    let Some(header) = rows.next().transpose()? else {
        return Err(whole(TraceFault::Empty));
    };
    let (time, value) = (header.column(TIME)?, header.column(VALUE)?);
    let mut series = Series::new(TIME);
    for row in rows {
        let row = row?;
        row.has(header.len())?;
        let at =
            millis(row.text(time)).ok_or_else(|| row.wrong(time, TIME, ValueFault::NotATime))?;
        let amount = row.amount(value, VALUE, MOST)?;
        series.push(&row, at, row.text(time), amount)?;
    }
    let (values, resolution) = series.finish(path)?;
    let scale = scale(&values).ok_or_else(|| whole(TraceFault::NoScale))?;
    let percent = |value: &f64| (value * 100.0 / scale).min(100.0);
    let samples = values.iter().map(|value| Sample::derived(percent(value))).collect();
    Ok(Trace { name: name(path), samples, resolution, memory: TraceMemory::Derived })
}

/// Milliseconds since 1970. The times have no zone; in UTC no hour is skipped or comes twice.
fn millis(text: &str) -> Option<i64> {
    let time: DateTime = text.parse().ok()?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp().as_millisecond())
}

/// The value that is 100 percent; `None` when that would be 0.
fn scale(values: &[f64]) -> Option<f64> {
    if values.iter().all(|value| *value <= 100.0) {
        return Some(100.0);
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    // The nearest rank, from 1 to all.
    let rank = sorted.len().saturating_mul(SCALED_BY).div_ceil(1000);
    let scale = sorted.get(rank.saturating_sub(1)).copied()?;
    (scale > 0.0).then_some(scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_scaled_by_its_percentile() {
        let mut values: Vec<f64> = (1..=2000).map(f64::from).collect();
        assert_eq!(scale(&values), Some(1998.0));
        values.truncate(100);
        assert_eq!(scale(&values), Some(100.0));
        values.push(101.0);
        assert_eq!(scale(&values), Some(101.0));
        let mut rare = vec![0.0; 1999];
        rare.push(5000.0);
        assert_eq!(scale(&rare), None);
    }

    #[test]
    fn times_are_in_utc() {
        assert_eq!(millis("1970-01-01 00:00:01"), Some(1000));
        assert_eq!(millis("2014-03-30 02:30:00"), Some(1_396_146_600_000));
        assert_eq!(millis("2014-02-30 00:00:00"), None);
        assert_eq!(millis("now"), None);
    }
}
