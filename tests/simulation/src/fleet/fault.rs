//! What goes wrong, when, and for how long: a plan that follows from the seed alone.
//!
//! To add a kind: a variant of [`Kind`], a line in `Kind::draw`, and what it does in `World::fault`, or in [`Faults::fate`] if it
//! concerns messages.

use std::time::Duration;

use guest_units::Moment;
use rand::RngExt as _;

use super::message::{Link, Part, Watcher};
use crate::random::Random;

/// Links of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Guest and agent.
    Vsock,
    /// Agent and extender.
    Permit,
    /// Agent and API server.
    AgentApi,
    /// API server to who watches.
    Watch,
    /// Operator and runner.
    Runner,
    /// Operator and API server.
    OperatorApi,
    /// Extender and API server.
    ExtenderApi,
    /// Extender and API server, about the Lease.
    Lease,
}

/// What is said to extenders and by them.
const TWIN_WAYS: [Way; 4] = [Way::Lease, Way::ExtenderApi, Way::Permit, Way::Watch];

const WAYS: [Way; 7] = [
    Way::Vsock,
    Way::Permit,
    Way::AgentApi,
    Way::Watch,
    Way::Runner,
    Way::OperatorApi,
    Way::ExtenderApi,
];

impl Link {
    /// It leads to this node or away from it.
    fn crosses(self, node: u32) -> bool {
        match self {
            Self::Permit(it) | Self::AgentApi(it) | Self::Runner(it) => it == node,
            Self::Watch(watcher) => watcher == Watcher::Agent(node),
            Self::Vsock(_) | Self::OperatorApi | Self::ExtenderApi(_) | Self::Lease(_) => false,
        }
    }

    /// It leads from this extender to the API server, or back.
    fn is_of(self, twin: u32) -> bool {
        [Self::ExtenderApi(twin), Self::Lease(twin), Self::Watch(Watcher::Extender(twin))]
            .contains(&self)
    }

    /// Its kind.
    #[must_use]
    pub fn way(self) -> Way {
        match self {
            Self::Vsock(_) => Way::Vsock,
            Self::Permit(_) => Way::Permit,
            Self::AgentApi(_) => Way::AgentApi,
            Self::Watch(_) => Way::Watch,
            Self::Runner(_) => Way::Runner,
            Self::OperatorApi => Way::OperatorApi,
            Self::ExtenderApi(_) => Way::ExtenderApi,
            Self::Lease(_) => Way::Lease,
        }
    }
}

/// Which of the extenders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// The one that leads when the fault begins.
    Leader,
    /// The other one.
    Standby,
    /// Both.
    Both,
    /// This one.
    Only(u32),
}

impl Whom {
    pub(crate) fn is(self, twin: u32) -> bool {
        self == Self::Both || self == Self::Only(twin)
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Messages are lost.
    Drop(Way),
    /// Messages are late.
    Delay(Way),
    /// Messages arrive a second time, later.
    Duplicate(Way),
    /// Messages overtake each other.
    Reorder(Way),
    /// Nothing gets through on one link.
    Cut(Link),
    /// Nobody reaches the API server.
    ApiDown,
    /// A part dies, and starts again.
    Crash(Part),
    /// A part dies around the next message of a kind.
    CrashAt(Part, Way),
    /// A watch shows nothing for a while, then everything in its order.
    StaleWatch(Watcher),
    /// A watch breaks off and starts with a new list.
    Relist(Watcher),
    /// Writes meet another version of the object.
    Conflict,
    /// Plugging and unplugging succeed in part.
    Partial(u32),
    /// No memory can be unplugged.
    Busy(u32),
    /// A guest's monitor hangs.
    Silent(u32),
    /// A guest says what is not so.
    Lying(u32),
    /// A guest asks all the time.
    Flooding(u32),
    /// A node loses its power.
    NodeLoss(u32),
    /// A node is cut off from everything else, and goes on.
    NodeCut(u32),
    /// The clock on a node's wall jumps, and its agent starts again.
    Clock(u32),
    /// A guest's monitor is replaced by one of the version before: it says less.
    Skew(u32),
    /// An extender does not reach the API server; whoever asks still reaches it.
    ExtenderCut(Whom),
    /// An extender's process is held up and goes on later, as if nothing had been; also between the last look at its lease and a
    /// message that follows.
    Pause(Whom),
    /// An extender is asked to stop, and starts again in another pod.
    Stop(Whom),
    /// From this node on, or from kube-scheduler as the last one, the extender that does not lead is reached.
    StaleRoute(usize),
}

/// A fault of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// When it begins.
    pub at: Moment,
    /// Until it is over.
    pub lasts: Duration,
    /// What.
    pub kind: Kind,
}

