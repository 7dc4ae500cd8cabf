//! Times, how large leases are, and the scores that the policy file chooses.

use std::time::Duration;

use guest_units::{Bytes, MilliCpu, Size};

/// How long things may take, and what a good placement is.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// A request that nothing can be done about waits so long for room before it is denied.
    pub hold: Duration,
    /// A request is answered after so long, even if kubelet has not.
    pub resize_limit: Duration,
    /// A wish that kubelet does not answer is given up after so long.
    pub give_up: Duration,
    /// Room that kubelet gave after the answer is kept so long for the next request.
    pub keep_late: Duration,
    /// What is known of a pod otherwise than by the watch, such as a placement, is asked for again after so long.
    pub confirm_pod: Duration,
    /// An approval that the object does not show is written again after so long.
    pub confirm_write: Duration,
    /// Leases of headroom. None: pods request what their promises take, and every growth waits for kubelet.
    pub lease: Option<Lease>,
    /// VMs are moved away from nodes that are too full. None, as it is unless configured otherwise: nobody is moved, migrations are
    /// not looked at, and no room is booked for any. The operator does not carry migrations out, and an admission policy refuses
    /// their objects: until it does, each one that is ordered comes to nothing.
    pub moves: Option<Moves>,
    /// Scores of nodes.
    pub scoring: Scoring,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hold: Duration::from_millis(500),
            resize_limit: Duration::from_millis(1400),
            give_up: Duration::from_secs(10),
            keep_late: Duration::from_secs(5),
            confirm_pod: Duration::from_secs(30),
            confirm_write: Duration::from_secs(5),
            lease: Some(Lease::default()),
            moves: None,
            scoring: Scoring::default(),
        }
    }
}

/// How much more than its promise a VM's pod requests, where the node has room.
///
/// A lease is the next step of growth. A saturated CPU asks for half as much again, or for double. A core fills memory at about
/// 1 GiB/s while a resize takes 50-200 ms until kubelet has allocated it, and the pods of a burst come together: a step is half of
/// what there is, and no less than one CPU and one GiB, which is what four cores fill in 250 ms. Memory comes in whole slots.
/// Nothing is leased above the VM's maximum.
///
/// A lease is refilled when half of it is used up (and at least half can be had). When a promise shrinks, what it gives back becomes
/// lease; only more than two steps in a row is returned, down to one: a VM that swings between a size and the next step is never
/// resized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// A step of CPU, in percent of what is promised.
    pub cpu_percent: u32,
    /// A step of memory, in percent of what is promised.
    pub memory_percent: u32,
    /// A step is no less than this.
    pub least: Size,
    /// Leases leave so much of a node free for ordinary pods that are about to come, in percent; when less than half of it is
    /// left, they make room for all of it, before any pod has to wait.
    pub keep_free_percent: u32,
    /// Pods that nobody can place are expected for so long on a node that has room for one of them. When none has come by then,
    /// something else is in their way: the node has leases again, and rests from them for twenty times as long, then twice that.
    /// Longer than the longest back-off of kube-scheduler, which is 10 s unless configured otherwise.
    pub patience: Duration,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            cpu_percent: 50,
            memory_percent: 50,
            least: Size { cpu: MilliCpu(1000), memory: Bytes::from_gib(1) },
            keep_free_percent: 10,
            patience: Duration::from_secs(30),
        }
    }
}

/// When VMs are moved to other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moves {
    /// A node of which more than this is promised or requested, in thousandths of what it has, is left by VMs until it is not.
    /// No node gets more than this by a move. Leases do not count: they give way.
    pub watermark_thousandths: u32,
}

impl Default for Moves {
    fn default() -> Self {
        Self { watermark_thousandths: 900 }
    }
}

/// Scores of nodes: highest where the fullest resource is used at `peak`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scoring {
    /// Score of an empty node, 0..=1.
    pub empty: f64,
    /// Score of a full node, 0..=1.
    pub full: f64,
    /// Usage with the best score, 0..=1.
    pub peak: f64,
    /// Spread: a score between 1 and the real one, fixed for a pod and a node.
    pub randomize: bool,
    /// Another seed spreads otherwise.
    pub seed: u64,
    /// Nodes that a scale-in would remove are filled last: those without a VM, and after them those that are about to go.
    pub scale_in: bool,
}

impl Default for Scoring {
    fn default() -> Self {
        Self { empty: 0.5, full: 0.0, peak: 0.8, randomize: false, seed: 0, scale_in: false }
    }
}
