//! Whole stories of one VM.

use crate::world::{GIB, World, desired, size};
use controller_lifecycle::{
    Action, Approved, ConditionKind, Ending, Event, Notice, Phase, Pod, PodState, Restart,
    Settings, Truth, What,
};
use guest_units::{Bytes, MilliCpu};

fn condition(world: &World, kind: ConditionKind) -> (Truth, &'static str) {
    let condition = world
        .status
        .conditions
        .iter()
        .find(|condition| condition.kind == kind)
        .expect("it is always there");
    (condition.truth, condition.reason)
}

fn grow(world: &mut World, milli: u32, gib: u64) {
    world.want(|desired| desired.wanted = size(milli, gib));
    world.approve(size(milli, gib));
}

#[test]
fn a_new_vm_gets_one_pod_and_runs() {
    let mut world = World::new(desired());
    assert_eq!(world.status.phase, Phase::Pending);
    assert_eq!((world.created, world.pods.len()), (1, 1));
    world.pod_becomes(PodState::Running { ready: false });
    assert_eq!(world.status.phase, Phase::Pending);
    world.pod_ready();
    assert_eq!(world.status.phase, Phase::Running);
    assert_eq!(world.status.size, Some(size(250, 1)));
    assert_eq!(world.status.node.as_deref(), Some("n1"));
    assert_eq!(condition(&world, ConditionKind::Available), (Truth::True, "Running"));
    assert!(world.status.settled);
    assert!(world.sent.is_empty());
}

#[test]
fn cpu_and_memory_grow_at_the_same_time_and_independently() {
    let mut world = World::running(desired());
    grow(&mut world, 2500, 4);
    assert_eq!(world.status.phase, Phase::Scaling);
    let ordered: Vec<What> = world.sent.iter().map(|sent| sent.what).collect();
    assert_eq!(ordered, [What::Cpu(MilliCpu(2500)), What::Memory(Bytes(4 * GIB))]);
    world.order_ends(Ending::Failed("no".into()));
    assert_eq!(world.status.phase, Phase::Scaling);
    world.order_ends(Ending::Done);
    assert_eq!(world.status.phase, Phase::Running);
    assert_eq!(world.status.size, Some(size(250, 4)));
    assert_eq!(condition(&world, ConditionKind::Resized), (Truth::False, "OrderFailed"));
    world.later(1);
    world.order_ends(Ending::Done);
    assert_eq!(world.status.size, Some(size(2500, 4)));
    assert_eq!(condition(&world, ConditionKind::Resized), (Truth::True, "AsDesired"));
    assert!(world.notices.iter().any(|notice| matches!(notice, Notice::Scaled { .. })));
}

#[test]
fn without_approval_nothing_grows_and_nothing_shrinks() {
    let mut world = World::running(desired());
    grow(&mut world, 1000, 4);
    world.order_ends(Ending::Done);
    world.order_ends(Ending::Done);
    world.want(|desired| {
        desired.wanted = size(2000, 6);
        desired.approved = Approved::Missing("the signature is wrong".into());
    });
    assert!(world.sent.is_empty());
    assert_eq!(world.status.phase, Phase::Running);
    assert_eq!(condition(&world, ConditionKind::Resized), (Truth::False, "WaitingForApproval"));
    world.want(|desired| desired.wanted = size(500, 2));
    assert_eq!(world.sent.len(), 2, "shrinking needs no approval");
}

#[test]
fn a_partial_unplug_is_accepted_said_and_tried_again() {
    let mut world = World::running(desired());
    grow(&mut world, 250, 6);
    world.order_ends(Ending::Done);
    grow(&mut world, 250, 1);
    world.plugged.memory = Bytes(3 * GIB);
    world.order_ends(Ending::Partial("the guest keeps 2 GiB".into()));
    assert_eq!(world.status.phase, Phase::Running);
    assert_eq!(world.status.size, Some(size(250, 3)));
    assert!(world.status.settled);
    assert_eq!(condition(&world, ConditionKind::Resized), (Truth::False, "PartialUnplug"));
    assert!(world.sent.is_empty());
    world.later(5);
    world.order_ends(Ending::Done);
    assert_eq!(world.status.size, Some(size(250, 1)));
    assert_eq!(condition(&world, ConditionKind::Resized), (Truth::True, "AsDesired"));
}

