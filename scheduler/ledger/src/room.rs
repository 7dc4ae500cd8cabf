//! How much room there is for a VM, why there is no more, and when to look again.

use std::time::Duration;

use guest_units::{Moment, Size};

use crate::amount::{Amount, cpu_text};
use crate::books::PodSlot;
use crate::ledger::Ledger;
use crate::settings::Settings;
use crate::slab::{NodeId, VmId};
use crate::vm::WishState;

impl Ledger {
    /// The most that the pod's main container may request.
    pub(crate) fn room_for(&self, pod: &PodSlot, node: NodeId) -> Amount {
        let Some(facts) = self.facts(node) else { return Amount::ZERO };
        let others = self.reserved_without(node, Some(pod.id));
        let beside = pod.book.facts.runner().map_or(Amount::ZERO, |runner| runner.beside);
        facts.allocatable.saturating_sub(others).saturating_sub(beside)
    }

    /// Whether the pod may be ordered such requests: it has them already, or there is room.
    pub(crate) fn may_grow(&self, pod: &PodSlot, node: NodeId, requests: Amount) -> bool {
        requests.fits_in(pod.book.may_have()) || requests.fits_in(self.room_for(pod, node))
    }

    /// Why there is no more, as a user understands it.
    pub(crate) fn shortage(
        &self,
        vm: VmId,
        node: NodeId,
        pod: &PodSlot,
        want: Size,
        permit: Size,
    ) -> String {
        let Some(book) = self.book(vm) else { return String::new() };
        if let Some(wish) = book.wish.as_ref().filter(|wish| wish.failures > 0) {
            return wish.reason.clone();
        }
        if self.keeps_size(vm) {
            return "the VM moves to another node, and keeps its size until then".to_owned();
        }
        let name = self.nodes.name(node);
        if !self.node_complete(node) {
            return format!("node {name} is not completely known yet");
        }
        let Some(runner) = pod.book.facts.runner() else { return String::new() };
        let price = book.price(runner);
        let room = price.affordable(self.room_for(pod, node).max(pod.book.backed()));
        let mut parts = Vec::new();
        if want.cpu > permit.cpu && room.cpu < want.cpu {
            let (has, needs) = (room.cpu.0.saturating_sub(permit.cpu.0), want.cpu.0 - permit.cpu.0);
            let (has, needs) = (cpu_text(has.into()), cpu_text(needs.into()));
            parts.push(format!("{has} of the {needs} CPU"));
        }
        if want.memory > permit.memory && room.memory < want.memory {
            let has = guest_units::Bytes(room.memory.0.saturating_sub(permit.memory.0));
            let needs = guest_units::Bytes(want.memory.0 - permit.memory.0);
            parts.push(format!("{has} of the {needs} memory"));
        }
        if parts.is_empty() {
            return format!("node {name} has no room: its pods request more than it has");
        }
        format!("node {name} has room for {} more", parts.join(" and "))
    }

    /// When to look at a VM again.
    pub(crate) fn vm_timer(&self, vm: VmId, now: Moment) -> Option<Moment> {
        let book = self.book(vm)?;
        let write =
            book.writing.filter(|writing| !writing.in_flight).map(|writing| writing.not_before);
        let wish = book.wish.as_ref().and_then(|wish| match wish.state {
            WishState::Waiting => {
                // For leases that give way it waits longer.
                let leases = self.settings.lease.is_some().then_some(self.settings.resize_limit);
                let until = |span: Duration| Some(wish.since + span).filter(|at| *at > now);
                let hold = until(self.settings.hold).or(leases.and_then(until));
                if wish.own {
                    let again = Some(wish.not_before).filter(|at| *at > now);
                    [again, hold.filter(|_| leases.is_some())].into_iter().flatten().min()
                } else {
                    hold.or(Some(wish.since + self.settings.hold))
                }
            }
            WishState::Held { until, .. } => Some(until),
            WishState::Growing { since, .. } if wish.ticket.is_some() => {
                let Settings { hold, resize_limit, .. } = self.settings;
                Some(wish.answer_by(since, hold, resize_limit))
            }
            WishState::Growing { since, .. } => Some(since + self.settings.give_up),
        });
        let renew = self.renew_at(vm).filter(|at| *at > now && book.wish.is_none());
        [write, wish, renew].into_iter().flatten().min()
    }
}
