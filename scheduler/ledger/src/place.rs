//! Where a pod may go, and where it is best.
//!
//! kube-scheduler's own filter sees requests only; the ledger also knows promises that are not in any request yet.

use guest_units::Bytes;
use scheduler_protocol::extender::MAX_SCORE;

use crate::amount::{Amount, cpu_text};
use crate::facts::{PodFacts, PodKind, RunnerFacts};
use crate::ledger::Ledger;
use crate::settings::Scoring;
use crate::slab::{NodeId, PodId};
use crate::standing::Standing;

/// Where a scale-in counts, a node that is about to go has this,
const LEAVING: i64 = 1;
/// one without a VM this,
const EMPTY: i64 = 2;
/// and all others have no less than this.
const USED: i64 = 3;

/// Which nodes have room for a pod, and why not the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// For each node of the question, in its order. None: there is room.
    pub short: Vec<Option<Shortage>>,
    need: Amount,
    /// For each shortage: what is left where it is least, and where it is most.
    left: [Option<(Amount, Amount)>; Shortage::ALL.len()],
}

/// Why a node has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// It is not known yet.
    Unknown,
    /// Too little CPU is left.
    Cpu,
    /// Too little memory is left.
    Memory,
    /// Too little of both.
    Both,
}

impl Shortage {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Unknown, Self::Cpu, Self::Memory, Self::Both];

    /// As a user understands it; `left` from the node with the least to the one with the most.
    fn text(self, need: Amount, (least, most): (Amount, Amount)) -> String {
        let at_most = |differs: bool| if differs { "at most " } else { "" };
        let cpu = || {
            let (need, left) = (cpu_text(need.cpu_millis), cpu_text(most.cpu_millis));
            let at_most = at_most(least.cpu_millis < most.cpu_millis);
            format!("needs {need} CPU, {at_most}{left} not promised to others")
        };
        let memory = || {
            let (need, left) = (Bytes(need.memory_bytes), Bytes(most.memory_bytes));
            let at_most = at_most(least.memory_bytes < most.memory_bytes);
            format!("needs {need} memory, {at_most}{left} not promised to others")
        };
        match self {
            Self::Unknown => "node is not known yet".to_owned(),
            Self::Cpu => cpu(),
            Self::Memory => memory(),
            Self::Both => format!("{}; {}", cpu(), memory()),
        }
    }
}

impl Placement {
    /// What users are told: one text for all nodes with the same shortage, since kube-scheduler counts equal texts, and ten
    /// thousand different ones would tell nobody anything.
    #[must_use]
    pub fn reasons(&self) -> Reasons {
        let text = |shortage: Shortage| {
            let left = self.left.get(shortage as usize).copied().flatten();
            left.map_or_else(String::new, |left| shortage.text(self.need, left))
        };
        Reasons(Shortage::ALL.map(text))
    }

    fn note(&mut self, short: Option<(Shortage, Amount)>) {
        self.short.push(short.map(|(shortage, _)| shortage));
        let Some((shortage, left)) = short else { return };
        if let Some(known) = self.left.get_mut(shortage as usize) {
            let (least, most) = known.unwrap_or((left, left));
            *known = Some((least.min(left), most.max(left)));
        }
    }
}

/// The texts of a placement's shortages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reasons([String; Shortage::ALL.len()]);

impl Reasons {
    /// Empty for a shortage that no node had.
    #[must_use]
    pub fn of(&self, shortage: Shortage) -> &str {
        self.0.get(shortage as usize).map_or("", |text| text)
    }
}

/// A pod that looks for a node.
#[derive(Debug, Clone, Copy)]
struct Guest {
    need: Amount,
    /// It does not stand in its own way where it counts already.
    own: Option<PodId>,
    at: Option<NodeId>,
    /// A VM moves to that node: its room is there already.
    booked: Option<(NodeId, Amount)>,
}

