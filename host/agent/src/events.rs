//! Kubernetes Events on VMs: what changed and what was refused. Bounded in rate for each VM and reason; one task
//! writes them, and what does not fit its queue is dropped: an Event is a courtesy, never a duty.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use controller_api::VirtualMachine;
use guest_units::Chain;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Client, Resource};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::view::VmKey;

/// Events that wait for the writer.
const QUEUE: usize = 256;
/// Events of one reason at once, for one VM.
const BURST: u32 = 5;
/// One more of a reason after this.
const REFILL: Duration = Duration::from_secs(10);
/// Longest note that the API server accepts is 1 kB.
const NOTE_CHARS: usize = 900;
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// What an Event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    Scaled,
    ScaleDenied,
    ShrinkVetoed,
    InvalidScalingConfig,
}

impl Reason {
    fn label(self) -> &'static str {
        match self {
            Self::Scaled => "Scaled",
            Self::ScaleDenied => "ScaleDenied",
            Self::ShrinkVetoed => "ShrinkVetoed",
            Self::InvalidScalingConfig => "InvalidScalingConfig",
        }
    }

    fn kind(self) -> EventType {
        match self {
            Self::Scaled => EventType::Normal,
            Self::ScaleDenied | Self::ShrinkVetoed | Self::InvalidScalingConfig => {
                EventType::Warning
            }
        }
    }
}

struct Note {
    vm: VmKey,
    uid: String,
    reason: Reason,
    text: String,
}

/// Takes Events from everywhere.
#[derive(Debug, Clone)]
pub(crate) struct Publisher(mpsc::Sender<Note>);

/// Writes them.
pub(crate) struct Writer(mpsc::Receiver<Note>);

pub(crate) fn channel() -> (Publisher, Writer) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (Publisher(sender), Writer(receiver))
}

impl Publisher {
    pub(crate) fn publish(&self, vm: &VmKey, uid: &str, reason: Reason, text: &str) {
        let text = text.chars().take(NOTE_CHARS).collect();
        let note = Note { vm: vm.clone(), uid: uid.to_owned(), reason, text };
        if self.0.try_send(note).is_err() {
            tracing::debug!(reason = reason.label(), "event dropped");
        }
    }
}

impl Writer {
    pub(crate) async fn run(mut self, client: Client, stop: CancellationToken) {
        let recorder = Recorder::new(client, "autoscaler-agent".into());
        loop {
            let note = tokio::select! {
                () = stop.cancelled() => return,
                note = self.0.recv() => note,
            };
            let Some(Note { vm, uid, reason, text }) = note else { return };
            let event = Event {
                type_: reason.kind(),
                reason: reason.label().to_owned(),
                note: Some(text),
                action: "Scale".to_owned(),
                secondary: None,
            };
            let reference = ObjectReference {
                api_version: Some(VirtualMachine::api_version(&()).into_owned()),
                kind: Some(VirtualMachine::kind(&()).into_owned()),
                namespace: Some(vm.namespace),
                name: Some(vm.name),
                uid: Some(uid),
                ..ObjectReference::default()
            };
            match timeout(WRITE_LIMIT, recorder.publish(&event, &reference)).await {
                Ok(Ok(())) => {}
                Ok(Err(err)) => tracing::debug!(error = %Chain(&err), "event not written"),
                Err(_) => tracing::debug!("event not written in time"),
            }
        }
    }
}

/// Bounds the Events of one VM.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    buckets: HashMap<Reason, (u32, Instant)>,
}

impl Limiter {
    pub(crate) fn allows(&mut self, reason: Reason, now: Instant) -> bool {
        let (left, since) = self.buckets.entry(reason).or_insert((BURST, now));
        let refills = now.saturating_duration_since(*since).as_secs() / REFILL.as_secs();
        if refills > 0 {
            *left = left.saturating_add(u32::try_from(refills).unwrap_or(BURST)).min(BURST);
            *since = now;
        }
        let allowed = *left > 0;
        *left = left.saturating_sub(1);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_one_for_each_refill() {
        let mut limiter = Limiter::default();
        let start = Instant::now();
        let passed = (0..20).filter(|_| limiter.allows(Reason::ScaleDenied, start)).count();
        assert_eq!(passed, 5);
        assert!(limiter.allows(Reason::Scaled, start), "reasons do not share a bucket");
        assert!(limiter.allows(Reason::ScaleDenied, start + REFILL));
        assert!(!limiter.allows(Reason::ScaleDenied, start + REFILL));
    }
}
