//! A load for memory scaling: shared memory grows and shrinks between two sizes, 256 KiB each millisecond (256 MiB/s).
//!
//! `allocate-loop MIN MAX [CYCLES]`, sizes in MiB: down to MIN, up to MAX and so on; for ever, unless a number of cycles is given.
//! The memory is an unnamed file in memory, which the kernel accounts like shared anonymous memory (and like Postgres' buffers):
//! it belongs to the group of the writer, can be swapped but never dropped, and needs no mapping.

mod sweep;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::sweep::{Direction, Options, Sweep};

/// How much changes in one step.
const STEP_BYTES: u64 = 256 * 1024;
const STEP_TIME: Duration = Duration::from_millis(1);
const STEPS_PER_LINE: u64 = 100;
/// Whoever is further behind than this does not catch up: a stopped VM must not continue with a jump.
const FORGIVEN: Duration = Duration::from_millis(100);
const USAGE_ERROR: u8 = 64;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!(
                "allocate-loop: {problem}\nusage: allocate-loop MIN MAX [CYCLES]   (sizes in MiB)"
            );
            return ExitCode::from(USAGE_ERROR);
        }
    };
    match run(&options, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("allocate-loop: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options, out: &mut impl io::Write) -> Result<()> {
    let memory = rustix::fs::memfd_create("allocate-loop", rustix::fs::MemfdFlags::CLOEXEC)
        .context("make a file in memory")?;
    let memory = File::from(memory);
    let pattern = pattern();
    let mut sweep = Sweep::new(options);
    let mut due = Instant::now();
    for step in 0_u64.. {
        let Some((direction, size)) = sweep.next() else { return Ok(()) };
        match direction {
            Direction::Up => memory.write_all_at(&pattern, size - STEP_BYTES),
            Direction::Down => memory.set_len(size),
        }
        .with_context(|| format!("change the memory to {} KiB", size / 1024))?;
        if step % STEPS_PER_LINE == 0 {
            writeln!(out, "{direction} {} MiB", size >> 20).context("print the status")?;
            out.flush().context("print the status")?;
        }
        due = pace(due);
    }
    Ok(())
}

/// Waits until the step's time is over; says when the next one is due.
fn pace(due: Instant) -> Instant {
    let due = due + STEP_TIME;
    let now = Instant::now();
    match due.checked_duration_since(now) {
        Some(early) => thread::sleep(early),
        None if now - due > FORGIVEN => return now,
        None => {}
    }
    due
}

/// Bytes that no compression makes small: compressed swap must not hide the load.
fn pattern() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = STEP_BYTES / 8;
    (0..words)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_run_ends_and_reports() {
        let mut out = Vec::new();
        run(&Options { least: 0, most: 1 << 20, cycles: Some(2) }, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "up 0 MiB\n");
    }

    #[test]
    fn the_pattern_fills_a_step_and_does_not_repeat() {
        let pattern = pattern();
        assert_eq!(pattern.len() as u64, STEP_BYTES);
        let half = pattern.len() / 2;
        assert_ne!(pattern[..half], pattern[half..]);
    }

    #[test]
    fn late_steps_are_caught_up_but_a_long_stop_is_not() {
        let now = Instant::now();
        let slightly_late = now - Duration::from_millis(20);
        assert_eq!(pace(slightly_late), slightly_late + STEP_TIME);
        let long_ago = now - Duration::from_secs(20);
        assert!(pace(long_ago) >= now);
    }
}
