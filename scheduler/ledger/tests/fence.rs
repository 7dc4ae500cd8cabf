//! What another leader has ordered or given, and this ledger may not have heard of.

mod support;

use std::time::Duration;

use guest_units::Size;
use scheduler_ledger::{Action, Answer, Event, PodKind, Todo};
use support::leasing::leased;
use support::{Done, World, cost, node, runner, size, vm};

/// A VM of 1 CPU and 2 GiB with a lease, and another leader, who has not heard of anything since.
fn taken_over() -> World {
    let mut world = leased(node("n1", 16_000, 32), &["a"]);
    world.tell(Event::Leader(None));
    world.tell(Event::Leader(Some(2)));
    world
}

/// The one thing that is done is to fence the VM's pod; this is its number.
fn fence(world: &mut World) -> u64 {
    let done = world.take_with_fences();
    let [Done::Fence(uid, number)] = &done[..] else { panic!("{done:?}") };
    assert_eq!(uid, "pod-a");
    *number
}

/// The API server carries out the fence; the pod has so much.
fn fenced(world: &mut World, number: u64, has: Size) -> Vec<Done> {
    world.change(runner("a", Some("n1"), cost(has)));
    world.fenced("pod-a", number);
    world.take()
}

fn is_answered(done: &[Done]) -> bool {
    done.iter().any(|done| matches!(done, Done::Answer(..)))
}

#[test]
fn what_an_earlier_leader_may_have_taken_backs_nothing_before_the_pod_is_fenced() {
    // What the pod has by then, and whether it is granted from memory.
    for (left, granted) in [(size(2000, 3), true), (size(1000, 2), false)] {
        let mut world = taken_over();
        world.ask("a", 7, size(2000, 3), size(2000, 3));
        let number = fence(&mut world);
        // The watch tells of what happened before.
        world.change(world.pods["pod-a"].clone());
        assert_eq!(world.take(), [], "what the watch tells may be old");
        let done = fenced(&mut world, number, left);
        assert_eq!(is_answered(&done), granted, "{left}: {done:?}");
    }
}

#[test]
fn an_approval_of_an_earlier_leader_that_was_not_heard_of_is_learnt_from_its_agent() {
    // What the agent says that the VM has, and what is promised then: its pod has 2 CPUs and 3 GiB.
    for (stated, promised) in [(size(2000, 3), size(2000, 3)), (size(4000, 8), size(1000, 2))] {
        let mut world = taken_over();
        world.ask_having(7, stated, stated);
        let number = fence(&mut world);
        let done = fenced(&mut world, number, size(2000, 3));
        assert_eq!(is_answered(&done), promised == stated, "{done:?}");
        assert_eq!(world.ledger.dump().nodes["n1"].vms["d/a"].promise, promised);
    }
}

#[test]
fn a_fence_is_ordered_again_later_each_time_and_any_of_them_counts() {
    let mut world = taken_over();
    let (began, mut fences) = (world.now, Vec::new());
    for generation in 7..37 {
        world.ask("a", generation, size(2000, 3), size(1000, 2));
        for done in world.take_with_fences() {
            if let Done::Fence(_, number) = done {
                fences.push((world.now.since(began).as_millis(), number));
            }
        }
        world.pass(Duration::from_millis(500));
    }
    let times: Vec<u128> = fences.iter().map(|(at, _)| *at).collect();
    assert_eq!(times, [0, 1500, 4500, 10_500]);
    let done = fenced(&mut world, fences[1].1, size(2000, 3));
    assert!(is_answered(&done), "{done:?}");
}

#[test]
fn who_wants_to_grow_does_not_stand_behind_who_says_what_it_has() {
    for (want, is_urgent) in [(size(2000, 3), true), (size(1000, 2), false), (size(500, 1), false)]
    {
        let mut world = taken_over();
        world.ask("a", 7, want, size(250, 1));
        let actions = world.ledger.next(world.now);
        let [Todo { action: Action::Fence { urgent, .. }, .. }] = actions.start[..] else {
            panic!("{actions:?}")
        };
        assert_eq!(urgent, is_urgent, "{want}");
    }
}

