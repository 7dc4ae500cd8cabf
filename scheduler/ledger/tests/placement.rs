//! Where pods may go.

mod support;

use std::time::Duration;

use scheduler_ledger::{Answer, Event, PodFacts, Seal};
use support::{Done, World, amount, cost, node, ordinary, runner, size, vm};

/// The nodes with room for a pod.
fn room(world: &World, pod: &PodFacts, nodes: &[&str]) -> Vec<String> {
    let short = world.ledger.filter(pod, nodes.iter().copied()).expect("it leads").short;
    let kept = nodes.iter().zip(short).filter(|(_, short)| short.is_none());
    kept.map(|(node, _)| (*node).to_owned()).collect()
}

/// Why each of the nodes has no room.
fn reasons(world: &World, pod: &PodFacts, nodes: &[&str]) -> Vec<String> {
    let placement = world.ledger.filter(pod, nodes.iter().copied()).expect("it leads");
    let reasons = placement.reasons();
    placement.short.iter().flatten().map(|short| reasons.of(*short).to_owned()).collect()
}

fn world() -> World {
    let mut world = World::new(&[node("n1", 4000, 8), node("n2", 4000, 8)]);
    world.running("a", "n1", size(2000, 4));
    world
}

const NODES: &[&str] = &["n1", "n2"];

#[test]
fn nodes_without_room_are_refused_with_a_reason_that_users_understand() {
    let mut world = world();
    world.vm(vm("b", size(3000, 2)));
    let pod = runner("b", None, cost(size(3000, 2)));
    world.pod(pod.clone());
    assert_eq!(room(&world, &pod, NODES), ["n2"]);
    assert_eq!(reasons(&world, &pod, &["n1"]), ["needs 3100m CPU, 1900m not promised to others"]);
    let huge = ordinary("o", "", amount(5000, 10 * 1024));
    assert_eq!(
        reasons(&world, &huge, &["n2", "n3"]),
        [
            "needs 5 CPU, 4 not promised to others; needs 10Gi memory, 8Gi not promised to others",
            "node is not known yet"
        ]
    );
}

#[test]
fn all_nodes_with_the_same_shortage_share_one_reason() {
    let world = world();
    let large = ordinary("o", "", amount(5000, 1024));
    let text = "needs 5 CPU, at most 4 not promised to others";
    assert_eq!(reasons(&world, &large, NODES), [text, text]);
    let huge = ordinary("o", "", amount(5000, 10 * 1024));
    let text = "needs 5 CPU, at most 4 not promised to others; \
        needs 10Gi memory, at most 8Gi not promised to others";
    assert_eq!(reasons(&world, &huge, NODES), [text, text]);
}

#[test]
fn room_that_is_promised_but_not_requested_yet_is_not_given_away() {
    let mut world = world();
    world.ask("a", 1, size(3500, 4), size(2000, 4));
    world.take();
    let pod = ordinary("o", "", amount(1000, 0));
    assert_eq!(room(&world, &pod, NODES), ["n2"]);
}

#[test]
fn a_vm_needs_room_for_what_was_approved_before() {
    let mut world = world();
    let mut facts = vm("b", size(1000, 1));
    facts.visible = Some(Seal { epoch: 1, generation: 1, size: size(3000, 1) });
    world.vm(facts);
    let pod = runner("b", None, cost(size(1000, 1)));
    // The approval is on its way back to the spec, but still usable.
    assert_eq!(room(&world, &pod, NODES), ["n2"]);
}

#[test]
fn a_binding_counts_at_once_and_is_forgotten_when_the_api_server_says_so() {
    let mut world = world();
    world.vm(vm("b", size(3000, 2)));
    world.vm(vm("c", size(3000, 2)));
    for name in ["b", "c"] {
        world.pod(runner(name, None, cost(size(3000, 2))));
    }
    let (placed, _) = world.ledger.may_bind("pod-b", "n2").unwrap();
    world.tell(Event::Placing(placed));
    assert!(world.ledger.may_bind("pod-c", "n2").is_err(), "two bindings at a time");
    // A copy of the pod from before the binding changes nothing.
    world.pod(runner("b", None, cost(size(3000, 2))));
    assert!(world.ledger.may_bind("pod-c", "n2").is_err());
    assert!(
        matches!(&world.take()[..], [Done::Approve(vm, seal)] if vm == "vm-b" && seal.size == size(3000, 2))
    );
    world.tell(Event::PlacingFailed("pod-b".into()));
    assert_eq!(world.take(), [Done::LookUp("pod-b".into())]);
    assert!(world.ledger.may_bind("pod-c", "n2").is_err(), "it may be bound after all");
    world.look_up("pod-b");
    let (placed, _) = world.ledger.may_bind("pod-c", "n2").unwrap();
    world.tell(Event::Placing(placed));
    world.pod(runner("c", Some("n2"), cost(size(3000, 2))));
    world.take();
    world.pass(Duration::from_secs(600));
    assert!(world.ledger.may_bind("pod-b", "n2").is_err(), "confirmed by the watch");
    assert!(world.ledger.may_bind("pod-c", "n1").unwrap_err().contains("is on node n2"));
    assert!(world.ledger.may_bind("pod-x", "n1").is_err());
}

