//! Pods that wait for a node: which nodes' leases give way to them, and for how long.

mod support;

use std::time::Duration;

use scheduler_ledger::{Demands, Event, Label, NodeFacts, PodFacts, Taint, Toleration};
use support::leasing::{all_of_the_node, becomes, begin, bound, calm, leased, room, waits};
use support::{Done, World, amount, cost, node, ordinary, permit, runner, size};

/// Nodes of 2 CPUs, each with a VM of one CPU that leases the other.
fn fleet(count: usize, node: impl Fn(usize, NodeFacts) -> NodeFacts) -> World {
    let nodes: Vec<NodeFacts> = (0..count)
        .map(|index| node(index, support::node(&format!("n{index:02}"), 2100, 64)))
        .collect();
    let mut world = all_of_the_node(&nodes);
    for index in 0..count {
        let name = format!("v{index:02}");
        begin(&mut world, &name, size(1000, 2));
        let at = Some(format!("n{index:02}"));
        let pod = world.pods[&format!("pod-{name}")].clone();
        world.tell(Event::PodGone(pod.uid.clone()));
        world.pod(PodFacts { node: at, ..pod });
    }
    settle(&mut world);
    assert_eq!(giving_way(&world), 0);
    world
}

/// As many orders as it takes.
fn settle(world: &mut World) -> usize {
    let mut orders = 0;
    loop {
        let done = world.take();
        if done.is_empty() {
            return orders;
        }
        for done in done {
            if matches!(done, Done::Resize(..)) {
                orders += 1;
                world.resize(&done);
            }
        }
    }
}

/// The nodes whose leases have given way.
fn gives(world: &World) -> Vec<String> {
    let dump = world.ledger.dump();
    let gives = dump.nodes.into_iter().filter(|(_, node)| node.leased.cpu_millis < 1000);
    gives.map(|(name, _)| name).collect()
}

fn giving_way(world: &World) -> usize {
    gives(world).len()
}

fn demanding(name: &str, demands: &Demands) -> PodFacts {
    PodFacts { unplaced: Some(Box::new(demands.clone())), ..waits(name, amount(500, 0)) }
}

#[test]
fn many_pods_that_never_come_take_leases_from_few_nodes_and_not_for_long() {
    let mut world = fleet(60, |_, node| node);
    world.pod(waits("o-0", amount(500, 0)));
    settle(&mut world);
    assert_eq!(giving_way(&world), 9, "eight nodes, and one for each pod");
    // None of them comes in time; two other nodes are tried for each.
    let mut seen = Vec::new();
    for _ in 0..4 {
        world.pass(Duration::from_secs(15));
        settle(&mut world);
        world.pass(Duration::from_secs(16));
        settle(&mut world);
        seen.push(giving_way(&world));
    }
    assert_eq!(seen, [18, 33, 0, 0], "until all 60 were tried in vain, and rest");
    // More of the same make no difference, whenever they come.
    for index in 1..100 {
        world.pod(waits(&format!("o-{index}"), amount(500, 0)));
        if index % 2 == 0 {
            world.tell(Event::PodGone(format!("o-{}", index - 1)));
        }
    }
    assert_eq!(settle(&mut world), 0);
    // For one that comes when the others have gone, one node is tried again, and each time another one.
    (0..100).for_each(|index| world.tell(Event::PodGone(format!("o-{index}"))));
    for node in ["n00", "n01"] {
        world.pod(waits("o-again", amount(500, 0)));
        settle(&mut world);
        assert_eq!(gives(&world), [node]);
        world.pass(Duration::from_secs(31));
        settle(&mut world);
        assert_eq!(giving_way(&world), 0);
        world.tell(Event::PodGone("o-again".to_owned()));
    }
    // Others are another matter.
    world.pod(demanding("p", &Demands { class: 7, ..Demands::default() }));
    settle(&mut world);
    assert_eq!(giving_way(&world), 9);
}

#[test]
fn each_of_many_pods_has_a_node_that_makes_room() {
    let mut world = fleet(60, |_, node| node);
    for index in 0..30 {
        world.pod(waits(&format!("o-{index}"), amount(900, 0)));
    }
    settle(&mut world);
    assert_eq!(giving_way(&world), 38);
}

#[test]
fn a_node_that_a_pod_came_to_is_good_for_the_others() {
    let mut world = leased(node("n1", 8000, 64), &["a", "b", "c"]);
    world.pod(waits("o", amount(2000, 0)));
    calm(&mut world);
    world.pass(Duration::from_secs(31));
    calm(&mut world);
    // It comes after all.
    bound(&mut world, "o");
    world.pod(waits("p", amount(2000, 0)));
    calm(&mut world);
    assert!(amount(2000, 0).fits_in(room(&world)), "{}", room(&world));
}

