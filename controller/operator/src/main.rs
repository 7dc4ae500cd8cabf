//! `vm-controller`: makes VirtualMachine objects real.
//!
//! Arguments, configuration, log, then [`run::run`] until a signal comes.

mod certs;
mod config;
mod events;
mod execute;
#[cfg(test)]
mod fake;
mod gate;
mod http;
mod index;
mod leader;
mod metrics;
mod observe;
mod order;
mod pki;
mod pod;
mod poll;
mod resources;
mod run;
mod runner_client;
mod status;
mod term;
mod upkeep;
mod vm;

use std::pin::pin;
use std::process::ExitCode;

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{Args, Config};

/// What `sysexits.h` calls a wrong use.
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    let config = match Args::try_parse() {
        Ok(args) => Config::try_from(args),
        Err(err) if !err.use_stderr() => {
            let _printed = err.print();
            return ExitCode::SUCCESS;
        }
        Err(err) => Err(config::Problems::of(err.to_string())),
    };
    let config = match config {
        Ok(config) => config,
        Err(problems) => {
            eprint!("{problems}");
            return ExitCode::from(EX_USAGE);
        }
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            tracing::error!(error = format!("{err:#}"), "stopped");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> anyhow::Result<()> {
    let provider = rustls::crypto::ring::default_provider();
    provider.install_default().map_err(|_| anyhow::anyhow!("another TLS provider is installed"))?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let (mut term, mut int) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = CancellationToken::new();
        let mut running = pin!(run::run(config, shutdown.clone()));
        tokio::select! {
            result = &mut running => return result,
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        shutdown.cancel();
        running.await
    })
}
