//! What is to happen, in the order of time: what is put in first comes first among what happens at one moment.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use guest_units::Moment;

/// Happenings by time.
#[derive(Debug, Clone)]
pub(crate) struct Queue<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    count: u64,
}

/// When something was put in, among all that was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn(u64);

#[derive(Debug, Clone)]
struct Entry<T> {
    at_ns: u64,
    count: u64,
    what: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.at_ns, self.count) == (other.at_ns, other.count)
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ns, self.count).cmp(&(other.at_ns, other.count))
    }
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), count: 0 }
    }

    pub(crate) fn push(&mut self, at: Moment, what: T) {
        self.count += 1;
        self.heap.push(Reverse(Entry { at_ns: nanos(at), count: self.count, what }));
    }

    /// What was taken out happens later, and still before all that was put in after it, if at the same moment.
    pub(crate) fn put_off(&mut self, until: Moment, turn: Turn, what: T) {
        self.heap.push(Reverse(Entry { at_ns: nanos(until), count: turn.0, what }));
    }

    /// The next one, if it happens no later than `until`.
    pub(crate) fn pop(&mut self, until: Moment) -> Option<(Moment, Turn, T)> {
        if self.heap.peek().is_none_or(|Reverse(entry)| entry.at_ns > nanos(until)) {
            return None;
        }
        let Reverse(Entry { at_ns, count, what }) = self.heap.pop()?;
        Some((Moment(Duration::from_nanos(at_ns)), Turn(count), what))
    }
}

/// Wide enough for centuries, and compared at once.
fn nanos(at: Moment) -> u64 {
    u64::try_from(at.0.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_come_first_served_at_one_moment() {
        let mut queue = Queue::new();
        for (at, what) in [(2, 'c'), (1, 'a'), (2, 'd'), (1, 'b'), (9, 'z')] {
            queue.push(Moment::from_secs(at), what);
        }
        let order: String =
            std::iter::from_fn(|| queue.pop(Moment::from_secs(2)).map(|(_, _, what)| what))
                .collect();
        assert_eq!(order, "abcd");
    }

    #[test]
    fn what_is_put_off_keeps_its_turn() {
        let mut queue = Queue::new();
        queue.push(Moment::from_secs(1), 'a');
        queue.push(Moment::from_secs(3), 'b');
        let (_, turn, what) = queue.pop(Moment::from_secs(1)).unwrap();
        queue.put_off(Moment::from_secs(3), turn, what);
        let order: String =
            std::iter::from_fn(|| queue.pop(Moment::from_secs(3)).map(|(_, _, what)| what))
                .collect();
        assert_eq!(order, "ab");
    }
}