#[test]
fn nodes_that_a_pod_may_not_go_to_keep_their_leases() {
    let ssd = Label::new("disk", "ssd");
    let taint = Taint { key: "gpu".into(), value: String::new(), effect: "NoSchedule".into() };
    let mut world = fleet(6, |index, node| match index {
        0 => NodeFacts { labels: [ssd].into(), ..node },
        1 => NodeFacts { labels: [ssd].into(), taints: [taint.clone()].into(), ..node },
        2 => NodeFacts { taints: [taint.clone()].into(), ..node },
        _ => node,
    });
    let wants = Demands { class: 1, labels: vec![ssd], ..Demands::default() };
    world.pod(demanding("o", &wants));
    settle(&mut world);
    assert_eq!(gives(&world), ["n00"]);
    let key = Some("gpu".to_owned());
    let tolerations = vec![Toleration { key, value: None, effect: None }];
    world.pod(demanding("p", &Demands { class: 2, tolerations, ..wants }));
    settle(&mut world);
    assert_eq!(gives(&world), ["n00", "n01"]);
}

#[test]
fn a_pod_that_names_its_node_has_room_there_at_once_and_nowhere_else() {
    let mut world = fleet(60, |_, node| node);
    let named = |class, node: &str| {
        let node = Some(node.to_owned());
        Demands { class, node, ..Demands::default() }
    };
    world.pod(demanding("o", &named(1, "n42")));
    settle(&mut world);
    assert_eq!(gives(&world), ["n42"]);
    // It does not come: whatever keeps it away, other nodes are of no use to it.
    world.pass(Duration::from_secs(31));
    settle(&mut world);
    assert_eq!(giving_way(&world), 0);
    // Its node may come after it.
    world.pod(demanding("p", &named(2, "n60")));
    assert_eq!(settle(&mut world), 0);
    world.tell(Event::Node(support::node("n60", 2100, 64)));
    begin(&mut world, "v60", size(1000, 2));
    let pod = world.pods["pod-v60"].clone();
    world.tell(Event::PodGone(pod.uid.clone()));
    world.pod(PodFacts { node: Some("n60".into()), ..pod });
    settle(&mut world);
    assert_eq!(gives(&world), ["n60"], "its VM leases nothing from the beginning");
}

#[test]
fn a_pod_that_could_not_come_at_first_has_a_node_tried_again_when_it_could() {
    let mut world = leased(node("n1", 8000, 64), &["a", "b", "c"]);
    world.pod(waits("o", amount(2000, 0)));
    calm(&mut world);
    world.pass(Duration::from_secs(31));
    calm(&mut world);
    world.tell(Event::PodGone("o".to_owned()));
    becomes(&mut world, "a", 1, size(5000, 2));
    world.pod(waits("p", amount(2500, 0)));
    assert_eq!(calm(&mut world).0, 0, "it would not fit without leases either");
    becomes(&mut world, "a", 2, size(1000, 2));
    assert!(amount(2500, 0).fits_in(room(&world)), "{}", room(&world));
}

#[test]
fn who_waits_already_has_a_node_tried_again_that_another_did_not_want() {
    let mut world = leased(node("n1", 8000, 64), &["a", "b", "c"]);
    becomes(&mut world, "a", 1, size(3000, 2));
    world.pod(waits("huge", amount(4000, 0)));
    world.pod(waits("o", amount(1500, 0)));
    calm(&mut world);
    for _ in 0..2 {
        world.pass(Duration::from_secs(31));
        calm(&mut world);
    }
    // It had come to another node long ago: that it did not come here says nothing.
    let pod = world.pods["o"].clone();
    world.tell(Event::Node(node("n2", 2000, 64)));
    world.pod(PodFacts { node: Some("n2".into()), unplaced: None, ..pod });
    calm(&mut world);
    becomes(&mut world, "a", 2, size(1000, 2));
    assert!(amount(4000, 0).fits_in(room(&world)), "{}", room(&world));
}

#[test]
fn leases_that_come_later_give_way_at_once() {
    let mut world = leased(node("n1", 8000, 64), &["a", "b", "c"]);
    becomes(&mut world, "a", 1, size(5000, 2));
    world.pod(waits("o", amount(2000, 0)));
    assert_eq!(calm(&mut world).0, 0, "it would not fit without leases either");
    becomes(&mut world, "a", 2, size(1000, 2));
    assert!(amount(2000, 0).fits_in(room(&world)), "{}", room(&world));
}

