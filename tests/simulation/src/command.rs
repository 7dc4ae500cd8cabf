//! The commands that run whole fleets: their arguments, and what they print.

pub mod compare;
pub mod faults;
pub mod fleet;

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::workload::{self, Group};

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

fn span(hours: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(hours * 3600.0).with_context(|| format!("{hours} hours"))
}
