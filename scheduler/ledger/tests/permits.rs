//! Permits, from the request to its end.

mod support;

use std::time::Duration;

use guest_units::{MilliCpu, Size};
use scheduler_ledger::{Answer, Event, PodKind, ResizeResult, Seal};
use scheduler_protocol::{Outcome, RefusalCode};
use support::{
    Done, World, amount, cost, node, ordinary, permit, reference, runner, size, vm, world,
};

fn refused(done: &Done) -> (RefusalCode, Option<u64>) {
    match done {
        Done::Answer(_, Answer::Refused { code, newest, .. }) => (*code, *newest),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn growth_is_granted_only_when_kubelet_has_allocated_it() {
    let mut world = world();
    world.ask("a", 1, size(2000, 4), size(1000, 2));
    let done = world.take();
    let [Done::Resize(pod, number, requests)] = &done[..] else { panic!("{done:?}") };
    assert_eq!(*requests, cost(size(2000, 4)));
    world.accept(pod, *number, *requests);
    assert_eq!(world.take(), [], "the spec alone backs nothing");
    world.kubelet(pod);
    let done = world.take();
    let (outcome, seal, reason) = permit(&done[0]);
    assert_eq!((outcome, seal.size, reason), (Outcome::Granted, size(2000, 4), ""));
    assert_eq!(done.len(), 1);
    assert_eq!(seal.place(), (1, 2));
}

#[test]
fn what_is_given_back_returns_when_the_operator_obeys_and_the_hypervisor_shows_it() {
    let mut world = world();
    world.ask("a", 1, size(500, 1), size(500, 1));
    let done = world.take();
    let (outcome, seal, _) = permit(&done[0]);
    assert_eq!((outcome, seal.size), (Outcome::Granted, size(500, 1)));
    assert_eq!(done.len(), 1, "nothing is taken from the pod yet");
    let mut facts = world.vms["vm-a"].clone();
    facts.visible = Some(seal);
    facts.plugged = Some(Size { cpu: MilliCpu(500), ..size(1000, 2) });
    world.vm(facts.clone());
    assert_eq!(world.take(), [], "an order of the approval before may still be in flight");
    facts.obeyed = Some(seal.place());
    world.vm(facts.clone());
    let done = world.take();
    let [Done::Resize(_, number, requests)] = done[..] else { panic!("{done:?}") };
    assert_eq!(requests, cost(Size { cpu: MilliCpu(500), ..size(1000, 2) }));
    world.accept("pod-a", number, requests);
    world.kubelet("pod-a");
    facts.plugged = Some(size(500, 1));
    world.vm(facts);
    let done = world.take();
    assert!(matches!(done[..], [Done::Resize(_, _, requests)] if requests == cost(size(500, 1))));
}

#[test]
fn a_full_node_gives_what_it_has_and_says_so() {
    let mut world = world();
    world.pod(ordinary("o", "n1", amount(5900, 10 * 1024)));
    // Left: 8000 - 1100 - 5900 = 1000m CPU; memory 16 - 2.25 - 10 = 3.75 GiB.
    world.ask("a", 1, size(4000, 12), size(1500, 3));
    let done = world.take();
    assert!(matches!(done[..], [Done::Resize(_, _, requests)] if requests == cost(size(2000, 5))));
    world.resize(&done[0]);
    let done = world.take();
    let (outcome, seal, reason) = permit(&done[0]);
    assert_eq!((outcome, seal.size), (Outcome::Partial, size(2000, 5)));
    assert!(!reason.is_empty());
    assert!(matches!(&done[1], Done::Denied(vm, _) if vm == "vm-a"));
    world.patch("a", seal);
    // Now nothing is left: the next one waits, then is denied with numbers.
    world.ask("a", 2, size(4000, 12), size(3000, 6));
    assert_eq!(world.take(), []);
    world.pass(Duration::from_secs(1));
    let done = world.take();
    let (outcome, seal, reason) = permit(&done[0]);
    assert_eq!((outcome, seal.size), (Outcome::Denied, size(2000, 5)));
    assert_eq!(reason, "node n1 has room for 0 of the 2 CPU and 768Mi of the 7Gi memory more");
    assert_eq!(done.len(), 1, "users are told once");
}

#[test]
fn room_that_appears_wakes_who_waits_in_order() {
    let mut world = World::new(&[node("n1", 4000, 64)]);
    world.running("a", "n1", size(1000, 1));
    world.running("b", "n1", size(1000, 1));
    world.pod(ordinary("o", "n1", amount(1800, 0)));
    world.ask("b", 1, size(2000, 1), size(2000, 1));
    world.ask("a", 1, size(2000, 1), size(2000, 1));
    assert_eq!(world.take(), []);
    let waiting = |world: &World| world.ledger.level("n1").map(|level| level.waiting);
    assert_eq!(waiting(&world), Some(2));
    world.pods.remove("o");
    world.tell(Event::PodGone("o".into()));
    let done = world.take();
    assert_eq!(waiting(&world), Some(1));
    let [Done::Resize(pod, ..)] = &done[..] else { panic!("{done:?}") };
    assert_eq!(pod, "pod-b", "b was first, and there is room for one");
    world.resize(&done[0]);
    assert_eq!(permit(&world.take()[0]).0, Outcome::Granted);
    world.pass(Duration::from_secs(1));
    assert_eq!(permit(&world.take()[0]).0, Outcome::Denied);
}

#[test]
fn whoever_cannot_be_helped_does_not_block_the_next() {
    let mut world = World::new(&[node("n1", 4000, 64)]);
    world.running("a", "n1", size(1000, 1));
    world.running("b", "n1", size(1000, 1));
    world.ask("a", 1, size(16_000, 1), size(16_000, 1));
    world.ask("b", 1, size(2000, 1), size(1000, 1));
    let done = world.take();
    assert!(matches!(&done[..], [Done::Resize(pod, ..)] if pod == "pod-b"));
}

#[test]
fn a_deferred_wish_is_taken_back_and_denied() {
    let mut world = world();
    // A pod that the ledger has not seen: kubelet knows better.
    let hidden = ordinary("hidden", "n1", amount(6000, 0));
    world.pods.insert(hidden.uid.clone(), hidden);
    world.ask("a", 1, size(4000, 2), size(2000, 2));
    let done = world.take();
    world.resize(&done[0]);
    let done = world.take();
    let (outcome, seal, reason) = permit(&done[0]);
    assert_eq!((outcome, seal.size), (Outcome::Denied, size(1000, 2)));
    assert!(reason.contains("kubelet has no room"), "{reason}");
    let back = done.iter().find(|done| matches!(done, Done::Resize(..))).unwrap();
    assert!(matches!(back, Done::Resize(_, _, requests) if *requests == cost(size(1000, 2))));
}

#[test]
fn a_resize_refused_by_the_api_server_is_denied() {
    let mut world = world();
    world.ask("a", 1, size(4000, 2), size(2000, 2));
    let done = world.take();
    let Done::Resize(pod, number, _) = &done[0] else { panic!("{done:?}") };
    let (pod, number, result) = (pod.clone(), *number, ResizeResult::Refused);
    world.tell(Event::ResizeEnded { pod, number, result });
    assert_eq!(permit(&world.take()[0]).0, Outcome::Denied);
    world.pass(Duration::from_secs(60));
    world.ask("a", 2, size(4000, 2), size(2000, 2));
    let done = world.take();
    let Done::Resize(pod, number, _) = &done[0] else { panic!("{done:?}") };
    let (pod, number, result) = (pod.clone(), *number, ResizeResult::Quota);
    world.tell(Event::ResizeEnded { pod, number, result });
    let done = world.take();
    assert!(permit(&done[0]).2.contains("ResourceQuota"), "{done:?}");
}

#[test]
fn a_return_refused_by_the_api_server_says_nothing_about_a_growth() {
    let mut world = World::new(&[node("n1", 8000, 16)]);
    world.running("a", "n1", size(4000, 2));
    world.pod(ordinary("o", "n1", amount(3900, 0)));
    world.ask("a", 1, size(1000, 2), size(1000, 2));
    let seal = permit(&world.take()[0]).1;
    world.patch("a", seal);
    let done = world.take();
    let [Done::Resize(_, number, _)] = done[..] else { panic!("{done:?}") };
    // Meanwhile it wants more than there is room for.
    world.ask("a", 2, size(6000, 2), size(6000, 2));
    world.tell(Event::ResizeEnded { pod: "pod-a".into(), number, result: ResizeResult::Refused });
    world.pods.remove("o");
    world.tell(Event::PodGone("o".into()));
    world.pass(Duration::from_millis(600));
    let done = world.take();
    assert!(matches!(done[..], [Done::Resize(..)]), "{done:?}");
    world.resize(&done[0]);
    assert_eq!(permit(&world.take()[0]).0, Outcome::Granted);
}

#[test]
fn a_slow_kubelet_is_not_waited_for_but_what_it_gives_is_kept() {
    let mut world = world();
    world.ask("a", 1, size(4000, 2), size(2000, 2));
    let done = world.take();
    let Done::Resize(pod, number, requests) = done[0].clone() else { panic!("{done:?}") };
    world.accept(&pod, number, requests);
    world.pass(Duration::from_secs(2));
    assert_eq!(permit(&world.take()[0]).0, Outcome::Denied);
    world.kubelet(&pod);
    assert_eq!(world.take(), [], "kept for the next request");
    world.ask("a", 2, size(4000, 2), size(2000, 2));
    let done = world.take();
    assert_eq!(permit(&done[0]).0, Outcome::Granted, "without another resize");
    assert!(done.iter().any(|done| matches!(done, Done::Served(..))));
}

#[test]
fn what_a_slow_kubelet_gave_returns_if_nobody_asks() {
    let mut world = world();
    world.ask("a", 1, size(4000, 2), size(2000, 2));
    let done = world.take();
    let Done::Resize(pod, number, requests) = done[0].clone() else { panic!("{done:?}") };
    world.accept(&pod, number, requests);
    world.pass(Duration::from_secs(2));
    world.take();
    world.kubelet(&pod);
    world.pass(Duration::from_secs(6));
    let done = world.take();
    assert!(matches!(done[..], [Done::Resize(_, _, requests)] if requests == cost(size(1000, 2))));
}

#[test]
fn equal_repeated_requests_change_nothing() {
    let mut world = world();
    let mut seals = Vec::new();
    for generation in [1, 1, 2, 3] {
        world.ask("a", generation, size(1000, 2), size(1000, 2));
        let done = world.take();
        assert_eq!(done.len(), 1);
        seals.push(permit(&done[0]).1);
    }
    assert!(
        seals.iter().all(|seal| *seal == Seal { epoch: 1, generation: 1, size: size(1000, 2) })
    );
}

#[test]
fn stale_and_foreign_requests_are_refused() {
    let mut world = world();
    world.ask("a", 5, size(1000, 2), size(1000, 2));
    world.take();
    world.ask("a", 4, size(8000, 8), size(1000, 2));
    assert_eq!(refused(&world.take()[0]), (RefusalCode::Stale, Some(5)));
    world.ask_from("n2", "a", 6, size(1000, 2), size(1000, 2));
    assert_eq!(refused(&world.take()[0]), (RefusalCode::Forbidden, None));
    world.ask("nobody", 1, size(1000, 2), size(1000, 2));
    assert_eq!(refused(&world.take()[0]), (RefusalCode::Unknown, None));
    let mut facts = world.vms["vm-a"].clone();
    facts.autoscaled = false;
    world.vm(facts);
    world.ask("a", 7, size(1000, 2), size(1000, 2));
    assert_eq!(refused(&world.take()[0]), (RefusalCode::Forbidden, None));
}

#[test]
fn a_newer_request_takes_the_place_of_an_open_one() {
    let mut world = world();
    let first = world.ask("a", 1, size(2000, 2), size(1000, 2));
    world.take();
    world.ask("a", 2, size(3000, 2), size(1000, 2));
    let done = world.take();
    assert!(matches!(&done[0], Done::Answer(ticket, _) if *ticket == first));
    assert_eq!(refused(&done[0]), (RefusalCode::Stale, Some(2)));
}

#[test]
fn without_the_lease_every_request_ends() {
    let mut world = world();
    world.ask("a", 1, size(2000, 2), size(1000, 2));
    world.take();
    world.tell(Event::Leader(None));
    assert_eq!(refused(&world.take()[0]).0, RefusalCode::NotReady);
    world.ask("a", 2, size(2000, 2), size(1000, 2));
    assert_eq!(refused(&world.take()[0]).0, RefusalCode::NotReady);
    assert!(world.ledger.filter(&runner("x", None, amount(1, 1)), ["n1"]).is_err());
}

#[test]
fn a_vm_without_an_agent_gets_what_its_spec_wants_when_backed() {
    let mut world = World::new(&[node("n1", 4000, 16)]);
    let mut facts = vm("m", size(1000, 2));
    facts.autoscaled = false;
    world.vm(facts.clone());
    assert_eq!(world.take(), [], "no pod, no promise");
    world.pod(runner("m", Some("n1"), cost(size(1000, 2))));
    let done = world.take();
    let [Done::Approve(_, seal)] = done[..] else { panic!("{done:?}") };
    assert_eq!(seal.size, size(1000, 2));
    facts.visible = Some(seal);
    facts.wanted = size(2000, 4);
    world.vm(facts.clone());
    let done = world.take();
    world.resize(&done[0]);
    let done = world.take();
    let [Done::Approve(_, seal)] = done[..] else { panic!("{done:?}") };
    assert_eq!(seal.size, size(2000, 4));
    // It does not fit: the users learn it, and learn when it does.
    facts.visible = Some(seal);
    facts.wanted = Size { cpu: MilliCpu(8000), ..size(0, 4) };
    world.vm(facts.clone());
    let done = world.take();
    assert!(
        matches!(&done[..], [Done::Resize(_, _, requests)] if requests.cpu_millis == 4000),
        "{done:?}"
    );
    world.resize(&done[0]);
    let done = world.take();
    let [Done::Denied(..), Done::Approve(_, seal)] = done[..] else { panic!("{done:?}") };
    facts.visible = Some(seal);
    world.vm(facts.clone());
    world.nodes.insert("n1".into(), node("n1", 16_000, 16));
    world.tell(Event::Node(node("n1", 16_000, 16)));
    let done = world.take();
    world.resize(&done[0]);
    let done = world.take();
    assert!(matches!(done[..], [Done::Served(..), Done::Approve(..)]), "{done:?}");
}

#[test]
fn the_approval_of_a_vm_that_waits_for_room_is_written_again_with_the_lease() {
    let mut world = World::new(&[node("n1", 4000, 16)]);
    let mut facts = vm("m", size(1000, 2));
    facts.autoscaled = false;
    world.vm(facts.clone());
    world.pod(runner("m", Some("n1"), cost(size(1000, 2))));
    let done = world.take();
    let [Done::Approve(_, seal)] = done[..] else { panic!("{done:?}") };
    facts.wanted = size(1000, 64);
    world.vm(facts);
    let done = world.take();
    world.resize(&done[0]);
    let done = world.take();
    let [Done::Denied(..), Done::Approve(_, part)] = done[..] else { panic!("{done:?}") };
    assert!(part.place() > seal.place());
    world.tell(Event::Leader(None));
    world.tell(Event::Leader(Some(1)));
    let done = world.take();
    assert!(done.contains(&Done::Approve("vm-m".into(), part)), "{done:?}");
}

#[test]
fn an_approval_is_written_again_until_the_object_shows_it() {
    let mut world = World::new(&[node("n1", 4000, 16)]);
    world.vm(vm("m", size(1000, 2)));
    world.pod(runner("m", Some("n1"), cost(size(1000, 2))));
    let done = world.take();
    let [Done::Approve(_, seal)] = done[..] else { panic!("{done:?}") };
    let ended =
        |written| Event::ApproveEnded { vm: "vm-m".into(), generation: seal.generation, written };
    world.tell(ended(false));
    assert_eq!(world.take(), []);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.take(), [Done::Approve("vm-m".into(), seal)]);
    world.tell(ended(true));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.take(), []);
    world.patch("m", seal);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.take(), []);
}

