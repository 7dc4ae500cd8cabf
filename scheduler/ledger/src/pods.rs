//! Which pods there are, and on which node they count.
//!
//! The watch tells, some time after the fact. What is known earlier - a binding of our own, a pod that was looked up - is
//! kept until the watch shows it; when it does not, the API server is asked. Only its word frees anything.

use std::collections::BTreeSet;

use guest_units::Moment;

use crate::books::PodSlot;
use crate::event::{Action, Why};
use crate::facts::PodFacts;
use crate::ledger::Ledger;
use crate::pod::PodBook;
use crate::slab::PodId;

impl Ledger {
    /// `placing`: this ledger has just chosen the node.
    pub(crate) fn see_pod(&mut self, facts: PodFacts, unconfirmed: Option<Moment>, placing: bool) {
        // Whoever else has bound it leads, or did, and may have done more since.
        let theirs = self.epoch.is_some() && !placing && facts.node.is_some();
        let Some(pod) = self.pods.find(&facts.uid) else {
            let uid = facts.uid.clone();
            let mut book = PodBook::new(facts);
            book.unconfirmed = unconfirmed;
            if theirs {
                book.doubt();
            }
            let pod = self.pods.find_or_insert(&uid, |id| PodSlot::new(id, book));
            self.link_pod(pod);
            self.touch_pod(pod);
            return;
        };
        let Some(book) = self.pod(pod) else { return };
        // A pod never loses its node: a copy from before the binding that we made says nothing about it.
        let early = book.facts.node.is_some() && facts.node.is_none() && !facts.finished;
        let late = early || facts.version < book.facts.version;
        let same = book.facts == facts && book.unconfirmed == unconfirmed;
        if late || (same && book.order.is_none()) {
            return;
        }
        let stays = stays(&book.facts, &facts);
        let theirs = theirs && facts.node != book.facts.node;
        if !stays {
            self.touch_pod(pod);
            self.unlink_pod(pod);
        }
        if let Some(slot) = self.pods.get_mut(pod) {
            slot.book.see(facts);
            (slot.book.unconfirmed, slot.book.looking) = (unconfirmed, false);
            if theirs {
                slot.book.doubt();
            }
        }
        if stays {
            self.recount_pod(pod);
        } else {
            self.link_pod(pod);
        }
        self.touch_pod(pod);
    }

    pub(crate) fn forget_pod(&mut self, pod: PodId) {
        self.touch_pod(pod);
        self.unlink_pod(pod);
        self.set_pod_timer(pod, None);
        self.pods.remove(pod);
        self.note_call(pod);
    }

    /// Asks the API server for a pod that the watch has not confirmed. Only its word frees anything; asked again until it comes.
    pub(crate) fn look_up(&mut self, pod: PodId, now: Moment) {
        let Some(slot) = self.pods.get_mut(pod) else { return };
        let book = &mut slot.book;
        if book.unconfirmed.is_none() {
            return;
        }
        (book.unconfirmed, book.looking) = (Some(now + self.settings.confirm_pod), true);
        let (reference, timer) = (book.reference(), book.timer(now));
        self.push(Action::LookUp { pod: reference }, Why::Unconfirmed);
        self.set_pod_timer(pod, timer);
    }

    pub(crate) fn looked_up(&mut self, uid: &str, found: Option<PodFacts>, now: Moment) {
        let pod = self.pods.find(uid);
        let Some(facts) = found else {
            pod.into_iter().for_each(|pod| self.forget_pod(pod));
            return;
        };
        let known = pod.and_then(|pod| self.pod(pod));
        // A binding that has begun since the question is not answered by it.
        let answers = known.is_some_and(|book| book.looking && facts.version >= book.facts.version);
        let again = Some(now + self.settings.confirm_pod).filter(|_| !answers);
        let unconfirmed = known.map_or(again, |book| book.unconfirmed.and(again));
        if let Some(pod) = pod.filter(|_| answers && facts.node.is_none()) {
            self.touch_pod(pod);
            self.unlink_pod(pod);
            if let Some(slot) = self.pods.get_mut(pod) {
                slot.book.facts.node = None;
            }
            self.link_pod(pod);
        }
        self.see_pod(facts, unconfirmed, false);
        let Some(pod) = self.pods.find(uid) else { return };
        let timer = self.pod(pod).and_then(|book| book.timer(now));
        self.set_pod_timer(pod, timer);
    }

    pub(crate) fn pods_listed(&mut self, uids: &BTreeSet<String>) {
        // The list may have been made before a pod was bound or looked up.
        let gone =
            |uid: &str, slot: &PodSlot| slot.book.unconfirmed.is_none() && !uids.contains(uid);
        for pod in self.pods.by_name(gone) {
            self.forget_pod(pod);
        }
        if !std::mem::replace(&mut self.listed.pods, true) {
            self.touch_all();
        }
    }
}

/// Whether a pod counts where it did, for whom it did.
fn stays(old: &PodFacts, new: &PodFacts) -> bool {
    (&old.node, old.finished, &old.namespace, &old.name)
        == (&new.node, new.finished, &new.namespace, &new.name)
        && old.runner().map(|runner| &runner.vm_uid) == new.runner().map(|runner| &runner.vm_uid)
}
