//! `simulate`: what the shipped brains decide, without a cluster.

use std::io::{self, BufRead as _, Write as _};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use tests_simulation::search::{self, Run};
use tests_simulation::{goal, replay, timeline};

const EX_USAGE: u8 = 64;

/// Shows what the shipped brains decide, without a cluster.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Reads metrics, one JSON object a line, and prints the goal for each.
    Goal {
        /// Whose goal.
        #[arg(long)]
        policy: GoalPolicy,
    },
    /// Searches for faults that break a rule: each seed is an hour of a small fleet.
    Faults {
        /// From the first seed up to the last, without it: `1..100`.
        #[arg(long)]
        seeds: Seeds,
        /// Of a seed's faults only these, by number: `0,3`, or `none`.
        #[arg(long)]
        only: Option<Only>,
    },
    /// Reads a VM's events, one JSON object a line, and prints what the brain does after each.
    Timeline(timeline::Args),
    /// Shows what other policies would have made of a VM's recorded decisions.
    Replay(replay::Args),
}

/// A range of seeds.
#[derive(Debug, Clone, Copy)]
struct Seeds {
    from: u64,
    to: u64,
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
struct Only(Vec<usize>);

impl FromStr for Only {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let wrong = |_| format!("{text:?} is no list of numbers such as 0,3");
        text.split(',')
            .map(|it| it.trim().parse().map_err(wrong))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// The policies whose goal follows from one look at the metrics.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum GoalPolicy {
    /// The reference's.
    Reference,
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(err) => {
            let _nobody_reads = err.print();
            return if err.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match run(args.command) {
        Ok(code) => code,
        Err(err) => {
            eprintln!("{err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Goal { policy: GoalPolicy::Reference } => goals().map(|()| ExitCode::SUCCESS),
        Command::Faults { seeds, only } => faults(seeds, only),
        Command::Timeline(args) => timeline::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Replay(args) => replay::run(&args).map(|()| ExitCode::SUCCESS),
    }
}

/// Seeds are shared among the cores; the first that breaks a rule, in their order, is told.
fn faults(Seeds { from, to }: Seeds, only: Option<Only>) -> Result<ExitCode> {
    let only = only.map(|Only(only)| only);
    let (next, worst) = (AtomicU64::new(from), AtomicU64::new(u64::MAX));
    let events = AtomicU64::new(0);
    let began = Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to.min(worst.load(Ordering::Relaxed)) {
                        return;
                    }
                    let found = search::search(&Run { seed, only: only.clone(), ..Run::default() });
                    events.fetch_add(found.events, Ordering::Relaxed);
                    if found.violation.is_some() {
                        worst.fetch_min(seed, Ordering::Relaxed);
                    }
                }
            });
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
    let run = Run { seed, only, ..Run::default() };
    if let Some(violation) = search::search(&run).violation {
        let text = search::explain(&run, &violation);
        write!(output, "{text}").context("write the result")?;
    }
    Ok(ExitCode::FAILURE)
}

fn goals() -> Result<()> {
    let (input, mut output) = (io::stdin().lock(), io::stdout().lock());
    for line in input.lines() {
        let line = line.context("read a line")?;
        if line.trim().is_empty() {
            continue;
        }
        match writeln!(output, "{}", goal::answer(&line)) {
            Err(err) if err.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.context("write an answer")?,
        }
    }
    Ok(())
}
