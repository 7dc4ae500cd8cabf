//! `simulate compare`: the same demand under every policy, side by side.

use std::io::{self, Write as _};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use guest_units::Bytes;

use super::{MOST_CPUS, Seeds, count, groups, hours, slot, span};
use crate::compare::{Comparison, compare, summary};
use crate::run::machine;

/// Each seed is as many VMs again.
const MOST_SEEDS: u64 = 1000;

/// Arguments of `compare`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// An archetype, several (`idle,diurnal`), `all`, or a file or folder of traces. May be given more than once.
    #[arg(long = "trace", required = true)]
    pub traces: Vec<String>,
    /// Step of memory: `128Mi`, `1Gi`, or bytes.
    #[arg(long, default_value = "128Mi", value_parser = slot)]
    pub slot: Bytes,
    /// The seeds of archetypes and of the bursts on traces: each trace runs with each.
    #[arg(long, default_value = "1..6")]
    pub seeds: Seeds,
    /// At most so many hours of each; archetypes have 24.
    #[arg(long, value_parser = hours)]
    pub hours: Option<f64>,
    /// Of a file with more VMs than this, so many, evenly spread.
    #[arg(long, value_parser = count(1_000_000))]
    pub most: Option<usize>,
    /// Largest VM, in CPUs; with 4 GiB each.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=MOST_CPUS))]
    pub cpus: u32,
    /// All numbers, as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Compares, and prints a table or JSON; how long each demand took goes to the standard error.
///
/// # Errors
/// A demand does not exist or is wrong, or the result cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let Seeds { from, to } = args.seeds;
    if to - from > MOST_SEEDS {
        bail!("--seeds {from}..{to}: at most {MOST_SEEDS} seeds");
    }
    let mut groups = groups(&args.traces)?;
    for group in &mut groups {
        let (count, most) = (group.sources.len(), args.most.unwrap_or(usize::MAX));
        if count > most {
            group.sources = (0..most).map(|it| group.sources[it * count / most].clone()).collect();
        }
    }
    let comparison = Comparison {
        machine: machine(args.cpus, args.slot),
        groups,
        seeds: from..=to - 1,
        most: args.hours.map(span).transpose()?,
    };
    let mut all = Vec::new();
    for group in &comparison.groups {
        let began = Instant::now();
        all.push(compare(&comparison, group));
        eprintln!("{}: {:.1} s", group.name, began.elapsed().as_secs_f64());
    }
    let text = if args.json { serde_json::to_string(&all)? + "\n" } else { summary(&all) };
    io::stdout().write_all(text.as_bytes()).context("write the result")
}
