//! VMs leave nodes that are too full: who, when, where to, and what is kept free for them until they are there.

mod support;

use std::time::Duration;

use guest_units::Size;
use scheduler_ledger::{
    Demands, Event, Ledger, MigrationFacts, Moves, NodeDump, NodeFacts, PodFacts, PodKind, Scoring,
    Seal, Settings, Taint, Toleration, VmFacts,
};
use support::{Done, World, amount, cost, node, ordinary, permit, runner, size, vm};

/// Long enough for a node to be looked at.
const WHILE: Duration = Duration::from_secs(31);
const COOL_DOWN: Duration = Duration::from_secs(600);

fn settings() -> Settings {
    Settings { lease: None, moves: Some(Moves::default()), ..Settings::default() }
}

/// Nodes of 10 CPUs, whose watermark is at 9.
fn world(names: &[&str]) -> World {
    let nodes: Vec<NodeFacts> = names.iter().map(|name| node(name, 10_000, 64)).collect();
    World::with(settings(), &nodes)
}

/// A VM that may be moved and runs at a size. Whoever comes first has the oldest pod.
fn runs(world: &mut World, name: &str, node: &str, at: Size) {
    let mut facts = vm(name, at);
    facts.movable = Some(Box::default());
    (facts.plugged, facts.obeyed) = (Some(at), Some((1, 1)));
    facts.visible = Some(Seal { epoch: 1, generation: 1, size: at });
    world.vm(facts);
    let mut pod = runner(name, Some(node), cost(at));
    if let PodKind::Runner(runner) = &mut pod.kind {
        runner.created = 1000 + world.pods.len() as u64;
    }
    world.pod(pod);
}

/// A node that is above its watermark by less than a VM, and one that is empty.
fn hot() -> World {
    let mut world = world(&["n1", "n2"]);
    for name in ["c", "a", "b"] {
        runs(&mut world, name, "n1", size(3000, 8));
    }
    world
}

/// Who is to be moved, and where to.
fn picks(world: &mut World, span: Duration) -> Vec<(String, String)> {
    world.pass(span);
    let picked = world.take().into_iter().filter_map(|done| match done {
        Done::Migrate(vm, to, _) => Some((vm, to)),
        _ => None,
    });
    picked.collect()
}

fn pick(vm: &str, to: &str) -> (String, String) {
    (format!("vm-{vm}"), to.to_owned())
}

/// The next that is done is the order of a migration.
fn ordered(world: &mut World, span: Duration) -> MigrationFacts {
    world.pass(span);
    let done = world.take();
    let [Done::Migrate(vm_uid, to, name)] = &done[..] else { panic!("{done:?}") };
    MigrationFacts {
        uid: format!("m-{vm_uid}"),
        namespace: "d".into(),
        name: name.clone(),
        vm_uid: vm_uid.clone(),
        ours: true,
        to: Some(to.clone()),
        ended: None,
    }
}

/// A hot node with a VM that is on its way to the other node.
fn moving() -> (World, MigrationFacts) {
    let mut world = hot();
    let facts = ordered(&mut world, WHILE);
    world.migration(facts.clone());
    (world, facts)
}

/// The pod that a VM moves to.
fn target(name: &str, node: Option<&str>, at: Size) -> PodFacts {
    let pod = runner(name, node, cost(at));
    PodFacts { uid: format!("target-{name}"), name: format!("{name}-target"), ..pod }
}

fn dump(world: &World, node: &str) -> NodeDump {
    world.ledger.dump().nodes[node].clone()
}

fn fits(world: &World, name: &str, node: &str, cpu: u64) -> bool {
    let pod = PodFacts { node: None, ..ordinary(name, node, amount(cpu, 0)) };
    world.ledger.filter(&pod, [node]).expect("a decision").short == [None]
}

#[test]
fn the_oldest_leave_until_the_node_would_be_below_its_watermark() {
    let mut world = hot();
    assert_eq!(picks(&mut world, Duration::from_secs(29)), [], "it may pass");
    assert_eq!(dump(&world, "n1").hot, Some("new"));
    assert_eq!(picks(&mut world, Duration::from_secs(2)), [pick("c", "n2")]);
    assert_eq!(dump(&world, "n1").hot, None, "counting who leaves it is below");
    assert_eq!(picks(&mut world, WHILE), []);
}