#[test]
fn the_approval_of_a_vm_without_a_pod_returns_to_its_spec() {
    let mut world = world();
    let mut facts = world.vms["vm-a"].clone();
    facts.visible = Some(Seal { epoch: 1, generation: 9, size: size(8000, 8) });
    world.vm(facts);
    world.take();
    world.pods.remove("pod-a");
    world.tell(Event::PodGone("pod-a".into()));
    let done = world.take();
    let [Done::Approve(_, seal)] = done[..] else { panic!("{done:?}") };
    assert_eq!((seal.size, seal.place()), (size(1000, 2), (1, 10)));
}

#[test]
fn a_new_ledger_holds_growth_until_everything_was_listed() {
    let mut world = world();
    let (pods, vms) = (world.pods.clone(), world.vms.clone());
    (world.pods, world.vms) = Default::default();
    world.ledger = scheduler_ledger::Ledger::new(scheduler_ledger::Settings::default());
    world.tell(Event::Leader(Some(2)));
    world.tell(Event::Node(node("n1", 8000, 16)));
    world.tell(Event::NodesListed(support::names(&["n1"])));
    world.tell(Event::Pod(pods["pod-a"].clone()));
    world.ask("a", 1, size(2000, 2), size(1000, 2));
    assert_eq!(refused(&world.take()[0]).0, RefusalCode::NotReady);
    world.tell(Event::PodsListed(support::names(&["pod-a"])));
    world.tell(Event::Vm(vms["vm-a"].clone()));
    world.tell(Event::VmsListed(support::names(&["vm-a"])));
    (world.pods, world.vms) = (pods, vms);
    world.ask("a", 2, size(2000, 2), size(1000, 2));
    let done = world.take();
    world.resize(&done[0]);
    assert_eq!(permit(&world.take()[0]).1.place(), (2, 1));
}

