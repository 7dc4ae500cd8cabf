//! `simulate`: what the shipped brains decide, without a cluster.

use std::io::{self, BufRead as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use tests_simulation::command::{compare, faults, fleet};
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
    /// Runs a fleet under one policy and prints how well it was scaled.
    Fleet(fleet::Args),
    /// Runs the same demand under every policy, side by side.
    Compare(compare::Args),
    /// Searches for faults that break a rule: each seed is an hour of a small fleet.
    Faults(faults::Args),
    /// Reads a VM's events, one JSON object a line, and prints what the brain does after each.
    Timeline(timeline::Args),
    /// Shows what other policies would have made of a VM's recorded decisions.
    Replay(replay::Args),
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
        Command::Goal { policy: GoalPolicy::Reference } => goals()?,
        Command::Fleet(args) => return fleet::run(&args),
        Command::Compare(args) => compare::run(&args)?,
        Command::Faults(args) => return faults::run(&args),
        Command::Timeline(args) => timeline::run(&args)?,
        Command::Replay(args) => replay::run(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn goals() -> Result<()> {
    let (input, mut output) = (io::stdin().lock(), io::stdout().lock());
    for line in input.split(b'\n') {
        let line = line.context("read a line")?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        match writeln!(output, "{}", goal::answer(&line)) {
            Err(err) if err.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.context("write an answer")?,
        }
    }
    Ok(())
}
