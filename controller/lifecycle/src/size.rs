//! From the specification to the bounds of each resource, and what to do about both.

use guest_units::Moment;

use crate::event::Approved;
use crate::resize::{Bounds, Decision};
use crate::vm::{Base, Vm};

impl Vm {
    /// What to do about CPU and memory; `None` while the VM does not run or its size is unknown.
    pub(crate) fn decisions(&self, now: Moment) -> Option<(Decision, Decision)> {
        let (runner, (cpu, memory)) = (self.runner?, self.bounds()?);
        (self.base == Base::Running).then(|| {
            (
                self.cpu.decide(u64::from(runner.plugged.cpu.0), cpu, now),
                self.memory.decide(runner.plugged.memory.0, memory, now),
            )
        })
    }

    fn bounds(&self) -> Option<(Bounds, Bounds)> {
        let desired = self.desired.as_ref()?;
        let approved = match desired.approved {
            Approved::Size { size, .. } => Some(size),
            Approved::Missing(_) => None,
        };
        let cpu = Bounds {
            min: u64::from(desired.min.cpu.0),
            max: u64::from(desired.max.cpu.0).max(u64::from(desired.min.cpu.0)),
            wanted: u64::from(desired.wanted.cpu.0),
            approved: approved.map(|size| u64::from(size.cpu.0)),
            step: 1,
        };
        let memory = Bounds {
            min: desired.min.memory.0,
            max: desired.max.memory.0.max(desired.min.memory.0),
            wanted: desired.wanted.memory.0,
            approved: approved.map(|size| size.memory.0),
            step: desired.slot.0,
        };
        Some((cpu, memory))
    }

    /// The totals wanted, whatever stands in their way: what a setback belongs to.
    pub(crate) fn goals(&self) -> (u64, u64) {
        match (self.bounds(), self.runner) {
            (Some((cpu, memory)), Some(runner)) => {
                (cpu.goal(u64::from(runner.plugged.cpu.0)), memory.goal(runner.plugged.memory.0))
            }
            _ => (0, 0),
        }
    }
}