#[test]
fn a_new_ledger_takes_no_requests_away_that_an_older_answer_may_need() {
    let mut world = world();
    world.ask("a", 1, size(4000, 8), size(1000, 2));
    let done = world.take();
    world.resize(&done[0]);
    let lost = permit(&world.take()[0]).1;
    // The answer is on its way to the agent; the ledger begins again.
    world.relist(2);
    assert_eq!(world.take(), []);
    assert_eq!(world.ledger.dump().nodes["n1"].reserved, cost(size(4000, 8)));
    // The agent uses it after all, then asks the new ledger for less.
    world.patch("a", lost);
    assert_eq!(world.take(), []);
    world.ask("a", 1, size(1000, 2), size(1000, 2));
    let seal = permit(&world.take()[0]).1;
    assert_eq!(seal.epoch, 2);
    world.patch("a", seal);
    assert!(
        matches!(world.take()[..], [Done::Resize(_, _, requests)] if requests == cost(size(1000, 2)))
    );
}

#[test]
fn overcommit_and_the_users_floor_decide_the_cost() {
    let mut world = World::new(&[node("n1", 2000, 16)]);
    let mut facts = vm("m", size(1000, 2));
    facts.floor = amount(0, 4096);
    facts.visible = Some(Seal { epoch: 1, generation: 1, size: size(1000, 2) });
    facts.obeyed = Some((1, 1));
    facts.plugged = Some(size(1000, 2));
    world.vm(facts);
    let mut pod = runner("m", Some("n1"), amount(350, 4096));
    let PodKind::Runner(facts) = &mut pod.kind else { panic!("not a runner") };
    facts.price.cpu_overcommit_thousandths = 4000;
    world.pod(pod);
    assert_eq!(world.take(), []);
    world.ask("m", 1, size(16_000, 2), size(1000, 2));
    let done = world.take();
    assert!(
        matches!(done[..], [Done::Resize(_, _, requests)] if requests == amount(2000, 4096)),
        "{done:?}"
    );
    world.resize(&done[0]);
    assert_eq!(permit(&world.take()[0]).1.size, size(7600, 2));
}

