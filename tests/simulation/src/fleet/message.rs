//! What the parts say to each other, and over which link.

use controller_lifecycle::{Ending, Plugged, Status, What};
use guest_units::{Moment, Size};
use host_scaling::{Event, Sample};
use scheduler_ledger::{Amount, ResizeResult, Seal};

use super::lease::Lease;
use super::object::{NodeId, Pod, PodId, Twin, VmId, VmObject};

/// Who watches the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watcher {
    /// The agent of a node.
    Agent(u32),
    /// The operator.
    Operator,
    /// One of the extenders.
    Extender(u32),
}

/// A way that messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// Between guest and agent of one node.
    Vsock(u32),
    /// Between the agent of a node and an extender.
    Permit(u32),
    /// Between an agent and the API server.
    AgentApi(u32),
    /// From the API server to who watches.
    Watch(Watcher),
    /// Between operator and the runners of one node.
    Runner(u32),
    /// Between operator and API server.
    OperatorApi,
    /// Between an extender and the API server.
    ExtenderApi(u32),
    /// The same, for its Lease.
    Lease(u32),
}

/// What the runner of a VM shows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown {
    pub(crate) revision: u64,
    pub(crate) plugged: Plugged,
    pub(crate) busy: bool,
    pub(crate) newest_epoch: u64,
    pub(crate) guest: bool,
}

/// A message. Numbers of lives and connections tell for whom an answer is: those of the dead are dropped.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    Sample {
        vm: VmId,
        connection: u32,
        sample: Sample,
    },
    Ask {
        vm: VmId,
        connection: u32,
        want: Size,
    },
    Question {
        vm: VmId,
        connection: u32,
        generation: u64,
        from: Size,
        to: Size,
    },
    Notice {
        vm: VmId,
        connection: u32,
        generation: u64,
        plugged: Size,
    },
    /// Of the guest to a question or a notice.
    Reply {
        vm: VmId,
        connection: u32,
        event: Event,
    },

    Permit {
        vm: VmId,
        life: u32,
        pod: PodId,
        generation: u64,
        want: Size,
        least: Size,
        current: Size,
        echo: bool,
        /// Whom it reaches.
        twin: Twin,
    },
    PermitAnswer {
        vm: VmId,
        life: u32,
        generation: u64,
        seal: Seal,
        reason: String,
    },
    PermitFailed {
        vm: VmId,
        life: u32,
        generation: u64,
        newest: Option<u64>,
    },

    Patch {
        vm: VmId,
        life: u32,
        pod: PodId,
        generation: u64,
        from: Size,
        size: Size,
        seal: Option<Seal>,
    },
    Patched {
        vm: VmId,
        life: u32,
        generation: u64,
        seen: Box<VmObject>,
    },
    PatchFailed {
        vm: VmId,
        life: u32,
        generation: u64,
        raced: bool,
        seen: Option<Box<VmObject>>,
    },

    VmSeen {
        watcher: Watcher,
        life: u32,
        vm: VmId,
        object: Box<VmObject>,
        since: Moment,
    },
    PodSeen {
        watcher: Watcher,
        life: u32,
        pod: PodId,
        object: Box<Pod>,
        since: Moment,
    },

    Order {
        vm: VmId,
        pod: PodId,
        epoch: u64,
        generation: u64,
        what: What,
    },
    OrderEnded {
        vm: VmId,
        pod: PodId,
        epoch: u64,
        generation: u64,
        shown: Shown,
        ending: Ending,
    },
    OrderFailed {
        vm: VmId,
        pod: PodId,
        epoch: u64,
        generation: u64,
    },
    Look {
        vm: VmId,
        pod: PodId,
        epoch: u64,
        first: u64,
        known: Option<u64>,
    },
    Looked {
        vm: VmId,
        pod: PodId,
        epoch: u64,
        first: u64,
        shown: Shown,
    },
    LookFailed {
        vm: VmId,
        pod: PodId,
        epoch: u64,
    },

    CreatePod {
        vm: VmId,
        pod: PodId,
        epoch: u64,
    },
    DeletePod {
        vm: VmId,
        pod: PodId,
        epoch: u64,
    },
    PodDeleted {
        vm: VmId,
        pod: PodId,
        epoch: u64,
        done: bool,
    },
    PodCreated {
        vm: VmId,
        epoch: u64,
        done: bool,
    },
    WriteStatus {
        vm: VmId,
        epoch: u64,
        /// It is written over this version alone.
        over: u64,
        status: Box<Status>,
    },
    StatusWritten {
        vm: VmId,
        epoch: u64,
        /// What is stored now, where the API server has answered.
        version: Option<u64>,
        status: Option<Box<Status>>,
    },

    Resize {
        pod: PodId,
        life: u32,
        version: u64,
        number: u64,
        requests: Amount,
    },
    Resized {
        pod: PodId,
        life: u32,
        number: u64,
        result: ResizeResult,
    },
    Approve {
        vm: VmId,
        life: u32,
        seal: Seal,
    },
    Approved {
        vm: VmId,
        life: u32,
        generation: u64,
        written: bool,
    },
    Fence {
        pod: PodId,
        life: u32,
        number: u64,
    },
    Fenced {
        pod: PodId,
        life: u32,
        number: u64,
        found: Option<Box<Pod>>,
    },
    FenceFailed {
        pod: PodId,
        number: u64,
    },
    LookUp {
        pod: PodId,
        life: u32,
    },
    LookedUp {
        pod: PodId,
        life: u32,
        found: Option<Box<Pod>>,
    },
    Bind {
        pod: PodId,
        node: NodeId,
        life: u32,
    },
    Bound {
        pod: PodId,
        life: u32,
        done: bool,
    },

    /// The Lease is read. Who asks waits until `until`, whatever it asks in this turn.
    LeaseRead {
        life: u32,
        turn: u64,
        until: Moment,
    },
    LeaseShown {
        life: u32,
        turn: u64,
        until: Moment,
        lease: Lease,
    },
    /// It is written over the version that was read, or not at all.
    LeaseWrite {
        life: u32,
        turn: u64,
        until: Moment,
        lease: Lease,
    },
    LeaseWritten {
        life: u32,
        turn: u64,
        until: Moment,
        epoch: Option<u64>,
    },
    LeaseFailed {
        life: u32,
        turn: u64,
    },
}

