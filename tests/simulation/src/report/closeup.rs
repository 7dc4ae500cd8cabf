//! The liveliest minutes of a VM, with every change: buckets of a day are too long to show how sizes follow a demand.

use super::bucket::Changes;
use crate::quality::{Ends, Stretch};

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// Nanoseconds of a window.
pub(super) const WINDOW: u64 = 15 * 60 * SECOND;

/// What a VM wished for, held and had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Nanoseconds since the origin.
    pub at: u64,
    /// Thousandths of a CPU that were wished for.
    pub cpu_wished: u32,
    /// Thousandths of a CPU that were plugged.
    pub cpu: u32,
    /// Bytes that were wished for.
    pub memory_wished: u64,
    /// Bytes that were held.
    pub held: u64,
    /// Bytes that were plugged.
    pub memory: u64,
}

/// A window of time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Window {
    /// Counted from the origin.
    pub number: u64,
    /// Changes of the size.
    pub resizes: u64,
    /// In the order of time.
    pub points: Vec<Point>,
}

/// Keeps the window with the most changes, and the one that is now.
#[derive(Debug, Clone, Default)]
pub struct Closeup {
    best: Window,
    current: Window,
}

impl Closeup {
    /// The window with the most changes, the first of them.
    #[must_use]
    pub fn best(&self) -> &Window {
        if self.current.resizes > self.best.resizes { &self.current } else { &self.best }
    }

    /// Adds a stretch.
    pub(super) fn advance(&mut self, from: u64, to: u64, stretch: &Stretch, changes: Changes) {
        self.turn(from / WINDOW);
        self.current.resizes += u64::from(changes.cpu) + u64::from(changes.memory);
        let point = |at: u64| point(at, (from, to), stretch);
        self.push(point(from));
        if to / WINDOW != self.current.number {
            self.push(point((self.current.number + 1) * WINDOW - 1));
            // Those that lie within have no change, and nobody would look at them.
            self.turn(to / WINDOW);
            self.push(point(to / WINDOW * WINDOW));
        }
        self.push(point(to));
    }

    fn turn(&mut self, number: u64) {
        if number == self.current.number {
            return;
        }
        let done = std::mem::replace(&mut self.current, Window { number, ..Window::default() });
        if done.resizes > self.best.resizes {
            self.best = done;
        }
    }

    /// A point between two others is left out where it says nothing new, or where all three lie within a second and no size
    /// changes: a guest is looked at many times a second.
    fn push(&mut self, point: Point) {
        let points = &mut self.current.points;
        if let [.., before, last] = points.as_mut_slice() {
            let same = |a: &Point, b: &Point| Point { at: b.at, ..*a } == *b;
            let sizes = |it: &Point| (it.cpu_wished, it.cpu, it.memory);
            let steady = sizes(before) == sizes(last) && sizes(last) == sizes(&point);
            let near = point.at - before.at < SECOND;
            if steady && (near || same(before, last) && same(last, &point)) {
                *last = point;
                return;
            }
        }
        points.push(point);
    }
}

fn point(at: u64, (from, to): (u64, u64), stretch: &Stretch) -> Point {
    let on = |ends: Ends| {
        let (a, b) = (ends.from.0, ends.to.0);
        let bent = u128::from(a.abs_diff(b)) * u128::from(at - from) / u128::from(to - from);
        let bent = u64::try_from(bent).unwrap_or(u64::MAX);
        if b >= a { a.saturating_add(bent) } else { a.saturating_sub(bent) }
    };
    Point {
        at,
        cpu_wished: stretch.cpu_wished.0,
        cpu: stretch.size.cpu.0,
        memory_wished: on(stretch.memory_wished),
        held: on(stretch.memory_held),
        memory: stretch.size.memory.0,
    }
}

#[cfg(test)]
mod tests {
    use guest_units::{Bytes, MilliCpu, Size};

    use super::*;

    #[test]
    fn the_liveliest_window_is_kept_with_its_changes() {
        let stretch = |cpu, held: (u64, u64)| Stretch {
            cpu_wished: MilliCpu(100),
            memory_wished: Ends::steady(Bytes(50)),
            memory_held: Ends { from: Bytes(held.0), to: Bytes(held.1) },
            size: Size::new(MilliCpu(cpu), Bytes(100)),
            available: Bytes(90),
        };
        let (up, none) = (Changes { cpu: true, memory: false }, Changes::default());
        let mut closeup = Closeup::default();
        // Asleep from the first window to the middle of the third.
        let middle = 2 * WINDOW + WINDOW / 2;
        closeup.advance(0, middle, &stretch(250, (0, 1000)), none);
        closeup.advance(middle, middle + 10, &stretch(500, (1000, 1000)), up);
        closeup.advance(middle + 10, middle + 20, &stretch(500, (1000, 1000)), none);
        closeup.advance(middle + 20, 3 * WINDOW + 5, &stretch(500, (1000, 1000)), none);
        let window = closeup.best();
        assert_eq!((window.number, window.resizes), (2, 1));
        let points: Vec<_> =
            window.points.iter().map(|it| (it.at - 2 * WINDOW, it.cpu, it.held)).collect();
        let half = WINDOW / 2;
        let last = (WINDOW - 1, 500, 1000);
        assert_eq!(points, [(0, 250, 800), (half, 250, 1000), (half, 500, 1000), last]);
    }
}
