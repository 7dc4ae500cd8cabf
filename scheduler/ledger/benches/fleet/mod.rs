//! Fleets for the benches: nodes, and VMs that run on them.

#![allow(dead_code, unreachable_pub, reason = "each bench uses a part")]

use guest_units::{Bytes, MilliCpu, Moment, Size};
use scheduler_ledger::{
    Action, Amount, Asked, DEFAULT_OVERHEAD, Event, Ledger, NodeFacts, PodFacts, PodKind, Price,
    ResizeResult, RunnerFacts, Seal, Settings, Ticket, Todo, VmFacts,
};
use scheduler_protocol::ObjectRef;

/// What nodes have.
pub const NODE: Amount = Amount { cpu_millis: 400_000, memory_bytes: 800 << 30 };
/// The time at which everything happens.
pub const NOW: Moment = Moment::from_secs(100);
const NAMESPACE: &str = "databases";

/// So many thousandths of a CPU, so many GiB.
pub fn size(cpu: u32, gib: u64) -> Size {
    Size { cpu: MilliCpu(cpu), memory: Bytes::from_gib(gib) }
}

/// As cloud providers name nodes.
pub fn node_name(node: usize) -> String {
    format!("ip-10-{}-{}-{}.eu-central-1.compute.internal", node >> 16, node >> 8 & 255, node & 255)
}

/// As the API server makes them.
fn uid(kind: usize, index: usize) -> String {
    let scattered = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!(
        "{:08x}-{kind:04x}-4{:03x}-a{:03x}-{index:012x}",
        scattered >> 32,
        scattered >> 20 & 0xfff,
        scattered >> 8 & 0xfff
    )
}

/// Uid of a VM.
pub fn vm_uid(index: usize) -> String {
    uid(1, index)
}

/// Uid of a VM's pod.
pub fn pod_uid(index: usize) -> String {
    uid(2, index)
}

fn vm_name(index: usize) -> String {
    format!("postgres-{index}")
}

fn pod_name(index: usize) -> String {
    format!("postgres-{index}-x7k2q")
}

/// A VM that obeys its approval.
pub fn vm(index: usize, seal: Seal) -> VmFacts {
    VmFacts {
        uid: vm_uid(index),
        namespace: NAMESPACE.into(),
        name: vm_name(index),
        min: size(250, 1),
        max: size(16_000, 64),
        wanted: seal.size,
        slot: Bytes::from_gib(1),
        floor: Amount::ZERO,
        autoscaled: true,
        visible: Some(seal),
        obeyed: Some(seal.place()),
        plugged: Some(seal.size),
        pod_name: Some(pod_name(index)),
        deleting: false,
        movable: None,
    }
}

/// The pod of a VM.
pub fn pod(index: usize, node: usize, generation: u64, requests: Amount) -> PodFacts {
    PodFacts {
        uid: pod_uid(index),
        namespace: NAMESPACE.into(),
        name: pod_name(index),
        node: Some(node_name(node)),
        finished: false,
        unplaced: None,
        version: generation,
        kind: PodKind::Runner(RunnerFacts {
            vm_uid: vm_uid(index),
            spec: requests,
            allocated: Some(requests),
            beside: Amount::ZERO,
            init_peak: Amount::ZERO,
            generation,
            observed: generation,
            pending: None,
            price: Price::default(),
            created: 0,
        }),
    }
}

/// A request of the agent on a node.
pub fn asked(index: usize, node: usize, generation: u64, want: Size) -> Asked {
    let object = |name: String, uid: String| ObjectRef { namespace: NAMESPACE.into(), name, uid };
    Asked {
        ticket: Ticket(generation),
        caller_node: node_name(node),
        vm: object(vm_name(index), vm_uid(index)),
        pod: object(pod_name(index), pod_uid(index)),
        generation,
        want,
        least: want,
        current: Size::default(),
    }
}

/// A ledger that knows so many nodes with so many VMs each, all of which `vm` describes.
pub fn ledger(
    settings: Settings,
    nodes: usize,
    vms: usize,
    node: impl Fn(usize) -> NodeFacts,
    vm: impl Fn(usize) -> VmFacts,
) -> Ledger {
    let mut ledger = Ledger::new(settings);
    ledger.handle(Event::Leader(Some(1)), NOW);
    let mut first = Vec::with_capacity(nodes * vms);
    for index in 0..nodes {
        ledger.handle(Event::Node(node(index)), NOW);
        for vm_index in index * vms..(index + 1) * vms {
            let facts = vm(vm_index);
            let requests = (Amount::from(facts.wanted) + DEFAULT_OVERHEAD).max(facts.floor);
            first.push((facts.wanted, requests));
            ledger.handle(Event::Vm(facts), NOW);
            ledger.handle(Event::Pod(pod(vm_index, index, 1, requests)), NOW);
        }
    }
    let all = 0..nodes * vms;
    ledger.handle(Event::NodesListed((0..nodes).map(node_name).collect()), NOW);
    ledger.handle(Event::PodsListed(all.clone().map(pod_uid).collect()), NOW);
    ledger.handle(Event::VmsListed(all.map(vm_uid).collect()), NOW);
    for (index, (size, requests)) in first.into_iter().enumerate() {
        ask_first(&mut ledger, (index, vms), size, requests);
    }
    ledger
}

/// The first request of a VM after a change of leader: its pod is fenced, and leases are given where there is room.
fn ask_first(ledger: &mut Ledger, (index, vms): (usize, usize), size: Size, requests: Amount) {
    ledger.handle(Event::Asked(asked(index, index / vms, 0, size)), NOW);
    loop {
        let start = ledger.next(NOW).start;
        if start.is_empty() {
            return;
        }
        for Todo { id, action, .. } in start {
            ledger.handle(Event::Started(id), NOW);
            match action {
                Action::Fence { pod: fenced, number, .. } => {
                    let found = Some(pod(index, index / vms, 1, requests));
                    ledger.handle(Event::Fenced { uid: fenced.uid, number, found }, NOW);
                }
                Action::Resize { pod: resized, number, requests, .. } => {
                    // Numbers grow, and so serve as generations. It may be for any VM.
                    let result = ResizeResult::Accepted { generation: number + 1 };
                    let last = resized.uid.rsplit('-').next().unwrap_or_default();
                    let index = usize::from_str_radix(last, 16).expect("the uids end with it");
                    ledger.handle(Event::ResizeEnded { pod: resized.uid, number, result }, NOW);
                    let seen = pod(index, index / vms, number + 1, requests);
                    ledger.handle(Event::Pod(seen), NOW);
                }
                Action::Answer { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}
