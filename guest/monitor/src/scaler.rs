//! The scaler: one task that owns the policy, reads when the policy wants it, and speaks to the host.

mod postgres;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use guest_policy::{Action, Event, Policy, Tuning, Verdict};
use guest_protocol::{
    ErrorBody, ErrorCode, Generation, LinkError, Received, ScalerGuest, ScalerNotify,
    ScalerRequest, ScalerResponse, Text,
};
use guest_units::{Moment, Size};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::ScalerConfig;
use crate::kernel::{self, Reader};
use crate::serve::{self, Peer, chain, refuse_older};

/// Waiting for memory, all threads of the system: 20 ms within 100 ms.
const MEMORY_STALL_USEC: u32 = 20_000;
/// Waiting for CPU, threads of the workload.
const CPU_STALL_USEC: u32 = 40_000;
/// Shorter windows are not seen reliably.
const WINDOW_USEC: u32 = 100_000;

/// Runs until `shutdown`.
pub(crate) async fn run(
    config: ScalerConfig,
    mut peers: mpsc::Receiver<Peer<ScalerGuest>>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let ScalerConfig { listen: _, root, cgroup, postgres, managed } = config;
    let (resized, sizes) = watch::channel(None);
    if let Some(postgres) = postgres {
        let follow = postgres::follow(postgres, managed, sizes);
        let shutdown = shutdown.clone();
        let _task = tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = follow => {}
            }
        });
    }
    let pressure = watch_pressure(&root, &cgroup);
    let mut scaler = Scaler::new(Reader::new(&root, &cgroup), resized);
    let mut peer: Option<Peer<ScalerGuest>> = None;
    loop {
        let wake = scaler.act(peer.as_ref());
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Some(new) = peers.recv() => {
                tracing::info!("host connected");
                peer = Some(new);
                scaler.connected();
            }
            heard = serve::heard(&mut peer) => match heard {
                Some(Received::Request(request, responder)) => {
                    serve::answer(responder, scaler.answer(&request));
                }
                Some(Received::Notify(never)) => match never {},
                None => peer = None,
            },
            () = pressure.notified() => scaler.pressure(),
            () = sleep_until(wake) => {}
        }
    }
}

fn watch_pressure(root: &Path, cgroup: &Path) -> Arc<Notify> {
    let wake = Arc::new(Notify::new());
    let files = [
        (root.join("proc/pressure/memory"), MEMORY_STALL_USEC),
        (cgroup.join("cpu.pressure"), CPU_STALL_USEC),
    ];
    for (path, stall) in files {
        if let Err(err) = kernel::watch(path, stall, WINDOW_USEC, Arc::clone(&wake)) {
            tracing::warn!(error = %err, "pressure is not watched");
        }
    }
    wake
}

struct Scaler {
    policy: Policy,
    reader: Reader,
    origin: Instant,
    /// Newest of this connection.
    newest: Generation,
    resized: watch::Sender<Option<Size>>,
    reading_fails: bool,
}

impl Scaler {
    fn new(reader: Reader, resized: watch::Sender<Option<Size>>) -> Self {
        Self {
            policy: Policy::new(Tuning::default()),
            reader,
            origin: Instant::now(),
            newest: Generation::default(),
            resized,
            reading_fails: false,
        }
    }

    fn now(&self) -> Moment {
        Moment(self.origin.elapsed())
    }

    fn tell(&mut self, event: Event) {
        let now = self.now();
        self.policy.handle(event, now);
    }

    fn pressure(&mut self) {
        self.tell(Event::Pressure);
    }

    /// What was said to the host before was said to another connection, and generations start anew.
    fn connected(&mut self) {
        self.newest = Generation::default();
        self.tell(Event::Connected);
    }

    /// Does what the policy says, and returns when it wants to be asked again.
    fn act(&mut self, peer: Option<&Peer<ScalerGuest>>) -> Instant {
        /// More rounds than any state needs; a limit against a policy that never rests.
        const ROUNDS: usize = 8;
        for _round in 0..ROUNDS {
            let now = self.now();
            let actions = self.policy.next(now);
            if let Some(wake) = actions.wake_at {
                return self.origin + wake.0;
            }
            for (action, why) in actions.start {
                self.policy.handle(Event::Started(action), now);
                match action {
                    Action::Read => self.read(),
                    Action::ReadZones => self.read_zones(),
                    Action::Report(sample) => send(peer, ScalerNotify::Sample(sample)),
                    Action::Ask(ask) => {
                        if peer.is_some() {
                            tracing::info!(
                                seq = ask.seq, want = %ask.want, ?why, "guest asked"
                            );
                        }
                        send(peer, ScalerNotify::Ask(ask));
                    }
                }
            }
        }
        Instant::now() + Duration::from_millis(10)
    }

    fn read(&mut self) {
        match self.reader.read() {
            Ok(reading) => {
                self.reading_fails = false;
                self.tell(Event::Read(reading));
            }
            Err(err) => {
                // Once, not a hundred times a second.
                if !std::mem::replace(&mut self.reading_fails, true) {
                    tracing::error!(error = chain(err), "the system is not measured");
                }
            }
        }
    }

    fn read_zones(&mut self) {
        match self.reader.zones() {
            Ok(zones) => self.tell(Event::Zones(zones)),
            Err(err) => {
                tracing::debug!(error = chain(err), "the zones are not measured");
            }
        }
    }

    fn answer(&mut self, request: &ScalerRequest) -> Result<ScalerResponse, ErrorBody> {
        let (ScalerRequest::MayShrink { generation, .. }
        | ScalerRequest::Resized { generation, .. }) = *request;
        refuse_older(&mut self.newest, generation)?;
        self.read();
        if self.reading_fails {
            return Err(ErrorBody::new(ErrorCode::Failed, "the system is not measured"));
        }
        let counter = generation.counter;
        match *request {
            ScalerRequest::MayShrink { from, to, .. } => {
                let verdict = self.policy.may_shrink(from, to);
                tracing::info!(generation = counter, %from, %to, ?verdict, "shrink judged");
                Ok(match verdict {
                    Verdict::Fine => ScalerResponse::Fine {},
                    Verdict::Veto { least, reason } => {
                        ScalerResponse::Veto { least, reason: Text::new(reason.text()) }
                    }
                })
            }
            ScalerRequest::Resized { plugged, .. } => {
                self.tell(Event::Plugged(plugged));
                self.resized.send_replace(Some(plugged));
                tracing::info!(generation = counter, %plugged, "guest confirmed");
                Ok(ScalerResponse::Confirmed {
                    cpus_online: self.cpus_online(),
                    memory_total: self.policy.sample().signals.memory_total,
                })
            }
        }
    }

    fn cpus_online(&mut self) -> u32 {
        self.reader.read().map_or(0, |reading| reading.cpu.online)
    }
}

fn send(peer: Option<&Peer<ScalerGuest>>, notify: ScalerNotify) {
    let Some(peer) = peer else { return };
    match peer.link.notify(notify) {
        Ok(()) | Err(LinkError::Closed) => {} // the end of the connection is seen elsewhere
        Err(err) => tracing::debug!(reason = err.label(), "the host does not keep up"),
    }
}

#[cfg(test)]
mod tests;
