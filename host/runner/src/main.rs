//! `vm-runner`: the first process of a VM's pod. `vm-runner net` prepares the pod's network in an init
//! container; `vm-runner run` runs the VM and ends with its result.

mod api;
mod cmdline;
mod config;
mod console;
mod disk;
mod execute;
mod guest;
mod keeper;
mod metrics;
mod net;
mod process;
mod ready;
mod run;
mod serve;
#[cfg(test)]
mod snapshot;
mod state;
#[cfg(test)]
mod testing;
mod tls;
mod vsock;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{Args, Config, RunConfig};

/// What `sysexits.h` calls a wrong use.
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(err) => {
            let _nobody_reads = err.print();
            return if err.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let config = match Config::try_from(args) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(EX_USAGE);
        }
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    let ended = match config {
        Config::Net(spec) => net::prepare(&spec).map(|()| 0).map_err(anyhow::Error::from),
        Config::Run(config) => start(*config),
    };
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(err) => {
            tracing::error!(error = format!("{err:#}"), "failed");
            ExitCode::FAILURE
        }
    }
}

fn start(config: RunConfig) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
        let mut int = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
        let shutdown = CancellationToken::new();
        let mut running = std::pin::pin!(run::run(config, shutdown.clone()));
        tokio::select! {
            ended = &mut running => return ended,
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        shutdown.cancel();
        running.await
    })
}