#[test]
fn nobody_is_evicted_where_leases_make_room() {
    let mut world = leased(node("n1", 8000, 64), &["a", "b", "c"]);
    world.pod(ordinary("low", "n1", amount(1700, 0)));
    calm(&mut world);
    let pod = waits("o", amount(1500, 0));
    let preempt = |world: &World| {
        let victims = ("n1".to_owned(), vec!["low".to_owned()]);
        let victims = [(&victims.0, &victims.1[..])];
        world.ledger.preempt(&pod, victims).expect("a decision")
    };
    assert!(preempt(&world).is_empty());
    world.pod(pod.clone());
    calm(&mut world);
    assert!(amount(1500, 0).fits_in(room(&world)), "it has it");
    // It did not go there: then it is not for the lack of room.
    world.pass(Duration::from_secs(31));
    calm(&mut world);
    assert_eq!(preempt(&world), ["n1"]);
}

#[test]
fn what_a_growth_takes_of_its_own_lease_is_not_left_for_another() {
    // Four VMs of 1100 with leases of 1000, and 1600 for somebody else.
    let mut world = leased(node("n1", 10_000, 64), &["a", "b", "c", "d"]);
    world.pod(ordinary("o", "n1", amount(1600, 0)));
    calm(&mut world);
    assert_eq!(room(&world).cpu_millis, 0);
    // The first needs its own lease and all of another; the second its own and two others.
    world.ask("a", 1, size(3000, 2), size(3000, 2));
    world.ask("b", 1, size(4000, 2), size(4000, 2));
    let (orders, done) = calm(&mut world);
    assert_eq!(done.len(), 1, "{done:?}");
    assert_eq!(permit(&done[0]).1.size, size(3000, 2));
    assert_eq!(orders, 2, "one gives, one grows: nothing is taken for one that cannot be helped");
}

#[test]
fn the_approval_of_a_silent_agent_is_renewed() {
    let mut world = leased(node("n1", 16_000, 32), &["a"]);
    world.relist(2);
    world.pass(Duration::from_secs(59));
    assert_eq!(world.take(), [], "its agent may be about to ask");
    world.pass(Duration::from_secs(2));
    let done = world.take();
    let [Done::Approve(vm, seal)] = &done[..] else { panic!("{done:?}") };
    assert_eq!((vm.as_str(), seal.epoch, seal.size), ("vm-a", 2, size(1000, 2)));
    world.patch("a", *seal);
    calm(&mut world);
    assert_eq!(world.ledger.dump().nodes["n1"].leased.cpu_millis, 1000, "a lease again");
    world.pass(Duration::from_secs(3600));
    assert_eq!(world.take(), []);
}

#[test]
fn a_pod_of_a_vm_that_never_comes_does_not_block_the_next() {
    let mut world = leased(node("n1", 8000, 64), &["a", "b", "c"]);
    for name in ["d", "e"] {
        world.vm(support::vm(name, size(2000, 2)));
        let pod = runner(name, None, cost(size(2000, 2)));
        world.pod(PodFacts { unplaced: Some(Box::default()), ..pod });
    }
    calm(&mut world);
    world.ledger.may_bind("pod-e", "n1").unwrap();
}

#[test]
fn whoever_needs_less_is_not_kept_back_by_many_that_need_too_much() {
    let mut world = leased(node("n1", 8000, 64), &["a", "b", "c"]);
    for index in 0..100 {
        world.pod(waits(&format!("huge-{index}"), amount(500_000, 0)));
    }
    assert_eq!(calm(&mut world).0, 0);
    world.pod(waits("o", amount(3000, 0)));
    calm(&mut world);
    assert!(amount(3000, 0).fits_in(room(&world)), "{}", room(&world));
}

#[test]
fn as_pods_come_others_of_the_nodes_are_tried() {
    let mut world = fleet(120, |_, node| node);
    for index in 0..100 {
        world.pod(waits(&format!("o-{index}"), amount(900, 0)));
    }
    settle(&mut world);
    assert_eq!(giving_way(&world), 8 + 64);
    let dump = world.ledger.dump();
    let open = dump.nodes.into_iter().filter(|(_, node)| node.leased.cpu_millis < 1000);
    for (index, (name, _)) in open.enumerate() {
        let pod = world.pods[&format!("o-{index}")].clone();
        world.pod(PodFacts { node: Some(name), unplaced: None, ..pod });
    }
    settle(&mut world);
    assert_eq!(giving_way(&world), 72 + 8 + 28, "those that are left have nodes of their own");
}

#[test]
fn a_node_that_never_makes_room_is_not_waited_for_for_ever() {
    // Kubelet does not act on what is ordered: after a while other nodes are tried.
    let mut world = fleet(20, |_, node| node);
    world.pod(waits("o", amount(500, 0)));
    let orders = |world: &mut World| {
        world.take().iter().filter(|done| matches!(done, Done::Resize(..))).count()
    };
    assert_eq!(orders(&mut world), 9);
    world.pass(Duration::from_secs(29));
    assert_eq!(orders(&mut world), 0);
    world.pass(Duration::from_secs(2));
    assert_eq!(orders(&mut world), 9, "nine others");
}