/// How large the world is that faults happen in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) nodes: u32,
    pub(crate) vms: u32,
    pub(crate) twins: u32,
    /// Faults begin before this.
    pub(crate) until: Duration,
    /// All faults are of this family.
    pub(crate) family: Option<Family>,
}

/// Kinds of faults, whatever they concern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
#[expect(missing_docs, reason = "as the kinds")]
pub enum Family {
    Drop,
    Delay,
    Duplicate,
    Reorder,
    Cut,
    ApiDown,
    Crash,
    CrashAt,
    StaleWatch,
    Relist,
    Conflict,
    Partial,
    Busy,
    Silent,
    Lying,
    Flooding,
    NodeLoss,
    NodeCut,
    Clock,
    Skew,
    ExtenderCut,
    Pause,
    Stop,
    StaleRoute,
}

impl Kind {
    /// What kind of fault it is.
    #[must_use]
    pub fn family(self) -> Family {
        match self {
            Self::Drop(_) => Family::Drop,
            Self::Delay(_) => Family::Delay,
            Self::Duplicate(_) => Family::Duplicate,
            Self::Reorder(_) => Family::Reorder,
            Self::Cut(_) => Family::Cut,
            Self::ApiDown => Family::ApiDown,
            Self::Crash(_) => Family::Crash,
            Self::CrashAt(..) => Family::CrashAt,
            Self::StaleWatch(_) => Family::StaleWatch,
            Self::Relist(_) => Family::Relist,
            Self::Conflict => Family::Conflict,
            Self::Partial(_) => Family::Partial,
            Self::Busy(_) => Family::Busy,
            Self::Silent(_) => Family::Silent,
            Self::Lying(_) => Family::Lying,
            Self::Flooding(_) => Family::Flooding,
            Self::NodeLoss(_) => Family::NodeLoss,
            Self::NodeCut(_) => Family::NodeCut,
            Self::Clock(_) => Family::Clock,
            Self::Skew(_) => Family::Skew,
            Self::ExtenderCut(_) => Family::ExtenderCut,
            Self::Pause(_) => Family::Pause,
            Self::Stop(_) => Family::Stop,
            Self::StaleRoute(_) => Family::StaleRoute,
        }
    }

    /// Bad weather on what the extenders say and hear.
    fn draw_weather(random: &mut Random) -> Self {
        let way = TWIN_WAYS[random.random_range(0..TWIN_WAYS.len())];
        match random.random_range(0..5) {
            0 => Self::Drop(way),
            1 => Self::Delay(way),
            2 => Self::Duplicate(way),
            _ => Self::Reorder(way),
        }
    }

    /// What happens to the extenders themselves.
    fn draw_of_twins(random: &mut Random, extent: Extent) -> Self {
        let twin = random.random_range(0..extent.twins);
        let way = TWIN_WAYS[random.random_range(0..TWIN_WAYS.len())];
        let place = random.random_range(0..=extent.nodes) as usize;
        let whom = match random.random_range(0..6) {
            0 => Whom::Standby,
            1 => Whom::Both,
            _ => Whom::Leader,
        };
        match random.random_range(0..10) {
            0 | 1 => Self::ExtenderCut(whom),
            2 | 3 => Self::Pause(whom),
            4 | 5 => Self::Stop(whom),
            6 => Self::StaleRoute(place),
            7 => Self::Crash(Part::Extender(twin)),
            _ => Self::CrashAt(Part::Extender(twin), way),
        }
    }