impl Guest {
    /// What is booked on a node for it.
    fn booked_on(&self, node: NodeId) -> Amount {
        self.booked.filter(|(at, _)| *at == node).map_or(Amount::ZERO, |(_, amount)| amount)
    }
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
    ///
    /// # Errors
    /// When no placement can be decided now.
    pub fn filter<'a>(
        &self,
        pod: &PodFacts,
        nodes: impl IntoIterator<Item = &'a str>,
    ) -> Result<Placement, NotReady> {
        self.ready()?;
        let guest = self.guest(pod);
        let nodes = nodes.into_iter();
        let short = Vec::with_capacity(nodes.size_hint().0);
        let mut placement = Placement { short, need: guest.need, left: [None; 4] };
        for node in nodes {
            placement.note(self.short(guest, node));
        }
        Ok(placement)
    }

    /// Which of the evictions are of use: VMs' pods are never evicted, what is left must have room, and leases alone must not
    /// make it, there or on another of these nodes.
    pub fn preempt<'a>(
        &self,
        pod: &PodFacts,
        victims: impl IntoIterator<Item = (&'a String, &'a [String])>,
    ) -> Result<Vec<String>, NotReady> {
        self.ready()?;
        let guest = self.guest(pod);
        let victims: Vec<_> = victims.into_iter().collect();
        if victims.iter().any(|(node, _)| self.leases_make_room(guest, node)) {
            return Ok(Vec::new());
        }
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
            self.fits(guest, node, &known).is_ok()
        });
        Ok(useful.map(|(node, _)| node.clone()).collect())
    }

    /// Whether nobody has to go from a node, since leases there give way once the pod is known to wait for a node.
    fn leases_make_room(&self, guest: Guest, node: &str) -> bool {
        let Some(node) = self.nodes.find(node).filter(|_| self.settings.lease.is_some()) else {
            return false;
        };
        let room = self.free_or_leased(node) + guest.booked_on(node);
        self.calls.may_get(guest.own, node) && guest.need.fits_in(room)
    }

    /// Whether a pod may be bound to a node now, and in which epoch. The answer is the pod's facts, with the node.
    pub fn may_bind(&self, uid: &str, node: &str) -> Result<(PodFacts, u64), String> {
        let epoch = self.ready().map_err(|err| err.to_string())?;
        let own = self.pods.find(uid);
        let pod = own.and_then(|own| self.pod(own));
        let pod = pod.ok_or_else(|| "the pod is not known yet".to_owned())?;
        match pod.facts.node.as_deref() {
            Some(other) if other != node => return Err(format!("the pod is on node {other}")),
            _ => self.fits(self.guest(&pod.facts), node, &[])?,
        }
        if let Some(runner) = pod.facts.runner() {
            self.may_begin(&pod.facts, runner)?;
        }
        Ok((PodFacts { node: Some(node.to_owned()), ..pod.facts.clone() }, epoch))
    }

    /// Whether all that may be used of what was approved for the VM is backed by this pod's requests.
    pub(crate) fn may_begin(&self, pod: &PodFacts, runner: &RunnerFacts) -> Result<(), String> {
        let (vm, book) =
            self.vm_of_facts(pod).ok_or_else(|| "the VM is not known yet".to_owned())?;
        let given = book.newest().is_some() || book.facts.obeyed.is_some();
        let inherited = given && self.epoch.is_none_or(|epoch| book.inherits(epoch));
        let used = book.price(runner).cost(self.next_size(vm, book));
        if inherited || !used.fits_in(runner.spec) {
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
    pub fn prioritize<'a>(
        &self,
        pod: &PodFacts,
        nodes: impl IntoIterator<Item = &'a str>,
    ) -> Vec<i64> {
        let (guest, largest) = (self.guest(pod), self.standings.largest());
        let here = |node| guest.at == Some(node) && pod.runner().is_some();
        let score = |(name, found): (&str, Option<NodeId>)| {
            let standing = found.and_then(|node| Some((node, self.standings.get(node)?)));
            let Some((node, standing)) = standing else { return 0 };
            // What is leased gives way: it does not make a node full.
            let others = self.others(guest, node, standing).saturating_sub(standing.leased);
            let empty = standing.vms <= usize::from(here(node));
            self.score((&pod.uid, name), others + guest.need, standing, empty, largest)
        };
        // The scores' divisions apart from the look-ups: memory is waited for several times at once then.
        let found: Vec<_> = nodes.into_iter().map(|name| (name, self.nodes.find(name))).collect();
        found.into_iter().map(score).collect()
    }

    /// The score of a node that would be used so much. `empty`: no other VM is there.
    pub(crate) fn score(
        &self,
        (pod, node): (&str, &str),
        used: Amount,
        standing: Standing,
        empty: bool,
        largest: Amount,
    ) -> i64 {
        let Standing { allocatable, leaving, .. } = standing;
        let scoring = &self.settings.scoring;
        let score = scoring.score(used, allocatable, largest);
        let spread = |score: i64| match scoring.randomize && score > 0 {
            true => scoring.spread(score, pod, node),
            false => score,
        };
        match (scoring.scale_in, used.fits_in(allocatable)) {
            (false, _) => spread(score),
            (true, false) => 0,
            (true, true) if leaving => LEAVING,
            (true, true) if empty => EMPTY,
            (true, true) => spread(USED + score * (MAX_SCORE - USED) / MAX_SCORE).max(USED),
        }
    }

    fn guest(&self, pod: &PodFacts) -> Guest {
        let own = self.pods.find(&pod.uid);
        let at = own.and_then(|own| self.pods.get(own)?.at);
        Guest { need: self.placement_need(pod), own, at, booked: self.booked_for(pod) }
    }

    fn standing(&self, node: &str) -> Option<(NodeId, Standing)> {
        let node = self.nodes.find(node)?;
        Some((node, self.standings.get(node)?))
    }

    /// What all others take on a node.
    fn others(&self, guest: Guest, node: NodeId, standing: Standing) -> Amount {
        let others = if guest.at == Some(node) {
            self.reserved_without(node, guest.own)
        } else {
            standing.reserved
        };
        others.saturating_sub(guest.booked_on(node))
    }

    /// Why there is no room on a node, and how much is left there.
    fn short(&self, guest: Guest, node: &str) -> Option<(Shortage, Amount)> {
        let Some((node, standing)) = self.standing(node) else {
            return Some((Shortage::Unknown, Amount::ZERO));
        };
        let left = standing.allocatable.saturating_sub(self.others(guest, node, standing));
        shortage(guest.need, left).map(|short| (short, left))
    }

    /// Whether there is room without the pod itself and those that are evicted.
    fn fits(&self, guest: Guest, node: &str, evicted: &[PodId]) -> Result<(), String> {
        let need = guest.need;
        let unknown = || Shortage::Unknown.text(need, (Amount::ZERO, Amount::ZERO));
        let (node, standing) = self.standing(node).ok_or_else(unknown)?;
        let reserved = self.reserved_but_for(node, guest.own, evicted);
        let reserved = reserved.saturating_sub(guest.booked_on(node));
        let left = standing.allocatable.saturating_sub(reserved);
        shortage(need, left).map_or(Ok(()), |short| Err(short.text(need, (left, left))))
    }

    /// What a pod will take where it is placed.
    pub(crate) fn placement_need(&self, pod: &PodFacts) -> Amount {
        match &pod.kind {
            PodKind::Ordinary { requests } => *requests,
            PodKind::Runner(runner) => {
                let cost = self.vm_of_facts(pod).map_or(Amount::ZERO, |(vm, book)| {
                    let size = self.next_size(vm, book).max(book.clamp(book.facts.wanted));
                    book.price(runner).cost(size)
                });
                runner.total(runner.counted().max(cost))
            }
        }
    }
}

