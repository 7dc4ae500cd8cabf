//! Migrations of VMs: the objects, the operator that carries them out, the pods on both sides.

use std::collections::BTreeMap;

use scheduler_ledger::{Amount, Event, MigrationFacts, PodFacts};

use super::{NODES, Run, index, name, starts, vm_uid};
use crate::Step;
use crate::support::{Done, cost};

impl Run {
    fn numbered(&self, vm: usize, number: Option<u32>) -> Option<PodFacts> {
        self.world.pods.get(&format!("pod-v{vm}-{}", number?)).cloned()
    }

    /// Its present pod, and those of a move.
    pub(super) fn pods_of(&self, vm: usize) -> Vec<PodFacts> {
        let truth = &self.truths[vm];
        let numbers = [Some(truth.pod), truth.target, truth.source];
        numbers.into_iter().filter_map(|number| self.numbered(vm, number)).collect()
    }

    /// Whether nothing runs in the pod any more, since its VM has moved, once or more often.
    pub(super) fn was_left(&self, pod: &PodFacts) -> bool {
        let Some(runner) = pod.runner() else { return false };
        let vm = index(&runner.vm_uid);
        let truth = &self.truths[vm];
        let runs_in = [Some(truth.pod), truth.target].into_iter().flatten();
        !runs_in.into_iter().any(|number| pod.uid == format!("pod-v{vm}-{number}"))
    }

    /// The migration of a VM that has not ended: the operator begins no second one.
    fn under_way(&self, vm: usize) -> Option<MigrationFacts> {
        let open = |it: &&MigrationFacts| it.ended.is_none() && it.vm_uid == vm_uid(vm);
        self.world.migrations.values().find(open).cloned()
    }

    /// What is booked on a node as far as anybody can know: by the ledger, or by the objects.
    pub(super) fn booked(&self, node: &str) -> Amount {
        let dump = self.world.ledger.dump();
        let objects = self.world.migrations.values();
        let open = objects.filter(|it| it.ended.is_none() && it.to.as_deref() == Some(node));
        let promises = dump.nodes.values().flat_map(|node| node.vms.values());
        let open = open.filter_map(|it| promises.clone().find(|vm| vm.uid == it.vm_uid));
        let known = dump.nodes.get(node).map_or(Amount::ZERO, |node| node.booked);
        known.max(open.map(|vm| cost(vm.promise)).sum())
    }

    /// How much more is promised, booked and taken on the nodes than they have.
    pub(super) fn overbooked(&self) -> BTreeMap<String, Amount> {
        let over = self.world.ledger.dump().nodes.into_iter().map(|(name, node)| {
            let promised: Amount = node.vms.values().map(|vm| cost(vm.promise)).sum();
            (name, (promised + node.ordinary + node.booked).saturating_sub(node.allocatable))
        });
        over.collect()
    }

    /// The API server makes what is to be made, or not; and nobody may learn of either.
    pub(super) fn api_moves(&mut self, outcome: u8) {
        if self.moves.is_empty() {
            return;
        }
        match self.moves.remove(0) {
            Done::Migrate(vm_uid, to, name) => {
                let (exists, made) = match outcome {
                    0 | 4 => (false, Some(false)),
                    1 => (true, None),
                    2 | 3 => (false, None),
                    _ => (true, Some(true)),
                };
                if exists {
                    self.add(&vm_uid, name.clone(), Some(to));
                }
                self.world.tell(Event::MigrateEnded { vm: vm_uid, name, made });
            }
            Done::EndMigration(uid) if outcome > 1 => self.delete(&uid),
            _ => {}
        }
    }

    fn add(&mut self, vm_uid: &str, name: String, to: Option<String>) {
        self.migrations += 1;
        let facts = MigrationFacts {
            uid: format!("m-{}", self.migrations),
            namespace: "d".into(),
            name,
            vm_uid: vm_uid.into(),
            ours: to.is_some(),
            to,
            ended: None,
        };
        self.world.migrations.insert(facts.uid.clone(), facts);
    }

    fn delete(&mut self, uid: &str) {
        let Some(facts) = self.world.migrations.get(uid).cloned() else { return };
        if self.under_way(index(&facts.vm_uid)).is_some_and(|open| open.uid == uid) {
            self.remove_target(index(&facts.vm_uid));
        }
        self.world.migration_gone(uid);
    }

