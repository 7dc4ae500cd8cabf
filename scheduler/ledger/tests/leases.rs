//! Leases of headroom: how large they are, who gives way to whom, and how few orders that takes.

mod support;

use std::time::Duration;

use guest_units::{MilliCpu, Size};
use scheduler_ledger::{
    Action, Amount, Answer, Event, Pending, PodFacts, PodKind, ResizeResult, Seal, Why,
};
use scheduler_protocol::Outcome;
use support::leasing::{
    all_of_the_node, becomes, begin, bound, calm, leased, requests, room, waits,
};
use support::{Done, World, amount, cost, node, ordinary, permit, runner, size, vm};

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_lease_is_the_next_step_of_growth() {
    // A size, the maximum, and the size that the pod's requests back then.
    let table = [
        (size(250, 1), size(16_000, 64), size(1250, 2), "at least one CPU and one GiB"),
        (size(4000, 8), size(16_000, 64), size(6000, 12), "half as much again"),
        (size(4000, 5), size(16_000, 64), size(6000, 8), "whole slots"),
        (size(4000, 8), size(5000, 64), size(5000, 12), "no more than the maximum"),
        (size(4000, 8), size(4000, 8), size(4000, 8), "nothing at the maximum"),
    ];
    for (at, max, expected, why) in table {
        let mut world = all_of_the_node(&[node("n1", 64_000, 256)]);
        let mut facts = vm("a", at);
        (facts.max, facts.plugged) = (max, Some(at));
        facts.visible = Some(Seal { epoch: 1, generation: 1, size: at });
        facts.obeyed = Some((1, 1));
        world.vm(facts);
        world.pod(runner("a", Some("n1"), cost(at)));
        calm(&mut world);
        assert_eq!(requests(&world, "a"), cost(expected), "{why}");
    }
}

#[test]
fn growth_inside_a_lease_is_answered_in_the_same_turn() {
    let mut world = leased(node("n1", 16_000, 32), &["a"]);
    assert_eq!(requests(&world, "a"), cost(size(2000, 3)));
    world.ask("a", 1, size(1400, 3), size(1000, 2));
    let actions = world.ledger.next(world.now).start;
    assert_eq!(actions.len(), 2, "the answer and the refill of the memory: {actions:?}");
    assert_eq!(actions[0].why, Why::AlreadyBacked);
    let Action::Answer { answer: Answer::Permit { outcome, seal, leased, .. }, .. } =
        &actions[0].action
    else {
        panic!("{actions:?}")
    };
    assert_eq!((*outcome, seal.size), (Outcome::Granted, size(1400, 3)));
    assert_eq!(*leased, size(2000, 3), "so much at once");
    assert_eq!(actions[1].why, Why::Lease);
}

#[test]
fn growth_beyond_a_lease_takes_the_next_lease_with_it() {
    let mut world = leased(node("n1", 16_000, 32), &["a"]);
    assert_eq!(becomes(&mut world, "a", 1, size(4000, 8)), 1);
    assert_eq!(requests(&world, "a"), cost(size(6000, 12)));
}

#[test]
fn what_kubelet_has_not_allocated_backs_nothing() {
    let mut world = all_of_the_node(&[node("n1", 16_000, 32)]);
    begin(&mut world, "a", size(1000, 2));
    let done = world.take();
    let [Done::Resize(pod, number, requests)] = &done[..] else { panic!("{done:?}") };
    world.accept(pod, *number, *requests);
    world.ask("a", 1, size(2000, 3), size(1000, 2));
    assert_eq!(world.take(), []);
    world.kubelet("pod-a");
    assert_eq!(permit(&world.take()[0]).0, Outcome::Granted);
}

#[test]
fn nobody_has_a_lease_whose_use_is_not_known() {
    let at = size(1000, 2);
    type Change = fn(&mut scheduler_ledger::VmFacts);
    let table: [(Change, &str); 4] = [
        (|vm| vm.plugged = None, "it boots"),
        (|vm| vm.pod_name = Some("another".into()), "it runs in another pod"),
        (|vm| vm.obeyed = Some((0, 7)), "it obeys an earlier ledger"),
        (|vm| vm.deleting = true, "it is deleted"),
    ];
    for (change, why) in table {
        let mut world = all_of_the_node(&[node("n1", 16_000, 32)]);
        let mut facts = vm("a", at);
        (facts.plugged, facts.visible) =
            (Some(at), Some(Seal { epoch: 1, generation: 1, size: at }));
        facts.obeyed = Some((1, 1));
        change(&mut facts);
        world.vm(facts);
        world.pod(runner("a", Some("n1"), cost(at)));
        assert_eq!(calm(&mut world).0, 0, "{why}");
    }
    let mut world = leased(node("n1", 16_000, 32), &["a"]);
    world.tell(Event::Leader(None));
    begin(&mut world, "b", at);
    assert_eq!(calm(&mut world).0, 0, "the lease of leadership is not held");
}