#[test]
fn an_order_without_an_answer_does_not_leave_the_vm_scaling() {
    let mut world = World::running(desired());
    grow(&mut world, 250, 2);
    let lost = world.sent[0];
    world.later(15);
    assert_ne!(world.sent[0].generation, lost.generation);
    let before = world.status.clone();
    let plugged = world.plugged;
    world.tell(Event::OrderEnded {
        generation: lost.generation,
        revision: 1000,
        plugged,
        ending: Ending::Failed("old".into()),
    });
    assert_eq!(world.status, before, "a stale outcome changes nothing");
}

#[test]
fn a_stale_order_is_repeated_with_a_newer_generation() {
    let mut world = World::running(desired());
    grow(&mut world, 250, 2);
    world.order_ends(Ending::Stale { newest: 100 });
    assert_eq!(world.sent[0].generation, 101);
}

#[test]
fn a_vanished_pod_is_replaced_as_the_policy_says() {
    for (restart, replaced) in
        [(Restart::Always, true), (Restart::OnFailure, true), (Restart::Never, false)]
    {
        let mut world = World::running(desired());
        world.want(|desired| desired.restart = restart);
        let name = world.vm.pod_name().unwrap().to_owned();
        world.kill_pod(&name);
        assert_eq!(world.created, if replaced { 2 } else { 1 }, "{restart:?}");
        assert_eq!(world.status.restarts, u32::from(replaced), "{restart:?}");
        assert_eq!(condition(&world, ConditionKind::Degraded).0, Truth::True);
        if replaced {
            world.pod_ready();
            assert_eq!(condition(&world, ConditionKind::Degraded).0, Truth::False);
            assert_eq!(condition(&world, ConditionKind::Available).0, Truth::True);
        } else {
            assert_eq!(world.status.phase, Phase::Failed);
            assert_eq!((world.status.pod.as_ref(), world.status.size), (None, None));
        }
    }
}

#[test]
fn success_restarts_only_with_the_policy_always() {
    for (restart, replaced) in
        [(Restart::Always, true), (Restart::OnFailure, false), (Restart::Never, false)]
    {
        let mut world = World::running(desired());
        world.want(|desired| desired.restart = restart);
        world.pod_becomes(PodState::Succeeded);
        assert_eq!(world.created, if replaced { 2 } else { 1 }, "{restart:?}");
        assert_eq!(world.pods.len(), usize::from(replaced), "the ended pod is deleted");
        let phase = if replaced { Phase::Pending } else { Phase::Succeeded };
        assert_eq!(world.status.phase, phase);
    }
}

#[test]
fn a_crash_loop_slows_down() {
    let mut world = World::running(desired());
    world.pod_becomes(PodState::Failed("exit code 1".into()));
    assert_eq!(world.created, 2, "the first replacement comes at once");
    world.pod_becomes(PodState::Failed("exit code 1".into()));
    assert_eq!(world.created, 2);
    assert_eq!(condition(&world, ConditionKind::Degraded), (Truth::True, "RestartBackOff"));
    world.later(2);
    assert_eq!(world.created, 3);
    world.pod_ready();
    world.later(60);
    world.pod_becomes(PodState::Failed("exit code 1".into()));
    assert_eq!(world.created, 4, "a VM that ran well starts a new series");
}

#[test]
fn a_pod_that_does_not_end_counts_as_failed_after_a_while() {
    let mut world = World::running(desired());
    let name = world.vm.pod_name().unwrap().to_owned();
    world.pod_goes();
    grow(&mut world, 1000, 2);
    assert!(world.sent.is_empty(), "a pod that goes gets no orders");
    assert_eq!(world.status.phase, Phase::Running);
    let wake = world.vm.next(world.now).wake_at.unwrap();
    assert_eq!(wake.0.as_secs(), 5);
    world.later(5);
    assert_eq!(world.created, 2);
    assert!(world.log.contains(&Action::DeletePod { name, release: true }));
}