#[test]
fn memory_counts_as_cpu_does() {
    let mut world = world(&["n1", "n2"]);
    runs(&mut world, "a", "n1", size(500, 30));
    runs(&mut world, "b", "n1", size(500, 30));
    assert_eq!(picks(&mut world, WHILE), [pick("a", "n2")]);
}

#[test]
fn a_peak_moves_nobody() {
    let mut world = hot();
    world.pass(Duration::from_secs(20));
    world.tell(Event::PodGone("pod-b".into()));
    runs(&mut world, "d", "n1", size(3000, 8));
    assert_eq!(picks(&mut world, Duration::from_secs(20)), []);
}

#[test]
fn orders_under_way_that_cool_the_node_move_nobody() {
    let mut world = world(&["n1", "n2"]);
    runs(&mut world, "a", "n1", size(4000, 8));
    // It requests more than it needs, and kubelet does not get to taking that back.
    world.vm(VmFacts { movable: Some(Box::default()), ..world.vms["vm-a"].clone() });
    let mut large = runner("a", Some("n1"), cost(size(9500, 8)));
    large.version = 9;
    world.pod(large);
    let done = world.take();
    assert!(matches!(&done[..], [Done::Resize(..)]), "{done:?}");
    assert_eq!(dump(&world, "n1").reserved, cost(size(9500, 8)));
    assert_eq!(picks(&mut world, Duration::from_secs(300)), []);
}

#[test]
fn only_those_are_moved_whose_users_let_them_with_an_agent_or_without() {
    let mut world = hot();
    let stays = |world: &mut World, name: &str| {
        let facts = world.vms[&format!("vm-{name}")].clone();
        world.vm(VmFacts { movable: None, ..facts });
    };
    stays(&mut world, "c");
    let facts = world.vms["vm-a"].clone();
    world.vm(VmFacts { autoscaled: false, ..facts });
    assert_eq!(picks(&mut world, WHILE), [pick("a", "n2")]);
    let mut world = hot();
    ["a", "b", "c"].iter().for_each(|name| stays(&mut world, name));
    assert_eq!(picks(&mut world, WHILE), []);
    assert_eq!(dump(&world, "n1").hot, Some("nobody_may_move"));
}

#[test]
fn a_vm_above_the_watermark_by_itself_stays() {
    let mut world = world(&["n1", "n2", "n3"]);
    world.nodes.insert("n3".into(), node("n3", 32_000, 64));
    let large = world.nodes["n3"].clone();
    world.tell(Event::Node(large));
    runs(&mut world, "a", "n1", size(9000, 8));
    runs(&mut world, "b", "n1", size(250, 1));
    assert_eq!(picks(&mut world, WHILE), [pick("b", "n3")], "though there is a node for it");
}

#[test]
fn a_vm_that_does_not_rest_in_its_size_stays() {
    // The guest does not give back what its user took: its next pod would be made without that.
    let mut world = hot();
    let facts = world.vms["vm-c"].clone();
    world.vm(VmFacts { wanted: size(1000, 2), autoscaled: false, ..facts.clone() });
    assert_eq!(picks(&mut world, WHILE), [pick("a", "n2")]);
    // Others are about to go, or have just begun.
    for facts in [VmFacts { deleting: true, ..facts.clone() }, VmFacts { plugged: None, ..facts }] {
        let mut world = hot();
        world.vm(facts);
        assert_eq!(picks(&mut world, WHILE), [pick("a", "n2")]);
    }
}

#[test]
fn a_vm_that_migrates_already_is_not_moved_and_counts_as_gone() {
    let mut world = hot();
    // Somebody else has begun.
    world.migration(MigrationFacts {
        uid: "m".into(),
        namespace: "d".into(),
        name: "by-hand".into(),
        vm_uid: "vm-c".into(),
        ours: false,
        to: None,
        ended: None,
    });
    assert_eq!(picks(&mut world, WHILE), []);
    assert_eq!(dump(&world, "n1").hot, None);
    world.migration_gone("m");
    assert_eq!(picks(&mut world, WHILE), [pick("a", "n2")], "and rests after it");
}

