//! Orders to resize a pod that come to nothing, or to something else.

mod support;

use std::time::Duration;

use scheduler_ledger::{Event, ResizeResult};
use scheduler_protocol::Outcome;
use support::{Done, World, amount, cost, node, ordinary, permit, size, world};

#[test]
fn a_shrink_that_may_still_arrive_is_waited_for_before_a_grant() {
    let mut world = World::new(&[node("n1", 8000, 16)]);
    world.running("a", "n1", size(4000, 2));
    world.ask("a", 1, size(1000, 2), size(1000, 2));
    let done = world.take();
    world.patch("a", permit(&done[0]).1);
    let done = world.take();
    let [Done::Resize(_, number, requests)] = done[..] else { panic!("{done:?}") };
    assert_eq!(requests, cost(size(1000, 2)));
    world.tell(Event::ResizeEnded { pod: "pod-a".into(), number, result: ResizeResult::Unknown });
    let mut other = world.ledger.clone();
    let done = world.take_with_fences();
    let [Done::Fence(_, number)] = done[..] else { panic!("{done:?}") };
    world.tell(Event::Pod(world.pods["pod-a"].clone()));
    world.ask("a", 2, size(4000, 2), size(1000, 2));
    assert_eq!(world.take(), [], "it may still arrive");
    world.fenced("pod-a", number);
    let done = world.take();
    assert!(matches!(done[..], [Done::Answer(..)]), "{done:?}");
    // The watch may be faster: the pod shows another version, and the order was for the one before.
    std::mem::swap(&mut world.ledger, &mut other);
    let done = world.take_with_fences();
    assert!(matches!(done[..], [Done::Fence(..)]), "{done:?}");
    world.tell(Event::Pod(world.pods["pod-a"].clone()));
    world.ask("a", 2, size(4000, 2), size(1000, 2));
    let done = world.take();
    assert!(matches!(done[..], [Done::Answer(..)]), "{done:?}");
}

#[test]
fn looking_a_pod_up_does_not_forget_that_it_must_be_fenced() {
    let mut world = world();
    world.ask("a", 1, size(2000, 4), size(1000, 2));
    let done = world.take();
    let [Done::Resize(_, number, _)] = done[..] else { panic!("{done:?}") };
    world.tell(Event::ResizeEnded { pod: "pod-a".into(), number, result: ResizeResult::Unknown });
    let before = world.ledger.next(world.now).wake_at;
    world.look_up("pod-a");
    assert_eq!(world.ledger.next(world.now).wake_at, before);
}

#[test]
fn an_order_that_met_another_version_is_repeated_promptly() {
    let mut world = world();
    world.ask("a", 1, size(2000, 4), size(1000, 2));
    let done = world.take();
    let [Done::Resize(_, number, _)] = done[..] else { panic!("{done:?}") };
    world.touch("pod-a");
    world.look_up("pod-a");
    world.tell(Event::ResizeEnded { pod: "pod-a".into(), number, result: ResizeResult::Raced });
    world.pass(Duration::from_millis(50));
    let done = world.take();
    world.resize(&done[0]);
    assert_eq!(permit(&world.take()[0]).1.size, size(2000, 4));
}

#[test]
fn an_order_that_met_no_lease_is_repeated_when_it_may_be_renewed() {
    let mut world = world();
    world.ask("a", 1, size(2000, 4), size(1000, 2));
    let done = world.take();
    let [Done::Resize(_, number, _)] = done[..] else { panic!("{done:?}") };
    world.tell(Event::ResizeEnded { pod: "pod-a".into(), number, result: ResizeResult::NotDone });
    world.pass(Duration::from_millis(500));
    assert_eq!(world.take(), []);
    world.pass(Duration::from_millis(500));
    let done = world.take();
    world.resize(&done[0]);
    assert_eq!(permit(&world.take()[0]).1.size, size(2000, 4));
}

