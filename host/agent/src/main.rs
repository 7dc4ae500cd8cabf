//! autoscaler-agent: scales the VMs of one node, and offers the node's devices to their pods.
//!
//! `run` puts the parts together, `watch` keeps one `vm_task` for each VM of this node; each owns a brain of
//! `host-scaling` and performs what it names through `effects`. `device` is the kubelet's device plug-in, `admin`
//! answers the subcommands `why` and `top`.

mod admin;
mod config;
mod device;
mod effects;
mod events;
mod health;
mod http;
mod metrics;
mod patch;
mod run;
mod view;
mod vm_metrics;
mod vm_task;
mod watch;

use std::io::Write as _;
use std::pin::pin;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{Args, Command, Config};

/// Exit code of a wrong configuration or command line.
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    let mut args = match Args::try_parse() {
        Ok(args) => args,
        Err(err) => {
            let _no_terminal = err.print();
            return if err.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    if let Some(command) = args.command.take() {
        return match question(&args, &command) {
            Ok(()) => ExitCode::SUCCESS,
            Err(err) => {
                let _no_terminal = writeln!(std::io::stderr(), "autoscaler-agent: {err:#}");
                ExitCode::FAILURE
            }
        };
    }
    let config = match Config::try_from(args) {
        Ok(config) => config,
        Err(problems) => {
            let _no_terminal = writeln!(std::io::stderr(), "{problems}");
            return ExitCode::from(EX_USAGE);
        }
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            tracing::error!(error = format!("{err:#}"), "failed");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn question(args: &Args, command: &Command) -> anyhow::Result<()> {
    let answer = admin::put(&args.admin_socket, command).await?;
    std::io::stdout().write_all(answer.as_bytes()).context("print the answer")
}

#[tokio::main(flavor = "current_thread")]
async fn serve(config: Config) -> anyhow::Result<()> {
    let installed = rustls::crypto::ring::default_provider().install_default();
    anyhow::ensure!(installed.is_ok(), "another TLS provider is installed");
    let mut term = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let shutdown = CancellationToken::new();
    let mut running = pin!(run::run(config, shutdown.clone()));
    tokio::select! {
        result = &mut running => return result,
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    shutdown.cancel();
    running.await
}
