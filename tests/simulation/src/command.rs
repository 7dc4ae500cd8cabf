//! The commands that run whole fleets: their arguments, and what they print.

pub mod compare;
pub mod faults;
pub mod fleet;

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::builder::RangedU64ValueParser;
use guest_units::Bytes;

use crate::workload::{self, Group};

/// A year.
const MOST_HOURS: f64 = 8784.0;
/// CPUs of the largest VM.
const MOST_CPUS: i64 = 256;

/// A range of seeds, without its end.
#[derive(Debug, Clone, Copy)]
pub struct Seeds {
    /// The first.
    pub from: u64,
    /// The one after the last.
    pub to: u64,
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no range of numbers such as 1..100");
        let (from, to) = text.split_once("..").ok_or_else(wrong)?;
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| wrong());
        let (from, to) = (number(from)?, number(to)?);
        if from < to { Ok(Self { from, to }) } else { Err(format!("{text:?} has no seeds")) }
    }
}

/// Numbers of faults.
#[derive(Debug, Clone)]
pub struct Only(pub Vec<usize>);

impl FromStr for Only {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let wrong = |_| format!("{text:?} is no list of numbers such as 0,3");
        let numbers = text.split(',').map(|it| it.trim().parse().map_err(wrong));
        numbers.collect::<Result<_, _>>().map(Self)
    }
}

fn groups(traces: &[String]) -> Result<Vec<Group>> {
    let mut groups = Vec::new();
    for trace in traces {
        groups.extend(workload::parse(trace)?);
    }
    Ok(groups)
}

/// Hours of a run, up to a year of them.
fn hours(text: &str) -> Result<f64, String> {
    let hours = text.parse().ok().filter(|hours: &f64| *hours > 0.0 && *hours <= MOST_HOURS);
    hours.ok_or_else(|| format!("not a number above 0 and up to {MOST_HOURS}"))
}

/// A step of memory: those sizes of virtio-mem blocks of which all bounds are multiples.
fn slot(text: &str) -> Result<Bytes, String> {
    let slot = text.parse::<Bytes>().map_err(|err| err.to_string())?;
    let fits =
        slot.0.is_power_of_two() && (Bytes::from_mib(2)..=Bytes::from_gib(1)).contains(&slot);
    fits.then_some(slot).ok_or_else(|| "not a power of two from 2Mi to 1Gi".to_owned())
}

/// Counts that a run can be made of.
fn count(most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=most)
}

fn span(hours: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(hours * 3600.0).with_context(|| format!("{hours} hours"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_refused() {
        for (text, good) in [
            ("2Mi", true),
            ("1Gi", true),
            ("0", false),
            ("1", false),
            ("3Mi", false),
            ("2Gi", false),
        ] {
            assert_eq!(slot(text).is_ok(), good, "{text}");
        }
        for (text, good) in [
            ("0.5", true),
            ("8784", true),
            ("0", false),
            ("-1", false),
            ("NaN", false),
            ("inf", false),
        ] {
            assert_eq!(hours(text).is_ok(), good, "{text}");
        }
    }
}