#[test]
fn a_migration_of_another_namespace_says_nothing() {
    let mut world = hot();
    world.migration(MigrationFacts {
        uid: "m".into(),
        namespace: "foreign".into(),
        name: "pretends".into(),
        vm_uid: "vm-c".into(),
        ours: true,
        to: Some("n2".into()),
        ended: None,
    });
    assert_eq!(dump(&world, "n2").booked, amount(0, 0));
    assert!(!dump(&world, "n1").vms["d/c"].moves);
    world.migration_gone("m");
    assert_eq!(picks(&mut world, WHILE), [pick("c", "n2")], "it need not rest");
}

#[test]
fn what_was_moved_rests() {
    let (mut world, facts) = moving();
    world.migration(MigrationFacts { ended: Some(true), ..facts.clone() });
    // It is as if it had come back: the others are younger, and may not be moved.
    for name in ["a", "b"] {
        let facts = world.vms[&format!("vm-{name}")].clone();
        world.vm(VmFacts { movable: None, ..facts });
    }
    assert_eq!(picks(&mut world, COOL_DOWN - Duration::from_secs(1)), []);
    world.pass(Duration::from_secs(20));
    let done = world.take();
    let migrates = |done: &&Done| matches!(done, Done::Migrate(vm, ..) if vm == "vm-c");
    assert_eq!(done.iter().filter(migrates).count(), 1, "{done:?}");
    assert!(done.contains(&Done::EndMigration(facts.uid)), "what has ended is deleted after that");
}

#[test]
fn a_move_that_comes_to_nothing_is_tried_again_later_each_time() {
    let mut world = hot();
    for name in ["a", "b"] {
        let facts = world.vms[&format!("vm-{name}")].clone();
        world.vm(VmFacts { movable: None, ..facts });
    }
    world.pass(WHILE);
    let (mut waited, mut names) = (Vec::new(), std::collections::BTreeSet::new());
    for _ in 0..8 {
        let since = world.now;
        let name = loop {
            if let [Done::Migrate(_, _, name)] = &world.take()[..] {
                break name.clone();
            }
            world.pass(Duration::from_secs(1));
        };
        waited.push(world.now.since(since).as_secs() / 60);
        assert!(names.insert(name.clone()), "a leftover object would stand for {name}");
        world.tell(Event::MigrateEnded { vm: "vm-c".into(), name, made: Some(false) });
        assert_eq!(dump(&world, "n2").booked, amount(0, 0), "the room is given back at once");
    }
    assert_eq!(waited, [0, 1, 2, 4, 8, 16, 32, 32]);
}

#[test]
fn leases_are_no_reason_to_move_anybody() {
    let nodes = [node("n1", 10_000, 64), node("n2", 10_000, 64)];
    let lease = scheduler_ledger::Lease { keep_free_percent: 0, ..Default::default() };
    let mut world = World::with(Settings { lease: Some(lease), ..settings() }, &nodes);
    for name in ["a", "b", "c", "d", "e"] {
        runs(&mut world, name, "n1", size(1500, 8));
    }
    support::leasing::calm(&mut world);
    assert_eq!(dump(&world, "n1").reserved.cpu_millis, 10_000, "it is full of them");
    assert_eq!(picks(&mut world, WHILE), []);
    assert_eq!(dump(&world, "n1").hot, None);
}

#[test]
fn leases_of_the_destination_give_way_to_who_comes() {
    let nodes = [node("n1", 10_000, 64), node("n2", 10_000, 64)];
    let lease = scheduler_ledger::Lease { keep_free_percent: 0, ..Default::default() };
    let mut world = World::with(Settings { lease: Some(lease), ..settings() }, &nodes);
    for name in ["x", "y", "z"] {
        runs(&mut world, name, "n2", size(1500, 8));
    }
    for name in ["o", "p"] {
        world.pod(ordinary(name, "n2", amount(1000, 0)));
    }
    support::leasing::calm(&mut world);
    assert!(dump(&world, "n2").leased.cpu_millis >= 2000);
    for name in ["a", "b", "c", "d", "e", "f"] {
        runs(&mut world, name, "n1", size(1500, 8));
    }
    world.pass(WHILE);
    let (_, done) = support::leasing::calm(&mut world);
    assert!(done.iter().any(|done| matches!(done, Done::Migrate(..))), "{done:?}");
    let there = dump(&world, "n2");
    assert_eq!(there.booked, cost(size(1500, 8)));
    assert!(there.reserved.fits_in(there.allocatable), "{there:?}");
}