#[test]
fn an_unchanged_object_is_not_a_change() {
    let mut world = world();
    let before = format!("{:?}", world.ledger);
    world.pod(world.pods["pod-a"].clone());
    world.vm(world.vms["vm-a"].clone());
    world.tell(Event::Node(node("n1", 8000, 16)));
    assert_eq!(format!("{:?}", world.ledger), before);
}

#[test]
fn a_pod_that_replaces_another_carries_the_promise() {
    let mut world = world();
    let mut second = runner("a", Some("n2"), cost(size(1000, 2)));
    (second.uid, second.name) = ("pod-a2".into(), "a-pod-2".into());
    world.pod(second);
    let mut facts = world.vms["vm-a"].clone();
    facts.pod_name = Some("a-pod-2".into());
    world.vm(facts);
    let dump = world.ledger.dump();
    assert!(dump.nodes["n2"].vms.contains_key("d/a"));
    assert_eq!(
        dump.nodes["n1"].reserved,
        cost(size(1000, 2)),
        "the old pod still takes its requests"
    );
    world.ask("a", 1, size(1000, 2), size(1000, 2));
    assert_eq!(
        refused(&world.take()[0]).0,
        RefusalCode::Unknown,
        "the old pod may not ask any more"
    );
    let mut old = world.pods["pod-a"].clone();
    old.finished = true;
    assert!(matches!(old.kind, PodKind::Runner(_)));
    world.pod(old);
    assert_eq!(world.ledger.dump().nodes["n1"].reserved, amount(0, 0));
    assert_eq!(reference("u", "n").uid, "u");
}

