//! What to do next. Pure: the same state and time give the same answer.

use guest_units::{Bytes, MilliCpu, Moment};

use crate::action::{Action, Actions, What, Why};
use crate::event::{Desired, Pod, Restart};
use crate::resize::Decision;
use crate::vm::{Base, Vm};

impl Vm {
    /// Says what to do next and when to ask again. Report each action as started before starting it.
    #[must_use]
    pub fn next(&self, now: Moment) -> Actions {
        let mut actions = Actions::default();
        let Some(desired) = &self.desired else { return actions };
        self.next_orders(desired, now, &mut actions);
        self.next_status(now, &mut actions);
        self.next_pod(desired, now, &mut actions);
        self.next_strays(now, &mut actions);
        for notice in &self.notices {
            actions.push(Action::Tell(notice.clone()), Why::Happened);
        }
        if let Some(until) = self.terminating_until() {
            actions.wake(until);
        }
        actions
    }

    fn next_orders(&self, desired: &Desired, now: Moment, actions: &mut Actions) {
        let Some((cpu, memory)) = self.decisions(now) else { return };
        for decision in [cpu, memory] {
            if let Decision::Busy { until } | Decision::Pausing { until } = decision {
                actions.wake(until);
            }
        }
        let stays = matches!(&self.pod, Pod::Present(facts) if facts.terminating_since.is_none());
        // While an order of an earlier leader may run, it is not known what a total would mean: more or less.
        let runner = self.runner.filter(|runner| runner.guest && self.fenced);
        let Some(runner) =
            runner.filter(|_| stays && !desired.deleting && desired.invalid.is_none())
        else {
            return;
        };
        let mut generation = self.generation;
        if let Decision::Order { total } = cpu {
            generation += 1;
            let grows = total > u64::from(runner.plugged.cpu.0);
            let what = What::Cpu(MilliCpu(u32::try_from(total).unwrap_or(u32::MAX)));
            actions.push(Action::Order { generation, what }, why(grows));
        }
        if let Decision::Order { total } = memory {
            generation += 1;
            let grows = total > runner.plugged.memory.0;
            let what = What::Memory(Bytes(total));
            actions.push(Action::Order { generation, what }, why(grows));
        }
    }

    fn next_status(&self, now: Moment, actions: &mut Actions) {
        // Until somebody has looked at the pod, the stored status is better than a guess.
        if self.pod == Pod::Unknown || self.writing.is_some() {
            return;
        }
        let status = self.status(now);
        if self.written.as_ref() == Some(&status) {
            return;
        }
        match self.write_pause.pending(now) {
            Some(until) => actions.wake(until),
            None => actions.push(Action::WriteStatus(status), Why::StatusChanged),
        }
    }

    fn next_pod(&self, desired: &Desired, now: Moment, actions: &mut Actions) {
        match self.base {
            Base::New => {}
            Base::Pending | Base::Running if desired.deleting => {
                if let Pod::Present(facts) = &self.pod
                    && facts.terminating_since.is_none()
                    && !self.deleted
                {
                    self.delete(&facts.name, false, Why::VmDeleted, now, actions);
                }
            }
            Base::Running => {}
            Base::Pending => self.next_start(desired, now, actions),
            Base::Succeeded | Base::Failed => self.next_end(desired, now, actions),
        }
    }

    fn next_start(&self, desired: &Desired, now: Moment, actions: &mut Actions) {
        let Some(name) = &self.pod_name else {
            if !self.naming && desired.invalid.is_none() {
                actions.push(Action::NamePod, Why::NoPod);
            }
            return;
        };
        let stored = self.written.as_ref().and_then(|status| status.pod.as_ref()) == Some(name);
        if !stored || self.pod != Pod::Absent || self.creating || desired.invalid.is_some() {
            return;
        }
        match self.create_pause.pending(now) {
            Some(until) => actions.wake(until),
            None => actions.push(Action::CreatePod(name.clone()), Why::NameStored),
        }
    }

    fn next_end(&self, desired: &Desired, now: Moment, actions: &mut Actions) {
        if let Pod::Present(facts) = &self.pod
            && !self.deleted
        {
            self.delete(&facts.name, true, Why::PodEnded, now, actions);
            return;
        }
        let gone = match self.pod {
            Pod::Absent => true,
            Pod::Present(_) => !self.settings.at_most_one_pod,
            Pod::Unknown => false,
        };
        if !gone {
            return;
        }
        let restart = match desired.restart {
            Restart::Always => true,
            Restart::OnFailure => self.base == Base::Failed,
            Restart::Never => false,
        };
        if restart && !desired.deleting && desired.invalid.is_none() {
            match self.restart_pause.pending(now) {
                Some(until) => actions.wake(until),
                None => actions.push(
                    Action::ForgetPod { name: self.pod_name.clone(), restart: true },
                    Why::RestartPolicy,
                ),
            }
        } else if self.pod_name.is_some() {
            actions.push(
                Action::ForgetPod { name: self.pod_name.clone(), restart: false },
                Why::PodEnded,
            );
        }
    }

    fn next_strays(&self, now: Moment, actions: &mut Actions) {
        for name in &self.strays {
            if self.pod_name.as_ref() != Some(name) {
                self.delete(name, false, Why::Stray, now, actions);
            }
        }
    }

    fn delete(&self, name: &str, release: bool, why: Why, now: Moment, actions: &mut Actions) {
        if self.deleting.contains(name) {
            return;
        }
        match self.delete_pauses.get(name).and_then(|pause| pause.pending(now)) {
            Some(until) => actions.wake(until),
            None => actions.push(Action::DeletePod { name: name.to_owned(), release }, why),
        }
    }
}

fn why(grows: bool) -> Why {
    if grows { Why::Grow } else { Why::Shrink }
}