#[test]
fn nobody_else_gets_the_room_that_is_booked() {
    let mut world = hot();
    runs(&mut world, "x", "n2", size(3000, 8));
    assert!(fits(&world, "o", "n2", 6900));
    let facts = ordered(&mut world, WHILE);
    // Before the API server has anything.
    assert_eq!(dump(&world, "n2").booked, cost(size(3000, 8)));
    assert!(fits(&world, "o", "n2", 3800) && !fits(&world, "o", "n2", 3801));
    // A growth gets what is left.
    world.ask_from("n2", "x", 1, size(8000, 8), size(250, 1));
    let done = world.take();
    let [Done::Resize(..)] = &done[..] else { panic!("{done:?}") };
    world.resize(&done[0]);
    let done = world.take();
    assert_eq!(permit(&done[0]).1.size, size(6800, 8));
    // Its own target may use it, and counts itself from then on.
    world.migration(facts);
    world.pod(target("c", None, size(3000, 8)));
    let pod = world.pods["target-c"].clone();
    assert_eq!(world.ledger.filter(&pod, ["n2"]).expect("a decision").short, [None]);
    let (placed, _) = world.ledger.may_bind("target-c", "n2").expect("its room is there");
    world.tell(Event::Placing(placed));
    let there = dump(&world, "n2");
    assert_eq!((there.booked, there.reserved.cpu_millis), (amount(0, 0), 10_000));
}

#[test]
fn source_and_target_count_in_full_until_the_source_is_gone() {
    let (mut world, facts) = moving();
    world.pod(target("c", Some("n2"), size(3000, 8)));
    let both = |world: &World| {
        (dump(world, "n1").reserved.cpu_millis, dump(world, "n2").reserved.cpu_millis)
    };
    assert_eq!(both(&world), (9300, 3100));
    // What the guest has not given back comes along.
    let moved = VmFacts { plugged: Some(size(3500, 8)), ..world.vms["vm-c"].clone() };
    world.vm(moved.clone());
    assert_eq!(both(&world), (9800, 3600));
    let pod_name = Some("c-target".to_owned());
    world.vm(VmFacts { pod_name, ..moved });
    world.migration(MigrationFacts { ended: Some(true), ..facts });
    assert_eq!(both(&world), (9800, 3600));
    world.tell(Event::PodGone("pod-c".into()));
    assert_eq!(both(&world), (6200, 3600));
}

#[test]
fn without_a_destination_nobody_is_picked_and_the_dump_says_so() {
    let mut world = hot();
    world.pod(ordinary("o", "n2", amount(6000, 0)));
    assert_eq!(picks(&mut world, WHILE), []);
    assert_eq!(dump(&world, "n1").hot, Some("no_destination"));
    world.tell(Event::PodGone("o".into()));
    assert_eq!(picks(&mut world, Duration::from_secs(11)), [pick("c", "n2")]);
    assert_ne!(dump(&world, "n1").hot, Some("no_destination"));
}

#[test]
fn the_destination_stays_below_its_own_watermark_and_lets_the_vm_in() {
    let taint = |effect: &str| Taint {
        key: "ToBeDeletedByClusterAutoscaler".into(),
        value: "1".into(),
        effect: effect.into(),
    };
    let as_it_is = node("n2", 10_000, 64);
    let table = [
        ("small", NodeFacts { allocatable: amount(3400, 65_536), ..as_it_is.clone() }),
        ("about to go", NodeFacts { leaving: true, ..as_it_is.clone() }),
        ("as it is", as_it_is),
    ];
    for (name, facts) in table {
        let mut world = hot();
        world.tell(Event::Node(facts));
        let picked = picks(&mut world, WHILE);
        assert_eq!(picked.len(), usize::from(name == "as it is"), "{name}");
    }
    for effect in ["NoSchedule", "NoExecute"] {
        let taints = [taint(effect)];
        let tainted = NodeFacts { taints: taints.into(), ..node("n2", 10_000, 64) };
        let mut world = hot();
        world.tell(Event::Node(tainted.clone()));
        assert_eq!(picks(&mut world, WHILE), [], "{effect}");
        let tolerations = vec![Toleration { key: None, value: None, effect: None }];
        let movable = Some(Box::new(Demands { tolerations, ..Demands::default() }));
        let facts = world.vms["vm-b"].clone();
        world.vm(VmFacts { movable, ..facts });
        assert_eq!(picks(&mut world, WHILE), [pick("b", "n2")], "{effect}");
    }
}

