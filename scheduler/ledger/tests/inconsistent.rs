//! What the reference stumbles over: objects that do not fit together, other namespaces, and nodes that are fuller than they
//! should be. Nothing ends the process, everything that is bound counts, and what has ended does not.

mod support;

use guest_units::Bytes;
use scheduler_ledger::{Event, PodFacts, ResizeResult, Seal};
use scheduler_protocol::Outcome;
use support::{amount, cost, names, ordinary, permit, reference, runner, size, vm, world};

#[test]
fn a_vm_without_steps_of_memory_is_permitted_all_the_same() {
    let mut world = support::World::leased(&[support::node("n1", 16_000, 32)]);
    let mut stepless = vm("a", size(1000, 2));
    (stepless.slot, stepless.plugged) = (Bytes(0), Some(size(1000, 2)));
    stepless.visible = Some(Seal { epoch: 1, generation: 1, size: size(1000, 2) });
    stepless.obeyed = Some((1, 1));
    world.vm(stepless);
    world.pod(runner("a", Some("n1"), cost(size(1000, 2))));
    for _ in 0..4 {
        for done in world.take() {
            if matches!(done, support::Done::Resize(..)) {
                world.resize(&done);
            }
        }
    }
    world.ask("a", 1, size(1500, 2), size(1000, 2));
    let done = world.take();
    let (outcome, seal, _) = permit(&done[0]);
    assert_eq!((outcome, seal.size), (Outcome::Granted, size(1500, 2)));
}

#[test]
fn a_pod_that_has_finished_takes_nothing_from_then_on() {
    let mut world = world();
    let job = ordinary("job", "n1", amount(6500, 1024));
    world.pod(job.clone());
    let ticket = world.ask("a", 1, size(3000, 2), size(3000, 2));
    assert_eq!(world.take(), [], "it waits");
    world.pod(PodFacts { finished: true, ..job });
    assert_eq!(world.ledger.dump().nodes["n1"].ordinary, amount(0, 0));
    let done = world.take();
    world.resize(&done[0]);
    let done = world.take();
    assert!(matches!(&done[0], support::Done::Answer(answered, _) if *answered == ticket));
    assert_eq!(permit(&done[0]).0, Outcome::Granted, "room wakes who waits");
}

#[test]
fn what_is_bound_counts_whether_there_is_room_or_not() {
    let mut world = world();
    world.pod(ordinary("huge", "n1", amount(9000, 1024)));
    let node = &world.ledger.dump().nodes["n1"];
    assert_eq!(node.reserved, cost(size(1000, 2)) + amount(9000, 1024));
    world.ask("a", 1, size(500, 2), size(500, 2));
    let done = world.take();
    assert_eq!(permit(&done[0]).0, Outcome::Granted, "less is always to be had");
}

#[test]
fn pods_of_every_namespace_count_alike() {
    let mut world = world();
    let system =
        PodFacts { namespace: "kube-system".into(), ..ordinary("agent", "n1", amount(6500, 1024)) };
    world.pod(system);
    let newcomer = PodFacts { node: None, ..ordinary("new", "", amount(1000, 1024)) };
    let short = world.ledger.filter(&newcomer, ["n1", "n2"]).unwrap().short;
    assert_eq!([short[0].is_some(), short[1].is_some()], [true, false]);
}

#[test]
fn what_does_not_fit_together_is_put_right_by_what_is_seen_next() {
    let mut world = world();
    let before = world.ledger.dump();
    let unknown = || "nobody".to_owned();
    for event in [
        Event::Started(4711),
        Event::PlacingFailed(unknown()),
        Event::PodGone(unknown()),
        Event::VmGone(unknown()),
        Event::NodeGone(unknown()),
        Event::LookedUp { uid: unknown(), found: None },
        Event::ApproveEnded { vm: unknown(), generation: 1, written: true },
        Event::ResizeEnded { pod: unknown(), number: 9, result: ResizeResult::Unknown },
        Event::ResizeEnded {
            pod: "pod-a".into(),
            number: 9,
            result: ResizeResult::Accepted { generation: 9 },
        },
        Event::Woke,
    ] {
        world.tell(event);
    }
    assert_eq!((world.take(), world.ledger.dump()), (vec![], before));
    // A pod of a VM and of a node that nobody has seen, which come later and in the wrong order.
    world.pod(runner("late", Some("n3"), cost(size(1000, 1))));
    world.tell(Event::Node(support::node("n3", 8000, 16)));
    assert_eq!(world.ledger.dump().nodes["n3"].reserved, cost(size(1000, 1)));
    world.vm(vm("late", size(1000, 1)));
    assert!(world.ledger.dump().nodes["n3"].vms.contains_key("d/late"));
    world.tell(Event::NodesListed(names(&["n1", "n2"])));
    assert!(!world.ledger.dump().nodes.contains_key("n3"));
    assert_eq!(reference("vm-late", "late").uid, world.vms["vm-late"].uid);
}
