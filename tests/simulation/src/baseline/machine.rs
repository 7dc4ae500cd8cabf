//! What sizes a VM can have, what of its memory a workload gets, and how long a change takes.

use std::iter::Peekable;
use std::time::Duration;

use guest_units::{Bytes, MilliCpu, Size};

use crate::line::{Line, moment};
use crate::load::Load;

/// The sizes of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Lower bound.
    pub min: Size,
    /// Upper bound.
    pub max: Size,
    /// Step of CPU.
    pub cpu_grid: MilliCpu,
    /// Step of memory.
    pub slot: Bytes,
    /// From the decision to grow until the guest has it.
    pub plug: Duration,
    /// From the decision to shrink until the guest has given it back.
    pub unplug: Duration,
    /// What the guest's kernel and services take whatever the size.
    pub kernel: Bytes,
    /// What they take of each byte: one of so many.
    pub kernel_part: u64,
}

/// A quarter of a CPU and 128 MiB a step. Plug and unplug as measured for virtio-mem with idle memory (25–45 ms to grow,
/// 45–100 ms to shrink; the slower end). The kernel: 64 MiB and a 60th, which is page metadata (64 bytes in 4 KiB, a 64th)
/// and tables that grow with memory; the fixed part is an assumption.
impl Default for Machine {
    fn default() -> Self {
        Self {
            min: Size::new(MilliCpu(250), Bytes::from_gib(1)),
            max: Size::new(MilliCpu::from_cpus(16), Bytes::from_gib(64)),
            cpu_grid: MilliCpu(250),
            slot: Bytes::from_mib(128),
            plug: Duration::from_millis(45),
            unplug: Duration::from_millis(100),
            kernel: Bytes::from_mib(64),
            kernel_part: 60,
        }
    }
}

impl Machine {
    /// What a workload can hold in a VM with so much memory: the one place for what the kernel takes.
    #[must_use]
    pub fn available(&self, memory: Bytes) -> Bytes {
        let part = Bytes(memory.0 / self.kernel_part.max(1));
        memory.saturating_sub(self.kernel).saturating_sub(part)
    }

    /// The smallest memory that can hold so much, on the grid and between the bounds.
    #[must_use]
    pub fn memory_for(&self, held: Bytes) -> Bytes {
        if self.available(self.min.memory) >= held {
            return self.min.memory;
        }
        let part = self.kernel_part.max(2);
        let about = held.saturating_add(self.kernel).times(part, part - 1);
        let mut memory = about.round_down(self.slot);
        // One step in nearly all cases: what lies below is less than needed.
        while self.available(memory) < held && memory < self.max.memory {
            memory = memory.saturating_add(self.slot.max(Bytes(1)));
        }
        memory.max(self.min.memory).min(self.max.memory)
    }

    /// The next smaller memory on the grid; `None` at the lower bound.
    pub(super) fn memory_below(&self, memory: Bytes) -> Option<Bytes> {
        let below = memory.saturating_sub(Bytes(1)).round_down(self.slot);
        (memory > self.min.memory).then(|| below.max(self.min.memory))
    }

    /// The smallest CPU that has so much, on the grid and between the bounds.
    #[must_use]
    pub fn cpu_for(&self, used: MilliCpu) -> MilliCpu {
        used.round_up(self.cpu_grid).max(self.min.cpu).min(self.max.cpu)
    }

    /// The loads, with no more than the largest size can serve: more is nobody's fault, and all policies get the same. A
    /// line of memory that passes that level bends there.
    pub fn capped<I: Iterator<Item = Load>>(&self, loads: I) -> Capped<I> {
        let most = self.available(self.max.memory);
        Capped { loads: loads.peekable(), cpu: self.max.cpu, memory: most.0, rest: None }
    }
}

/// Loads that are cut off. See [`Machine::capped`].
#[derive(Debug, Clone)]
pub struct Capped<I: Iterator<Item = Load>> {
    loads: Peekable<I>,
    cpu: MilliCpu,
    memory: u64,
    /// The second part of a load that bends.
    rest: Option<Load>,
}

impl<I: Iterator<Item = Load>> Iterator for Capped<I> {
    type Item = Load;

    fn next(&mut self) -> Option<Load> {
        if let Some(rest) = self.rest.take() {
            return Some(rest);
        }
        let mut load = self.loads.next()?;
        load.cpu = load.cpu.min(self.cpu);
        let line = Line::wished(&load);
        let flat = Load { memory: Bytes(self.memory), memory_per_second: 0, ..load };
        let (first, bend) = if line.value > self.memory {
            let bend = line.first_at_most(self.memory);
            (flat, bend.map(|at| Load { at: moment(at), memory: Bytes(line.value_at(at)), ..load }))
        } else {
            let bend = line.first_above(self.memory);
            (load, bend.map(|at| Load { at: moment(at), ..flat }))
        };
        let until = self.loads.peek().map(|next| next.at);
        self.rest = bend.filter(|bend| until.is_none_or(|until| bend.at < until));
        Some(first)
    }
}