    fn remove_target(&mut self, vm: usize) {
        let number = self.truths[vm].target.take();
        if let Some(pod) = self.numbered(vm, number) {
            self.remove_pod(&pod.uid);
        }
    }

    pub(super) fn remove_pod(&mut self, uid: &str) {
        self.world.pods.remove(uid);
        self.world.tell(Event::PodGone(uid.into()));
    }

    /// A migration ends badly: the target goes first.
    pub(super) fn fail_move(&mut self, vm: usize) {
        if let Some(facts) = self.under_way(vm) {
            self.remove_target(vm);
            self.world
                .migrations
                .insert(facts.uid.clone(), MigrationFacts { ended: Some(false), ..facts });
        }
    }

    pub(super) fn move_on(&mut self, vm: usize, step: Step) {
        if !self.world.moves() {
            return;
        }
        match step {
            Step::Onward => {
                self.api(5);
                for step in [Step::Seen, Step::Target, Step::Bind { outcome: 5 }, Step::Admit] {
                    self.move_on(vm, step);
                }
            }
            Step::Seen => {
                let all = self.world.migrations.values();
                let own = all.filter(|it| it.vm_uid == vm_uid(vm)).cloned();
                for facts in own.collect::<Vec<_>>() {
                    self.world.tell(Event::Migration(facts));
                }
            }
            Step::ByHand => self.add(&vm_uid(vm), format!("by-hand-{}", name(vm)), None),
            Step::Target => self.make_target(vm),
            Step::Bind { outcome } => self.bind_target(vm, outcome),
            Step::Admit => self.admit_target(vm),
            Step::Well => self.switch(vm),
            Step::Badly => self.fail_move(vm),
            Step::SourceGone => {
                let number = self.truths[vm].source.take();
                if let Some(pod) = self.numbered(vm, number) {
                    self.remove_pod(&pod.uid);
                }
            }
            Step::Deleted => {
                if let Some(facts) = self.under_way(vm) {
                    self.delete(&facts.uid);
                }
            }
        }
    }

    /// The operator makes the target by the spec, of a VM that runs.
    fn make_target(&mut self, vm: usize) {
        let runs = self.truths[vm].real.is_some() && self.truths[vm].target.is_none();
        if !runs || self.under_way(vm).is_none() {
            return;
        }
        let wanted = self.object(vm).wanted;
        let truth = &mut self.truths[vm];
        truth.pods += 1;
        let number = truth.pods;
        truth.target = Some(number);
        self.make_pod(vm, number, cost(wanted));
    }

    /// kube-scheduler obeys what the migration says about the node.
    fn bind_target(&mut self, vm: usize, outcome: u8) {
        let (Some(pod), Some(facts)) =
            (self.numbered(vm, self.truths[vm].target), self.under_way(vm))
        else {
            return;
        };
        let source = self.pod(vm).and_then(|pod| pod.node.clone());
        let other = NODES.iter().position(|node| Some(*node) != source.as_deref());
        let to = facts.to.and_then(|to| NODES.iter().position(|node| *node == to)).or(other);
        if let Some(to) = to {
            self.bind_pod(pod, to, outcome);
        }
    }

    fn admit_target(&mut self, vm: usize) {
        let Some(pod) = self.numbered(vm, self.truths[vm].target) else { return };
        if pod.node.is_none() {
            return;
        }
        if starts(&pod) && !self.has_room(&pod) {
            self.fail_move(vm);
            return;
        }
        self.world.kubelet(&pod.uid);
    }

    /// The VM runs on the target: the operator says so in one write. What it had ordered before is over.
    fn switch(&mut self, vm: usize) {
        let Some(facts) = self.under_way(vm) else { return };
        let Some(pod) = self.numbered(vm, self.truths[vm].target).filter(|pod| !starts(pod)) else {
            return;
        };
        let real = self.truths[vm].real;
        let object = self.object(vm);
        (object.pod_name, object.plugged) = (Some(pod.name), real);
        let truth = &mut self.truths[vm];
        (truth.source, truth.report) = (Some(truth.pod), None);
        truth.pod = truth.target.take().unwrap_or(truth.pod);
        truth.flights.clear();
        let ended = MigrationFacts { ended: Some(true), ..facts };
        self.world.migrations.insert(ended.uid.clone(), ended);
    }

    /// All of a move goes well.
    pub(super) fn finish_moves(&mut self, vm: usize) {
        for step in [Step::Onward, Step::Well, Step::Seen, Step::SourceGone] {
            self.move_on(vm, step);
        }
    }
}
