//! Values at equal distances in time, from rows that say when.

use std::path::Path;
use std::time::Duration;

use super::row::Row;
use crate::demand::problem::{LineFault, TraceFault, TraceProblem};

/// How many samples in a row may be missing.
///
/// Recordings of months have holes: the known ones of up to four samples. A longer one is an outage, about which nothing is known.
const MISSING: u64 = 4;
/// By what part of the resolution a distance may be off, as its inverse: who samples is late by seconds now and then.
const OFF: u64 = 20;
/// The shortest and longest resolution, in milliseconds.
const RESOLUTION: (u64, u64) = (1000, 86_400_000);

/// What was read so far.
#[derive(Debug)]
pub(super) struct Series<T> {
    /// The column with the time.
    field: &'static str,
    values: Vec<T>,
    /// Milliseconds; 0 until there are two rows.
    resolution: u64,
    /// The last time: milliseconds, and as it stood there.
    last: Option<(i64, String)>,
}

impl<T: Copy> Series<T> {
    pub(super) fn new(field: &'static str) -> Self {
        Self { field, values: Vec::new(), resolution: 0, last: None }
    }

    /// Adds what a row says about a moment, in milliseconds since any other; `text` is that moment as it stands there.
    pub(super) fn push(
        &mut self,
        row: &Row<'_>,
        at: i64,
        text: &str,
        value: T,
    ) -> Result<(), TraceProblem> {
        if let Some((before, before_text)) = self.last.take() {
            let missing = self.missing(row, at, text, before, before_text)?;
            if let Some(held) = self.values.last().copied() {
                self.values.extend((0..missing).map(|_| held));
            }
        }
        self.values.push(value);
        self.last = Some((at, text.to_owned()));
        Ok(())
    }

    /// How many samples are missing between the last row and this one.
    fn missing(
        &mut self,
        row: &Row<'_>,
        at: i64,
        text: &str,
        before: i64,
        before_text: String,
    ) -> Result<u64, TraceProblem> {
        let (field, to, from) = (self.field, text.to_owned(), before_text);
        if at <= before {
            return Err(row.problem(LineFault::NotAfter { field, time: to, before: from }));
        }
        let distance = at.abs_diff(before);
        if self.resolution == 0 {
            if distance < RESOLUTION.0 || distance > RESOLUTION.1 {
                let resolution = Duration::from_millis(distance);
                return Err(row.problem(LineFault::Resolution { field, resolution }));
            }
            self.resolution = distance;
            return Ok(0);
        }
        let step = self.resolution;
        let resolution = Duration::from_millis(step);
        // The nearest number of steps, and how far it is from that.
        let steps = distance.saturating_add(step / 2) / step;
        let off = distance.abs_diff(steps.saturating_mul(step));
        let missing = steps.saturating_sub(1);
        if missing > MISSING {
            let most = MISSING;
            return Err(row.problem(LineFault::Gap { field, from, to, resolution, most }));
        }
        if steps == 0 || off > step / OFF {
            return Err(row.problem(LineFault::OffTheGrid { field, from, to, resolution }));
        }
        Ok(missing)
    }

    /// The values and the time from each to the next.
    pub(super) fn finish(self, path: &Path) -> Result<(Vec<T>, Duration), TraceProblem> {
        if self.resolution == 0 {
            let fault = TraceFault::TooShort;
            return Err(TraceProblem::Whole { path: path.to_owned(), fault });
        }
        Ok((self.values, Duration::from_millis(self.resolution)))
    }
}
