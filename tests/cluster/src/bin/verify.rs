//! `cargo verify`: everything that is checked about this repository, from its formatting to scenarios on a real cluster.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use tests_cluster::cache::{Cache, repo_root};
use tests_cluster::cluster::Cluster;
use tests_cluster::command::Run;
use tests_cluster::layout::Layout;
use tests_cluster::options::NodeSize;
use tests_cluster::progress::Progress;
use tests_cluster::scenarios::{self, Needs, Scenario};
use tests_cluster::tally::{Part, Tally};
use tests_cluster::{cli, down, interrupt, system, tools, up};

/// Hours of a small fleet in which much goes wrong.
const FAULT_SEEDS: &str = "0..2000";
const BUILD: Duration = Duration::from_secs(2 * 3600);

/// Checks formatting, lints, tests and the scenarios on a real cluster; the last line says how many passed and failed.
#[derive(Debug, Parser)]
#[command(name = "cargo verify", bin_name = "cargo verify")]
struct Args {
    /// Leaves the scenarios on the cluster out.
    #[arg(long)]
    no_cluster: bool,
    /// Runs only scenarios whose name contains this, and nothing else.
    #[arg(long)]
    only: Option<String>,
    /// Uses the cluster that is up as it is: builds, loads and deploys nothing, and never takes it away.
    #[arg(long, requires = "only")]
    as_is: bool,
}

fn main() -> ExitCode {
    match cli::parse() {
        Ok(args) => cli::checks(|parts| run(&args, parts)),
        Err(code) => code,
    }
}

fn run(args: &Args, parts: &mut Vec<Part>) -> Result<()> {
    let root = repo_root()?;
    let cache = Cache::open()?;
    let progress = Progress::new(&cache, if args.only.is_none() { 4 } else { 0 });
    if args.only.is_none() {
        tools::need_cargo()?;
        check(&progress, parts, &root, "format", &["fmt", "--all", "--check"]);
        let lint = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        check(&progress, parts, &root, "lints", &lint);
        parts.push(tests(&progress, &root));
        let seeds = ["faults", "--seeds", FAULT_SEEDS];
        let search = ["run", "--release", "--package", "tests-simulation", "--"];
        check(&progress, parts, &root, "fault search", &[&search[..], &seeds].concat());
    }
    if !args.no_cluster {
        let wanted = |scenario: &Scenario| {
            args.only.as_ref().is_none_or(|part| scenario.name.contains(part.as_str()))
        };
        let spared = |scenario: &Scenario| !(args.as_is && scenario.takes_the_cluster_away());
        let chosen = scenarios::all().into_iter().filter(wanted).filter(spared).collect::<Vec<_>>();
        on_cluster(&cache, &progress, parts, &chosen, args.as_is)?;
    }
    interrupt::check()
}

fn cargo(root: &Path, words: &[&str]) -> Run {
    tools::cargo().args(words).dir(root).deadline(BUILD)
}

fn check(progress: &Progress, parts: &mut Vec<Part>, root: &Path, name: &str, words: &[&str]) {
    let begun = Instant::now();
    let result = progress.step(name, |step| cargo(root, words).log(step.log()).status());
    parts.push(Part::check(name, begun.elapsed(), result.is_ok()));
}

fn tests(progress: &Progress, root: &Path) -> Part {
    let begun = Instant::now();
    let mut counted = Tally::default();
    let result = progress.step("tests", |step| {
        let words = ["test", "--workspace", "--no-fail-fast"];
        let result = cargo(root, &words).log(step.log()).status();
        let text = std::fs::read_to_string(step.log()).context("read what the tests said")?;
        counted = Tally::of_cargo_test(&text);
        result
    });
    Part::tests("tests", begun.elapsed(), counted, result.is_ok())
}

/// Runs scenarios. A cluster that was up before is used and left up, unless the scenario that takes it away was chosen.
fn on_cluster(
    cache: &Cache,
    progress: &Progress,
    parts: &mut Vec<Part>,
    chosen: &[Scenario],
    as_is: bool,
) -> Result<()> {
    let begun = Instant::now();
    let up = if as_is { Cluster::open() } else { bring_up(cache, progress, chosen) };
    parts.push(Part::check("cluster up", begun.elapsed(), up.is_ok()));
    let cluster = up?;
    for scenario in chosen {
        if interrupt::interrupted() {
            break;
        }
        parts.push(scenarios::part(cache, progress, &cluster, *scenario));
    }
    if interrupt::interrupted() && !as_is {
        interrupt::forget();
        down::down(&Layout::from_env()?).context("take the cluster away after the stop")?;
    }
    Ok(())
}

fn bring_up(cache: &Cache, progress: &Progress, chosen: &[Scenario]) -> Result<Cluster> {
    progress.expect_more(up::STEPS);
    if chosen.iter().any(|scenario| scenario.needs == Needs::System) {
        system::up(cache, progress, NodeSize::default())
    } else {
        up::up(cache, progress, NodeSize::default())
    }
}