#[test]
fn the_fence_of_an_earlier_epoch_does_not_count() {
    let mut world = taken_over();
    world.ask("a", 7, size(2000, 3), size(1000, 2));
    let first = fence(&mut world);
    world.tell(Event::Leader(None));
    world.tell(Event::Leader(Some(4)));
    world.take_with_fences();
    world.ask("a", 8, size(2000, 3), size(1000, 2));
    fence(&mut world);
    assert_eq!(fenced(&mut world, first, size(2000, 3)), []);
}

#[test]
fn what_a_fence_finds_to_be_ordered_and_not_done_backs_nothing() {
    let mut world = taken_over();
    world.ask("a", 7, size(2000, 3), size(1000, 2));
    let number = fence(&mut world);
    // Kubelet may have done a shrink that was ordered in between.
    let mut pod = runner("a", Some("n1"), cost(size(2000, 3)));
    let PodKind::Runner(facts) = &mut pod.kind else { panic!("not a runner") };
    (facts.generation, facts.observed) = (5, 3);
    world.change(pod);
    world.fenced("pod-a", number);
    assert_eq!(world.take(), []);
    world.kubelet("pod-a");
    assert!(is_answered(&world.take()));
}

#[test]
fn what_an_agent_has_and_nobody_knows_to_be_approved_is_not_denied() {
    let mut world = taken_over();
    // The watch is late: as far as is known, 8 GiB are plugged, and the pod does not have that.
    let mut facts = world.vms["vm-a"].clone();
    facts.plugged = Some(size(1000, 8));
    world.tell(Event::Vm(facts));
    world.change(runner("a", Some("n1"), cost(size(2000, 3))));
    world.ask_having(7, size(2000, 3), size(2000, 3));
    world.take();
    world.pass(Duration::from_secs(1));
    let done = world.take();
    let refused = |done: &Done| matches!(done, Done::Answer(_, Answer::Refused { .. }));
    assert!(done.iter().any(refused), "{done:?}");
    world.pass(Duration::from_secs(50));
    let done = world.take();
    assert!(!done.iter().any(|done| matches!(done, Done::Approve(..))), "nothing less is written");
}

#[test]
fn what_another_leader_has_bound_is_in_doubt_and_what_this_one_has_bound_is_not() {
    for ours in [false, true] {
        let mut world = taken_over();
        world.vm(vm("b", size(1000, 2)));
        world.pod(runner("b", None, cost(size(1000, 2))));
        world.take();
        if ours {
            let (facts, _) = world.ledger.may_bind("pod-b", "n1").unwrap();
            world.tell(Event::Placing(facts));
        }
        world.pod(runner("b", Some("n1"), cost(size(1000, 2))));
        world.ask("b", 1, size(1000, 2), size(1000, 2));
        let done = world.take_with_fences();
        let fences = done.iter().any(|done| matches!(done, Done::Fence(..)));
        assert_eq!(fences, !ours, "{done:?}");
    }
}

#[test]
fn a_binding_that_failed_leaves_the_pod_in_doubt() {
    let mut world = taken_over();
    world.vm(vm("b", size(1000, 2)));
    world.pod(runner("b", None, cost(size(1000, 2))));
    world.take();
    let (facts, _) = world.ledger.may_bind("pod-b", "n1").unwrap();
    world.tell(Event::Placing(facts));
    // Another leader has bound it to that very node, and may have done more since.
    world.tell(Event::PlacingFailed("pod-b".into()));
    world.change(runner("b", Some("n1"), cost(size(1000, 2))));
    world.look_up("pod-b");
    world.take_with_fences();
    world.ask("b", 1, size(1000, 2), size(1000, 2));
    let done = world.take_with_fences();
    assert!(done.iter().any(|done| matches!(done, Done::Fence(..))), "{done:?}");
}

#[test]
fn a_vm_that_is_not_placed_as_far_as_is_known_gets_no_approval_before_its_pod_is_fenced() {
    let mut world = leased(node("n1", 16_000, 32), &["a"]);
    let bound = world.pods["pod-a"].clone();
    world.tell(Event::PodGone("pod-a".into()));
    world.pods.remove("pod-a");
    world.pod(runner("a", None, cost(size(1000, 2))));
    world.take();
    world.tell(Event::Leader(None));
    world.tell(Event::Leader(Some(2)));
    let number = fence(&mut world);
    // Another leader has bound it, and the watch has not shown that yet.
    world.change(bound);
    world.fenced("pod-a", number);
    let done = world.take();
    assert!(!done.iter().any(|done| matches!(done, Done::Approve(..))), "{done:?}");
}
