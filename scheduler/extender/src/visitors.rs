//! Who holds a connection: agents and kube-scheduler as many as a cluster has, strangers few and not for long.
//!
//! ```text
//!   accepted --> stranger --kube-scheduler's certificate--> kube-scheduler
//!                  |  |-----token of a node's agent-------> agent
//!                  `--STRANGERS_STAY--> closed
//! ```
//! An agent whose VMs have anything to say keeps its connection for ever: in a large cluster there are tens of thousands. If strangers had
//! the same places, any pod could take them all.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Whoever has not shown by then who it is, is disconnected.
pub(crate) const STRANGERS_STAY: Duration = Duration::from_secs(5);
/// By address. The agent of a node whose VMs all ask at once comes with one connection for each.
const STRANGERS: Most = Most { all: 2048, each: STRANGERS_OF_ONE };
pub(crate) const STRANGERS_OF_ONE: usize = 512;
/// By node: three for each of ten thousand nodes.
const AGENTS: Most = Most { all: 32_768, each: 512 };
const SCHEDULERS: Most = Most { all: 256, each: 256 };

/// So many places there are, and so many of them one may have.
#[derive(Debug, Clone, Copy)]
struct Most {
    all: usize,
    each: usize,
}

/// Places that are taken, by who takes them.
#[derive(Debug)]
struct Room<K> {
    most: Most,
    taken: Arc<Mutex<Taken<K>>>,
}

#[derive(Debug)]
struct Taken<K> {
    all: usize,
    by: HashMap<K, usize>,
}

/// A place, until it is dropped.
#[derive(Debug)]
struct Place<K: Eq + Hash> {
    who: K,
    taken: Arc<Mutex<Taken<K>>>,
}

impl<K: Eq + Hash + Clone> Room<K> {
    fn new(most: Most) -> Self {
        Self { most, taken: Arc::new(Mutex::new(Taken { all: 0, by: HashMap::new() })) }
    }

    fn enter(&self, who: K) -> Option<Place<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let has = taken.by.get(&who).copied().unwrap_or(0);
        if taken.all >= self.most.all || has >= self.most.each {
            return None;
        }
        taken.all += 1;
        taken.by.insert(who.clone(), has + 1);
        drop(taken);
        Some(Place { who, taken: Arc::clone(&self.taken) })
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(has) = taken.by.get_mut(&self.who) {
            *has -= 1;
            if *has == 0 {
                taken.by.remove(&self.who);
            }
        }
    }
}

/// All places.
#[derive(Debug)]
pub(crate) struct Visitors {
    strangers: Room<IpAddr>,
    agents: Room<String>,
    schedulers: Room<()>,
}

impl Visitors {
    pub(crate) fn new() -> Self {
        Self {
            strangers: Room::new(STRANGERS),
            agents: Room::new(AGENTS),
            schedulers: Room::new(SCHEDULERS),
        }
    }

    /// Somebody comes. None: there are too many.
    pub(crate) fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Visitor> {
        // A listener of both families sees IPv4 as a part of IPv6.
        let place = Standing::Stranger(self.strangers.enter(from.to_canonical())?);
        Some(Visitor { visitors: Arc::clone(self), standing: Mutex::new(place) })
    }
}

/// Whose place a connection takes.
#[derive(Debug)]
enum Standing {
    Stranger(#[expect(dead_code, reason = "held")] Place<IpAddr>),
    Agent(#[expect(dead_code, reason = "held")] Place<String>),
    Scheduler(#[expect(dead_code, reason = "held")] Place<()>),
}

/// Who is on the other side of a connection, as far as is known.
#[derive(Debug)]
pub(crate) struct Visitor {
    visitors: Arc<Visitors>,
    standing: Mutex<Standing>,
}

/// The connection has no place among those of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

impl Visitor {
    /// The token of a node's agent was good.
    pub(crate) fn is_agent_of(&self, node: &str) -> Result<(), Full> {
        self.becomes(|visitors| visitors.agents.enter(node.to_owned()).map(Standing::Agent))
    }

    /// The certificate is kube-scheduler's.
    pub(crate) fn is_scheduler(&self) -> Result<(), Full> {
        self.becomes(|visitors| visitors.schedulers.enter(()).map(Standing::Scheduler))
    }

    pub(crate) fn is_stranger(&self) -> bool {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*standing, Standing::Stranger(_))
    }

    fn becomes(&self, enter: impl FnOnce(&Visitors) -> Option<Standing>) -> Result<(), Full> {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*standing, Standing::Stranger(_)) {
            *standing = enter(&self.visitors).ok_or(Full)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_the_places_of_all_and_what_is_left_is_free_again() {
        let room = Room::new(Most { all: 3, each: 2 });
        let (one, _two) = (room.enter("a"), room.enter("a"));
        assert!(room.enter("a").is_none(), "it has its share");
        let _other = room.enter("b");
        assert!(room.enter("c").is_none(), "all are taken");
        drop(one);
        assert!(room.enter("c").is_some());
        assert!(room.enter("a").is_some());
    }

    #[test]
    fn whoever_is_known_leaves_the_strangers_places() {
        let visitors = Arc::new(Visitors::new());
        let from = IpAddr::from([10, 0, 0, 1]);
        let mut known = Vec::new();
        for index in 0..2 * STRANGERS.each {
            let visitor = visitors.enter(from).unwrap();
            assert!(visitor.is_stranger());
            visitor.is_agent_of(&format!("n{}", index % 2)).unwrap();
            assert!(!visitor.is_stranger());
            known.push(visitor);
        }
        let strangers: Vec<_> = (0..STRANGERS.each).map(|_| visitors.enter(from)).collect();
        assert!(strangers.iter().all(Option::is_some) && visitors.enter(from).is_none());
        let elsewhere = visitors.enter(IpAddr::from([10, 0, 0, 2])).unwrap();
        assert_eq!(elsewhere.is_agent_of("n0"), Err(Full), "that node has its share");
        assert_eq!(elsewhere.is_scheduler(), Ok(()));
        assert_eq!(elsewhere.is_agent_of("n0"), Ok(()), "it has its place");
    }
}
