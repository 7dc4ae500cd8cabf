//! What the runner knows about its VM, for the operator and for metrics: every change has a new revision.

use guest_units::{Bytes, MilliCpu};
use host_protocol::{Generation, GuestLink, Plugged, RunnerState, VmState};
use tokio::sync::watch;

/// The state and everybody who waits for its changes.
#[derive(Debug, Clone)]
pub(crate) struct State(watch::Sender<RunnerState>);

impl State {
    /// The state before QEMU runs.
    pub(crate) fn new(cpu_additions_left: Option<u32>) -> Self {
        Self(watch::Sender::new(RunnerState {
            revision: 1,
            plugged: Plugged { vcpus: 0, cpu: MilliCpu(0), memory: Bytes(0) },
            guest: GuestLink::Waiting,
            vm: VmState::Starting,
            newest: Generation::default(),
            cpu_additions_left,
        }))
    }

    /// The state now.
    pub(crate) fn get(&self) -> RunnerState {
        *self.0.borrow()
    }

    /// Changes it; without a difference nothing happens.
    pub(crate) fn change(&self, change: impl FnOnce(&mut RunnerState)) {
        self.0.send_if_modified(|state| {
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
        let mut changes = self.0.subscribe();
        let found = changes.wait_for(|state| state.revision != known).await;
        found.map_or_else(|_| self.get(), |state| *state)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

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
