//! Carries out what the brain says: each action becomes calls to the API server and ends in an event. No choices are
//! made here. Orders to the runner are in `order`.

use std::time::{Duration, Instant};

use controller_api::{VirtualMachine, VirtualMachineStatus};
use controller_lifecycle::Event;
use guest_units::Chain;
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::events::Recorder;
use kube::{Client, Resource as _, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::task::TaskTracker;

use crate::certs::{Certs, runner_secret};
use crate::config::{Acceleration, Config};
use crate::metrics::Metrics;
use crate::observe::{Clock, facts};
use crate::pod::{self, PodSettings};
use crate::status::Kept;
use crate::term::Term;

/// A call to the API server that takes longer counts as failed.
const CALL_DEADLINE: Duration = Duration::from_secs(15);
/// How long it is taken as known which devices the nodes have.
const DEVICES_TTL: Duration = Duration::from_secs(30);
/// Name under which fields are written.
/// So often a status is sent, each time with what was found to have changed of the rest.
const STATUS_TRIES: u32 = 4;
pub(crate) const FIELD_MANAGER: &str = "neonvm-controller";

/// What all VMs share.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) config: Config,
    pub(crate) certs: Certs,
    pub(crate) metrics: Metrics,
    pub(crate) recorder: Recorder,
    pub(crate) tasks: TaskTracker,
    /// This leadership.
    pub(crate) term: Term,
    /// Calls to the API server at the same time.
    pub(crate) calls: Semaphore,
    /// Whether any node has KVM, and when that was found.
    pub(crate) kvm: Mutex<Option<(Instant, bool)>>,
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecuteError {
    #[error("{what}")]
    Call { what: &'static str, source: kube::Error },
    #[error("{what}: no answer within {limit:?}")]
    Deadline { what: &'static str, limit: Duration },
    #[error("build the pod")]
    Pod { source: serde_json::Error },
    #[error("make the pod's certificate")]
    Certs { source: crate::certs::CertsError },
    #[error("{what}: the leadership may be another's by now")]
    NotLeading { what: &'static str },
    #[error("pod {name} exists and belongs to somebody else")]
    Foreign { name: String },
    #[error("the VM was changed meanwhile")]
    Raced { found: Box<Kept> },
}

impl ExecuteError {
    /// The label for metrics.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Call { source: kube::Error::Api(status), .. } if status.code == 409 => "conflict",
            Self::Raced { .. } => "conflict",
            _ => "failure",
        }
    }
}

impl Context {
    /// One call to the API server: limited in number and time, measured.
    pub(crate) async fn call<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ExecuteError> {
        let _permit = self.calls.acquire().await;
        if !self.term.holds() {
            return Err(ExecuteError::NotLeading { what });
        }
        let begun = Instant::now();
        let limit = CALL_DEADLINE;
        let result = match tokio::time::timeout(limit, call).await {
            Ok(result) => result.map_err(|source| ExecuteError::Call { what, source }),
            Err(_) => Err(ExecuteError::Deadline { what, limit }),
        };
        let outcome = result.as_ref().map_or_else(ExecuteError::outcome, |_| "success");
        self.metrics.reconciled(outcome, begun.elapsed().as_secs_f64());
        result
    }

    /// What is the same for all pods, as of now.
    pub(crate) async fn pod_settings(&self) -> PodSettings {
        PodSettings {
            runner_image: self.config.runner_image.clone(),
            cpu_scaling: self.config.cpu_scaling,
            kvm: match self.config.acceleration {
                Acceleration::Required => true,
                Acceleration::Off => false,
                Acceleration::Auto => self.any_node_has_kvm().await,
            },
        }
    }

    async fn any_node_has_kvm(&self) -> bool {
        let mut known = self.kvm.lock().await;
        if let Some((when, has)) = *known
            && when.elapsed() < DEVICES_TTL
        {
            return has;
        }
        let api = Api::<Node>::all(self.client.clone());
        let listed = self.call("list nodes", api.list(&ListParams::default())).await;
        let has = match listed {
            Ok(nodes) => nodes.items.iter().any(has_kvm),
            Err(err) => {
                tracing::warn!(error = %Chain(&err), "devices of the nodes unknown");
                known.is_some_and(|(_, has)| has)
            }
        };
        *known = Some((Instant::now(), has));
        has
    }
}

fn has_kvm(node: &Node) -> bool {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let kvm = allocatable.and_then(|all| all.get(controller_api::names::RESOURCE_KVM));
    kvm.is_some_and(|count| count.0 != "0")
}

/// Creates the pod's certificate and the pod.
pub(crate) async fn create_pod(
    context: &Context,
    vm: &VirtualMachine,
    name: &str,
    clock: Clock,
) -> Event {
    match try_create(context, vm, name).await {
        Ok(pod) => {
            let facts = facts(&pod, clock.now(), Timestamp::now());
            Event::PodObserved(controller_lifecycle::Pod::Present(facts))
        }
        Err(err) => {
            let error = Chain(&err).to_string();
            tracing::warn!(
                vm = vm.name_any(),
                namespace = vm.namespace(),
                pod = name,
                error,
                "pod not created"
            );
            Event::CreateFailed(error)
        }
    }
}

async fn try_create(
    context: &Context,
    vm: &VirtualMachine,
    name: &str,
) -> Result<Pod, ExecuteError> {
    let namespace = vm.namespace().unwrap_or_default();
    let certs = context.certs.ensure_runner(&namespace, name, pod::owner(vm));
    certs.await.map_err(|source| ExecuteError::Certs { source })?;
    let built = pod::build(vm, name, &context.pod_settings().await)
        .map_err(|source| ExecuteError::Pod { source })?;
    let api = Api::<Pod>::namespaced(context.client.clone(), &namespace);
    match context.call("create the pod", api.create(&PostParams::default(), &built)).await {
        // An earlier attempt got through although its answer did not.
        Err(ExecuteError::Call { source: kube::Error::Api(status), .. })
            if status.reason == "AlreadyExists" =>
        {
            let pod = context.call("read the pod", api.get(name)).await?;
            let ours = pod
                .owner_references()
                .iter()
                .any(|owner| Some(&owner.uid) == vm.metadata.uid.as_ref());
            if ours { Ok(pod) } else { Err(ExecuteError::Foreign { name: name.to_owned() }) }
        }
        created => created,
    }
}

/// Deletes the pod; with `release`, takes the VM off the pod's owners.
pub(crate) async fn delete_pod(
    context: &Context,
    vm: &VirtualMachine,
    name: &str,
    release: bool,
) -> Event {
    let namespace = vm.namespace().unwrap_or_default();
    let pods = Api::<Pod>::namespaced(context.client.clone(), &namespace);
    let params = DeleteParams::default();
    let result = async {
        gone_is_fine(context.call("delete the pod", pods.delete(name, &params)).await)?;
        if release {
            let patch = json!({"metadata": {"ownerReferences": null}});
            let patch = Patch::Merge(&patch);
            let released = context
                .call("release the pod", pods.patch(name, &PatchParams::default(), &patch))
                .await;
            gone_is_fine(released)?;
        } else {
            // A pod that is released is forgotten afterwards, and its certificate with it.
            remove_certificate(context, vm, name).await;
        }
        Ok::<(), ExecuteError>(())
    };
    match result.await {
        Ok(()) => Event::PodDeleted(name.to_owned()),
        Err(err) => {
            let error = Chain(&err).to_string();
            tracing::warn!(vm = vm.name_any(), namespace, pod = name, error, "pod not deleted");
            Event::DeleteFailed(name.to_owned())
        }
    }
}

/// Deletes the certificate of a pod that is done with. If that fails, it goes with the VM.
pub(crate) async fn remove_certificate(context: &Context, vm: &VirtualMachine, pod: &str) {
    let namespace = vm.namespace().unwrap_or_default();
    let secrets = Api::<Secret>::namespaced(context.client.clone(), &namespace);
    let (name, params) = (runner_secret(pod), DeleteParams::default());
    let deleted = context.call("delete the certificate", secrets.delete(&name, &params)).await;
    if let Err(err) = gone_is_fine(deleted) {
        tracing::warn!(vm = vm.name_any(), namespace, pod, error = %Chain(&err), "certificate not deleted");
    }
}

fn gone_is_fine<T>(result: Result<T, ExecuteError>) -> Result<(), ExecuteError> {
    match result {
        Err(ExecuteError::Call { source: kube::Error::Api(status), .. }) if status.code == 404 => {
            Ok(())
        }
        other => other.map(|_| ()),
    }
}

/// Stores the status of the VM if what is stored is still what this process stored last: what a leader before it sent, or what it
/// gave up waiting for itself, may arrive late and must not undo what came after.
pub(crate) async fn write_status(
    context: &Context,
    vm: &VirtualMachine,
    kept: &Kept,
    status: &VirtualMachineStatus,
) -> Result<Kept, ExecuteError> {
    let what = "write the status";
    let (name, namespace) = (vm.name_any(), vm.namespace().unwrap_or_default());
    let api = Api::<VirtualMachine>::namespaced(context.client.clone(), &namespace);
    let mut version = kept.newest_version(vm);
    for _ in 0..STATUS_TRIES {
        // A VM made again under the same name is another one.
        let operations = json!([
            {"op": "test", "path": "/metadata/uid", "value": vm.metadata.uid},
            {"op": "test", "path": "/metadata/resourceVersion", "value": version},
            {"op": "add", "path": "/status", "value": status},
        ]);
        let operations = serde_json::from_value(operations).map_err(|source| {
            ExecuteError::Call { what, source: kube::Error::SerdeError(source) }
        })?;
        let patch = Patch::<()>::Json(operations);
        let err = match context.call(what, api.patch_status(&name, &field_manager(), &patch)).await
        {
            Ok(written) => return Ok(Kept::of(&written)),
            Err(err) => err,
        };
        if !matches!(&err, ExecuteError::Call { source: kube::Error::Api(status), .. }
            if matches!(status.code, 409 | 422))
        {
            return Err(err);
        }
        // Mostly somebody has changed the specification: that is no obstacle.
        let found = context.call("read the VM", api.get(&name)).await?;
        let found = (found.metadata.uid == vm.metadata.uid).then(|| Kept::of(&found));
        match found.filter(|found| found.version != version) {
            Some(found) if found.status == kept.status => version = found.version,
            Some(found) => return Err(ExecuteError::Raced { found: Box::new(found) }),
            None => return Err(err),
        }
    }
    Err(ExecuteError::Raced { found: Box::new(Kept { version, ..kept.clone() }) })
}

/// Stores the default of `cpuScalingMode` in a specification that does not say.
pub(crate) async fn store_scaling_mode(
    context: &Context,
    vm: &VirtualMachine,
) -> Result<(), ExecuteError> {
    let api = Api::<VirtualMachine>::namespaced(
        context.client.clone(),
        &vm.namespace().unwrap_or_default(),
    );
    let patch = json!({
        "metadata": {"uid": vm.metadata.uid, "resourceVersion": vm.metadata.resource_version},
        "spec": {"cpuScalingMode": context.config.cpu_scaling},
    });
    let (name, params, patch) = (vm.name_any(), field_manager(), Patch::Merge(&patch));
    gone_is_fine(context.call("store cpuScalingMode", api.patch(&name, &params, &patch)).await)
}

/// Makes the pod's labels and annotations those of its VM.
pub(crate) async fn sync_metadata(
    context: &Context,
    pod: &Pod,
    patch: &Value,
) -> Result<(), ExecuteError> {
    let api = Api::<Pod>::namespaced(context.client.clone(), &pod.namespace().unwrap_or_default());
    let (name, params, patch) = (pod.name_any(), field_manager(), Patch::Merge(patch));
    gone_is_fine(context.call("patch the pod's metadata", api.patch(&name, &params, &patch)).await)
}

fn field_manager() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

/// The pod as the API server has it now, whatever the watch has shown so far.
pub(crate) async fn read_pod(
    context: &Context,
    vm: &VirtualMachine,
    name: &str,
) -> Result<Option<Pod>, ExecuteError> {
    let api = Api::<Pod>::namespaced(context.client.clone(), &vm.namespace().unwrap_or_default());
    context.call("read the pod", api.get_opt(name)).await
}

/// Tells people.
pub(crate) async fn tell(
    context: &Context,
    vm: &VirtualMachine,
    notice: &controller_lifecycle::Notice,
) {
    let event = crate::events::event(notice);
    let reference = vm.object_ref(&());
    if let Err(err) =
        context.call("publish an event", context.recorder.publish(&event, &reference)).await
    {
        tracing::debug!(vm = vm.name_any(), error = %Chain(&err), "event not published");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_kvm_if_it_can_give_some_away() {
        let node = |count: &str| -> Node {
            serde_json::from_value(json!({"status": {"allocatable": {"neonvm/kvm": count}}}))
                .unwrap()
        };
        assert!(has_kvm(&node("1k")));
        assert!(!has_kvm(&node("0")));
        assert!(!has_kvm(&Node::default()));
    }
}
