//! `autoscale-scheduler`: the extender beside a stock kube-scheduler, and the one who permits growth.
//!
//! `autoscale-scheduler` runs it; `autoscale-scheduler dump` prints the books of the one that runs here.

mod admin;
mod auth;
mod config;
mod convert;
mod core;
mod demands;
mod effects;
mod endpoint;
mod files;
mod http;
mod lanes;
mod lease;
mod metrics;
mod moves;
mod objects;
mod plain;
mod quantity;
mod routes;
mod run;
mod sign;
#[cfg(test)]
mod tests;
mod tls;
mod visitors;
mod watch;

use std::pin::pin;
use std::process::ExitCode;

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{Args, Config, Subcommand};

/// What `sysexits.h` calls a wrong use.
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(err) => {
            let _ = err.print();
            return if err.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    if let Some(Subcommand::Dump) = args.command {
        return admin::print_dump(&args.admin_socket);
    }
    let config = match Config::try_from(args) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(EX_USAGE);
        }
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            tracing::error!(error = format!("{err:#}"), "ended");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(config: Config) -> anyhow::Result<()> {
    // Several crates bring a TLS provider: the choice is made here.
    let installed = rustls::crypto::ring::default_provider().install_default();
    anyhow::ensure!(installed.is_ok(), "another TLS provider is installed");
    let shutdown = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut running = pin!(run::run(config, shutdown.clone()));
    tokio::select! {
        result = &mut running => return result,
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    shutdown.cancel();
    running.await
}
