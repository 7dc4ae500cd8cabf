//! What is seen of nodes, pods and VMs, reduced to what the ledger needs.

use guest_units::{Bytes, Size};

use crate::amount::{Amount, Price};
use crate::demands::{Demands, Label, Taint};

/// A node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Name.
    pub name: String,
    /// What pods may request in total.
    pub allocatable: Amount,
    /// Its labels, in order.
    pub labels: Box<[Label]>,
    /// What keeps pods away.
    pub taints: Box<[Taint]>,
    /// The cluster autoscaler is about to remove it when nothing runs there any more.
    pub leaving: bool,
}

/// A pod, on a node or not yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// Identity.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Where it is bound.
    pub node: Option<String>,
    /// Succeeded or failed: takes nothing any more.
    pub finished: bool,
    /// A scheduler, whichever, has found no node for it that meets these.
    pub unplaced: Option<Box<Demands>>,
    /// Version of the object: copies with a lower one come late and say nothing. 0: not known.
    pub version: u64,
    /// What it takes.
    pub kind: PodKind,
}

/// What a pod takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodKind {
    /// Any pod that is not a VM's.
    Ordinary {
        /// By the rules of Kubernetes: [`PodShape::requests`].
        requests: Amount,
    },
    /// The pod of a VM.
    Runner(RunnerFacts),
}

/// The pod of a VM, seen as the container that is resized and the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerFacts {
    /// The VM.
    pub vm_uid: String,
    /// Requests of the VM's container in the pod's spec.
    pub spec: Amount,
    /// What kubelet has allocated to that container; absent until it has started.
    pub allocated: Option<Amount>,
    /// Requests of everything that runs beside it, sidecars and pod overhead included.
    pub beside: Amount,
    /// The peak that the init containers need.
    pub init_peak: Amount,
    /// Generation of the pod's spec.
    pub generation: u64,
    /// The generation that kubelet has acted on.
    pub observed: u64,
    /// Kubelet cannot allocate the requests of this very generation, and says why.
    pub pending: Option<Pending>,
    /// What a size costs, as when the pod was made; the user's floor is the VM's.
    pub price: Price,
    /// When the pod was made, in seconds since 1970. 0: not known.
    pub created: u64,
}

impl RunnerFacts {
    /// What the main container counts for, as long as nothing else is ordered.
    #[must_use]
    pub fn counted(&self) -> Amount {
        self.spec.max(self.allocated.unwrap_or(Amount::ZERO))
    }

    /// What the pod takes while its main container requests `main`.
    #[must_use]
    pub fn total(&self, main: Amount) -> Amount {
        (main + self.beside).max(self.init_peak)
    }
}

/// Why kubelet does not allocate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pending {
    /// Not now.
    Deferred,
    /// Never on this node.
    Infeasible,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmFacts {
    /// Identity.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// It boots with this.
    pub min: Size,
    /// It never gets more.
    pub max: Size,
    /// What the spec wants now.
    pub wanted: Size,
    /// Memory comes in steps of this above the minimum.
    pub slot: Bytes,
    /// Requests that the user demands at least.
    pub floor: Amount,
    /// An agent asks for it. Otherwise the ledger approves what the spec wants.
    pub autoscaled: bool,
    /// The approval that the object shows, its signature checked.
    pub visible: Option<Seal>,
    /// Place of the approval that the operator obeys: no older one is in flight or will ever be acted on.
    pub obeyed: Option<(u64, u64)>,
    /// What the hypervisor shows, as far as the object says.
    pub plugged: Option<Size>,
    /// Name of the present runner pod.
    pub pod_name: Option<String>,
    /// About to go.
    pub deleting: bool,
    /// What its pods demand of a node, where it may be moved. None: it stays where it is.
    pub movable: Option<Box<Demands>>,
}

/// A migration of a VM that the API server has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationFacts {
    /// Identity.
    pub uid: String,
    /// Namespace: only a VM of the same is meant.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The VM.
    pub vm_uid: String,
    /// It was made by this scheduler, this replica or another.
    pub ours: bool,
    /// The only node that the target may come to.
    pub to: Option<String>,
    /// It has ended: well, if the VM runs on the target.
    pub ended: Option<bool>,
}

/// An approved size and its place in the order of approvals of one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Seal {
    /// Epoch of the ledger that gave it.
    pub epoch: u64,
    /// Number within the epoch.
    pub generation: u64,
    /// What may be plugged.
    pub size: Size,
}

impl Seal {
    /// Later seals replace earlier ones.
    #[must_use]
    pub fn place(&self) -> (u64, u64) {
        (self.epoch, self.generation)
    }
}