    fn draw_any(random: &mut Random, extent: Extent) -> Self {
        let node = random.random_range(0..extent.nodes);
        let vm = random.random_range(0..extent.vms);
        let way = WAYS[random.random_range(0..WAYS.len())];
        let watcher = match random.random_range(0..3) {
            0 => Watcher::Operator,
            1 => Watcher::Extender(vm % extent.twins),
            _ => Watcher::Agent(node),
        };
        let twin = vm % extent.twins;
        let part = match random.random_range(0..5) {
            0 => Part::Operator,
            1 => Part::Extender(twin),
            2 => Part::Monitor(vm),
            3 => Part::Runner(vm),
            _ => Part::Agent(node),
        };
        let cut = match random.random_range(0..6) {
            0 => Link::Vsock(node),
            1 => Link::Permit(node),
            2 => Link::AgentApi(node),
            3 => Link::Runner(node),
            4 => Link::OperatorApi,
            _ => Link::ExtenderApi(twin),
        };
        match random.random_range(0..24) {
            0 | 1 => Self::Drop(way),
            2 => Self::Delay(way),
            3 => Self::Duplicate(way),
            4 => Self::Reorder(way),
            5 | 6 => Self::Cut(cut),
            7 => Self::ApiDown,
            8 | 9 => Self::Crash(part),
            10..=12 => Self::CrashAt(part, way),
            13 => Self::StaleWatch(watcher),
            14 => Self::Relist(watcher),
            15 => Self::Conflict,
            16 => Self::Partial(vm),
            17 => Self::Busy(vm),
            18 => Self::Silent(vm),
            19 => Self::Lying(vm),
            20 => Self::Flooding(vm),
            21 => Self::NodeLoss(node),
            22 => Self::NodeCut(node),
            _ if random.random_bool(0.5) => Self::Clock(node),
            _ => Self::Skew(vm),
        }
    }
}

/// The plan of a seed: five to fourteen faults, and one or two storms around the extenders.
pub(crate) fn plan(random: &mut Random, extent: Extent) -> Vec<Fault> {
    let millis = u64::try_from(extent.until.as_millis()).unwrap_or(u64::MAX);
    let mut plan = Vec::new();
    for _ in 0..random.random_range(5..15) {
        let at = random.random_range(20_000..millis);
        let kind = draw(random, extent, false);
        plan.push(fault(random, at, kind));
    }
    for _ in 0..random.random_range(1..3) {
        storm(random, extent, millis, &mut plan);
    }
    plan.retain(|fault| extent.family.is_none_or(|family| family == fault.kind.family()));
    plan.sort_by_key(|fault| fault.at);
    plan
}

/// Bad weather, and meanwhile one thing after the other.
fn storm(random: &mut Random, extent: Extent, millis: u64, plan: &mut Vec<Fault>) {
    let mut at = random.random_range(20_000..millis);
    if random.random_bool(0.7) {
        let kind = Kind::draw_weather(random);
        plan.push(fault(random, at, kind));
    }
    for _ in 0..random.random_range(1..4) {
        at += random.random_range(0..10_000);
        let kind = draw(random, extent, true);
        plan.push(fault(random, at, kind));
    }
}

fn fault(random: &mut Random, at: u64, kind: Kind) -> Fault {
    let lasts = match random.random_range(0..3) {
        0 => random.random_range(200..5_000),
        1 => random.random_range(5_000..60_000),
        _ => random.random_range(60_000..300_000),
    };
    Fault { at: Moment::from_millis(at), lasts: Duration::from_millis(lasts), kind }
}

