//! Which pods there are, and on which node they count.
//!
//! The watch tells, some time after the fact. What is known earlier - a binding of our own, a pod that was looked up - is
//! kept until the watch shows it; when it does not, the API server is asked. Only its word frees anything.

use std::collections::BTreeSet;

use guest_units::Moment;

use crate::event::{Action, Why};
use crate::facts::PodFacts;
use crate::ledger::Ledger;
use crate::pod::PodBook;

impl Ledger {
    pub(crate) fn see_pod(&mut self, facts: PodFacts, unconfirmed: Option<Moment>) {
        let uid = facts.uid.clone();
        if let Some(book) = self.pods.get(&uid) {
            // A pod never loses its node: a copy from before the binding that we made says nothing about it.
            let early = book.facts.node.is_some() && facts.node.is_none() && !facts.finished;
            let late = early || facts.version < book.facts.version;
            let same = book.facts == facts && book.unconfirmed == unconfirmed;
            if late || (same && book.order.is_none()) {
                return;
            }
        }
        self.touch_pod(&uid);
        self.unlink_pod(&uid);
        let mut book = match self.pods.remove(&uid) {
            Some(mut book) => {
                book.see(facts);
                book
            }
            None => PodBook::new(facts),
        };
        (book.unconfirmed, book.looking) = (unconfirmed, false);
        self.link_pod(book);
        self.touch_pod(&uid);
    }

    fn link_pod(&mut self, book: PodBook) {
        let uid = book.facts.uid.clone();
        if let Some(node) = book.counts_on() {
            self.on_node.entry(node.to_owned()).or_default().insert(uid.clone());
        }
        if let Some(runner) = book.facts.runner() {
            self.pods_of.entry(runner.vm_uid.clone()).or_default().insert(uid.clone());
        }
        self.pods.insert(uid, book);
    }

    fn unlink_pod(&mut self, uid: &str) {
        let Some(book) = self.pods.get(uid) else { return };
        let owner = book.facts.runner().map(|runner| runner.vm_uid.clone());
        let places = [(&mut self.on_node, book.facts.node.clone()), (&mut self.pods_of, owner)];
        for (map, key) in places {
            let Some(key) = key else { continue };
            if let Some(set) = map.get_mut(&key) {
                set.remove(uid);
                if set.is_empty() {
                    map.remove(&key);
                }
            }
        }
    }

    pub(crate) fn forget_pod(&mut self, uid: &str) {
        self.touch_pod(uid);
        self.unlink_pod(uid);
        self.pods.remove(uid);
        self.timers.remove(uid);
    }

    /// Asks the API server for a pod that the watch has not confirmed. Only its word frees anything; asked again until it comes.
    pub(crate) fn look_up(&mut self, uid: &str, now: Moment) {
        let again = now + self.settings.confirm_pod;
        let Some(book) = self.pods.get_mut(uid).filter(|book| book.unconfirmed.is_some()) else {
            return;
        };
        (book.unconfirmed, book.looking) = (Some(again), true);
        let (pod, timer) = (book.reference(), book.timer(now));
        self.push(Action::LookUp { pod }, Why::Unconfirmed);
        self.set_timer(uid.to_owned(), timer);
    }

    pub(crate) fn looked_up(&mut self, uid: &str, found: Option<PodFacts>, now: Moment) {
        let Some(facts) = found else {
            self.forget_pod(uid);
            return;
        };
        let known = self.pods.get(uid);
        // A binding that has begun since the question is not answered by it.
        let answers = known.is_some_and(|book| book.looking && facts.version >= book.facts.version);
        let again = Some(now + self.settings.confirm_pod).filter(|_| !answers);
        let unconfirmed = known.map_or(again, |book| book.unconfirmed.and(again));
        if answers && facts.node.is_none() {
            self.touch_pod(uid);
            self.unlink_pod(uid);
            if let Some(mut book) = self.pods.remove(uid) {
                book.facts.node = None;
                self.link_pod(book);
            }
        }
        self.see_pod(facts, unconfirmed);
        let timer = self.pods.get(uid).and_then(|book| book.timer(now));
        self.set_timer(uid.to_owned(), timer);
    }

    pub(crate) fn pods_listed(&mut self, uids: &BTreeSet<String>) {
        // The list may have been made before a pod was bound or looked up.
        let gone = self.pods.iter().filter(|(_, book)| book.unconfirmed.is_none());
        let gone: Vec<String> =
            gone.map(|(uid, _)| uid).filter(|uid| !uids.contains(*uid)).cloned().collect();
        for uid in gone {
            self.forget_pod(&uid);
        }
        if !std::mem::replace(&mut self.listed.pods, true) {
            self.touch_all();
        }
    }
}