#[test]
fn leases_leave_room_free_and_never_fill_more_than_there_is() {
    let mut world = World::leased(&[node("n1", 10_000, 64)]);
    world.tell(Event::Leader(None));
    for name in ["a", "b", "c", "d"] {
        begin(&mut world, name, size(1500, 2));
    }
    world.tell(Event::Leader(Some(1)));
    calm(&mut world);
    // 4 x 1600m for the promises; of the 2600m beyond the tenth, two have whole leases, and one has half of one.
    let dump = world.ledger.dump();
    let n1 = &dump.nodes["n1"];
    assert_eq!(n1.reserved.cpu_millis, 9000, "{n1:?}");
    assert_eq!(n1.leased.cpu_millis, 2600);
    let cpu = |name| requests(&world, name).cpu_millis;
    assert_eq!([cpu("a"), cpu("b"), cpu("c"), cpu("d")], [2600, 2600, 2200, 1600]);
}

#[test]
fn who_has_least_is_served_first() {
    let mut world = leased(node("n1", 16_000, 64), &["a", "b"]);
    world.pod(ordinary("o", "n1", amount(11_800, 0)));
    // Both need a lease; a has 300m left of its 1000m, b nothing. There is no room for either.
    becomes(&mut world, "a", 1, size(1700, 2));
    becomes(&mut world, "b", 1, size(2000, 2));
    let cpu = |world: &World, name| requests(world, name).cpu_millis;
    assert_eq!([cpu(&world, "a"), cpu(&world, "b")], [2100, 2100]);
    // Room for one of them.
    world.pod(ordinary("o", "n1", amount(10_800, 0)));
    calm(&mut world);
    assert_eq!([cpu(&world, "a"), cpu(&world, "b")], [2100, 3100]);
}

