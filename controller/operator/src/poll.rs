//! Follows the state of one pod's runner by long polling, and tells the VM's task of every change.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use controller_lifecycle::{Event, Plugged};
use host_protocol::{GuestLink, RunnerState, VmState};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::chain;
use crate::execute::Context;
use crate::runner_client::RunnerClient;
use crate::vm::Message;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A new connection at least this often, so that renewed certificates are used.
const RECONNECT: Duration = Duration::from_secs(3600);

/// Runs until `stop`, or until nobody listens.
pub(crate) async fn follow(
    context: Arc<Context>,
    pod: String,
    ip: IpAddr,
    report: mpsc::Sender<Message>,
    stop: CancellationToken,
) {
    let mut pause = FIRST_PAUSE;
    while !stop.is_cancelled() {
        let client = RunnerClient::new(&pod, ip, context.certs.keys(), context.tasks.clone());
        let told = tokio::select! {
            told = poll(client, context.term.epoch, &pod, &report) => told,
            () = stop.cancelled() => return,
        };
        match told {
            Poll::NobodyListens => return,
            Poll::Reconnect => {
                pause = FIRST_PAUSE;
                continue;
            }
            Poll::Lost { spoke } => {
                if spoke {
                    pause = FIRST_PAUSE;
                }
                if report
                    .send(Message::Runner { pod: pod.clone(), event: Event::RunnerLost })
                    .await
                    .is_err()
                {
                    return;
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
}

enum Poll {
    NobodyListens,
    Reconnect,
    Lost { spoke: bool },
}

async fn poll(
    mut client: RunnerClient,
    epoch: u64,
    pod: &str,
    report: &mpsc::Sender<Message>,
) -> Poll {
    let begun = tokio::time::Instant::now();
    let mut known = None;
    while begun.elapsed() < RECONNECT {
        let state = match client.state(epoch, known).await {
            Ok(state) => state,
            Err(err) => {
                tracing::debug!(error = %chain(&err), "runner does not answer");
                return Poll::Lost { spoke: known.is_some() };
            }
        };
        known = Some(state.revision);
        // A runner whose QEMU does not answer yet has nothing to say about sizes.
        if state.vm != VmState::Starting {
            let message = Message::Runner { pod: pod.to_owned(), event: observed(&state) };
            if report.send(message).await.is_err() {
                return Poll::NobodyListens;
            }
        }
    }
    Poll::Reconnect
}

fn observed(state: &RunnerState) -> Event {
    Event::RunnerObserved {
        revision: state.revision,
        busy: state.busy,
        plugged: plugged(state.plugged),
        guest: state.guest == GuestLink::Connected && state.vm == VmState::Running,
    }
}

/// What the runner shows, in the brain's words.
pub(crate) fn plugged(shown: host_protocol::Plugged) -> Plugged {
    let host_protocol::Plugged { vcpus, cpu, memory } = shown;
    Plugged { vcpus, cpu, memory }
}

#[cfg(test)]
mod tests {
    use guest_units::{Bytes, MilliCpu};
    use host_protocol::Generation;

    use super::*;

    #[test]
    fn orders_can_be_carried_out_only_with_a_running_guest_that_answers() {
        let state = |guest, vm| RunnerState {
            revision: 1,
            plugged: host_protocol::Plugged { vcpus: 1, cpu: MilliCpu(250), memory: Bytes(1) },
            guest,
            vm,
            newest: Generation::default(),
            busy: false,
            cpu_additions_left: None,
        };
        for (link, vm, expected) in [
            (GuestLink::Connected, VmState::Running, true),
            (GuestLink::Connected, VmState::Stopping, false),
            (GuestLink::Waiting, VmState::Running, false),
        ] {
            let Event::RunnerObserved { guest, .. } = observed(&state(link, vm)) else {
                panic!("no state")
            };
            assert_eq!(guest, expected);
        }
    }
}