/// kube-scheduler places pods without asking: one may take the room before the larger requests are in the pod.
#[test]
fn a_growth_whose_room_was_taken_gets_what_is_left_at_once() {
    let mut world = world();
    world.ask("a", 1, size(6000, 2), size(1000, 2));
    let done = world.take();
    let [Done::Resize(_, number, _)] = done[..] else { panic!("{done:?}") };
    world.touch("pod-a");
    world.look_up("pod-a");
    world.tell(Event::ResizeEnded { pod: "pod-a".into(), number, result: ResizeResult::Raced });
    // Left for the VM: 8000 - 4000 - the pod's overhead.
    world.pod(ordinary("o", "n1", amount(4000, 1024)));
    let dump = world.ledger.dump();
    let n1 = &dump.nodes["n1"];
    assert!(n1.reserved.fits_in(n1.allocatable), "reserved: {}", n1.reserved);
    world.pass(Duration::from_millis(50));
    let done = world.take();
    let Done::Resize(_, _, requests) = done[0] else { panic!("{done:?}") };
    assert!(requests.fits_in(amount(4000, 16 * 1024)), "{requests}");
    world.resize(&done[0]);
    let done = world.take();
    let (outcome, seal, reason) = permit(&done[0]);
    assert_eq!(outcome, Outcome::Partial);
    assert!(seal.size.cpu < size(6000, 2).cpu && seal.size.cpu > size(1000, 2).cpu, "{seal:?}");
    assert!(!reason.is_empty());
}

/// Another scheduler has placed more than the node has: there is room for the memory that is wanted, not for the CPU beside it.
#[test]
fn a_growth_beside_what_has_no_room_ends_however_much_happens_meanwhile() {
    let mut world = world();
    world.pod(ordinary("o", "n1", amount(7000, 1024)));
    world.ask("a", 1, size(500, 4), size(500, 2));
    let mut answers = Vec::new();
    for step in 0..20 {
        world.pass(Duration::from_millis(200));
        world.pod(ordinary("o", "n1", amount(7000 + step % 2, 1024)));
        answers.extend(world.take().into_iter().filter(|done| matches!(done, Done::Answer(..))));
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    let (outcome, seal, reason) = permit(&answers[0]);
    assert_eq!((outcome, seal.size), (Outcome::Partial, size(500, 2)));
    assert_eq!(reason, "node n1 has no room: its pods request more than it has");
}

#[test]
fn an_order_that_cannot_arrive_any_more_makes_room() {
    let mut world = World::new(&[node("n1", 8000, 16)]);
    world.running("a", "n1", size(1000, 2));
    world.running("b", "n1", size(1000, 2));
    world.ask("a", 1, size(6000, 2), size(1000, 2));
    let done = world.take();
    let [Done::Resize(_, number, _)] = done[..] else { panic!("{done:?}") };
    // It is wanted no more, and nobody knows whether it was done.
    world.ask("a", 2, size(1000, 2), size(1000, 2));
    world.tell(Event::ResizeEnded { pod: "pod-a".into(), number, result: ResizeResult::Unknown });
    world.take();
    let mut b = world.vms["vm-b"].clone();
    (b.autoscaled, b.wanted) = (false, size(4000, 2));
    world.vm(b);
    let mut requests = Vec::new();
    for _ in 0..10 {
        for done in world.take() {
            match &done {
                Done::Resize(_, _, amount) => {
                    requests.push(*amount);
                    world.resize(&done);
                }
                Done::Approve(_, seal) => {
                    let mut b = world.vms["vm-b"].clone();
                    (b.visible, b.plugged, b.obeyed) =
                        (Some(*seal), Some(seal.size), Some(seal.place()));
                    let (vm, generation) = (b.uid.clone(), seal.generation);
                    world.tell(Event::ApproveEnded { vm, generation, written: true });
                    world.vm(b);
                }
                _ => {}
            }
        }
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(requests.last(), Some(&cost(size(4000, 2))), "{requests:?}");
}

#[test]
fn what_ends_after_the_answer_gives_no_approval() {
    let mut world = world();
    world.ask("a", 1, size(500, 8), size(500, 2));
    assert!(matches!(world.take()[..], [Done::Resize(..)]));
    world.pass(Duration::from_millis(1400));
    let done = world.take();
    let told = done.iter().find(|done| matches!(done, Done::Answer(..))).map(|it| permit(it).1);
    world.pass(Duration::from_secs(15));
    let _ = world.take();
    let permit = world.ledger.dump().nodes["n1"].vms["d/a"].permit;
    assert_eq!(Some(permit), told.map(|seal| seal.size), "the VM has what its agent was told");
}

#[test]
fn a_resize_that_is_accepted_and_not_done_is_not_repeated_at_once() {
    let mut world = world();
    world.ask("a", 1, size(4000, 2), size(2000, 2));
    let mut orders = 0;
    for _ in 0..60 {
        for done in world.take() {
            let Done::Resize(pod, number, _) = done else { continue };
            orders += 1;
            // Somebody puts back what the order changes.
            let result = ResizeResult::Accepted { generation: 1 };
            world.tell(Event::ResizeEnded { pod, number, result });
        }
        world.pass(Duration::from_millis(100));
    }
    assert!((2..=6).contains(&orders), "{orders} in 6 s");
}
