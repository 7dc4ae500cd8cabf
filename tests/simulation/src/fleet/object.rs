//! What the API server holds: VMs, pods and nodes, with the truth about what runs in them.

use controller_lifecycle::Status;
use guest_units::{Bytes, Moment, Size};
use host_scaling::Limits;
use scheduler_ledger::{
    Amount, Demands, NodeFacts, Pending, PodFacts, PodKind, Price, RunnerFacts, Seal, Taint,
    VmFacts,
};

/// Namespace of all objects.
pub(crate) const NAMESPACE: &str = "default";

/// Number of a VM.
pub(crate) type VmId = u32;
/// Number of a pod.
pub(crate) type PodId = u32;
/// Number of a node.
pub(crate) type NodeId = u32;
/// Number of an extender.
pub(crate) type Twin = u32;

pub(crate) fn vm_name(vm: VmId) -> String {
    format!("v{vm}")
}

pub(crate) fn pod_name(pod: PodId) -> String {
    format!("p{pod}")
}

pub(crate) fn node_name(node: NodeId) -> String {
    format!("n{node}")
}

/// The number in a name that one of the functions above made.
pub(crate) fn number(name: &str) -> Option<u32> {
    name.get(1..)?.parse().ok()
}

/// A VirtualMachine, as far as anybody decides by it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VmObject {
    /// Of the spec: what the hypervisor is made for.
    pub(crate) limits: Limits,
    /// Of the annotation, within those of the spec: what the agent may choose.
    pub(crate) bounds: Limits,
    /// What the spec asks for.
    pub(crate) spec: Size,
    pub(crate) approved: Option<Seal>,
    pub(crate) plugged: Option<Size>,
    pub(crate) obeyed: Option<(u64, u64)>,
    pub(crate) pod: Option<PodId>,
    /// Where it runs; absent while it does not.
    pub(crate) node: Option<NodeId>,
    pub(crate) version: u64,
}

impl VmObject {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            bounds: limits,
            spec: limits.min,
            approved: None,
            plugged: None,
            obeyed: None,
            pod: None,
            node: None,
            version: 0,
        }
    }

    /// The operator's status replaces the old one.
    pub(crate) fn take(&mut self, status: &Status) {
        self.plugged = status.size;
        self.obeyed = status.obeyed;
        self.pod = status.pod.as_deref().and_then(number);
        self.node = status.node.as_deref().and_then(number);
    }

    pub(crate) fn view(&self) -> host_scaling::VmView {
        let approved = self.approved.map(|seal| seal.size);
        let plugged = self.plugged.unwrap_or(self.limits.min);
        host_scaling::VmView { spec: self.spec, approved, plugged }
    }

    pub(crate) fn facts(&self, vm: VmId) -> VmFacts {
        let name = vm_name(vm);
        VmFacts {
            uid: name.clone(),
            namespace: NAMESPACE.to_owned(),
            name,
            min: self.limits.min,
            max: self.limits.max,
            wanted: self.spec,
            slot: self.limits.slot,
            floor: Amount::ZERO,
            autoscaled: true,
            visible: self.approved,
            obeyed: self.obeyed,
            plugged: self.plugged,
            pod_name: self.pod.map(pod_name),
            deleting: false,
            movable: None,
        }
    }
}

/// Whose pod it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Vm(VmId),
    /// Of somebody who never asks us.
    Nobody,
}

/// A pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pod {
    pub(crate) owner: Owner,
    pub(crate) node: Option<NodeId>,
    pub(crate) spec: Amount,
    pub(crate) spec_changed: Moment,
    /// What kubelet has allocated; absent until it has admitted the pod.
    pub(crate) allocated: Option<Amount>,
    pub(crate) generation: u64,
    pub(crate) observed: u64,
    pub(crate) pending: Option<Pending>,
    pub(crate) version: u64,
    /// The API server knows it.
    pub(crate) created: bool,
    /// The VM in it serves.
    pub(crate) ready: bool,
    /// It has ended by itself.
    pub(crate) failed: bool,
    pub(crate) terminating_since: Option<Moment>,
    /// A scheduler has found no node for it.
    pub(crate) unschedulable: bool,
    /// It has waited since then for room that would be there without leases.
    pub(crate) fits_since: Option<Moment>,
    /// The API server has forgotten it.
    pub(crate) gone: bool,
}