/// One of the family that is asked for: where there is none among these, from the others.
fn draw(random: &mut Random, extent: Extent, mut of_twins: bool) -> Kind {
    loop {
        let kind = if of_twins {
            Kind::draw_of_twins(random, extent)
        } else {
            Kind::draw_any(random, extent)
        };
        if extent.family.is_none_or(|family| family == kind.family()) {
            return kind;
        }
        of_twins = !of_twins;
    }
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Arrives,
    Late(Duration),
    Twice(Duration),
    Lost,
}

/// The faults that go on.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub(crate) active: Vec<(usize, Kind)>,
    /// When the last one ended.
    pub(crate) ended: Moment,
    /// A part that dies around the next message of a kind.
    pub(crate) trap: Option<(Way, Part)>,
    chance: Option<Random>,
}

impl Faults {
    pub(crate) fn new(chance: Random) -> Self {
        Self { active: Vec::new(), ended: Moment::ZERO, trap: None, chance: Some(chance) }
    }

    fn draw(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.chance.as_mut().map_or(range.start, |chance| chance.random_range(range))
    }

    /// Nothing gets through.
    pub(crate) fn cut(&self, link: Link) -> bool {
        let api = !matches!(link.way(), Way::Vsock | Way::Permit | Way::Runner);
        self.active.iter().any(|(_, kind)| match kind {
            Kind::Cut(cut) => *cut == link,
            Kind::NodeCut(node) => link.crosses(*node),
            Kind::ApiDown => api,
            Kind::ExtenderCut(Whom::Both) => [0, 1].into_iter().any(|twin| link.is_of(twin)),
            Kind::ExtenderCut(Whom::Only(twin)) => link.is_of(*twin),
            _ => false,
        })
    }

    /// Nobody hears of the node, nor does it of anybody.
    pub(crate) fn is_cut_off(&self, node: u32) -> bool {
        self.active.iter().any(|(_, kind)| *kind == Kind::NodeCut(node))
    }

    /// A write meets another version.
    pub(crate) fn conflict(&mut self) -> bool {
        let conflicts = self.active.iter().any(|(_, kind)| *kind == Kind::Conflict);
        conflicts && self.either()
    }

    /// What becomes of a message.
    pub(crate) fn fate(&mut self, link: Link) -> Fate {
        if self.active.is_empty() {
            return Fate::Arrives;
        }
        if self.cut(link) {
            return Fate::Lost;
        }
        let way = link.way();
        for index in 0..self.active.len() {
            let (_, kind) = self.active[index];
            let fate = match kind {
                Kind::Drop(it) if it == way && self.draw(0..10) < 3 => Fate::Lost,
                Kind::Delay(it) if it == way => Fate::Late(self.millis(100..4_000)),
                Kind::Reorder(it) if it == way && self.draw(0..2) == 0 => {
                    Fate::Late(self.millis(0..2_000))
                }
                Kind::Duplicate(it) if it == way && self.draw(0..10) < 4 => {
                    Fate::Twice(self.millis(0..20_000))
                }
                _ => Fate::Arrives,
            };
            if fate != Fate::Arrives {
                return fate;
            }
        }
        Fate::Arrives
    }

    /// One of two, as likely as the other.
    pub(crate) fn either(&mut self) -> bool {
        self.draw(0..2) == 0
    }

    pub(crate) fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.draw(range))
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;
    use crate::random::random;

    #[test]
    fn the_same_seed_has_the_same_plan_and_all_kinds_come() {
        let until = Duration::from_secs(3000);
        let extent = Extent { nodes: 3, vms: 20, twins: 2, until, family: None };
        let plan_of = |seed| plan(&mut random(seed, 1), extent);
        assert_eq!(plan_of(7), plan_of(7));
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..500 {
            let plan = plan_of(seed);
            assert!(plan.len() >= 5);
            kinds.extend(plan.iter().map(|fault| fault.kind.family()));
        }
        assert_eq!(kinds.len(), Family::value_variants().len(), "{kinds:?}");
    }
}
