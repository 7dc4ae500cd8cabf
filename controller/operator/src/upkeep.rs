//! What a VM's task does beside its brain: it keeps the pod's metadata and certificate as they should be, stores
//! the default scaling mode, and measures how long starts take.

use std::sync::Arc;

use controller_api::VirtualMachine;
use controller_lifecycle::{Event, Notice};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::Value;

use crate::error::chain;
use crate::execute::{self, Context};
use crate::pod;
use crate::vm::{Message, RETRY, Task};

impl Task {
    pub(crate) fn store_mode(&mut self) {
        let deleting = self.vm.metadata.deletion_timestamp.is_some();
        if self.vm.spec.cpu_scaling_mode.is_some() || self.storing_mode || deleting {
            return;
        }
        self.storing_mode = true;
        let (context, vm) = (Arc::clone(&self.context), Arc::clone(&self.vm));
        self.spawn(async move {
            if let Err(err) = execute::store_scaling_mode(&context, &vm).await {
                tracing::debug!(vm = vm.name_any(), error = %chain(&err), "scaling mode not stored");
            }
            // Until then the watch has shown the new specification, or it is tried again.
            tokio::time::sleep(RETRY).await;
            Message::ModeStored
        });
    }

    pub(crate) fn sync_metadata(&mut self) {
        let Some(pod) = self.current_pod().cloned() else { return };
        if self.syncing || pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        let Some(patch) = pod::metadata_patch(&self.vm, &pod) else { return };
        self.syncing = true;
        let context = Arc::clone(&self.context);
        self.spawn(async move { synced(&context, &pod, &patch).await });
    }

    pub(crate) fn check_certificate(&self) {
        let Some(pod) = self.current_pod().map(|pod| pod.name_any()) else { return };
        let (context, vm) = (Arc::clone(&self.context), Arc::clone(&self.vm));
        self.context.tasks.spawn(async move {
            let namespace = vm.namespace().unwrap_or_default();
            if let Err(err) = context.certs.ensure_runner(&namespace, &pod, pod::owner(&vm)).await {
                tracing::warn!(vm = vm.name_any(), pod, error = %chain(&err), "certificate not renewed");
            }
        });
    }

    pub(crate) fn measure(&self, notice: &Notice) {
        let Notice::Running(_) = notice else { return };
        let metrics = &self.context.metrics;
        if let Some(seconds) = self.current_pod().and_then(|pod| age_seconds(&pod.metadata)) {
            metrics.runner_to_running.observe(seconds);
        }
        if self.status.restart_count == 0
            && let Some(seconds) = age_seconds(&self.vm.metadata)
        {
            metrics.created_to_running.observe(seconds);
        }
    }
}

async fn synced(context: &Context, pod: &Pod, patch: &Value) -> Message {
    if let Err(err) = execute::sync_metadata(context, pod, patch).await {
        tracing::warn!(pod = pod.name_any(), error = %chain(&err), "metadata of the pod not written");
        tokio::time::sleep(RETRY).await;
    }
    Message::Synced
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
