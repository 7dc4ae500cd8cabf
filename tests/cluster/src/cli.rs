//! What the four programs have in common: their command line, and the end of a run of checks.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use crate::interrupt;
use crate::tally::{Part, Tally, table};

/// A wrong command line, as in sysexits.h.
const EX_USAGE: u8 = 64;

/// The command line; else the code to end with, after help or a complaint was printed.
pub fn parse<A: Parser>() -> Result<A, ExitCode> {
    A::try_parse().map_err(|err| {
        // Help is an answer, a wrong command line a mistake.
        let code = if err.use_stderr() { EX_USAGE } else { 0 };
        let _closed = err.print();
        ExitCode::from(code)
    })
}

/// Runs checks and prints how each part ended; the last line says how many passed and failed.
pub fn checks(run: impl FnOnce(&mut Vec<Part>) -> Result<()>) -> ExitCode {
    let mut parts = Vec::new();
    if let Err(err) = interrupt::install().and_then(|()| run(&mut parts)) {
        eprintln!("{err:#}");
        parts.push(Part::check("set-up", Duration::ZERO, false));
    }
    let total = Tally::sum(&parts);
    let _closed = writeln!(std::io::stdout(), "\n{}\n{total}", table(&parts));
    if total.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
