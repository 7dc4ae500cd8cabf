//! Rule 9: long after the last fault everything is as it should be, or the reason why not is on record, and true.

use std::cmp::Ordering;
use std::time::Duration;

use controller_lifecycle::{ConditionKind, Truth};
use guest_units::{Bytes, MilliCpu, Moment, Size};
use host_scaling::{Decision, Headroom, Limits, Outcome, Rules};
use scheduler_ledger::Amount;

use super::agent::{Agent, Denied};
use super::extender::ANSWERED_WITHIN;
use super::message::Happening;
use super::object::{VmId, cost, for_workload};
use super::runner::Kind;
use super::world::{Machine, World};

/// A VM whose size is on its way is looked at again after so long.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// It arrives within this.
const ARRIVES_WITHIN: Duration = Duration::from_secs(30);
/// Of a guest in which nothing changes, the last step down is over after so long.
const SETTLES_WITHIN: Duration = Duration::from_secs(300);

/// What is not as it should be.
struct Unrest {
    text: String,
    /// What is under way already may end it.
    on_its_way: bool,
}

impl From<&str> for Unrest {
    fn from(text: &str) -> Self {
        Self { text: text.to_owned(), on_its_way: false }
    }
}

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

/// Load averages follow a load for minutes, and a workload that is killed again and again never rests: by the rules of the
/// reference a wish may have arisen just now. It is on its way while an answer is open, while what was written a moment ago is
/// not seen yet, and while a denial of something else is waited out.
fn is_on_its_way(
    agent: &Agent,
    kind: Kind,
    pause: Duration,
    (due, plugged): (Size, Size),
    now: Moment,
) -> bool {
    let lately = |at: Moment| now.since(at) < ANSWERED_WITHIN;
    let goes = Some(agent.seen.spec) != agent.seen.plugged && agent.written_at.is_some_and(lately);
    let arose = |denied: Denied| {
        of(kind, due) > of(kind, plugged)
            && of(kind, denied.wanted) <= of(kind, plugged)
            && now.since(denied.at) < pause
    };
    agent.is_busy() || goes || agent.denied.is_some_and(arose)
}

/// The size that the VM should have: what its brain wants, and no less than its workload needs and the bounds allow. The load
/// averages that the policy `reference` goes by take minutes to show all CPU that is needed.
fn due(machine: &Machine, rules: &Rules, desired: Size, plugged: Size, now: Moment) -> Size {
    let (max, load) = (machine.object.bounds.max, &machine.guest.load);
    let (needs, mut due) = match rules {
        Rules::Headroom(numbers) => {
            (load.cpu.min(max.cpu), settled(machine, numbers, now).unwrap_or(desired))
        }
        Rules::Reference(_) => (desired.cpu, desired),
    };
    due.cpu = due.cpu.max(needs);
    if load.memory_at(now) > for_workload(plugged.memory) && plugged.memory < max.memory {
        let more = plugged.memory.saturating_add(machine.object.limits.slot);
        due.memory = due.memory.max(more.min(max.memory));
    }
    due
}

/// Where all steps down have led by now, whatever the brain wants. A workload that is killed again and again never comes to that.
fn settled(machine: &Machine, numbers: &Headroom, now: Moment) -> Option<Size> {
    let guest = &machine.guest;
    let settles = guest.kills_of_load == 0 && now.since(guest.steady_since) >= SETTLES_WITHIN;
    says(machine, numbers).filter(|_| settles)
}