#[test]
fn few_leave_a_node_and_come_to_one_at_a_time() {
    let mut world = world(&["n1", "n2", "n3"]);
    for index in 0..19 {
        runs(&mut world, &format!("v{index:02}"), "n1", size(400, 1));
    }
    world.pod(ordinary("o", "n1", amount(500, 0)));
    // Too full by far: more would have to go.
    world.tell(Event::Node(node("n1", 10_000, 64)));
    let smaller = node("n1", 8000, 64);
    world.tell(Event::Node(smaller));
    assert_eq!(picks(&mut world, WHILE).len(), 2);
    assert_eq!(dump(&world, "n1").hot, Some("leaving"));
    assert_eq!(picks(&mut world, Duration::from_secs(25)).len(), 0);
    // Two hot nodes share one destination.
    let mut world = self::world(&["n1", "n2", "n3"]);
    for (index, node) in ["n1", "n2"].into_iter().enumerate() {
        for vm in 0..19 {
            runs(&mut world, &format!("v{index}-{vm:02}"), node, size(400, 1));
        }
    }
    let picked = picks(&mut world, WHILE);
    assert_eq!(picked.iter().filter(|(_, to)| to == "n3").count(), 2, "{picked:?}");
}

#[test]
fn who_moves_keeps_its_size_and_gets_what_it_asked_for_afterwards() {
    let (mut world, facts) = moving();
    let migrating = |world: &World| world.ledger.level("n1").map(|level| level.migrating);
    assert_eq!(migrating(&world), Some(size(3000, 8).into()));
    world.ask("c", 1, size(3500, 8), size(3500, 8));
    assert_eq!(world.take(), []);
    world.pass(Duration::from_millis(600));
    let done = world.take();
    let (outcome, seal, reason) = permit(&done[0]);
    assert_eq!((outcome, seal.size), (scheduler_protocol::Outcome::Denied, size(3000, 8)));
    assert!(reason.contains("moves to another node"), "{reason}");
    world.migration_gone(&facts.uid);
    assert_eq!(migrating(&world), Some(amount(0, 0)));
    world.ask("c", 2, size(3500, 8), size(3500, 8));
    let done = world.take();
    assert!(matches!(&done[..], [Done::Resize(..)]), "{done:?}");
}

#[test]
fn an_order_that_nobody_sees_is_given_up() {
    let mut world = hot();
    let facts = ordered(&mut world, WHILE);
    let (vm, name) = (facts.vm_uid.clone(), facts.name.clone());
    world.tell(Event::MigrateEnded { vm, name, made: None });
    world.pass(Duration::from_secs(58));
    assert_eq!(dump(&world, "n2").booked, cost(size(3000, 8)), "it may have been made");
    world.pass(Duration::from_secs(2));
    assert_eq!(dump(&world, "n2").booked, amount(0, 0));
    // It was, and is seen very late.
    world.migration(facts);
    assert_eq!(dump(&world, "n2").booked, cost(size(3000, 8)));
}

#[test]
fn a_migration_that_fails_gives_the_room_back() {
    let (mut world, facts) = moving();
    world.migration(MigrationFacts { ended: Some(false), ..facts });
    assert_eq!(dump(&world, "n2").booked, amount(0, 0));
    assert_eq!(picks(&mut world, WHILE), [pick("a", "n2")], "another one, since this one rests");
}

#[test]
fn a_target_that_does_not_come_ends_the_migration() {
    let (mut world, facts) = moving();
    world.pass(Duration::from_secs(299));
    assert_eq!(world.take(), []);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.take(), [Done::EndMigration(facts.uid.clone())]);
    world.pass(Duration::from_secs(31));
    assert_eq!(world.take(), [Done::EndMigration(facts.uid.clone())], "until it is gone");
    assert_eq!(dump(&world, "n2").booked, cost(size(3000, 8)));
    world.migration_gone(&facts.uid);
    assert_eq!(dump(&world, "n2").booked, amount(0, 0));
    // One that is there is waited for as long as it takes.
    let (mut world, _) = moving();
    world.pod(target("c", Some("n2"), size(3000, 8)));
    world.pass(Duration::from_secs(3000));
    assert_eq!(world.take(), []);
}