#[test]
fn at_most_one_pod_waits_for_the_old_one() {
    let mut world = World::running(desired());
    world.operator_restarts(Settings { at_most_one_pod: true });
    let old = world.pod().unwrap().clone();
    world.pod_becomes(PodState::Failed("node lost".into()));
    assert_eq!(world.created, 2, "in this world a deleted pod is gone at once");
    // The same with a pod that lingers.
    let mut machine = controller_lifecycle::Vm::new(
        controller_lifecycle::Stored {
            phase: Phase::Failed,
            pod: Some(old.name.clone()),
            restarts: 0,
            size: None,
            revision: None,
            obeyed: None,
        },
        Settings { at_most_one_pod: true },
    );
    machine.handle(Event::Desired(desired()), world.now);
    machine.handle(Event::PodObserved(Pod::Present(old.clone())), world.now);
    machine.handle(Event::PodDeleted(old.name.clone()), world.now);
    let forgets = |machine: &controller_lifecycle::Vm| {
        machine
            .next(world.now)
            .start
            .iter()
            .any(|(action, _)| matches!(action, Action::ForgetPod { .. }))
    };
    assert!(!forgets(&machine));
    machine.handle(Event::PodObserved(Pod::Absent), world.now);
    assert!(forgets(&machine));
}

#[test]
fn deletion_ends_with_nothing() {
    let mut world = World::running(desired());
    grow(&mut world, 2000, 4);
    world.want(|desired| desired.deleting = true);
    assert!(world.pods.is_empty());
    world.later(1000);
    let actions = world.vm.next(world.now);
    assert_eq!(actions, controller_lifecycle::Actions::default());
    assert_eq!(world.created, 1);

    let mut early = World::new(desired());
    early.want(|desired| desired.deleting = true);
    assert!(early.pods.is_empty());
}

#[test]
fn a_new_leader_goes_on_where_the_old_one_stopped() {
    let mut world = World::running(desired());
    grow(&mut world, 1000, 2);
    world.order_ends(Ending::Done);
    world.order_ends(Ending::Done);
    world.operator_restarts(Settings::default());
    assert_eq!(world.status.size, Some(size(1000, 2)), "the size stays known");
    assert_eq!(world.created, 1);
    world.runner_says();
    assert!(world.sent.is_empty());
    let name = world.vm.pod_name().unwrap().to_owned();
    world.pods.remove(&name);
    world.operator_restarts(Settings::default());
    assert_eq!(world.created, 2, "a pod that vanished meanwhile is replaced");
}

#[test]
fn a_crash_between_name_and_pod_makes_no_second_name() {
    let mut world = World::new(desired());
    let name = world.vm.pod_name().unwrap().to_owned();
    world.pods.clear();
    world.operator_restarts(Settings::default());
    assert_eq!(world.vm.pod_name(), Some(name.as_str()));
    assert_eq!(world.pods.len(), 1);
    assert_eq!(world.status.restarts, 0);
}

#[test]
fn an_invalid_spec_makes_no_pod_and_says_so() {
    let mut invalid = desired();
    invalid.invalid = Some("spec.guest.cpus: min > max".into());
    let mut world = World::new(invalid);
    assert!(world.pods.is_empty());
    assert_eq!(condition(&world, ConditionKind::Degraded), (Truth::True, "InvalidSpec"));
    assert_eq!(world.notices.len(), 1);
    world.want(|desired| desired.invalid = None);
    assert_eq!(world.pods.len(), 1);
    assert_eq!(condition(&world, ConditionKind::Degraded), (Truth::False, "AsExpected"));
}

