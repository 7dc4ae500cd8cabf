//! Where a pod may go, and where it is best.
//!
//! kube-scheduler's own filter sees requests only; the ledger also knows promises that are not in any request yet.

use std::collections::BTreeMap;

use crate::amount::{Amount, cpu_text};
use crate::facts::{NodeFacts, PodFacts, PodKind, RunnerFacts};
use crate::ledger::Ledger;
use crate::pod::PodBook;
use crate::settings::Scoring;
use crate::slab::PodId;

/// The best score.
pub const MAX_SCORE: i64 = 10;

/// The nodes for a pod, and why not the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// With room.
    pub nodes: Vec<String>,
    /// Without, and why, for users.
    pub refused: BTreeMap<String, String>,
}

/// Why no placement can be decided now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// Another replica decides.
    #[error("this replica does not hold the lease")]
    NoLease,
    /// The lists are not complete.
    #[error("nodes, pods and VMs are not completely known yet")]
    Incomplete,
}

impl Ledger {
    fn ready(&self) -> Result<u64, NotReady> {
        let epoch = self.epoch.ok_or(NotReady::NoLease)?;
        if self.complete() { Ok(epoch) } else { Err(NotReady::Incomplete) }
    }

    /// Which of the nodes have room for the pod.
    pub fn filter(&self, pod: &PodFacts, nodes: &[String]) -> Result<Placement, NotReady> {
        self.ready()?;
        let (own, need) = (self.pods.find(&pod.uid), self.placement_need(pod));
        let mut placement = Placement::default();
        for node in nodes {
            match self.fits(own, need, node, &[]) {
                Ok(()) => placement.nodes.push(node.clone()),
                Err(reason) => {
                    placement.refused.insert(node.clone(), reason);
                }
            }
        }
        Ok(placement)
    }

    /// Which of the evictions are of use: VMs' pods are never evicted, and what is left must have room.
    pub fn preempt<'a>(
        &self,
        pod: &PodFacts,
        victims: impl IntoIterator<Item = (&'a String, &'a [String])>,
    ) -> Result<Vec<String>, NotReady> {
        self.ready()?;
        let (own, need) = (self.pods.find(&pod.uid), self.placement_need(pod));
        let useful = victims.into_iter().filter(|(node, victims)| {
            let mut known = Vec::new();
            for uid in *victims {
                // An unknown one may be a VM's.
                let ordinary = |victim: &PodId| {
                    self.pod(*victim).is_some_and(|book| book.facts.runner().is_none())
                };
                let Some(victim) = self.pods.find(uid).filter(ordinary) else { return false };
                known.push(victim);
            }
            self.fits(own, need, node, &known).is_ok()
        });
        Ok(useful.map(|(node, _)| node.clone()).collect())
    }

    /// Whether a pod may be bound to a node now, and in which epoch. The answer is the pod's facts, with the node.
    pub fn may_bind(&self, uid: &str, node: &str) -> Result<(PodFacts, u64), String> {
        let epoch = self.ready().map_err(|err| err.to_string())?;
        let own = self.pods.find(uid);
        let pod = own.and_then(|own| self.pod(own));
        let pod = pod.ok_or_else(|| "the pod is not known yet".to_owned())?;
        match pod.facts.node.as_deref() {
            Some(other) if other != node => return Err(format!("the pod is on node {other}")),
            _ => self.fits(own, self.placement_need(&pod.facts), node, &[])?,
        }
        if let Some(runner) = pod.facts.runner() {
            self.may_begin(&pod.facts, runner)?;
        }
        Ok((PodFacts { node: Some(node.to_owned()), ..pod.facts.clone() }, epoch))
    }

    /// Whether all that may be used of what was approved for the VM is backed by this pod's requests.
    fn may_begin(&self, pod: &PodFacts, runner: &RunnerFacts) -> Result<(), String> {
        let book = self.vm_of_facts(pod).ok_or_else(|| "the VM is not known yet".to_owned())?;
        let given = book.newest().is_some() || book.facts.obeyed.is_some();
        let inherited = given && self.epoch.is_none_or(|epoch| book.inherits(epoch));
        if inherited || !book.price(runner).cost(book.approved()).fits_in(runner.spec) {
            return Err("what was approved before for the VM is not given back yet".to_owned());
        }
        Ok(())
    }

    /// Whether the ledger knows the pod.
    #[must_use]
    pub fn knows_pod(&self, uid: &str) -> bool {
        self.pods.find(uid).is_some()
    }

    /// A score from 0 to [`MAX_SCORE`] for each node: nodes are filled, but not to the brim.
    #[must_use]
    pub fn prioritize(&self, pod: &PodFacts, nodes: &[String]) -> Vec<i64> {
        let known = self.nodes.iter().filter_map(|(_, _, slot)| slot.facts.as_ref());
        let largest = known.map(|node| node.allocatable).fold(Amount::ZERO, Amount::max);
        let (own, need) = (self.pods.find(&pod.uid), self.placement_need(pod));
        let scoring = &self.settings.scoring;
        let score = |name: &String| {
            let Some(id) = self.nodes.find(name) else { return 0 };
            let Some(node) = self.facts(id) else { return 0 };
            // What is leased gives way: it does not make a node full.
            let leased = self.nodes.get(id).map_or(Amount::ZERO, |slot| slot.leased.amount());
            let used = self.reserved_without(id, own).saturating_sub(leased) + need;
            let score = scoring.score(used, node, largest);
            if scoring.randomize && score > 0 {
                Scoring::spread(score, &pod.uid, name)
            } else {
                score
            }
        };
        nodes.iter().map(score).collect()
    }

    /// Whether there is room for `need` without the pod itself and those that are evicted.
    fn fits(
        &self,
        own: Option<PodId>,
        need: Amount,
        node: &str,
        evicted: &[PodId],
    ) -> Result<(), String> {
        let known = self.nodes.find(node).and_then(|id| Some((id, self.facts(id)?)));
        let (id, facts) = known.ok_or_else(|| "node is not known yet".to_owned())?;
        let room = facts.allocatable.saturating_sub(self.reserved_but_for(id, own, evicted));
        let mut short = Vec::new();
        if need.cpu_millis > room.cpu_millis {
            let (need, room) = (cpu_text(need.cpu_millis), cpu_text(room.cpu_millis));
            short.push(format!("needs {need} CPU, {room} not promised to others"));
        }
        if need.memory_bytes > room.memory_bytes {
            let need = guest_units::Bytes(need.memory_bytes);
            let room = guest_units::Bytes(room.memory_bytes);
            short.push(format!("needs {need} memory, {room} not promised to others"));
        }
        if short.is_empty() { Ok(()) } else { Err(short.join("; ")) }
    }

    /// What a pod will take where it is placed.
    pub(crate) fn placement_need(&self, pod: &PodFacts) -> Amount {
        match &pod.kind {
            PodKind::Ordinary { requests } => *requests,
            PodKind::Runner(runner) => {
                let cost = self
                    .vm_of_facts(pod)
                    .map_or(Amount::ZERO, |book| book.price(runner).cost(book.placement()));
                runner.total(PodBook::new(pod.clone()).may_have().max(cost))
            }
        }
    }
}

