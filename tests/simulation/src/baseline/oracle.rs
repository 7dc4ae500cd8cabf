//! The least size at any time that serves every demand, chosen with hindsight.
//!
//! Demand becomes steps on the grid, each resource alone; at any time the size is the largest step between
//! `unplug` ago (what is no longer needed is still being given back) and `plug` ahead (what will be needed is being plugged).
//! With both at zero no sizes on the grid that serve the demand cost less.

use std::collections::VecDeque;
use std::iter::Peekable;

use guest_units::{Bytes, MilliCpu, Size};

use super::{Machine, Seen, Sizes};
use crate::line::{Line, nanos};
use crate::load::Load;

/// From a time on so much is needed.
type Step = (u64, u64);

/// The oracle of a demand that is cut off to the machine's bounds.
pub(super) fn oracle<'a, I>(loads: I, machine: &'a Machine) -> impl Sizes + 'a
where
    I: Iterator<Item = Load> + Clone + 'a,
{
    let cpu = loads.clone().map(|load| (nanos(load.at), machine.cpu_for(load.cpu).0.into()));
    let memory = MemorySteps { machine, loads: loads.peekable(), line: None };
    Oracle { cpu: Window::new(cpu, machine), memory: Window::new(memory, machine) }
}

struct Oracle<C: Iterator<Item = Step>, M: Iterator<Item = Step>> {
    cpu: Window<C>,
    memory: Window<M>,
}

impl<C: Iterator<Item = Step>, M: Iterator<Item = Step>> Sizes for Oracle<C, M> {
    fn next(&self) -> Option<u64> {
        [self.cpu.next_change(), self.memory.next_change()].into_iter().flatten().min()
    }

    fn at(&mut self, now: u64, _seen: &Seen) -> Size {
        let cpu = u32::try_from(self.cpu.largest(now)).unwrap_or(u32::MAX);
        Size::new(MilliCpu(cpu), Bytes(self.memory.largest(now)))
    }
}

/// The memory that a load needs, as steps.
struct MemorySteps<'a, I: Iterator<Item = Load>> {
    machine: &'a Machine,
    loads: Peekable<I>,
    /// The present load, and the step that it is on.
    line: Option<(Line, Bytes)>,
}

impl<I: Iterator<Item = Load>> MemorySteps<'_, I> {
    /// When the present load leaves its step, and for which.
    fn leaves(&self) -> Option<(u64, Line, Bytes)> {
        let (line, memory) = self.line?;
        let at = if line.slope > 0 {
            // At the upper bound nothing more is wished.
            line.first_above(self.machine.available(memory).0)
        } else {
            let below = self.machine.memory_below(memory)?;
            line.first_at_most(self.machine.available(below).0)
        }?;
        Some((at, line, self.machine.memory_for(Bytes(line.value_at(at)))))
    }
}

impl<I: Iterator<Item = Load>> Iterator for MemorySteps<'_, I> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let until = self.loads.peek().map_or(u64::MAX, |next| nanos(next.at));
        if let Some((at, line, memory)) = self.leaves().filter(|(at, ..)| *at < until) {
            self.line = Some((line, memory));
            return Some((at, memory.0));
        }
        let load = self.loads.next()?;
        let memory = self.machine.memory_for(load.memory);
        self.line = Some((Line::wished(&load), memory));
        Some((nanos(load.at), memory.0))
    }
}

/// The largest of the steps that touch a window around now.
struct Window<S: Iterator<Item = Step>> {
    steps: Peekable<S>,
    ahead: u64,
    behind: u64,
    /// Steps that are still seen, each with the time at which it no longer is: later ones are smaller.
    seen: VecDeque<Step>,
    /// The next step that will be seen, and when.
    next: Option<Step>,
}

impl<S: Iterator<Item = Step>> Window<S> {
    fn new(steps: S, machine: &Machine) -> Self {
        let span = |span: std::time::Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let (ahead, behind) = (span(machine.plug), span(machine.unplug));
        let mut window =
            Self { steps: steps.peekable(), ahead, behind, seen: VecDeque::new(), next: None };
        window.pull();
        window
    }

    fn pull(&mut self) {
        self.next = self.steps.next().map(|(at, value)| (at.saturating_sub(self.ahead), value));
    }

    fn largest(&mut self, now: u64) -> u64 {
        while let Some((_, value)) = self.next.filter(|(at, _)| *at <= now) {
            let end = self.steps.peek().map_or(u64::MAX, |(at, _)| *at);
            let end = end.saturating_add(self.behind);
            while self.seen.back().is_some_and(|(_, other)| *other <= value) {
                self.seen.pop_back();
            }
            self.seen.push_back((end, value));
            self.pull();
        }
        while self.seen.front().is_some_and(|(end, _)| *end <= now) {
            self.seen.pop_front();
        }
        self.seen.front().map_or(0, |(_, value)| *value)
    }

    fn next_change(&self) -> Option<u64> {
        let leaves = self.seen.front().map(|(end, _)| *end).filter(|end| *end < u64::MAX);
        let comes = self.next.map(|(at, _)| at);
        [leaves, comes].into_iter().flatten().min()
    }
}
