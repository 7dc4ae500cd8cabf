//! `simulate fleet`: a fleet under one policy.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use guest_units::{Bytes, Moment};
use scheduler_ledger::Amount;

use super::{MOST_CPUS, count, groups, hours, slot, span};
use crate::quality::table;
use crate::report::{Draft, Plan, Subject, page};
use crate::run::{Brain, Fleet, Outcome, machine};
use crate::workload::Source;

/// Arguments of `fleet`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Nodes.
    #[arg(long, default_value_t = 10, value_parser = count(1_000_000))]
    pub nodes: usize,
    /// VMs, spread evenly.
    #[arg(long, default_value_t = 200, value_parser = count(10_000_000))]
    pub vms: usize,
    /// So many hours.
    #[arg(long, default_value_t = 24.0, value_parser = hours)]
    pub hours: f64,
    /// Of everything random.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Who scales.
    #[arg(long, value_enum, default_value_t = Brain::Headroom)]
    pub policy: Brain,
    /// An archetype, several by weight (`idle=99,diurnal=1`), `all`, or a file or folder of traces.
    #[arg(long, default_value = "all")]
    pub trace: String,
    /// Step of memory: `128Mi`, `1Gi`, or bytes.
    #[arg(long, default_value = "128Mi", value_parser = slot)]
    pub slot: Bytes,
    /// Largest VM, in CPUs; with 4 GiB each.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=MOST_CPUS))]
    pub cpus: u32,
    /// CPUs of a node.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub node_cpus: u64,
    /// Memory of a node.
    #[arg(long, default_value = "512Gi")]
    pub node_memory: Bytes,
    /// Checks the rules after every event.
    #[arg(long)]
    pub check: bool,
    /// Looks at every VM all the time.
    #[arg(long)]
    pub awake: bool,
    /// All numbers, as JSON.
    #[arg(long)]
    pub json: bool,
    /// Writes a page with the numbers and charts over time: one HTML file that needs nothing else.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// Runs the fleet and prints its numbers; the speed goes to the standard error.
///
/// # Errors
/// The demand does not exist or is wrong, or the result or the page cannot be written.
pub fn run(args: &Args) -> Result<ExitCode> {
    let groups = groups(std::slice::from_ref(&args.trace))?;
    let mut mix: Vec<(&str, &Source)> = Vec::new();
    for group in &groups {
        for _ in 0..group.weight {
            mix.extend(group.sources.iter().map(|source| (group.name.as_str(), source)));
        }
    }
    let vms = || mix.iter().cycle().take(args.vms);
    let sources: Vec<&Source> = vms().map(|(_, source)| *source).collect();
    let end = Moment(span(args.hours)?);
    let cpu_millis = args.node_cpus.saturating_mul(1000);
    let fleet = Fleet {
        machine: machine(args.cpus, args.slot),
        brain: args.policy,
        nodes: args.nodes,
        node: Amount { cpu_millis, memory_bytes: args.node_memory.0 },
        seed: args.seed,
        end,
        sleep: !args.awake,
        record: args.report.as_ref().map(|_| Plan::new(end, args.vms)),
        checks: args.check,
    };
    if let Err(full) = fleet.fits(&sources) {
        bail!("--node-cpus, --node-memory: {full}");
    }
    // Before the run, which may be long.
    let draft = args.report.as_deref().map(Draft::begin).transpose()?;
    let began = Instant::now();
    let Outcome { quality, recording, events, violation } = fleet.run(&sources);
    let seconds = began.elapsed().as_secs_f64();
    let report = quality.report(None);
    let html = recording.map(|recording| {
        let demands = vms().map(|(name, _)| (*name).to_owned()).collect();
        page(&subject(args, demands), &report, &recording)
    });
    let speed = report.vm_hours / seconds;
    let text = if args.json {
        serde_json::to_string(&report)? + "\n"
    } else {
        table(&[(fleet.brain.name(), report)])
    };
    io::stdout().write_all(text.as_bytes()).context("write the result")?;
    if let (Some(draft), Some(html)) = (draft, html) {
        draft.finish(&html)?;
    }
    let times = args.hours * 3600.0 / seconds;
    eprintln!(
        "{events} events, {seconds:.1} s: {speed:.0} VM-hours a second, {times:.0} x real time"
    );
    if let Some(violation) = violation {
        eprintln!("{violation}");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// What the page is about.
fn subject(args: &Args, demands: Vec<String>) -> Subject {
    let policy = args.policy.name();
    let max = machine(args.cpus, args.slot).max;
    let (nodes, vms, hours) = (args.nodes, args.vms, args.hours);
    let on = if nodes == 1 { "node" } else { "nodes" };
    Subject {
        title: format!("{vms} VMs on {nodes} {on} for {hours} h: policy {policy}"),
        parameters: vec![
            ("Policy", policy.to_owned()),
            ("Demands", args.trace.clone()),
            ("VMs", format!("{vms}, of up to {} vCPU and {}", max.cpu, max.memory)),
            ("Step of memory", args.slot.to_string()),
            ("Nodes", format!("{nodes}, of {} vCPU and {}", args.node_cpus, args.node_memory)),
            ("Time", format!("{hours} h")),
            ("Seed", args.seed.to_string()),
        ],
        demands,
    }
}
