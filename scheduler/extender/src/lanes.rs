//! How many calls of the API server are under way at a time.
//!
//! After a change of leader every VM needs a fence and an approval within seconds, and each call under way is a connection of its own.
//! So calls wait in lanes: what users wait for does not stand behind what only has to be done at some time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::metrics::Operation;

/// Growth, bindings, and what they need to know: their fences, too.
const URGENT: usize = 256;
/// Other fences: a VM's first request is answered after one.
const FENCES: usize = 64;
/// All else.
const ROUTINE: usize = 32;

/// The lanes, each first come, first served.
#[derive(Debug)]
pub(crate) struct Lanes {
    urgent: Semaphore,
    fences: Semaphore,
    routine: Semaphore,
}

impl Lanes {
    pub(crate) fn new() -> Self {
        Self {
            urgent: Semaphore::new(URGENT),
            fences: Semaphore::new(FENCES),
            routine: Semaphore::new(ROUTINE),
        }
    }

    /// Waits for the turn of a call; it is over when what is returned is dropped.
    pub(crate) async fn turn(&self, operation: Operation) -> Option<SemaphorePermit<'_>> {
        let lane = match operation {
            Operation::Resize | Operation::Bind | Operation::GetPod => &self.urgent,
            Operation::Fence => &self.fences,
            Operation::Approve
            | Operation::EndMigration
            | Operation::Event
            | Operation::Migrate
            | Operation::NoteRequested => &self.routine,
        };
        // Nobody closes a lane.
        lane.acquire().await.ok()
    }

    /// The turn of a call that users wait for, whatever it does.
    pub(crate) async fn urgent_turn(&self) -> Option<SemaphorePermit<'_>> {
        self.urgent.acquire().await.ok()
    }
}

/// What is to be sent about each object: while it waits, what comes later takes its place.
#[derive(Debug)]
pub(crate) struct Newest<T>(Arc<Mutex<HashMap<String, T>>>);

impl<T> Clone for Newest<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Newest<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Newest<T> {
    /// Says whether nothing about the object waits yet.
    pub(crate) fn put(&self, uid: &str, what: T) -> bool {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(uid.to_owned(), what).is_none()
    }

    /// It is sent now.
    pub(crate) fn take(&self, uid: &str) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn growth_does_not_stand_behind_fences_nor_these_behind_approvals() {
        let lanes = Lanes::new();
        let all = |operation, most: usize| -> Vec<_> {
            (0..=most).map_while(|_| lanes.turn(operation).now_or_never()).collect()
        };
        let approvals = all(Operation::Approve, ROUTINE);
        assert_eq!(approvals.len(), ROUTINE);
        assert!(lanes.turn(Operation::NoteRequested).now_or_never().is_none());
        let fences = all(Operation::Fence, FENCES);
        assert_eq!(fences.len(), FENCES);
        assert!(lanes.turn(Operation::Fence).now_or_never().is_none());
        assert!(lanes.urgent_turn().now_or_never().is_some(), "that of a growth");
        assert_eq!(all(Operation::Resize, URGENT).len(), URGENT);
        drop(fences);
        assert!(lanes.turn(Operation::Fence).now_or_never().is_some());
    }

    #[test]
    fn what_waits_is_replaced_by_what_comes_later() {
        let newest = Newest::default();
        assert!(newest.put("a", 1) && newest.put("b", 1));
        assert!(!newest.put("a", 2), "one of it waits already");
        assert_eq!((newest.take("a"), newest.take("a")), (Some(2), None));
        assert!(newest.put("a", 3));
    }
}
