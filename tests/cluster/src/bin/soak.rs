//! `cargo soak`: what takes longer than a person or CI waits. Many more random cases of the property tests of units, codecs and brains, then the
//! scenarios of the real cluster in turn, again and again, until the time is up.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use tests_cluster::cache::{Cache, repo_root};
use tests_cluster::options::NodeSize;
use tests_cluster::progress::Progress;
use tests_cluster::scenarios::{self, Needs, Scenario};
use tests_cluster::tally::{Part, Tally};
use tests_cluster::{cli, interrupt, system, tools};

/// The crates with property tests: units, codecs, brains.
const PROPERTIES: &[&str] = &[
    "guest-units",
    "guest-protocol",
    "guest-policy",
    "guest-monitor",
    "controller-qmp",
    "controller-lifecycle",
    "scheduler-ledger",
    "host-scaling",
];
const TESTS: Duration = Duration::from_secs(6 * 3600);

/// Searches longer: property tests with many cases, then the cluster's scenarios until the time is up.
#[derive(Debug, Parser)]
#[command(name = "cargo soak", bin_name = "cargo soak")]
struct Args {
    /// How long the scenarios are repeated, in minutes.
    #[arg(long, default_value_t = 120)]
    minutes: u64,
    /// Random cases of each property test.
    #[arg(long, default_value_t = 20_000)]
    cases: u32,
}

fn main() -> ExitCode {
    match cli::parse() {
        Ok(args) => cli::checks(|parts| run(&args, parts)),
        Err(code) => code,
    }
}

fn run(args: &Args, parts: &mut Vec<Part>) -> Result<()> {
    let cache = Cache::open()?;
    let progress = Progress::new(&cache, 1);
    tools::need_cargo()?;
    parts.push(properties(&progress, args.cases)?);
    let cluster = system::up(&cache, &progress, NodeSize::default())?;
    let chosen: Vec<Scenario> = scenarios::all()
        .into_iter()
        .filter(|scenario| scenario.needs == Needs::System && !scenario.takes_the_cluster_away())
        .collect();
    let end = Instant::now() + Duration::from_secs(args.minutes * 60);
    for scenario in chosen.iter().cycle() {
        if Instant::now() >= end || interrupt::interrupted() {
            break;
        }
        parts.push(scenarios::part(&cache, &progress, &cluster, *scenario));
    }
    interrupt::check()
}

fn properties(progress: &Progress, cases: u32) -> Result<Part> {
    let begun = Instant::now();
    let mut counted = Tally::default();
    let root = repo_root()?;
    let result = progress.step("properties", |step| {
        let packages = PROPERTIES.iter().flat_map(|name| ["--package", name]);
        let result = tools::cargo()
            .args(["test", "--no-fail-fast"])
            .args(packages)
            .env("PROPTEST_CASES", cases.to_string())
            .dir(&root)
            .deadline(TESTS)
            .log(step.log())
            .status();
        let text = std::fs::read_to_string(step.log()).context("read what the tests said")?;
        counted = Tally::of_cargo_test(&text);
        result
    });
    Ok(Part::tests("properties", begun.elapsed(), counted, result.is_ok()))
}
