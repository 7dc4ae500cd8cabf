//! `cargo demo`: the system at work on a local cluster, live in the terminal and as a report.

use std::process::ExitCode;

use clap::Parser;
use tests_cluster::demo::{self, Options};
use tests_cluster::{cli, interrupt};

/// Runs Postgres in a VM on a local Kubernetes cluster under a load that rises and falls, shows how CPU and memory follow it,
/// checks that nothing broke, and writes a report to target/demo/report.html.
#[derive(Debug, Parser)]
#[command(name = "cargo demo", bin_name = "cargo demo")]
struct Args {
    /// Takes the cluster down at the end.
    #[arg(long)]
    down: bool,
    /// Uses the running cluster and the system on it as they are, without building or deploying anything.
    #[arg(long)]
    as_is: bool,
}

fn main() -> ExitCode {
    let Args { down, as_is } = match cli::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    match interrupt::install().and_then(|()| demo::run(Options { down, as_is })) {
        Ok(ending) if ending.passed => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("{err:#}");
            if interrupt::ever() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}
