//! What the runner knows about its VM, for the operator and for metrics: every change has a new revision.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use guest_units::{Bytes, MilliCpu};
use host_protocol::{Generation, GuestLink, Plugged, RunnerState, VmState};
use tokio::sync::watch;

/// The state and everybody who waits for its changes.
#[derive(Debug, Clone)]
pub(crate) struct State {
    shown: watch::Sender<RunnerState>,
    /// Orders that run.
    running: Arc<AtomicUsize>,
}

/// An order runs as long as this lives.
#[derive(Debug)]
pub(crate) struct Running(State);

impl Drop for Running {
    fn drop(&mut self) {
        let others = self.0.running.fetch_sub(1, Ordering::SeqCst) - 1;
        if others == 0 {
            self.0.show_busy();
        }
    }
}

impl State {
    /// The state before QEMU runs.
    pub(crate) fn new(cpu_additions_left: Option<u32>) -> Self {
        let shown = watch::Sender::new(RunnerState {
            revision: 1,
            plugged: Plugged { vcpus: 0, cpu: MilliCpu(0), memory: Bytes(0) },
            guest: GuestLink::Waiting,
            vm: VmState::Starting,
            newest: Generation::default(),
            busy: false,
            cpu_additions_left,
        });
        Self { shown, running: Arc::default() }
    }

    /// Shows that an order runs until the answer is dropped.
    pub(crate) fn busy(&self) -> Running {
        self.running.fetch_add(1, Ordering::SeqCst);
        self.show_busy();
        Running(self.clone())
    }

    /// Reads the count under the lock of what is shown: whoever comes last shows the truth.
    fn show_busy(&self) {
        self.change(|state| state.busy = self.running.load(Ordering::SeqCst) > 0);
    }

    /// The state now.
    pub(crate) fn get(&self) -> RunnerState {
        *self.shown.borrow()
    }

    /// Changes it; without a difference nothing happens.
    pub(crate) fn change(&self, change: impl FnOnce(&mut RunnerState)) {
        self.shown.send_if_modified(|state| {
            let before = *state;
            change(state);
            state.revision = before.revision;
            let changed = *state != before;
            if changed {
                state.revision += 1;
            }
            changed
        });
    }

    /// Waits until the revision is not `known`.
    pub(crate) async fn other_than(&self, known: u64) -> RunnerState {
        let mut changes = self.shown.subscribe();
        let found = changes.wait_for(|state| state.revision != known).await;
        found.map_or_else(|_| self.get(), |state| *state)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_is_busy_while_any_order_runs() {
        let state = State::new(None);
        let (one, two) = (state.busy(), state.busy());
        drop(one);
        assert!(state.get().busy);
        drop(two);
        assert!(!state.get().busy);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_difference_is_a_change() {
        let state = State::new(None);
        let first = state.get().revision;
        state.change(|state| state.revision = 99);
        state.change(|state| state.vm = VmState::Starting);
        assert_eq!(state.get().revision, first);
        let silent = tokio::time::timeout(Duration::from_secs(20), state.other_than(first));
        assert!(silent.await.is_err());

        let changed = state.clone();
        let waiting = state.other_than(first);
        changed.change(|state| state.vm = VmState::Running);
        let seen = waiting.await;
        assert_eq!((seen.vm, seen.revision), (VmState::Running, first + 1));
        assert_eq!(state.other_than(0).await, seen);
    }
}
