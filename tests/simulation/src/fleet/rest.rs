//! Rule 9: long after the last fault everything is as it should be, or the reason why not is on record, and true.

use std::cmp::Ordering;

use controller_lifecycle::{ConditionKind, Truth};
use guest_units::{Moment, Size};
use host_scaling::{Decision, Outcome, Rules};
use scheduler_ledger::Amount;

use super::extender::ANSWERED_WITHIN;
use super::object::{VmId, cost, for_workload};
use super::runner::Kind;
use super::world::{Machine, World};

/// How much of a resource it is.
fn of(kind: Kind, size: Size) -> u64 {
    match kind {
        Kind::Cpu => size.cpu.0.into(),
        Kind::Memory => size.memory.0,
    }
}

/// It was decided just now, and the answer is not there yet.
fn is_open(decision: &Decision, now: Moment) -> bool {
    let asks = matches!(decision.outcome, Outcome::AskingScheduler | Outcome::AskingGuest);
    asks && now.since(decision.at) < ANSWERED_WITHIN
}

/// By the rules of the reference CPU and memory go together: what one of them does moves the other, and a workload that is killed again
/// and again moves both. What was decided a moment ago is on its way.
fn is_moving(rules: &Rules, last: Option<&Decision>, now: Moment) -> bool {
    let lately = |last: &Decision| last.attempts == 1 && now.since(last.at) < ANSWERED_WITHIN;
    matches!(rules, Rules::Reference(_)) && last.is_some_and(lately)
}

/// It wants more since the scheduler has denied something else, and is about to ask again.
fn arose_since(last: Option<&Decision>, kind: Kind, plugged: Size, asks_soon: bool) -> bool {
    asks_soon
        && last.is_some_and(|last| {
            matches!(last.outcome, Outcome::Denied { .. } | Outcome::Partial { .. })
                && of(kind, last.to) <= of(kind, plugged)
        })
}

/// The size that the VM should have: what its brain wants, and no less than its workload needs and the bounds allow. The load
/// averages that the policy `reference` goes by take minutes to show all CPU that is needed.
fn due(machine: &Machine, rules: &Rules, desired: Size, plugged: Size, now: Moment) -> Size {
    let (max, load) = (machine.object.bounds.max, &machine.guest.load);
    let needs = match rules {
        Rules::Headroom(_) => load.cpu.min(max.cpu),
        Rules::Reference(_) => desired.cpu,
    };
    let mut due = desired.max(Size { cpu: needs, ..desired });
    if load.memory_at(now) > for_workload(plugged.memory) && plugged.memory < max.memory {
        let more = plugged.memory.saturating_add(machine.object.limits.slot);
        due.memory = due.memory.max(more.min(max.memory));
    }
    due
}

impl World {
    /// Long after the last fault: all is as it should be, or says why not.
    pub(crate) fn judge_rest(&mut self) {
        self.judge_open();
        let answering = self.extenders.iter().filter(|extender| extender.answers(self.now));
        let wrong = answering.into_iter().find_map(|it| it.ledger.audit(self.now).err());
        if let Some(text) = wrong {
            self.broken(1, 0, format!("the scheduler's books: {text}"));
            return;
        }
        if !self.is_led() {
            self.broken(9, 0, "no extender leads".to_owned());
            return;
        }
        for vm in 0..self.vm_count() {
            if let Some(text) = self.unrest(vm) {
                self.broken(9, vm, text);
                return;
            }
        }
    }