#[test]
fn requests_are_not_lowered_while_a_vm_boots() {
    let mut world = World::new(&[node("n1", 8000, 16)]);
    let mut facts = vm("m", size(1000, 2));
    facts.autoscaled = false;
    world.vm(facts.clone());
    // The pod was made when the spec wanted 4 CPUs: it boots with them.
    world.pod(runner("m", Some("n1"), cost(size(4000, 2))));
    let done = world.take();
    let [Done::Approve(_, seal)] = done[..] else { panic!("{done:?}") };
    (facts.visible, facts.obeyed) = (Some(seal), Some(seal.place()));
    world.vm(facts.clone());
    assert_eq!(world.take(), []);
    // What is plugged in another pod says nothing about this one.
    (facts.plugged, facts.pod_name) = (Some(size(250, 1)), Some("another".into()));
    world.vm(facts.clone());
    assert_eq!(world.take(), []);
    (facts.plugged, facts.pod_name) = (Some(size(1000, 1)), Some("m-pod".into()));
    world.vm(facts);
    let done = world.take();
    assert!(matches!(done[..], [Done::Resize(_, _, requests)] if requests == cost(size(1000, 2))));
}

#[test]
fn an_approval_that_was_put_back_is_replaced_where_no_agent_does_it() {
    let mut world = World::new(&[node("n1", 8000, 16)]);
    let mut facts = vm("m", size(1000, 2));
    facts.autoscaled = false;
    world.vm(facts.clone());
    world.pod(runner("m", Some("n1"), cost(size(1000, 2))));
    let done = world.take();
    let [Done::Approve(_, first)] = done[..] else { panic!("{done:?}") };
    let show = |world: &mut World, visible: Seal, obeyed: Seal, wanted: Size| {
        (facts.visible, facts.obeyed) = (Some(visible), Some(obeyed.place()));
        (facts.plugged, facts.wanted) = (Some(size(1000, 2)), wanted);
        world.vm(facts.clone());
    };
    let mut show = show;
    show(&mut world, first, first, size(500, 2));
    let done = world.take();
    let [Done::Approve(_, second)] = done[..] else { panic!("{done:?}") };
    show(&mut world, second, second, size(500, 2));
    world.take();
    // The first one is put back: the newest is written again, and growth goes on from there.
    show(&mut world, first, second, size(500, 2));
    assert_eq!(world.take(), [Done::Approve("vm-m".into(), second)]);
    show(&mut world, first, second, size(800, 2));
    let done = world.take();
    let grown = done.iter().find_map(|done| match done {
        Done::Approve(_, seal) => Some(*seal),
        _ => None,
    });
    assert!(
        grown.is_some_and(|seal| seal.size == size(800, 2) && seal.place() > second.place()),
        "{done:?}"
    );
}