/// What the guest says that it needs, with the policy's reserve, within the bounds.
pub(super) fn says(machine: &Machine, numbers: &Headroom) -> Option<Size> {
    let Size { cpu, memory } = machine.guest.last?.demand;
    let part = |whole: u64, percent: u32| whole * u64::from(percent) / 100;
    let cpu_reserve = part(cpu.0.into(), numbers.cpu_headroom_percent);
    let cpu_reserve = cpu_reserve.max(numbers.cpu_headroom_min.0.into());
    let memory_reserve = part(memory.0, numbers.memory_reserve_percent);
    let memory_reserve = memory_reserve.max(numbers.memory_reserve_min.0);
    let cpu = (u64::from(cpu.0) + cpu_reserve).next_multiple_of(numbers.cpu_grid.0.into());
    let slot = machine.object.limits.slot.0;
    let size = Size {
        cpu: MilliCpu(u32::try_from(cpu).ok()?),
        memory: Bytes((memory.0 + memory_reserve).next_multiple_of(slot)),
    };
    let Limits { min, max, .. } = machine.object.bounds;
    Some(size.max(min).min(max))
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
            self.judge_rest_of(vm, self.now);
        }
    }

    /// A VM is at rest, or has not been on its way for too long.
    pub(crate) fn judge_rest_of(&mut self, vm: VmId, since: Moment) {
        let Some(Unrest { text, on_its_way }) = self.unrest(vm) else { return };
        if on_its_way && self.now.since(since) < ARRIVES_WITHIN {
            self.queue.push(self.now + LOOK_AGAIN, Happening::RestOf(vm, since));
        } else {
            self.broken(9, vm, text);
        }
    }

    fn unrest(&self, vm: VmId) -> Option<Unrest> {
        let machine = &self.vms[vm as usize];
        let Some(runner) = &machine.runner else {
            let waits = machine.object.pod.is_some_and(|pod| self.waiting.contains(&pod));
            return (!waits).then(|| "it does not run, and waits for no node".into());
        };
        let Some(agent) = &machine.agent else {
            return Some("no agent serves it".into());
        };
        let plugged = runner.size();
        let Some(overview) = agent.scaler.overview(self.now) else {
            return Some("its agent has not seen it".into());
        };
        let rules = &self.settings.policy.rules;
        let due = due(machine, rules, overview.desired, plugged, self.now);
        let decisions: Vec<_> = agent.scaler.decisions().collect();
        let together = matches!(rules, Rules::Reference(_));
        let pause = self.settings.policy.retries.permit_denied;
        let is_wrong = |kind: &Kind| {
            let about =
                |it: &&&Decision| of(*kind, it.to) != of(*kind, it.from) && !is_open(it, self.now);
            let last = decisions.iter().rev().find(about).copied();
            !match of(*kind, due).cmp(&of(*kind, plugged)) {
                Ordering::Equal => true,
                Ordering::Greater => self.may_lack(vm, agent, *kind, (due, plugged), last),
                Ordering::Less => may_exceed(machine, *kind, (due, plugged), last),
            }
        };
        let moves =
            |kind: Kind| together && is_on_its_way(agent, kind, pause, (due, plugged), self.now);
        let wrong: Vec<Kind> = [Kind::Cpu, Kind::Memory].into_iter().filter(is_wrong).collect();
        let kind = wrong.iter().find(|kind| !moves(**kind)).or(wrong.first())?;
        let last = decisions.last();
        let desired = overview.desired;
        Some(Unrest {
            text: format!(
                "{kind:?}: {desired:?} is desired, {due:?} is due, {plugged:?} is plugged; {last:?}"
            ),
            on_its_way: wrong.iter().all(|kind| moves(*kind)),
        })
    }

    /// Whether it is on record why the VM has less than is due: the scheduler refused, and the node really has no room for it, or
    /// had none when the scheduler was asked, and will be asked again; or the operator says that it could not be plugged.
    fn may_lack(
        &self,
        vm: VmId,
        agent: &Agent,
        kind: Kind,
        (due, plugged): (Size, Size),
        last: Option<&Decision>,
    ) -> bool {
        let machine = &self.vms[vm as usize];
        let short =
            last.filter(|last| of(kind, last.to) > of(kind, plugged)).is_some_and(
                |last| match &last.outcome {
                    Outcome::Denied { .. } => true,
                    Outcome::Partial { permit, .. } => of(kind, *permit) < of(kind, last.to),
                    _ => false,
                },
            );
        // What was decided and taken back since may hide it.
        let answered = self.settings.policy.retries.permit_denied + ANSWERED_WITHIN;
        let denied = agent.denied.filter(|denied| {
            let has = of(kind, denied.permit).max(of(kind, plugged));
            of(kind, denied.wanted) > has && self.now.since(denied.at) < answered
        });
        let reason = blames(machine);
        let waits = reason == Some("WaitingForApproval");
        let fails = reason.is_some() && !waits;
        let ordered = of(kind, machine.object.spec) > of(kind, plugged);
        let node = machine.node_now();
        let part = |amount: Amount| match kind {
            Kind::Cpu => amount.cpu_millis,
            Kind::Memory => amount.memory_bytes,
        };
        // What is missing does not fit beside what is needed: leases give way.
        let is_full = |needed: Amount, has: Size| {
            let missing = cost(due).saturating_sub(cost(has));
            part(needed + missing) > part(self.nodes[node as usize].allocatable)
        };
        // What is approved is among what is needed.
        let has = plugged.max(self.approved(vm));
        let refused = short || denied.is_some() || (waits && ordered);
        (fails && ordered)
            || (refused && is_full(self.needed_on(node), has))
            || denied.is_some_and(|denied| is_full(denied.needed, plugged))
    }
}

/// Whether it is on record why the VM has more than is due: the guest refused to give as much, or the operator says that not all
/// could be unplugged.
fn may_exceed(
    machine: &Machine,
    kind: Kind,
    (due, plugged): (Size, Size),
    last: Option<&Decision>,
) -> bool {
    let vetoed = last.is_some_and(|last| match last.outcome {
        Outcome::Vetoed { least } => of(kind, least) > of(kind, due),
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