    fn unrest(&self, vm: VmId) -> Option<String> {
        let machine = &self.vms[vm as usize];
        let Some(runner) = &machine.runner else {
            let waits = machine.object.pod.is_some_and(|pod| self.waiting.contains(&pod));
            return (!waits).then(|| "it does not run, and waits for no node".to_owned());
        };
        let Some(agent) = &machine.agent else {
            return Some("no agent serves it".to_owned());
        };
        let plugged = runner.size();
        let Some(overview) = agent.scaler.overview(self.now) else {
            return Some("its agent has not seen it".to_owned());
        };
        let rules = &self.settings.policy.rules;
        let due = due(machine, rules, overview.desired, plugged, self.now);
        let wake = agent.scaler.next(self.now).wake_at;
        let asks_soon = wake.is_some_and(|at| at.since(self.now) < ANSWERED_WITHIN);
        let decisions: Vec<_> = agent.scaler.decisions().collect();
        if is_moving(rules, decisions.last().copied(), self.now) {
            return None;
        }
        let together = matches!(rules, Rules::Reference(_));
        let kind = [Kind::Cpu, Kind::Memory].into_iter().find(|kind| {
            let about =
                |it: &&&Decision| of(*kind, it.to) != of(*kind, it.from) && !is_open(it, self.now);
            let last = decisions.iter().rev().find(about).copied();
            !match of(*kind, due).cmp(&of(*kind, plugged)) {
                Ordering::Equal => true,
                Ordering::Greater => {
                    (together && arose_since(decisions.last().copied(), *kind, plugged, asks_soon))
                        || self.may_lack(machine, *kind, (due, plugged), last)
                }
                Ordering::Less => may_exceed(machine, *kind, (due, plugged), last, together),
            }
        })?;
        let last = decisions.last();
        let desired = overview.desired;
        Some(format!(
            "{kind:?}: {desired:?} is desired, {due:?} is due, {plugged:?} is plugged; {last:?}"
        ))
    }

    /// Whether it is on record why the VM has less than is due: the scheduler refused, and the node really has no room for it;
    /// or the operator says that it could not be plugged.
    fn may_lack(
        &self,
        machine: &Machine,
        kind: Kind,
        (due, plugged): (Size, Size),
        last: Option<&Decision>,
    ) -> bool {
        let denied = last.is_some_and(|last| {
            matches!(last.outcome, Outcome::Denied { .. } | Outcome::Partial { .. })
                && of(kind, last.to) > of(kind, plugged)
        });
        let reason = blames(machine);
        let waits = reason == Some("WaitingForApproval");
        let fails = reason.is_some() && !waits;
        let ordered = of(kind, machine.object.spec) > of(kind, plugged);
        (fails && ordered)
            || ((denied || (waits && ordered)) && self.is_full(machine, kind, due, plugged))
    }

    /// Whether what is missing does not fit beside what is needed on the node: leases give way.
    fn is_full(&self, machine: &Machine, kind: Kind, due: Size, plugged: Size) -> bool {
        let node = machine.node_now();
        let room = self.nodes[node as usize].allocatable;
        let counted = self.needed_on(node) + cost(due).saturating_sub(cost(plugged));
        let part = |amount: Amount| match kind {
            Kind::Cpu => amount.cpu_millis,
            Kind::Memory => amount.memory_bytes,
        };
        part(counted) > part(room)
    }
}

/// Whether it is on record why the VM has more than is due: the guest refused to give as much (`together`: of either resource), or
/// the operator says that not all could be unplugged.
fn may_exceed(
    machine: &Machine,
    kind: Kind,
    (due, plugged): (Size, Size),
    last: Option<&Decision>,
    together: bool,
) -> bool {
    let vetoed = last.is_some_and(|last| match last.outcome {
        Outcome::Vetoed { least } => of(kind, least) > of(kind, due) || together,
        _ => false,
    });
    vetoed || (blames(machine).is_some() && of(kind, machine.object.spec) < of(kind, plugged))
}

/// Why the size is not as the specification says, by the operator's words.
fn blames(machine: &Machine) -> Option<&'static str> {
    let resized = |it: &&controller_lifecycle::Condition| it.kind == ConditionKind::Resized;
    let condition = machine.status.conditions.iter().find(resized)?;
    let blames = condition.truth == Truth::False && condition.reason != "InProgress";
    blames.then_some(condition.reason)
}