/// The containers of a pod: enough for Kubernetes' rules of what it requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodShape {
    /// Containers.
    pub containers: Vec<ContainerNeeds>,
    /// Init containers in their order, sidecars among them.
    pub init: Vec<InitNeeds>,
    /// The runtime's overhead.
    pub overhead: Amount,
    /// Requests of the pod as a whole replace the sum, per resource.
    pub pod_cpu_millis: Option<u64>,
    /// See `pod_cpu_millis`.
    pub pod_memory_bytes: Option<u64>,
}

/// A container's requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContainerNeeds {
    /// In the spec.
    pub spec: Amount,
    /// What kubelet has allocated: counts as well, while a resize is under way.
    pub allocated: Option<Amount>,
}

impl ContainerNeeds {
    fn counted(&self) -> Amount {
        self.spec.max(self.allocated.unwrap_or(Amount::ZERO))
    }
}

/// An init container's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitNeeds {
    /// Requests.
    pub needs: ContainerNeeds,
    /// It keeps running beside the containers.
    pub sidecar: bool,
}

impl PodShape {
    /// What the scheduler counts: the larger of all that runs together and of the peak during initialisation.
    #[must_use]
    pub fn requests(&self) -> Amount {
        let containers: Amount = self.containers.iter().map(ContainerNeeds::counted).sum();
        let (sidecars, peak) = self.init_needs();
        let mut total = (containers + sidecars).max(peak);
        if let Some(cpu) = self.pod_cpu_millis {
            total.cpu_millis = cpu;
        }
        if let Some(memory) = self.pod_memory_bytes {
            total.memory_bytes = memory;
        }
        total + self.overhead
    }

    /// Sum of the sidecars, and the peak while the init containers run one after another beside the sidecars
    /// that were started before them.
    #[must_use]
    pub fn init_needs(&self) -> (Amount, Amount) {
        let (mut sidecars, mut peak) = (Amount::ZERO, Amount::ZERO);
        for init in &self.init {
            let running = sidecars + init.needs.counted();
            if init.sidecar {
                sidecars = running;
            }
            peak = peak.max(running);
        }
        (sidecars, peak)
    }

    /// The rest of a VM's pod, without the container at `main`: what runs beside it, and the peak of initialisation.
    #[must_use]
    pub fn around(&self, main: usize) -> (Amount, Amount) {
        let others: Amount = self
            .containers
            .iter()
            .enumerate()
            .filter(|(index, _)| *index != main)
            .map(|(_, container)| container.counted())
            .sum();
        let (sidecars, peak) = self.init_needs();
        (others + sidecars + self.overhead, peak + self.overhead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(cpu_millis: u64) -> ContainerNeeds {
        ContainerNeeds { spec: Amount { cpu_millis, memory_bytes: 0 }, allocated: None }
    }

    fn init(cpu_millis: u64, sidecar: bool) -> InitNeeds {
        InitNeeds { needs: needs(cpu_millis), sidecar }
    }

    fn cpu(shape: &PodShape) -> u64 {
        shape.requests().cpu_millis
    }

    #[test]
    fn requests_follow_the_rules_of_kubernetes() {
        let containers = vec![needs(100), needs(200)];
        let table = [
            (vec![], 300),
            (vec![init(250, false)], 300),
            (vec![init(500, false)], 500),
            (vec![init(50, true)], 350),
            // The second runs beside the sidecar.
            (vec![init(50, true), init(400, false)], 450),
            // The first runs before the sidecar.
            (vec![init(400, false), init(50, true)], 400),
        ];
        for (init, expected) in table {
            let shape = PodShape { containers: containers.clone(), init, ..PodShape::default() };
            assert_eq!(cpu(&shape), expected, "{shape:?}");
        }
    }

    #[test]
    fn overhead_pod_level_and_allocated_count() {
        let mut shape = PodShape { containers: vec![needs(100)], ..PodShape::default() };
        shape.overhead.cpu_millis = 7;
        assert_eq!(cpu(&shape), 107);
        shape.containers[0].allocated = Some(Amount { cpu_millis: 300, memory_bytes: 0 });
        assert_eq!(cpu(&shape), 307);
        shape.pod_cpu_millis = Some(1000);
        assert_eq!(cpu(&shape), 1007);
    }

    #[test]
    fn the_rest_of_a_runner_pod_is_told_apart() {
        let shape = PodShape {
            containers: vec![needs(10), needs(1000)],
            init: vec![init(5, true), init(500, false)],
            ..PodShape::default()
        };
        let (beside, peak) = shape.around(1);
        assert_eq!((beside.cpu_millis, peak.cpu_millis), (15, 505));
    }
}