/// What is to happen.
#[derive(Debug, Clone)]
pub(crate) enum Happening {
    Deliver(Link, Box<Message>),
    /// The guest looks at its counters.
    Guest(VmId, u32),
    /// The workload changes, or what it holds bends.
    Load(VmId),
    /// The agent's brain of a VM wants to be asked.
    Agent(VmId),
    /// The connection to a guest is tried.
    Connect(VmId),
    /// The operator's brain of a VM wants to be asked.
    Life(VmId),
    /// The operator tries again to reach the runner of a VM's pod.
    Poll(VmId, PodId),
    /// The connection between agent and guest breaks.
    Break(VmId),
    /// The ledger of an extender wants to be asked.
    Ledger(Twin),
    /// An extender looks at the Lease, unless it has done so since.
    Lease(Twin, u64),
    /// Whoever asks from there reaches this extender from now on.
    Route(usize, Twin, u64),
    /// A process that is to stop waits no longer for its calls.
    Farewell(Twin, u32),
    /// The hypervisor gets on with an order.
    Lane(VmId, PodId, super::runner::Kind, u64),
    /// Kubelet looks at a pod.
    Kubelet(PodId),
    /// kube-scheduler looks for nodes.
    Schedule,
    /// A pod's node has been silent for too long.
    Evict(NodeId),
    /// An extender hears whether a node is ready.
    NodeSeen(Twin, NodeId),
    /// A fault begins or ends.
    Fault(usize, bool),
    /// Ordinary pods and VMs come and go.
    Churn,
    /// Look whether all has come to rest.
    Rest,
    /// Look at a VM again that was on its way since then.
    RestOf(VmId, Moment),
    /// A part starts again.
    Restart(Part),
}

/// What can die and start again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The agent of a node.
    Agent(u32),
    /// The operator.
    Operator,
    /// One of the extenders.
    Extender(u32),
    /// The monitor in a guest.
    Monitor(u32),
    /// The runner of a VM, and QEMU with it.
    Runner(u32),
    /// A whole node.
    Node(u32),
    /// Not the agent, but its watch.
    AgentWatch(u32),
    /// Not the operator, but its watch.
    OperatorWatch,
    /// Not an extender, but its watch.
    ExtenderWatch(u32),
}
