//! Follows the state of one pod's runner by long polling, and tells the VM's task of every change.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use controller_lifecycle::{Event, Plugged};
use guest_units::Chain;
use host_protocol::{Generation, GuestLink, RunnerState, VmState};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::execute::Context;
use crate::runner_client::RunnerClient;
use crate::term::Term;
use crate::vm::Message;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A new connection at least this often, so that renewed certificates are used.
const RECONNECT: Duration = Duration::from_secs(3600);

/// The first order of a VM that may still come; its task keeps it up to date.
pub(crate) type FirstOrder = Arc<AtomicU64>;

/// Runs until `stop`, or until nobody listens.
pub(crate) async fn follow(
    context: Arc<Context>,
    pod: String,
    ip: IpAddr,
    first: FirstOrder,
    report: mpsc::Sender<Message>,
    stop: CancellationToken,
) {
    let mut pause = FIRST_PAUSE;
    while !stop.is_cancelled() {
        let client = RunnerClient::new(&pod, ip, context.certs.keys(), context.tasks.clone());
        let told = tokio::select! {
            told = poll(client, &context.term, &pod, &first, &report) => told,
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
    term: &Term,
    pod: &str,
    first: &FirstOrder,
    report: &mpsc::Sender<Message>,
) -> Poll {
    let begun = tokio::time::Instant::now();
    let mut known = None;
    while begun.elapsed() < RECONNECT {
        let first = Generation { epoch: term.epoch, counter: first.load(Ordering::Relaxed) };
        let state = match client.state(first, known).await {
            Ok(state) => state,
            Err(err) => {
                tracing::debug!(error = %Chain(&err), "runner does not answer");
                return Poll::Lost { spoke: known.is_some() };
            }
        };
        known = Some(state.revision);
        if state.newest.epoch > term.epoch {
            // It refuses this leader's orders, and not those of the newer one: nothing can be concluded from it.
            term.saw(state.newest.epoch);
            continue;
        }
        // A runner whose QEMU does not answer yet has nothing to say about sizes.
        if state.vm != VmState::Starting {
            let message =
                Message::Runner { pod: pod.to_owned(), event: observed(&state, first.counter) };
            if report.send(message).await.is_err() {
                return Poll::NobodyListens;
            }
        }
    }
    Poll::Reconnect
}

fn observed(state: &RunnerState, first: u64) -> Event {
    Event::RunnerObserved {
        first,
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
    use crate::runner_client::tests::client_of;

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
            let Event::RunnerObserved { guest, .. } = observed(&state(link, vm), 1) else {
                panic!("no state")
            };
            assert_eq!(guest, expected);
        }
    }

    #[tokio::test]
    async fn a_runner_that_obeys_a_newer_leader_is_not_believed() {
        for (newest, believed) in [(3, true), (4, false)] {
            let client = client_of(newest).await;
            let term = Term::new(3, std::time::Instant::now(), Duration::from_secs(60));
            let (first, (report, mut told)) = (FirstOrder::new(7.into()), mpsc::channel(1));
            let seen = async {
                loop {
                    match told.try_recv() {
                        Ok(Message::Runner { event, .. }) => break Some(event),
                        _ if term.outrun_by().is_some() => break None,
                        _ => tokio::time::sleep(Duration::from_millis(1)).await,
                    }
                }
            };
            let seen = tokio::select! {
                _ = poll(client, &term, "vm-abc", &first, &report) => panic!("it answers"),
                seen = tokio::time::timeout(Duration::from_secs(20), seen) => seen.unwrap(),
            };
            assert_eq!(seen.is_some(), believed, "{seen:?}");
            if let Some(event) = seen {
                assert!(matches!(event, Event::RunnerObserved { first: 7, .. }), "{event:?}");
            }
            assert_eq!(term.outrun_by(), (!believed).then_some(4));
        }
    }
}
