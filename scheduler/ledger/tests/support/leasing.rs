//! Worlds with leases, and what is done again and again in them.

use scheduler_ledger::{Amount, Lease, NodeFacts, PodFacts, PodKind, Seal, Settings};
use scheduler_protocol::Outcome;

use super::{Done, World, cost, ordinary, permit, runner, size, vm};
use guest_units::Size;

pub fn all_of_the_node(nodes: &[NodeFacts]) -> World {
    let lease = Lease { keep_free_percent: 0, ..Lease::default() };
    World::with(Settings { lease: Some(lease), ..Settings::default() }, nodes)
}

/// A VM that runs at a size, approved and backed, no lease yet.
pub fn begin(world: &mut World, name: &str, at: Size) {
    let mut facts = vm(name, at);
    facts.plugged = Some(at);
    facts.visible = Some(Seal { epoch: 1, generation: 1, size: at });
    facts.obeyed = Some((1, 1));
    world.vm(facts);
    world.pod(runner(name, Some("n1"), cost(at)));
}

/// Carries out orders until there are none. Says how many, and what else was done.
pub fn calm(world: &mut World) -> (usize, Vec<Done>) {
    let (mut orders, mut rest) = (0, Vec::new());
    loop {
        let done = world.take();
        if done.is_empty() {
            return (orders, rest);
        }
        for done in done {
            if matches!(done, Done::Resize(..)) {
                orders += 1;
                assert!(orders < 100, "orders without end");
                world.resize(&done);
            } else {
                rest.push(done);
            }
        }
    }
}

/// A node with VMs of one CPU and two GiB that have their leases.
pub fn leased(node: NodeFacts, names: &[&str]) -> World {
    let mut world = all_of_the_node(&[node]);
    for name in names {
        begin(&mut world, name, size(1000, 2));
    }
    calm(&mut world);
    world
}

pub fn requests(world: &World, name: &str) -> Amount {
    match &world.pods[&format!("pod-{name}")].kind {
        PodKind::Runner(runner) => runner.spec,
        PodKind::Ordinary { .. } => panic!("not a runner"),
    }
}

/// The agent asks, and uses what it is given; the VM becomes so large.
pub fn becomes(world: &mut World, name: &str, generation: u64, at: Size) -> usize {
    world.ask(name, generation, at, at);
    let (before, rest) = calm(world);
    let answer = rest.iter().find(|done| matches!(done, Done::Answer(..))).expect("an answer");
    let (outcome, seal, _) = permit(answer);
    assert_eq!(outcome, Outcome::Granted);
    world.patch(name, seal);
    before + calm(world).0
}

pub fn waits(name: &str, requests: Amount) -> PodFacts {
    PodFacts { node: None, unplaced: Some(Box::default()), ..ordinary(name, "", requests) }
}

/// A pod that waited is placed.
pub fn bound(world: &mut World, name: &str) {
    let pod = world.pods[name].clone();
    world.pod(PodFacts { node: Some("n1".into()), unplaced: None, ..pod });
}

pub fn room(world: &World) -> Amount {
    let used: Amount = world.pods.values().map(|pod| super::allocated(pod, "n1")).sum();
    world.nodes["n1"].allocatable.saturating_sub(used)
}
