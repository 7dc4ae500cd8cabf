//! What a VM's task does beside its brain: it keeps the pod's metadata and certificate as they should be, stores
//! the default scaling mode, and measures how long starts take.

use std::sync::Arc;
use std::time::Duration;

use controller_api::VirtualMachine;
use controller_lifecycle::{Event, Notice};
use guest_units::Chain;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::Value;

use crate::execute::{self, Context};
use crate::pod;
use crate::vm::{Message, RETRY, Task};

/// The longest pause before a certificate is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What is under way of it.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    syncing: bool,
    storing_mode: bool,
    certifying: bool,
    /// The certificate that was found or made good last.
    good: Option<Certificate>,
    /// After the last failure to make it so.
    pause: Option<Duration>,
}

/// What ended.
#[derive(Debug)]
pub(crate) enum Upkept {
    /// A patch of the pod's metadata.
    Metadata,
    /// Storing the default scaling mode.
    Mode,
    /// A check of the pod's certificate; with the one that is good now, if it did not fail.
    Certificate(Option<Certificate>),
}

/// Whose certificate it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    pod: String,
    authority: String,
}

impl Task {
    pub(crate) fn upkept(&mut self, what: Upkept) {
        match what {
            Upkept::Metadata => {
                self.upkeep.syncing = false;
                self.observe_pod();
                self.sync_metadata();
            }
            Upkept::Mode => {
                self.upkeep.storing_mode = false;
                self.store_mode();
            }
            Upkept::Certificate(good) => {
                self.upkeep.certifying = false;
                self.upkeep.pause = good.is_none().then(|| next_pause(self.upkeep.pause));
                self.upkeep.good = good;
                self.keep_certificate();
            }
        }
    }

    pub(crate) fn store_mode(&mut self) {
        let deleting = self.vm.metadata.deletion_timestamp.is_some();
        if self.vm.spec.cpu_scaling_mode.is_some() || self.upkeep.storing_mode || deleting {
            return;
        }
        self.upkeep.storing_mode = true;
        let (context, vm) = (Arc::clone(&self.context), Arc::clone(&self.vm));
        self.spawn(async move {
            if let Err(err) = execute::store_scaling_mode(&context, &vm).await {
                tracing::debug!(vm = vm.name_any(), error = %Chain(&err), "scaling mode not stored");
            }
            // Until then the watch has shown the new specification, or it is tried again.
            tokio::time::sleep(RETRY).await;
            Message::Upkept(Upkept::Mode)
        });
    }

    pub(crate) fn sync_metadata(&mut self) {
        if let Some(pod) = self.current_pod().cloned() {
            self.sync_metadata_of(&pod);
        }
    }

    /// Also of a pod that the watch does not show: it may have lost the label that the watch selects by.
    pub(crate) fn sync_metadata_of(&mut self, pod: &Pod) {
        if self.upkeep.syncing || pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        let Some(patch) = pod::metadata_patch(&self.vm, pod) else { return };
        self.upkeep.syncing = true;
        let (context, pod) = (Arc::clone(&self.context), pod.clone());
        self.spawn(async move { synced(&context, &pod, &patch).await });
    }

    /// Looks at the pod's certificate again: it may have become old, or somebody has damaged it.
    pub(crate) fn check_certificate(&mut self) {
        self.upkeep.good = None;
        self.keep_certificate();
    }

    /// The current pod has a certificate of the current authority, or it is worked on.
    pub(crate) fn keep_certificate(&mut self) {
        let pod = self.current_pod().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let Some(pod) = pod.map(|pod| pod.name_any()) else { return };
        let authority = self.context.certs.keys().ca_cert().to_owned();
        let wanted = Certificate { pod, authority };
        if self.upkeep.certifying || self.upkeep.good.as_ref() == Some(&wanted) {
            return;
        }
        self.upkeep.certifying = true;
        let (context, vm) = (Arc::clone(&self.context), Arc::clone(&self.vm));
        let pause = next_pause(self.upkeep.pause);
        self.spawn(async move { certified(&context, &vm, wanted, pause).await });
    }

    pub(crate) fn measure(&self, notice: &Notice) {
        let Notice::Running(_) = notice else { return };
        let metrics = &self.context.metrics;
        if let Some(seconds) = self.current_pod().and_then(|pod| age_seconds(&pod.metadata)) {
            metrics.runner_to_running.observe(seconds);
        }
        if self.kept.status.restart_count == 0
            && let Some(seconds) = age_seconds(&self.vm.metadata)
        {
            metrics.created_to_running.observe(seconds);
        }
    }
}

async fn synced(context: &Context, pod: &Pod, patch: &Value) -> Message {
    if let Err(err) = execute::sync_metadata(context, pod, patch).await {
        tracing::warn!(pod = pod.name_any(), error = %Chain(&err), "metadata of the pod not written");
        tokio::time::sleep(RETRY).await;
    }
    Message::Upkept(Upkept::Metadata)
}

async fn certified(
    context: &Context,
    vm: &VirtualMachine,
    wanted: Certificate,
    pause: Duration,
) -> Message {
    let namespace = vm.namespace().unwrap_or_default();
    let permit = context.calls.acquire().await; // all VMs may ask at once
    let ensured = context.certs.ensure_runner(&namespace, &wanted.pod, pod::owner(vm)).await;
    drop(permit);
    if let Err(err) = &ensured {
        let (vm, pod) = (vm.name_any(), &wanted.pod);
        tracing::warn!(vm, pod, error = %Chain(err), "certificate not renewed");
        tokio::time::sleep(pause).await;
    }
    Message::Upkept(Upkept::Certificate(ensured.is_ok().then_some(wanted)))
}

fn next_pause(last: Option<Duration>) -> Duration {
    last.map_or(RETRY, |last| last.saturating_mul(2).min(LONGEST_PAUSE))
}

pub(crate) fn measure_creation(context: &Context, vm: &VirtualMachine, event: &Event) {
    let first = vm.status.as_ref().is_none_or(|status| status.restart_count == 0);
    if first
        && matches!(event, Event::PodObserved(_))
        && let Some(seconds) = age_seconds(&vm.metadata)
    {
        context.metrics.created_to_runner.observe(seconds);
    }
}

fn age_seconds(meta: &kube::api::ObjectMeta) -> Option<f64> {
    let created = meta.creation_timestamp.as_ref()?.0;
    let age = k8s_openapi::jiff::Timestamp::now().duration_since(created);
    Some(age.as_secs_f64().max(0.0))
}