fn shortage(need: Amount, left: Amount) -> Option<Shortage> {
    match (need.cpu_millis > left.cpu_millis, need.memory_bytes > left.memory_bytes) {
        (false, false) => None,
        (true, false) => Some(Shortage::Cpu),
        (false, true) => Some(Shortage::Memory),
        (true, true) => Some(Shortage::Both),
    }
}

impl Scoring {
    /// The score of a node of `total` that is used so much.
    fn score(&self, used: Amount, total: Amount, largest: Amount) -> i64 {
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

    /// Evenly between 1 and the score, the same for the same seed, pod and node.
    fn spread(&self, score: i64, pod: &str, node: &str) -> i64 {
        // FNV-1a: fixed for ever, unlike the standard library's hasher.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ self.seed;
        for byte in pod.bytes().chain([0]).chain(node.bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        // The last bytes, in which nodes differ, have not reached most bits yet: murmur3's last step mixes all into all.
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        let picked = i64::try_from(hash >> 33).unwrap_or(0) % score.max(1);
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

    fn used(cpu_millis: u64, gib: u64) -> Amount {
        Amount { cpu_millis, memory_bytes: gib * GIB }
    }

    #[test]
    fn the_score_peaks_at_the_peak_and_follows_the_fuller_resource() {
        let scoring = Scoring::default();
        let node = used(10_000, 10);
        let table = [
            (used(0, 0), 5),
            (used(4000, 4), 8),
            (used(8000, 8), 10),
            (used(9000, 8), 5),
            (used(8000, 10), 0),
            (used(10_001, 1), 0),
        ];
        for (used, expected) in table {
            assert_eq!(scoring.score(used, node, node), expected, "{used}");
        }
    }

    #[test]
    fn small_nodes_score_less_and_absurd_ones_nothing() {
        let scoring = Scoring::default();
        let largest = used(20_000, 20);
        assert_eq!(scoring.score(used(8000, 8), used(10_000, 10), largest), 5);
        assert_eq!(scoring.score(used(0, 0), used(0, 0), largest), 0);
        let steep = Scoring { peak: 0.0, ..scoring };
        assert_eq!(steep.score(used(0, 0), used(10_000, 10), used(10_000, 10)), 10);
        let flat = Scoring { peak: 1.0, ..scoring };
        assert_eq!(flat.score(used(10_000, 10), used(10_000, 10), used(10_000, 10)), 10);
    }

    #[test]
    fn spreading_is_even_over_pods_and_over_nodes_repeatable_and_seeded() {
        let (one, other) = (Scoring::default(), Scoring { seed: 1, ..Scoring::default() });
        for nodes_differ in [true, false] {
            let (mut seen, mut same) = ([0_u32; 11], 0);
            for index in 0..1000 {
                let (pod, node) = if nodes_differ {
                    ("pod".to_owned(), format!("node-{index}"))
                } else {
                    (format!("pod-{index}"), "n1".to_owned())
                };
                let score = one.spread(8, &pod, &node);
                assert_eq!(score, one.spread(8, &pod, &node));
                same += u32::from(score == other.spread(8, &pod, &node));
                seen[usize::try_from(score).unwrap()] += 1;
            }
            assert!(seen[1..=8].iter().all(|count| (80..=170).contains(count)), "{seen:?}");
            assert_eq!(seen[0] + seen[9] + seen[10], 0);
            assert!((80..=170).contains(&same), "{same} of another seed are the same");
        }
    }
}
