//! When to look at what again: the next moment is known without a search.

use std::collections::BTreeSet;

use guest_units::Moment;

use crate::slab::{PodId, VmId};

/// What a timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Pod(PodId),
    Vm(VmId),
    /// Pods that wait for a node, by what they demand of it.
    Class(u64),
    /// Moves of VMs, all of them together: there are few.
    Moves,
}

/// All timers by time. The books of a pod or a VM hold its own moment beside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Timers(BTreeSet<(Moment, Who)>);

impl Timers {
    pub(crate) fn first(&self) -> Option<Moment> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Moves the timer whose moment is `own`.
    pub(crate) fn set(&mut self, who: Who, own: &mut Option<Moment>, at: Option<Moment>) {
        if *own == at {
            return;
        }
        if let Some(old) = std::mem::replace(own, at) {
            self.0.remove(&(old, who));
        }
        if let Some(at) = at {
            self.0.insert((at, who));
        }
    }

    /// What is due, as it was set.
    pub(crate) fn due(&self, now: Moment) -> Vec<Who> {
        self.0.iter().take_while(|(at, _)| *at <= now).map(|(_, who)| *who).collect()
    }

    pub(crate) fn contains(&self, who: Who, at: Moment) -> bool {
        self.0.contains(&(at, who))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
