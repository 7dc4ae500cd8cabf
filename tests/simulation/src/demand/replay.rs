//! A trace with its bursts, as loads.

use std::time::Duration;

use guest_units::{Bytes, MilliCpu, Moment};

use super::bursts::Bursts;
use super::draw::{bytes, slope};
use super::trace::{Sample, Trace, TraceMemory};
use crate::load::Load;
use crate::random::Random;

/// How fast derived memory falls: to 1/e of what it is too much, in this time.
const TIME_CONSTANT: Duration = Duration::from_secs(600);
/// A curve is replayed in straight pieces: in two minutes they are off by half a percent of the fall at most.
const PIECE: Duration = Duration::from_secs(120);
/// Less than this, in bytes, is not worth a piece.
const NOTHING: f64 = (1 << 20) as f64;

/// Where a replay stands.
#[derive(Debug, Clone)]
pub(super) struct Replay {
    trace: Trace,
    bursts: Bursts,
    /// The present sample, when it ends, and which one of the trace comes next.
    sample: Sample,
    sample_ends: Moment,
    index: usize,
    /// What the trace wants, without bursts.
    base: Load,
    /// When that changes.
    until: Moment,
    /// Memory at `until`, before the next sample adds to it, in bytes.
    memory: f64,
    last: Option<Load>,
}

impl Replay {
    pub(super) fn new(trace: Trace, random: Random) -> Self {
        let sample = Sample { cpu: MilliCpu::ZERO, memory: Bytes::ZERO };
        let at = Moment::ZERO;
        Self {
            trace,
            bursts: Bursts::new(random),
            sample,
            sample_ends: at,
            index: 0,
            base: Load { at, cpu: sample.cpu, memory: sample.memory, memory_per_second: 0 },
            until: at,
            memory: 0.0,
            last: None,
        }
    }

    /// The next load that is not what the last one said anyway.
    pub(super) fn next_load(&mut self) -> Option<Load> {
        loop {
            let now = self.until.min(self.bursts.changes());
            if now == Moment(Duration::MAX) {
                // The end of time: nothing goes on from here.
                return None;
            }
            if self.until <= now {
                self.next_piece(now)?;
            }
            self.bursts.advance(now);
            let burst = self.bursts.size();
            let load = Load {
                at: now,
                cpu: self.base.cpu.saturating_add(burst.cpu),
                memory: self.base.memory_at(now).saturating_add(burst.memory),
                memory_per_second: self.base.memory_per_second,
            };
            let same = self.last.is_some_and(|last| {
                (last.cpu, last.memory_per_second) == (load.cpu, load.memory_per_second)
                    && last.memory_at(now) == load.memory
            });
            if !same {
                self.last = Some(load);
                return Some(load);
            }
        }
    }

    /// Goes on to what the trace wants from `now` on; nothing for a trace without samples.
    fn next_piece(&mut self, now: Moment) -> Option<()> {
        if self.sample_ends <= now {
            self.sample = *self.trace.samples.get(self.index)?;
            self.index = self.index.saturating_add(1) % self.trace.samples.len();
            self.sample_ends = now + self.trace.resolution;
        }
        #[expect(clippy::cast_precision_loss, reason = "exact below 8 PiB")]
        let settled = self.sample.memory.0 as f64;
        let decays = self.trace.memory == TraceMemory::Derived && self.memory - settled >= NOTHING;
        let (from, until) = if decays {
            (self.memory, self.sample_ends.min(now + PIECE))
        } else {
            (settled, self.sample_ends)
        };
        let lasts = until.since(now);
        self.memory = settled + (from - settled) * decay(lasts);
        self.until = until;
        self.base = Load {
            at: now,
            cpu: self.sample.cpu,
            memory: bytes(from),
            memory_per_second: slope(bytes(from), bytes(self.memory), lasts),
        };
        Some(())
    }
}

/// The part that is left of what is too much after some time.
fn decay(after: Duration) -> f64 {
    (-after.as_secs_f64() / TIME_CONSTANT.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests;