impl Scoring {
    /// The score of a node that is used so much.
    fn score(&self, used: Amount, node: &NodeFacts, largest: Amount) -> i64 {
        let total = node.allocatable;
        let cpu = self.part(used.cpu_millis, total.cpu_millis, largest.cpu_millis);
        let memory = self.part(used.memory_bytes, total.memory_bytes, largest.memory_bytes);
        #[expect(clippy::cast_possible_truncation, reason = "0..=10 by construction")]
        let score = (cpu.min(memory).clamp(0.0, 1.0) * 10.0).round() as i64;
        score
    }

    /// Rises from `empty` to 1 at the peak, falls to `full`; small nodes count less.
    fn part(&self, used: u64, total: u64, largest: u64) -> f64 {
        if total == 0 || used > total {
            return 0.0;
        }
        let usage = ratio(used, total);
        let score = if usage <= self.peak && self.peak > 0.0 {
            self.empty + (1.0 - self.empty) * usage / self.peak
        } else if self.peak < 1.0 {
            self.full + (1.0 - self.full) * (1.0 - usage) / (1.0 - self.peak)
        } else {
            1.0
        };
        score * ratio(total, largest.max(1))
    }

    /// Evenly between 1 and the score, the same for the same pod and node.
    fn spread(score: i64, pod: &str, node: &str) -> i64 {
        // FNV-1a: fixed for ever, unlike the standard library's hasher.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in pod.bytes().chain([0]).chain(node.bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let score = score.max(1);
        // The low bits of FNV are the weakest.
        let picked = i64::try_from(hash >> 33).unwrap_or(0) % score;
        1 + picked
    }
}

#[expect(clippy::cast_precision_loss, reason = "a score needs no exact fraction")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn node(cpu_millis: u64, gib: u64) -> NodeFacts {
        let allocatable = Amount { cpu_millis, memory_bytes: gib * GIB };
        NodeFacts { name: "n".into(), allocatable }
    }

    fn used(cpu_millis: u64, gib: u64) -> Amount {
        Amount { cpu_millis, memory_bytes: gib * GIB }
    }

    #[test]
    fn the_score_peaks_at_the_peak_and_follows_the_fuller_resource() {
        let scoring = Scoring::default();
        let node = node(10_000, 10);
        let table = [
            (used(0, 0), 5),
            (used(4000, 4), 8),
            (used(8000, 8), 10),
            (used(9000, 8), 5),
            (used(8000, 10), 0),
            (used(10_001, 1), 0),
        ];
        for (used, expected) in table {
            assert_eq!(scoring.score(used, &node, node.allocatable), expected, "{used}");
        }
    }

    #[test]
    fn small_nodes_score_less_and_absurd_ones_nothing() {
        let scoring = Scoring::default();
        let largest = used(20_000, 20);
        assert_eq!(scoring.score(used(8000, 8), &node(10_000, 10), largest), 5);
        assert_eq!(scoring.score(used(0, 0), &node(0, 0), largest), 0);
        let steep = Scoring { peak: 0.0, ..scoring };
        assert_eq!(steep.score(used(0, 0), &node(10_000, 10), node(10_000, 10).allocatable), 10);
        let flat = Scoring { peak: 1.0, ..scoring };
        assert_eq!(flat.score(used(10_000, 10), &node(10_000, 10), used(10_000, 10)), 10);
    }

    #[test]
    fn spreading_is_even_and_repeatable() {
        let mut seen = [0_u32; 11];
        for pod in 0..1000 {
            let score = Scoring::spread(8, &format!("pod-{pod}"), "n1");
            assert_eq!(score, Scoring::spread(8, &format!("pod-{pod}"), "n1"));
            seen[usize::try_from(score).unwrap()] += 1;
        }
        assert!(seen[1..=8].iter().all(|count| (80..=170).contains(count)), "{seen:?}");
        assert_eq!(seen[0] + seen[9] + seen[10], 0);
    }
}