#[test]
fn a_binding_that_nobody_confirms_counts_until_the_api_server_denies_it() {
    let mut world = world();
    world.vm(vm("b", size(3000, 2)));
    world.pod(runner("b", None, cost(size(3000, 2))));
    let (placed, _) = world.ledger.may_bind("pod-b", "n2").unwrap();
    world.tell(Event::Placing(placed.clone()));
    world.take();
    let reserved = |world: &World| world.ledger.dump().nodes["n2"].reserved;
    for _ in 0..3 {
        world.pass(Duration::from_secs(31));
        assert_eq!(world.take(), [Done::LookUp("pod-b".into())], "asked until there is an answer");
        assert_eq!(reserved(&world), cost(size(3000, 2)));
    }
    // The answer to a question that was asked before another attempt says nothing.
    world.tell(Event::Placing(placed.clone()));
    world.look_up("pod-b");
    assert_eq!(reserved(&world), cost(size(3000, 2)));
    world.pass(Duration::from_secs(31));
    world.take();
    world.look_up("pod-b");
    assert_eq!(reserved(&world), amount(0, 0));
    // Bound as wished, or gone: both are its word too.
    world.tell(Event::Placing(placed.clone()));
    world.tell(Event::PlacingFailed("pod-b".into()));
    let version = placed.version + 1;
    let found = Some(scheduler_ledger::PodFacts { version, ..placed });
    world.tell(Event::LookedUp { uid: "pod-b".into(), found });
    assert_eq!(reserved(&world), cost(size(3000, 2)));
    world.take();
    world.pass(Duration::from_secs(300));
    assert_eq!(world.take(), []);
    world.tell(Event::LookedUp { uid: "pod-b".into(), found: None });
    assert_eq!(reserved(&world), amount(0, 0));
}

#[test]
fn a_list_from_before_does_not_drop_a_pod_that_was_looked_up_or_bound() {
    let mut world = world();
    world.vm(vm("b", size(3000, 2)));
    let mut pod = runner("b", None, cost(size(3000, 2)));
    pod.version = 50;
    world.tell(Event::LookedUp { uid: pod.uid.clone(), found: Some(pod.clone()) });
    world.tell(Event::PodsListed(support::names(&["pod-a"])));
    let (placed, _) = world.ledger.may_bind("pod-b", "n2").unwrap();
    world.tell(Event::Placing(placed));
    world.tell(Event::PodsListed(support::names(&["pod-a"])));
    assert_eq!(world.ledger.dump().nodes["n2"].reserved, cost(size(3000, 2)));
    pod.node = Some("n2".into());
    world.tell(Event::Pod(pod));
    world.tell(Event::PodsListed(support::names(&["pod-a"])));
    assert_eq!(world.ledger.dump().nodes["n2"].reserved, amount(0, 0), "now the list is newer");
}

/// A VM that was given 3 CPUs and uses 1, the approval of which its agent has not written.
fn grown_and_shrunk() -> World {
    let mut world = world();
    world.ask("a", 1, size(3000, 4), size(3000, 4));
    let done = world.take();
    world.resize(&done[0]);
    let [Done::Answer(_, Answer::Permit { seal, .. })] = world.take()[..] else { panic!() };
    world.patch("a", seal);
    world.ask("a", 2, size(1000, 4), size(1000, 4));
    assert!(matches!(world.take()[..], [Done::Answer(..)]));
    let mut facts = world.vms["vm-a"].clone();
    facts.wanted = size(1000, 4);
    world.vm(facts);
    world
}

/// The pod of VM `a` ends, and the next one waits for its node.
fn next_pod(world: &mut World) {
    world.pods.remove("pod-a");
    world.tell(Event::PodGone("pod-a".into()));
    world.pod(runner("a", None, cost(size(1000, 4))));
}

