//! `simulate faults`: seed after seed, until a rule is broken.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::{Only, Seeds};
use crate::fleet::{Bug, Family};
use crate::run::Brain;
use crate::search::{Run, explain, planned, search};

/// Arguments of `faults`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// From the first seed up to the last, without it: `1..100`.
    #[arg(long)]
    pub seeds: Seeds,
    /// Of a seed's faults only these, by number: `0,3`, or `none`.
    #[arg(long)]
    pub only: Option<Only>,
    /// Whose rules the agents go by.
    #[arg(long, value_enum, default_value_t)]
    pub policy: Brain,
    /// All faults are of this kind.
    #[arg(long, value_enum)]
    pub kind: Option<Family>,
    /// With a deliberate bug, to see that it is found.
    #[arg(long, value_enum)]
    pub bug: Option<Bug>,
}

/// Every seed has the faults that are asked for.
fn check_only(run: &Run) -> Result<()> {
    let count = planned(run);
    let wrong = run.only.iter().flatten().find(|fault| **fault >= count);
    wrong.map_or(Ok(()), |wrong| {
        bail!("--only {wrong}: the faults of seed {} are 0 to {}", run.seed, count - 1)
    })
}

/// Shares the seeds among the cores; the first that breaks a rule, in their order, is told.
///
/// # Errors
/// The result cannot be written.
pub fn run(args: &Args) -> Result<ExitCode> {
    let Seeds { from, to } = args.seeds;
    let only = args.only.clone().map(|Only(only)| only);
    let like = Run { only, brain: args.policy, bug: args.bug, family: args.kind, ..Run::default() };
    for seed in from..if like.only.is_some() { to } else { from } {
        check_only(&Run { seed, ..like.clone() })?;
    }
    let (next, worst) = (AtomicU64::new(from), AtomicU64::new(u64::MAX));
    let events = AtomicU64::new(0);
    let began = Instant::now();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= to.min(worst.load(Ordering::Relaxed)) {
                return;
            }
            let found = search(&Run { seed, ..like.clone() });
            events.fetch_add(found.events, Ordering::Relaxed);
            if found.violation.is_some() {
                worst.fetch_min(seed, Ordering::Relaxed);
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(work);
        }
    });
    let mut output = io::stdout().lock();
    let seed = worst.into_inner();
    if seed == u64::MAX {
        let (seeds, events) = (to - from, events.into_inner());
        let seconds = began.elapsed().as_secs_f64();
        writeln!(output, "{seeds} seeds, {events} events, no rule broken, {seconds:.1} s")
            .context("write the result")?;
        return Ok(ExitCode::SUCCESS);
    }
    let run = Run { seed, ..like };
    if let Some(violation) = search(&run).violation {
        let text = explain(&run, &violation);
        write!(output, "{text}").context("write the result")?;
    }
    Ok(ExitCode::FAILURE)
}
