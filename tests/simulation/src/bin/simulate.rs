//! `simulate`: what the shipped brains decide, without a cluster.

use std::io::{self, BufRead as _, Write as _};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use guest_units::{Bytes, Moment};
use scheduler_ledger::Amount;
use tests_simulation::compare::{self, Comparison};
use tests_simulation::run::{self, Brain, Fleet, Outcome};
use tests_simulation::fleet::Bug;
use tests_simulation::search::{self, Run};
use tests_simulation::workload::{self, Group, Source};
use tests_simulation::{goal, quality};

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
    /// The same demand under every policy, side by side.
    Compare {
        /// An archetype, several (`idle=99,diurnal=1`), `all`, or a file or folder of traces. May be given more than once.
        #[arg(long = "trace", required = true)]
        traces: Vec<String>,
        /// Step of memory: `128Mi`, `1Gi`, or bytes.
        #[arg(long, default_value = "128Mi")]
        slot: Bytes,
        /// The seeds of archetypes and of the bursts on traces: each trace runs with each.
        #[arg(long, default_value = "1..6")]
        seeds: Seeds,
        /// At most so many hours of each.
        #[arg(long)]
        hours: Option<f64>,
        /// Largest VM, in CPUs; with 4 GiB each.
        #[arg(long, default_value_t = 8)]
        cpus: u32,
        /// All numbers, as JSON.
        #[arg(long)]
        json: bool,
    },
    /// A fleet under one policy.
    Fleet {
        /// Nodes.
        #[arg(long, default_value_t = 10)]
        nodes: usize,
        /// VMs, spread evenly.
        #[arg(long, default_value_t = 200)]
        vms: usize,
        /// So many hours.
        #[arg(long, default_value_t = 24.0)]
        hours: f64,
        /// Of everything random.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Who scales.
        #[arg(long, value_enum, default_value_t = Brain::Headroom)]
        policy: Brain,
        /// An archetype, several (`idle=99,diurnal=1`), `all`, or a file or folder of traces.
        #[arg(long, default_value = "all")]
        trace: String,
        /// Step of memory: `128Mi`, `1Gi`, or bytes.
        #[arg(long, default_value = "128Mi")]
        slot: Bytes,
        /// Largest VM, in CPUs; with 4 GiB each.
        #[arg(long, default_value_t = 4)]
        cpus: u32,
        /// CPUs of a node.
        #[arg(long, default_value_t = 128)]
        node_cpus: u64,
        /// Memory of a node.
        #[arg(long, default_value = "512Gi")]
        node_memory: Bytes,
        /// Checks the rules after every event.
        #[arg(long)]
        check: bool,
        /// Looks at every VM all the time.
        #[arg(long)]
        awake: bool,
        /// All numbers, as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Searches for faults that break a rule: each seed is an hour of a small fleet.
    Faults {
        /// From the first seed up to the last, without it: `1..100`.
        #[arg(long)]
        seeds: Seeds,
        /// Of a seed's faults only these, by number: `0,3`, or `none`.
        #[arg(long)]
        only: Option<Only>,
        /// With a deliberate bug, to see that it is found.
        #[arg(long, value_enum)]
        bug: Option<Bug>,
    },
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
        text.split(',').map(|it| it.trim().parse().map_err(wrong)).collect::<Result<_, _>>().map(Self)
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
        Command::Faults { seeds, only, bug } => {
            faults(seeds, &Run { only: only.map(|Only(only)| only), bug, ..Run::default() })
        }
        Command::Compare { traces, slot, seeds, hours, cpus, json } => {
            let groups = groups(&traces)?;
            let comparison = Comparison {
                machine: run::machine(cpus, slot),
                groups,
                seeds: seeds.from..=seeds.to - 1,
                most: hours.map(span).transpose()?,
            };
            compared(&comparison, json).map(|()| ExitCode::SUCCESS)
        }
        Command::Fleet {
            nodes,
            vms,
            hours,
            seed,
            policy,
            trace,
            slot,
            cpus,
            node_cpus,
            node_memory,
            check,
            awake,
            json,
        } => {
            let fleet = Fleet {
                machine: run::machine(cpus, slot),
                brain: policy,
                nodes,
                node: Amount { cpu_millis: node_cpus * 1000, memory_bytes: node_memory.0 },
                seed,
                end: Moment(span(hours)?),
                sleep: !awake,
                checks: check,
            };
            whole_fleet(&fleet, &groups(&[trace])?, vms, json)
        }
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

fn compared(comparison: &Comparison, json: bool) -> Result<()> {
    let mut all = Vec::new();
    for group in &comparison.groups {
        let began = Instant::now();
        all.push(compare::compare(comparison, group));
        eprintln!("{}: {:.1} s", group.name, began.elapsed().as_secs_f64());
    }
    let text = if json { serde_json::to_string(&all)? + "\n" } else { compare::summary(&all) };
    io::stdout().write_all(text.as_bytes()).context("write the result")
}

fn whole_fleet(fleet: &Fleet, groups: &[Group], vms: usize, json: bool) -> Result<ExitCode> {
    let mut mix: Vec<&Source> = Vec::new();
    for group in groups {
        for _ in 0..group.weight {
            mix.extend(&group.sources);
        }
    }
    let sources: Vec<&Source> = mix.iter().copied().cycle().take(vms).collect();
    let began = Instant::now();
    let Outcome { quality, events, violation } = fleet.run(&sources);
    let seconds = began.elapsed().as_secs_f64();
    let report = quality.report(None);
    let vm_hours = report.vm_hours;
    let text = if json {
        serde_json::to_string(&report)? + "\n"
    } else {
        quality::table(&[(fleet.brain.name(), report)])
    };
    io::stdout().write_all(text.as_bytes()).context("write the result")?;
    eprintln!("{events} events, {seconds:.1} s, {:.0} VM-hours a second", vm_hours / seconds);
    if let Some(violation) = violation {
        eprintln!("{violation}");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Seeds are shared among the cores; the first that breaks a rule, in their order, is told.
fn faults(Seeds { from, to }: Seeds, like: &Run) -> Result<ExitCode> {
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
                    let found = search::search(&Run { seed, ..like.clone() });
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
    let run = Run { seed, ..like.clone() };
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