#[test]
fn an_approval_that_the_agent_lost_is_written_when_its_pod_ends_and_the_next_one_is_bound() {
    let mut world = grown_and_shrunk();
    next_pod(&mut world);
    assert!(world.ledger.may_bind("pod-a", "n1").is_err(), "the larger one is obeyed");
    let done = world.take();
    let [Done::Approve(_, seal)] = done[..] else { panic!("{done:?}") };
    assert_eq!(seal.size, size(1000, 4));
    world.patch("a", seal);
    world.ledger.may_bind("pod-a", "n1").unwrap();
}

#[test]
fn an_approval_is_written_when_the_lease_is_held_again_with_the_same_epoch() {
    let mut world = grown_and_shrunk();
    next_pod(&mut world);
    let lost = world.take();
    assert!(matches!(lost[..], [Done::Approve(..)]), "{lost:?}");
    world.tell(Event::Leader(None));
    world.tell(Event::Leader(Some(1)));
    assert_eq!(world.take(), lost);
}

#[test]
fn a_pod_of_another_namespace_is_not_a_vms() {
    let mut world = world();
    world.vm(vm("b", size(1000, 1)));
    world.take();
    let foreign = |node| {
        let pod = runner("b", node, cost(size(1000, 1)));
        PodFacts { namespace: "foreign".into(), ..pod }
    };
    world.pod(foreign(None));
    assert_eq!(room(&world, &foreign(None), NODES), NODES);
    assert!(world.ledger.may_bind("pod-b", "n1").is_err());
    world.pod(foreign(Some("n1")));
    assert_eq!(world.take(), [], "nothing is promised to it");
    assert!(world.ledger.dump().unplaced.contains_key("d/b"));
    world.pod(PodFacts { uid: "own".into(), ..runner("b", Some("n2"), cost(size(1000, 1))) });
    assert!(world.ledger.dump().nodes["n2"].vms.contains_key("d/b"));
}

#[test]
fn the_next_pod_of_a_vm_keeps_room_for_what_is_approved() {
    let mut world = world();
    let mut facts = vm("b", size(1000, 1));
    facts.visible = Some(Seal { epoch: 1, generation: 1, size: size(3000, 1) });
    (facts.obeyed, facts.plugged) = (Some((1, 1)), Some(size(1000, 1)));
    world.vm(facts);
    world.pod(runner("b", Some("n1"), cost(size(1000, 1))));
    // The object still names the pod on n1; the next one was bound meanwhile.
    let mut next = runner("b", Some("n2"), cost(size(1000, 1)));
    (next.uid, next.name) = ("pod-b2".into(), "b-pod-2".into());
    world.pod(next);
    assert_eq!(world.ledger.dump().nodes["n2"].reserved, cost(size(3000, 1)));
}

#[test]
fn evictions_never_name_a_vm_and_must_be_of_use() {
    let mut world = world();
    world.pod(ordinary("small", "n2", amount(1000, 0)));
    world.pod(ordinary("large", "n2", amount(3000, 0)));
    let pod = ordinary("new", "", amount(2000, 0));
    let check = |victims: &[&str], node: &str| {
        let victims: Vec<String> = victims.iter().map(|uid| (*uid).to_owned()).collect();
        let node = node.to_owned();
        !world.ledger.preempt(&pod, [(&node, &victims[..])]).unwrap().is_empty()
    };
    assert!(check(&["large"], "n2"));
    assert!(!check(&["small"], "n2"), "not enough");
    assert!(!check(&["pod-a"], "n1"), "a VM");
    assert!(!check(&["unknown"], "n1"), "it may be a VM");
}

#[test]
fn the_fuller_node_is_better_up_to_the_peak() {
    let world = world();
    let small = ordinary("o", "", amount(400, 512));
    let scores = world.ledger.prioritize(&small, NODES.iter().copied());
    assert!(scores[0] > scores[1], "{scores:?}");
    let large = ordinary("o", "", amount(1800, 1024));
    let scores = world.ledger.prioritize(&large, NODES.iter().copied());
    assert!(scores[0] < scores[1], "{scores:?}");
}

#[test]
fn nothing_is_placed_before_everything_is_known() {
    let mut world = World::new(&[node("n1", 4000, 8)]);
    world.ledger = scheduler_ledger::Ledger::new(scheduler_ledger::Settings::default());
    let pod = ordinary("o", "", amount(1, 1));
    assert!(world.ledger.filter(&pod, ["n1"]).is_err());
    world.tell(Event::Leader(Some(1)));
    assert!(world.ledger.filter(&pod, ["n1"]).is_err());
    world.relist(1);
    assert_eq!(room(&world, &pod, &["n1"]), ["n1"]);
}