#[test]
fn strays_are_deleted_and_the_current_pod_is_not() {
    let mut world = World::running(desired());
    let current = world.vm.pod_name().unwrap().to_owned();
    world.tell(Event::Strays(vec!["old".into(), current.clone()]));
    assert!(world.log.contains(&Action::DeletePod { name: "old".into(), release: false }));
    assert!(world.pods.contains_key(&current));
}

#[test]
fn a_silent_runner_gets_no_orders_and_its_size_stays_known() {
    let mut world = World::running(desired());
    world.tell(Event::RunnerLost);
    grow(&mut world, 1000, 2);
    assert!(world.sent.is_empty());
    assert_eq!(world.status.size, Some(size(250, 1)));
    world.runner_says();
    assert_eq!(world.sent.len(), 2);
}

#[test]
fn a_revision_counts_as_reached_when_there_is_nothing_left_to_order() {
    let mut world = World::running(desired());
    world.approve(size(1000, 2));
    world.want(|desired| {
        desired.wanted = size(1000, 2);
        desired.revision = Some((7, 1));
    });
    assert_eq!(world.status.revision, None);
    world.order_ends(Ending::Done);
    assert_eq!(world.status.revision, None);
    world.order_ends(Ending::Done);
    assert_eq!(world.status.revision, Some((7, 1)));
    world.want(|desired| desired.revision = Some((8, 2)));
    assert_eq!(world.status.revision, Some((8, 2)), "without any change of size");
    world.operator_restarts(Settings::default());
    assert_eq!(world.status.revision, Some((8, 2)));
}

#[test]
fn an_older_approval_does_not_count_any_more() {
    let mut world = World::running(desired());
    grow(&mut world, 250, 8);
    world.order_ends(Ending::Done);
    grow(&mut world, 250, 1);
    world.order_ends(Ending::Done);
    assert_eq!(world.status.obeyed, Some((1, 2)));
    let written_back = |world: &mut World| {
        world.replay(1);
        world.want(|desired| desired.wanted = size(250, 8));
        assert!(world.sent.is_empty(), "the old approval opened the gate");
        assert_eq!(condition(world, ConditionKind::Resized).1, "WaitingForApproval");
        assert_eq!(world.status.obeyed, Some((1, 2)));
    };
    written_back(&mut world);
    world.operator_restarts(Settings::default());
    world.runner_says();
    written_back(&mut world);
    world.approve(size(250, 2));
    assert_eq!(world.sent.len(), 1);
}

#[test]
fn an_approval_is_obeyed_when_nothing_larger_is_under_way() {
    let mut world = World::running(desired());
    let grown = |world: &mut World| {
        grow(world, 250, 8);
        assert_eq!(world.status.obeyed, Some((1, 1)), "it is as large as what is under way");
        grow(world, 250, 2);
        assert_eq!(world.sent[0].what, What::Memory(Bytes(2 * GIB)), "it overtakes the larger one");
        assert_eq!(world.status.obeyed, Some((1, 1)), "more than this may still come");
    };
    grown(&mut world);
    world.late_arrives(0);
    world.order_ends(Ending::Vetoed { least: 3 * GIB, reason: "in use".into() });
    assert_eq!((world.status.obeyed, world.status.size), (Some((1, 2)), Some(size(250, 8))));

    let mut world = World::running(desired());
    grown(&mut world);
    world.runner_is_asked();
    world.order_gets_lost();
    world.later(1000);
    world.runner_is_heard();
    assert_eq!(world.status.obeyed, Some((1, 1)), "an idle runner may still get it");
    world.runner_says();
    assert_eq!(world.status.obeyed, Some((1, 2)), "it is refused from now on");
    world.late_arrives(0);
    world.late_arrives(0);
    assert!(world.late.is_empty());
}

