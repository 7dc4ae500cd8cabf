//! Times, and the scores that the policy file chooses.

use std::time::Duration;

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
            scoring: Scoring::default(),
        }
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
}

impl Default for Scoring {
    fn default() -> Self {
        Self { empty: 0.5, full: 0.0, peak: 0.8, randomize: false, seed: 0 }
    }
}