#[test]
fn the_next_leader_keeps_the_room_of_migrations_and_decides_nothing_before_it_knows_them() {
    let (mut world, _) = moving();
    world.begin(2);
    world.list_nodes();
    world.list_pods();
    world.list_vms();
    let pod = PodFacts { node: None, ..ordinary("o", "n2", amount(100, 0)) };
    assert!(world.ledger.filter(&pod, ["n2"]).is_err());
    world.list_migrations();
    assert_eq!(dump(&world, "n2").booked, cost(size(3000, 8)));
    assert!(fits(&world, "o", "n2", 6900) && !fits(&world, "o", "n2", 6901));
}

#[test]
fn without_the_lease_what_was_ordered_is_forgotten() {
    let mut world = hot();
    ordered(&mut world, WHILE);
    world.tell(Event::Leader(None));
    assert_eq!(dump(&world, "n2").booked, amount(0, 0));
    world.pass(WHILE * 2);
    assert_eq!(world.take(), []);
    world.tell(Event::Leader(Some(1)));
    assert_eq!(picks(&mut world, WHILE), [pick("c", "n2")]);
}

#[test]
fn nobody_is_moved_unless_it_is_configured() {
    assert_eq!(Settings::default().moves, None);
    let mut world = World::with(Settings { moves: None, ..settings() }, &[node("n1", 10_000, 64)]);
    for name in ["a", "b", "c"] {
        runs(&mut world, name, "n1", size(3000, 8));
    }
    world.migration(MigrationFacts {
        uid: "m".into(),
        namespace: "d".into(),
        name: "m".into(),
        vm_uid: "vm-a".into(),
        ours: true,
        to: Some("n1".into()),
        ended: None,
    });
    world.pass(Duration::from_secs(3600));
    assert_eq!(world.take(), []);
    assert!(!dump(&world, "n1").vms["d/a"].moves);
    // Nor is the list of migrations waited for.
    let mut ledger = Ledger::new(Settings::default());
    for event in [
        Event::NodesListed(support::names(&[])),
        Event::PodsListed(support::names(&[])),
        Event::VmsListed(support::names(&[])),
    ] {
        ledger.handle(event, world.now);
    }
    assert!(ledger.complete());
}

#[test]
fn what_a_scale_in_would_remove_is_filled_last() {
    let scoring = Scoring { scale_in: true, ..Scoring::default() };
    let names = ["almost-full", "empty", "leaving", "used", "without-room"];
    let nodes: Vec<NodeFacts> = names
        .iter()
        .map(|name| NodeFacts { leaving: *name == "leaving", ..node(name, 10_000, 64) })
        .collect();
    let fill = |world: &mut World| {
        runs(world, "a", "almost-full", size(8000, 8));
        runs(world, "b", "leaving", size(2000, 8));
        runs(world, "c", "used", size(2000, 8));
        runs(world, "d", "without-room", size(9900, 8));
        world.pod(ordinary("o", "empty", amount(4000, 0)));
    };
    let pod = runner("new", None, cost(size(1400, 2)));
    let mut world = World::with(Settings { scoring, ..settings() }, &nodes);
    fill(&mut world);
    assert_eq!(world.ledger.prioritize(&pod, names), [4, 2, 1, 7, 0]);
    // A spread does not reach below.
    for seed in 0..50 {
        let scoring = Scoring { randomize: true, seed, ..scoring };
        let mut world = World::with(Settings { scoring, ..settings() }, &nodes);
        fill(&mut world);
        let scores = world.ledger.prioritize(&pod, names);
        assert_eq!((scores[1], scores[2], scores[4]), (2, 1, 0));
        assert!(scores[0].min(scores[3]) >= 3, "{scores:?}");
    }
    // The destination of a move is chosen alike: the empty node only where no other has room.
    let mut world = World::with(Settings { scoring, ..settings() }, &nodes);
    fill(&mut world);
    runs(&mut world, "e", "almost-full", size(1500, 2));
    assert_eq!(picks(&mut world, WHILE), [pick("e", "used")]);
}
