//! `kubectl vm`: what plain kubectl cannot show of a VM. `why` tells what its size was decided from,
//! `top` shows all sizes live.
//!
//! Everything is read with the rights of the user who calls it: this program runs kubectl, and has no
//! credentials or connections of its own.

mod cluster;
mod config;
mod kubectl;
mod run;
mod table;
mod top;
mod why;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser as _;

use crate::config::{Args, Config};

/// Wrong usage, as in sysexits.h.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
            // Nothing is left to tell if even the terminal is gone.
            let _ = error.print();
            return code;
        }
    };
    match run::run(&Config::from(args), &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The reader of the output has gone, as `head` does: not an error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
