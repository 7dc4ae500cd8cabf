//! One program in every VM, run as two processes. `vm-monitor` (the *scaler*, unprivileged) measures
//! what the guest needs, asks for more and vetoes unsafe shrinking. `neonvmd` (the *keeper*, root)
//! carries out a closed list of privileged acts. The name it is called by, or the first argument,
//! says which.

mod config;
#[cfg(test)]
mod fake;
mod keeper;
mod kernel;
mod log;
mod run;
mod scaler;
mod serve;

use std::io::Write;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Wanted};

/// Exit code for a wrong command line.
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    let config = match config::parse(std::env::args_os()) {
        Ok(Wanted::Run(config)) => config,
        Ok(Wanted::Help) => {
            let _closed = std::io::stdout().write_all(config::HELP.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(problems) => {
            let _closed = write!(std::io::stderr(), "{problems}");
            return ExitCode::from(EX_USAGE);
        }
    };
    log::install();
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(until_signal(config)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            tracing::error!(error = %format_args!("{err:#}"), "ended with an error");
            ExitCode::FAILURE
        }
    }
}

async fn until_signal(config: Config) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut running = std::pin::pin!(run::run(config, shutdown.clone()));
    tokio::select! {
        result = &mut running => return result,
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    shutdown.cancel();
    running.await
}