#[test]
fn a_vm_that_no_node_takes_says_why_until_one_does() {
    let mut world = World::running(desired());
    let lost = world.vm.pod_name().unwrap().to_owned();
    world.kill_pod(&lost);
    world.later(60);
    assert_eq!(condition(&world, ConditionKind::Available), (Truth::False, "Restarting"));
    world.pod_waits("2 Insufficient cpu");
    assert_eq!(condition(&world, ConditionKind::Available), (Truth::False, "Unschedulable"));
    let said = world.status.conditions.iter().any(|it| it.message == "2 Insufficient cpu");
    assert!(said, "{:?}", world.status.conditions);
    world.pod_becomes(PodState::Pending);
    assert_eq!(condition(&world, ConditionKind::Available), (Truth::False, "Restarting"));
    world.pod_ready();
    assert_eq!(condition(&world, ConditionKind::Available), (Truth::True, "Running"));
}

#[test]
fn an_approval_is_obeyed_before_the_pod_has_a_node() {
    let mut world = World::running(desired());
    grow(&mut world, 250, 8);
    world.order_ends(Ending::Done);
    let lost = world.vm.pod_name().unwrap().to_owned();
    world.kill_pod(&lost);
    world.later(60);
    assert_eq!(
        world.pod().map(|pod| pod.node.clone()),
        Some(None),
        "another one waits for its node"
    );
    world.approve(size(250, 2));
    assert_eq!(world.status.obeyed, Some((1, 2)));
    world.pod_becomes(PodState::Pending);
    world.approve(size(250, 1));
    assert_eq!(
        world.status.obeyed,
        Some((1, 2)),
        "it boots with a node, and nobody has looked at it"
    );
    world.pod_ready();
    assert_eq!(world.status.obeyed, Some((1, 3)));
}

#[test]
fn a_new_leader_waits_for_what_the_old_one_ordered() {
    let mut world = World::running(desired());
    grow(&mut world, 250, 8);
    world.operator_restarts(Settings::default());
    world.late_arrives(0);
    world.approve(size(250, 2));
    world.want(|desired| desired.wanted = size(250, 2));
    world.runner_says();
    assert!(world.sent.is_empty(), "the runner is busy");
    assert_eq!(world.status.obeyed, Some((1, 1)));
    world.late_ends(0);
    world.runner_says();
    assert_eq!(world.status.obeyed, Some((1, 2)));
    assert_eq!(world.sent.len(), 1, "back to what is wanted now");

    let mut world = World::running(desired());
    grow(&mut world, 250, 8);
    world.operator_restarts(Settings::default());
    world.approve(size(250, 2));
    world.runner_says();
    assert_eq!(world.status.obeyed, Some((1, 2)), "the old order is refused from now on");
    world.late_arrives(0);
    assert!(world.late.is_empty());
}

#[test]
fn a_status_that_is_said_to_be_written_once_more_is_not_what_is_stored() {
    let mut world = World::running(desired());
    let old = world.status.clone();
    grow(&mut world, 2000, 4);
    world.order_ends(Ending::Done);
    world.order_ends(Ending::Done);
    let new = world.status.clone();
    assert!(new.obeyed > old.obeyed, "{new:?}");
    world.tell(Event::StatusWritten(old));
    world.later(60);
    assert_eq!(world.status, new);
}

#[test]
fn an_answer_that_was_overtaken_is_ignored() {
    let mut world = World::running(desired());
    grow(&mut world, 250, 8);
    world.runner_is_asked();
    world.order_ends(Ending::Done);
    world.runner_is_heard();
    assert_eq!(world.status.size, Some(size(250, 8)));
}

#[test]
fn after_a_lost_order_no_shrink_may_turn_out_as_a_growth() {
    let mut world = World::running(desired());
    grow(&mut world, 250, 6);
    world.order_ends(Ending::Done);
    grow(&mut world, 250, 1);
    world.order_gets_lost();
    // From 6 GiB this would be a shrink, but the lost order may come first.
    world.want(|desired| desired.wanted = size(250, 4));
    world.later(1000);
    assert!(world.sent.is_empty());
    world.runner_says();
    assert_eq!(world.sent.len(), 1);
    world.late_arrives(0);
    assert!(world.late.is_empty(), "it is refused from now on");
}
