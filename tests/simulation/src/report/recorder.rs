//! Records how a fleet goes over time: sums of all VMs in buckets, and some VMs one by one. Off unless asked for; a guest without
//! a [`Tap`] costs one comparison.

use std::cell::RefCell;
use std::rc::Rc;

use guest_units::{Moment, Size};

use super::bucket::{Buckets, Changes};
use super::closeup::Closeup;
use crate::held::Kills;
use crate::line::nanos;
use crate::quality::Stretch;

/// Buckets of the fleet.
const BUCKETS: usize = 240;
/// Buckets of a single VM: two points of a chart each.
const VM_BUCKETS: usize = 480;
/// About so many VMs are recorded one by one: all of a small fleet, and few enough of a large one to be kept in memory.
const VMS: u64 = 256;

/// What is recorded.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    end: Moment,
    vms: u64,
    first: u64,
}

impl Plan {
    /// A fleet of so many VMs until the end.
    #[must_use]
    pub fn new(end: Moment, vms: usize) -> Self {
        Self { end, vms: vms as u64, first: 0 }
    }

    /// The same for a part of the fleet whose first VM has this number.
    #[must_use]
    pub fn beginning_with(self, first: u64) -> Self {
        Self { first, ..self }
    }

    /// Whether a VM is one of those that are recorded one by one. They are scattered, for the demands of a fleet come round
    /// in the order of their kinds, and every so-manieth VM could be of one kind.
    fn alone(&self, vm: u64) -> bool {
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        let place = u128::from(vm.wrapping_mul(GOLDEN));
        self.vms <= VMS || place * u128::from(self.vms) < u128::from(VMS) << 64
    }
}

/// One VM over time.
#[derive(Debug, Clone)]
pub struct VmRecord {
    /// Its number in the fleet.
    pub vm: u64,
    /// Its sums.
    pub buckets: Buckets,
    /// Its liveliest minutes.
    pub closeup: Closeup,
}

/// A fleet over time.
#[derive(Debug, Clone)]
pub struct Recording {
    /// The sums of all VMs.
    pub fleet: Buckets,
    /// Some of them, by number.
    pub vms: Vec<VmRecord>,
}

impl Recording {
    /// Adds another part of the same fleet; parts are added in their order.
    pub fn merge(&mut self, other: Self) {
        self.fleet.merge(&other.fleet);
        self.vms.extend(other.vms);
    }
}

/// Where the taps of a world lead to.
#[derive(Debug)]
pub(crate) struct Recorder {
    plan: Plan,
    fleet: Rc<RefCell<Buckets>>,
}

impl Recorder {
    pub(crate) fn new(plan: Plan) -> Self {
        Self { plan, fleet: Rc::new(RefCell::new(Buckets::new(plan.end, BUCKETS))) }
    }

    /// The tap of a VM that is there from now on.
    pub(crate) fn tap(&self, vm: u32, now: Moment) -> Tap {
        let vm = self.plan.first + u64::from(vm);
        let record = || VmRecord {
            vm,
            buckets: Buckets::new(self.plan.end, VM_BUCKETS),
            closeup: Closeup::default(),
        };
        Tap {
            now: nanos(now),
            size: None,
            resizes: [0; 2],
            fleet: Rc::clone(&self.fleet),
            own: self.plan.alone(vm).then(record),
        }
    }

    /// All that was recorded, with the taps in the order of the VMs.
    pub(crate) fn finish(self, taps: impl Iterator<Item = Box<Tap>>) -> Recording {
        let vms = taps.filter_map(|tap| tap.own).collect();
        Recording { fleet: self.fleet.take(), vms }
    }
}

impl Default for Buckets {
    fn default() -> Self {
        Self::new(Moment::ZERO, 1)
    }
}

/// What a guest tells of itself.
#[derive(Debug)]
pub(crate) struct Tap {
    now: u64,
    size: Option<Size>,
    /// So many the quality has counted.
    resizes: [u32; 2],
    fleet: Rc<RefCell<Buckets>>,
    own: Option<VmRecord>,
}

impl Tap {
    /// From the last moment until `to` it was like this; the same as the quality is told, which has counted so many resizes.
    pub(crate) fn advance(&mut self, to: Moment, stretch: &Stretch, resizes: [u32; 2]) {
        let (from, to) = (self.now, nanos(to));
        if to <= from {
            return;
        }
        let before = self.size.replace(stretch.size).unwrap_or(stretch.size);
        let changes = Changes {
            cpu: before.cpu != stretch.size.cpu,
            memory: before.memory != stretch.size.memory,
        };
        let counted = std::mem::replace(&mut self.resizes, resizes);
        let counted = Changes { cpu: resizes[0] != counted[0], memory: resizes[1] != counted[1] };
        self.fleet.borrow_mut().advance(from, to, stretch, counted);
        if let Some(own) = &mut self.own {
            own.buckets.advance(from, to, stretch, counted);
            own.closeup.advance(from, to, stretch, changes);
        }
        self.now = to;
    }

    /// The workload was killed so often.
    pub(crate) fn killed(&mut self, now: Moment, kills: Kills) {
        self.fleet.borrow_mut().killed(nanos(now), kills);
        if let Some(own) = &mut self.own {
            own.buckets.killed(nanos(now), kills);
        }
    }
}