#[test]
fn a_growth_without_room_takes_it_from_leases_and_is_served_without_asking_again() {
    let mut world = leased(node("n1", 8000, 64), &["a", "b", "c"]);
    // 3 x 2100m; left: 1700m. c wants 5 CPUs: 3000m more than it has.
    assert_eq!(room(&world).cpu_millis, 1700);
    world.ask("c", 1, size(5000, 2), size(1000, 2));
    let done = world.take();
    let names: Vec<&str> = done
        .iter()
        .map(|done| match done {
            Done::Resize(pod, _, requests) => {
                assert!(requests.cpu_millis < 2100);
                pod.as_str()
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(names, ["pod-a", "pod-b"], "1300m from two leases");
    world.resize(&done[0]);
    assert_eq!(world.take(), [], "kubelet has not given all of it back");
    world.resize(&done[1]);
    let done = world.take();
    assert!(matches!(&done[..], [Done::Resize(pod, ..)] if pod == "pod-c"), "{done:?}");
    world.resize(&done[0]);
    let done = world.take();
    assert_eq!((permit(&done[0]).0, permit(&done[0]).1.size), (Outcome::Granted, size(5000, 2)));
}

#[test]
fn what_does_not_come_in_time_is_answered_with_what_there_is() {
    let mut world = leased(node("n1", 8000, 64), &["a", "b", "c"]);
    world.ask("c", 1, size(5000, 2), size(1000, 2));
    world.take();
    // No word of the API server: after the time that a request may wait for more, it gets the room that there is.
    world.pass(510 * MS);
    let done = world.take();
    let [Done::Resize(pod, number, requests)] = &done[..] else { panic!("{done:?}") };
    assert_eq!((pod.as_str(), *requests), ("pod-c", cost(size(3700, 3))));
    world.accept(pod, *number, *requests);
    world.kubelet("pod-c");
    assert_eq!(permit(&world.take()[0]).0, Outcome::Partial);
    // One that no lease can help is denied when it always was.
    world.ask("c", 2, size(16_000, 2), size(16_000, 2));
    world.pass(510 * MS);
    assert_eq!(permit(&world.take()[0]).0, Outcome::Denied);
}

#[test]
fn a_pod_that_nobody_can_place_gets_the_room_of_leases() {
    let mut world = leased(node("n1", 8000, 64), &["a", "b", "c"]);
    world.pod(waits("o", amount(3000, 1024)));
    calm(&mut world);
    assert!(amount(3000, 1024).fits_in(room(&world)), "{}", room(&world));
    let leased = world.ledger.dump().nodes["n1"].leased.cpu_millis;
    assert_eq!(leased, 3000 - 1300, "no more than it takes");
    // Nobody takes it as long as the pod is expected.
    begin(&mut world, "d", size(500, 1));
    calm(&mut world);
    assert_eq!(requests(&world, "d"), cost(size(500, 1)), "no new leases");
    let expected = room(&world);
    assert!(amount(3000, 1024).fits_in(expected), "{expected}");
    world.pass(Duration::from_secs(20));
    assert_eq!(calm(&mut world).0, 0);
    assert_eq!(room(&world), expected);
    bound(&mut world, "o");
    calm(&mut world);
    let n1 = &world.ledger.dump().nodes["n1"];
    assert!(n1.reserved.fits_in(n1.allocatable));
}

#[test]
fn pods_of_vms_that_wait_for_a_node_count_too() {
    let mut world = leased(node("n1", 8000, 64), &["a", "b", "c"]);
    let facts = vm("d", size(3000, 2));
    world.vm(facts);
    let pod = runner("d", None, cost(size(3000, 2)));
    world.pod(pod.clone());
    assert_eq!(calm(&mut world).0, 0, "no scheduler has looked at it yet");
    world.pod(PodFacts { unplaced: Some(Box::default()), ..pod });
    calm(&mut world);
    assert!(cost(size(3000, 2)).fits_in(room(&world)));
    world.ledger.may_bind("pod-d", "n1").unwrap();
}

#[test]
fn leases_do_not_give_way_to_what_would_not_fit_without_them() {
    let mut world = leased(node("n1", 8000, 64), &["a", "b", "c"]);
    world.pod(waits("o", amount(6000, 0)));
    assert_eq!(calm(&mut world).0, 0);
    world.pod(waits("o", amount(0, 65 * 1024)));
    assert_eq!(calm(&mut world).0, 0);
}

#[test]
fn a_pod_that_does_not_come_keeps_no_lease_away_for_ever() {
    let mut world = leased(node("n1", 8000, 64), &["a", "b", "c"]);
    let before = world.ledger.dump().nodes["n1"].leased;
    world.pod(waits("o", amount(3000, 0)));
    calm(&mut world);
    let given = world.ledger.dump().nodes["n1"].leased;
    assert!(given.cpu_millis < before.cpu_millis);
    world.pass(Duration::from_secs(31));
    calm(&mut world);
    // Whoever gave less than half has not got it back yet.
    let again = world.ledger.dump().nodes["n1"].leased.cpu_millis;
    assert!(2 * (before.cpu_millis - again) <= 1000, "something else is in its way: {again}");
    // In a day it is expected a few times, each time later, for what is in its way may have gone.
    let mut orders = 0;
    for _ in 0..24 * 180 {
        world.pass(Duration::from_secs(20));
        orders += calm(&mut world).0;
    }
    assert!((4..40).contains(&orders), "{orders}");
}

#[test]
fn room_that_a_ledger_did_not_see_as_leader_is_not_held_against_a_pod() {
    let mut world = leased(node("n1", 8000, 64), &["a", "b", "c"]);
    world.pod(waits("o", amount(3000, 0)));
    calm(&mut world);
    let given = world.ledger.dump().nodes["n1"].leased;
    world.tell(Event::Leader(None));
    world.pass(Duration::from_secs(40));
    world.tell(Event::Leader(Some(1)));
    calm(&mut world);
    assert_eq!(world.ledger.dump().nodes["n1"].leased, given, "it is still expected");
}

#[test]
fn a_growth_below_the_users_floor_uses_up_the_lease_all_the_same() {
    let mut world = all_of_the_node(&[node("n1", 16_000, 64)]);
    let mut facts = vm("a", size(3000, 2));
    facts.floor = amount(4000, 0);
    facts.visible = Some(Seal { epoch: 1, generation: 1, size: size(3000, 2) });
    (facts.obeyed, facts.plugged) = (Some((1, 1)), Some(size(3000, 2)));
    world.vm(facts);
    world.pod(runner("a", Some("n1"), amount(4000, 2304)));
    calm(&mut world);
    world.ask("a", 1, size(3900, 2), size(3000, 2));
    let (orders, done) = calm(&mut world);
    assert_eq!((permit(&done[0]).0, orders), (Outcome::Granted, 1));
}

#[test]
fn a_pod_is_expected_on_each_node_that_has_room_or_could() {
    // Another node has room, and the pod does not go there: it may be one that only n1 is good for.
    let mut world = all_of_the_node(&[node("n1", 8000, 64), node("n2", 8000, 64)]);
    for name in ["a", "b", "c"] {
        begin(&mut world, name, size(1000, 2));
    }
    calm(&mut world);
    world.pod(waits("o", amount(3000, 1024)));
    calm(&mut world);
    assert!(amount(3000, 1024).fits_in(room(&world)));
}

#[test]
fn room_is_made_before_a_pod_has_to_wait() {
    let mut world = World::leased(&[node("n1", 10_000, 64)]);
    for name in ["a", "b", "c", "d"] {
        begin(&mut world, name, size(1000, 2));
    }
    calm(&mut world);
    // 4 x 2100m, 600m left for leases, 1000m for pods.
    assert_eq!(room(&world).cpu_millis, 1600);
    world.pod(ordinary("o", "n1", amount(1000, 0)));
    assert_eq!(calm(&mut world).0, 0, "more than half of the tenth is left");
    world.pod(ordinary("p", "n1", amount(200, 0)));
    calm(&mut world);
    assert_eq!(room(&world).cpu_millis, 1000);
    world.pod(ordinary("q", "n1", amount(600, 0)));
    calm(&mut world);
    assert_eq!(room(&world).cpu_millis, 1000, "as often as it takes");
}

#[test]
fn what_a_promise_gives_back_becomes_a_lease() {
    let mut world = leased(node("n1", 16_000, 64), &["a"]);
    becomes(&mut world, "a", 1, size(1900, 3));
    let before = requests(&world, "a");
    assert_eq!(before, cost(size(2900, 5)), "refilled");
    assert_eq!(becomes(&mut world, "a", 2, size(1000, 3)), 0, "nothing is ordered");
    assert_eq!(requests(&world, "a"), before);
    assert_eq!(world.ledger.dump().nodes["n1"].leased.cpu_millis, 1900);
    // Two steps, 3 CPUs and 5 GiB, are the most that is kept.
    assert_eq!(becomes(&mut world, "a", 3, size(800, 2)), 1);
    assert_eq!(requests(&world, "a"), cost(Size { memory: size(0, 5).memory, ..size(1800, 0) }));
}

#[test]
fn a_load_that_swings_is_not_resized_for_ever() {
    let mut world = leased(node("n1", 64_000, 256), &["a"]);
    let mut orders = 0;
    // An hour of a load that swings every ten seconds between 1 and 2 CPUs, and between 2 and 3 GiB.
    for turn in 0..360_u64 {
        let at = if turn % 2 == 0 { size(2000, 3) } else { size(1000, 2) };
        orders += becomes(&mut world, "a", turn + 1, at);
        world.pass(Duration::from_secs(10));
        orders += calm(&mut world).0;
    }
    assert!(orders <= 3, "{orders}");
    // The same without leases is ordered each time.
    let mut world = World::new(&[node("n1", 64_000, 256)]);
    begin(&mut world, "a", size(1000, 2));
    let orders = becomes(&mut world, "a", 1, size(2000, 3));
    assert_eq!(orders + becomes(&mut world, "a", 2, size(1000, 2)), 2);
}

#[test]
fn many_that_share_a_full_node_come_to_rest() {
    let mut world = World::leased(&[node("n1", 16_000, 64)]);
    let names = ["a", "b", "c", "d", "e", "f"];
    for name in names {
        begin(&mut world, name, size(1000, 2));
    }
    let (mut orders, mut changes) = (calm(&mut world).0, 0);
    for turn in 0..360_u64 {
        for (index, name) in (0_u64..).zip(names) {
            // Each of them grows and shrinks once in some minutes.
            let cpu = if (turn + index * 7) / 25 % 2 == 0 { 1000 } else { 2000 };
            let at = Size { cpu: MilliCpu(cpu), ..size(0, 2) };
            if world.vms[&format!("vm-{name}")].wanted == at {
                continue;
            }
            changes += 1;
            world.ask(name, turn + 1, at, size(250, 1));
            let (count, rest) = calm(&mut world);
            orders += count;
            for done in rest {
                if let Done::Answer(_, Answer::Permit { seal, .. }) = done {
                    world.patch(name, seal);
                }
            }
            orders += calm(&mut world).0;
        }
        world.pass(Duration::from_secs(10));
        orders += calm(&mut world).0;
    }
    assert!(changes > 70 && orders <= changes, "{orders} orders for {changes} changes");
}

#[test]
fn a_new_ledger_finds_leases_as_what_kubelet_has() {
    let mut world = leased(node("n1", 16_000, 32), &["a"]);
    let before = requests(&world, "a");
    world.relist(2);
    assert_eq!(calm(&mut world).0, 0);
    assert_eq!(world.ledger.dump().nodes["n1"].leased, amount(0, 0), "it may be in use");
    // Growth is served from it all the same, and with an approval of this ledger it is a lease again.
    world.ask("a", 1, size(1400, 2), size(1000, 2));
    let done = world.take();
    let (outcome, seal, _) = permit(&done[0]);
    assert_eq!(outcome, Outcome::Granted);
    world.patch("a", seal);
    assert_eq!(calm(&mut world).0, 0);
    assert_eq!(requests(&world, "a"), before);
    assert_eq!(world.ledger.dump().nodes["n1"].leased.cpu_millis, 600);
}

#[test]
fn an_approval_that_changes_nothing_is_written_for_the_agent() {
    let mut world = leased(node("n1", 16_000, 32), &["a"]);
    world.relist(2);
    world.ask("a", 1, size(1000, 2), size(1000, 2));
    let seal = permit(&world.take()[0]).1;
    assert_eq!(seal.epoch, 2);
    world.pass(Duration::from_secs(4));
    assert_eq!(world.take(), [], "the agent may be about to");
    world.pass(Duration::from_secs(2));
    assert_eq!(world.take(), [Done::Approve("vm-a".into(), seal)]);
    world.patch("a", seal);
    assert_eq!(calm(&mut world).0, 0);
    assert_eq!(world.ledger.dump().nodes["n1"].leased.cpu_millis, 1000);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.take(), []);
}

#[test]
fn without_leases_a_new_ledger_returns_them() {
    let world = leased(node("n1", 16_000, 32), &["a"]);
    let (pods, vms) = (world.pods.clone(), world.vms.clone());
    let mut world = World::new(&[node("n1", 16_000, 32)]);
    vms.into_values().for_each(|vm| world.vm(vm));
    pods.into_values().for_each(|pod| world.pod(pod));
    assert_eq!(calm(&mut world).0, 1);
    assert_eq!(requests(&world, "a"), cost(size(1000, 2)));
}

#[test]
fn overcommit_and_the_users_floor_make_the_price_of_a_lease() {
    let mut world = all_of_the_node(&[node("n1", 16_000, 32)]);
    let mut facts = vm("a", size(1000, 2));
    facts.floor = amount(0, 4096);
    facts.visible = Some(Seal { epoch: 1, generation: 1, size: size(1000, 2) });
    (facts.obeyed, facts.plugged) = (Some((1, 1)), Some(size(1000, 2)));
    world.vm(facts);
    let mut pod = runner("a", Some("n1"), amount(350, 4096));
    let PodKind::Runner(facts) = &mut pod.kind else { panic!("not a runner") };
    facts.price.cpu_overcommit_thousandths = 4000;
    world.pod(pod);
    calm(&mut world);
    assert_eq!(requests(&world, "a"), amount(600, 4096), "the floor backs 3 GiB already");
    world.ask("a", 1, size(2000, 3), size(1000, 2));
    assert_eq!(permit(&world.take()[0]).0, Outcome::Granted);
}

#[test]
fn a_lease_that_kubelet_defers_is_taken_back_and_not_tried_again_at_once() {
    let mut world = all_of_the_node(&[node("n1", 8000, 64)]);
    // A pod that the ledger has not seen: kubelet knows better.
    let hidden = ordinary("hidden", "n1", amount(6000, 0));
    world.pods.insert(hidden.uid.clone(), hidden);
    begin(&mut world, "a", size(1000, 2));
    let (orders, _) = calm(&mut world);
    assert_eq!(orders, 2, "there and back");
    assert_eq!(requests(&world, "a"), cost(size(1000, 2)));
    let mut orders = 0;
    for _ in 0..60 {
        world.pass(Duration::from_secs(60));
        orders += calm(&mut world).0;
    }
    assert!((2..=24).contains(&orders), "{orders} in an hour");
    world.pods.remove("hidden");
    world.pass(Duration::from_secs(1200));
    calm(&mut world);
    assert_eq!(requests(&world, "a"), cost(size(2000, 3)));
}

#[test]
fn a_growth_is_not_refused_for_the_lease_that_comes_with_it() {
    // Kubelet has no room for growth and lease, but for the growth.
    let mut world = all_of_the_node(&[node("n1", 8000, 64)]);
    begin(&mut world, "a", size(1000, 2));
    calm(&mut world);
    let hidden = ordinary("hidden", "n1", amount(3000, 0));
    world.pods.insert(hidden.uid.clone(), hidden);
    world.ask("a", 1, size(4000, 2), size(1000, 2));
    let (orders, rest) = calm(&mut world);
    assert_eq!((orders, permit(&rest[0]).0), (2, Outcome::Granted));
    assert_eq!(requests(&world, "a").cpu_millis, 4100);
    // Nor if the API server refuses, as by a quota.
    let mut world = all_of_the_node(&[node("n1", 16_000, 64)]);
    begin(&mut world, "a", size(1000, 2));
    calm(&mut world);
    world.ask("a", 1, size(4000, 2), size(1000, 2));
    let done = world.take();
    let [Done::Resize(_, number, requests)] = done[..] else { panic!("{done:?}") };
    assert_eq!(requests.cpu_millis, 6100);
    world.tell(Event::ResizeEnded { pod: "pod-a".into(), number, result: ResizeResult::Refused });
    let done = world.take();
    assert!(
        matches!(done[..], [Done::Resize(_, _, requests)] if requests.cpu_millis == 4100),
        "{done:?}"
    );
    world.resize(&done[0]);
    assert_eq!(permit(&world.take()[0]).0, Outcome::Granted);
}

#[test]
fn a_refusal_of_the_growth_itself_is_one() {
    let mut world = leased(node("n1", 8000, 64), &["a"]);
    let hidden = ordinary("hidden", "n1", amount(5000, 0));
    world.pods.insert(hidden.uid.clone(), hidden);
    world.ask("a", 1, size(4000, 2), size(1000, 2));
    let (_, rest) = calm(&mut world);
    assert_eq!(permit(&rest[0]).0, Outcome::Denied);
    let PodKind::Runner(runner) = &world.pods["pod-a"].kind else { panic!("not a runner") };
    assert_ne!(runner.pending, Some(Pending::Deferred), "nothing is left that cannot be had");
}

#[test]
fn the_score_of_a_node_does_not_count_leases() {
    let mut world = all_of_the_node(&[node("n1", 8000, 64), node("n2", 8000, 64)]);
    begin(&mut world, "a", size(1000, 2));
    let pod = ordinary("o", "", amount(100, 100));
    let nodes = ["n1".to_owned(), "n2".to_owned()];
    world.take();
    let before = world.ledger.prioritize(&pod, nodes.iter().map(String::as_str));
    calm(&mut world);
    assert_eq!(world.ledger.prioritize(&pod, nodes.iter().map(String::as_str)), before);
}

#[test]
fn the_sums_of_a_node_are_those_of_its_vms_and_pods() {
    let mut world = leased(node("n1", 8000, 64), &["a", "b"]);
    world.pod(ordinary("o", "n1", amount(700, 0)));
    let node = world.ledger.dump().nodes.remove("n1").unwrap();
    let level = world.ledger.level("n1").unwrap();
    let promised: Amount = node.vms.values().map(|vm| vm.promise.into()).sum();
    let plugged: Amount = node.vms.values().map(|vm| vm.plugged.unwrap().into()).sum();
    let requests: Amount = node.vms.values().map(|vm| vm.requests.unwrap()).sum();
    let reserved = requests + amount(700, 0);
    assert_eq!((level.promised, level.plugged, level.reserved), (promised, plugged, reserved));
    assert_eq!(level.allocatable, amount(8000, 64 * 1024));
    assert_eq!(level.leased, node.vms.values().map(|vm| vm.leased).sum());
    assert_eq!(world.ledger.node_names(), ["n1"]);
    assert_eq!(world.ledger.level("n2"), None);
}