impl Pod {
    pub(crate) fn new(owner: Owner, spec: Amount) -> Self {
        Self {
            owner,
            node: None,
            spec,
            spec_changed: Moment::ZERO,
            allocated: None,
            generation: 1,
            observed: 1,
            pending: None,
            version: 0,
            created: false,
            ready: false,
            failed: false,
            terminating_since: None,
            unschedulable: false,
            fits_since: None,
            gone: false,
        }
    }

    /// What kubelet counts for it.
    pub(crate) fn held(&self) -> Amount {
        if self.failed || self.gone { Amount::ZERO } else { self.allocated.unwrap_or(Amount::ZERO) }
    }

    /// What kube-scheduler counts for it.
    pub(crate) fn counted(&self) -> Amount {
        if self.failed || self.gone {
            Amount::ZERO
        } else {
            self.spec.max(self.allocated.unwrap_or(Amount::ZERO))
        }
    }

    /// Pods of VMs are placed by another scheduler than those of strangers: why one of these does not come says nothing of the
    /// others.
    fn demands(&self) -> Demands {
        Demands { class: u64::from(self.owner != Owner::Nobody), ..Demands::default() }
    }

    pub(crate) fn facts(&self, pod: PodId) -> PodFacts {
        let name = pod_name(pod);
        let kind = match self.owner {
            Owner::Nobody => PodKind::Ordinary { requests: self.spec },
            Owner::Vm(vm) => PodKind::Runner(RunnerFacts {
                vm_uid: vm_name(vm),
                spec: self.spec,
                allocated: self.allocated.filter(|_| self.ready),
                beside: Amount::ZERO,
                init_peak: Amount::ZERO,
                generation: self.generation,
                observed: self.observed,
                pending: self.pending,
                price: Price::default(),
                created: 0,
            }),
        };
        PodFacts {
            uid: name.clone(),
            namespace: NAMESPACE.to_owned(),
            name,
            node: self.node.map(node_name),
            finished: self.failed,
            unplaced: self.unschedulable.then(|| Box::new(self.demands())),
            version: self.version,
            kind,
        }
    }
}

/// A node.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) allocatable: Amount,
    /// Pods that are bound to it and not gone.
    pub(crate) pods: Vec<PodId>,
    /// Its machine runs.
    pub(crate) up: bool,
    /// Counts its agent's processes.
    pub(crate) agent_life: u32,
    pub(crate) agent_up: bool,
    /// How far its wall clock is off, in milliseconds.
    pub(crate) clock_ms: i64,
    /// The newest epoch that its agent's process has had an answer of.
    pub(crate) newest_epoch: u64,
}

impl Node {
    pub(crate) fn new(allocatable: Amount) -> Self {
        Self {
            allocatable,
            pods: Vec::new(),
            up: true,
            agent_life: 1,
            agent_up: true,
            clock_ms: 0,
            newest_epoch: 0,
        }
    }

    /// Kubernetes keeps new pods from a node that is not heard of.
    pub(crate) fn facts(&self, node: NodeId, ready: bool) -> NodeFacts {
        let (name, allocatable) = (node_name(node), self.allocatable);
        let taint = |key: &str| Taint {
            key: key.to_owned(),
            value: String::new(),
            effect: "NoSchedule".to_owned(),
        };
        let taints = (!ready).then(|| taint("node.kubernetes.io/unreachable"));
        NodeFacts {
            name,
            allocatable,
            taints: taints.into_iter().collect(),
            ..NodeFacts::default()
        }
    }
}

/// What a size costs on a node.
pub(crate) fn cost(size: Size) -> Amount {
    Price::default().cost(size)
}

/// What a VM of this size has for its workload, the same as for the sizes to compare with (`baseline::Machine::available`).
pub(crate) fn for_workload(memory: Bytes) -> Bytes {
    managed(memory).saturating_sub(KERNEL)
}

/// What the guest's kernel manages of it.
pub(crate) fn managed(memory: Bytes) -> Bytes {
    memory.saturating_sub(memory.times(1, 60))
}

/// What kernel and programs hold.
pub(crate) const KERNEL: Bytes = Bytes::from_mib(64);
