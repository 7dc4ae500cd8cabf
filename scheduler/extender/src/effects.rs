//! What the ledger wants done at the API server. Every call waits for its turn, then has a deadline, and ends in an event.

use std::sync::Arc;
use std::time::{Duration, Instant};

use controller_api::{Approval, VirtualMachine, names};
use guest_units::{Bytes, Chain, Size};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::events::{Event as UserEvent, EventType, Recorder};
use kube::{Client, Resource as _};
use scheduler_ledger::{Amount, Event, Notice, ResizeResult, Seal, Why};
use scheduler_protocol::ObjectRef;
use scheduler_protocol::extender::BindingArgs;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use crate::convert;
use crate::core::Core;
use crate::lanes::{Lanes, Newest};
use crate::lease::{self, LeaseState};
use crate::metrics::{Metrics, Operation};
use crate::objects::Pod;
use crate::sign::Signer;

/// The hands of the ledger.
#[derive(Clone)]
pub(crate) struct Effects {
    pub(crate) client: Client,
    pub(crate) signer: Signer,
    pub(crate) lease: LeaseState,
    pub(crate) recorder: Recorder,
    pub(crate) core: Core,
    pub(crate) tasks: TaskTracker,
    /// Calls that only the holder of the lease may make: it is not given back before they have ended.
    pub(crate) fenced: TaskTracker,
    pub(crate) metrics: Metrics,
    /// How long one call may take, once it is its turn.
    pub(crate) limit: Duration,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) fences: Newest<(u64, u64)>,
    pub(crate) requested: Newest<Size>,
}

/// A call of the API server did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("call the API server")]
    Api { source: Box<kube::Error> },
    #[error("no answer from the API server within {limit:?}")]
    Deadline { limit: Duration },
    #[error("the lease is not held any more")]
    NotHeld,
    #[error("{0}")]
    OutOfDate(&'static str),
    #[error("sign the approval")]
    Sign { source: crate::files::FileError },
    #[error("build the patch")]
    Patch { source: serde_json::Error },
}

impl From<kube::Error> for CallError {
    fn from(source: kube::Error) -> Self {
        Self::Api { source: Box::new(source) }
    }
}

impl CallError {
    /// The API server's word, if it is one: then nothing was done.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Api { source } => match &**source {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether a `ResourceQuota` stands against it: there is no code of its own for that.
    fn is_quota(&self) -> bool {
        let Self::Api { source } = self else { return false };
        matches!(&**source, kube::Error::Api(status)
            if status.code == 403 && status.message.contains("exceeded quota"))
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Api { .. } => match self.status() {
                Some(400..=499) => "refused",
                Some(_) => "server",
                None => "connection",
            },
            Self::Deadline { .. } => "deadline",
            Self::NotHeld => "not_held",
            Self::OutOfDate(_) => "out_of_date",
            Self::Sign { .. } => "sign",
            Self::Patch { .. } => "patch",
        }
    }
}

impl Effects {
    async fn call<T>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let _turn = self.lanes.turn(operation).await;
        self.call_within(self.limit, operation, call).await
    }

    /// A call that only the holder of the lease may make: it ends before another can hold it.
    pub(crate) async fn fenced<T>(
        &self,
        epoch: u64,
        operation: Operation,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let _turn = self.lanes.turn(operation).await;
        self.held(epoch, operation, call).await
    }

    /// The same, once it is its turn.
    async fn held<T>(
        &self,
        epoch: u64,
        operation: Operation,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let call = async {
            if !self.lease.holds(epoch) {
                return Err(CallError::NotHeld);
            }
            call.await
        };
        let limit = self.limit.min(lease::MARGIN);
        self.fenced.track_future(self.call_within(limit, operation, call)).await
    }

    async fn call_within<T>(
        &self,
        limit: Duration,
        operation: Operation,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let result = match timeout(limit, call).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Deadline { limit }),
        };
        let outcome = result.as_ref().map_or_else(CallError::label, |_| "success");
        self.metrics.operation(operation, outcome);
        result
    }

    /// Sets the requests of a runner pod's main container.
    pub(crate) fn resize(&self, order: ResizeOrder, why: Why) {
        let this = self.clone();
        let _task = self.tasks.spawn(async move {
            let started = Instant::now();
            let result = this.send_resize(&order).await;
            let ResizeOrder { pod, version: _, epoch: _, number, requests } = order;
            if result == ResizeResult::Raced {
                // The ledger decides anew about the pod as it is.
                this.look_up(&pod).await;
            }
            tracing::info!(
                pod = pod.name, namespace = pod.namespace, requests = %requests, why = why.label(),
                accepted = matches!(result, ResizeResult::Accepted { .. }),
                ms = millis(started), "pod resize sent"
            );
            let _ = this.core.tell(Event::ResizeEnded { pod: pod.uid, number, result }).await;
        });
    }

    async fn send_resize(&self, order: &ResizeOrder) -> ResizeResult {
        let ResizeOrder { pod, version, epoch, number: _, requests } = order;
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let patch = resize_patch(&pod.uid, *version, *requests);
        let (parameters, patch) = (PatchParams::default(), Patch::Strategic(&patch));
        let call =
            async { Ok(api.patch_subresource("resize", &pod.name, &parameters, &patch).await?) };
        let err = match self.fenced(*epoch, Operation::Resize, call).await {
            Ok(answer) => {
                let generation = answer.metadata.generation.unwrap_or(0);
                let generation = u64::try_from(generation).unwrap_or(0);
                return ResizeResult::Accepted { generation };
            }
            Err(err) => err,
        };
        tracing::warn!(
            pod = pod.name, namespace = pod.namespace, error = %Chain(&err), "pod not resized"
        );
        match (&err, err.status()) {
            (CallError::NotHeld, _) => ResizeResult::NotDone,
            (_, Some(409)) => ResizeResult::Raced,
            // Turned away before it was looked at.
            (_, Some(429)) => ResizeResult::NotDone,
            _ if err.is_quota() => ResizeResult::Quota,
            (_, Some(403 | 404 | 422)) => ResizeResult::Refused,
            _ => ResizeResult::Unknown,
        }
    }

    /// Signs an approval and writes it on a VM.
    pub(crate) fn approve(&self, vm: ObjectRef, seal: Seal, why: Why) {
        let this = self.clone();
        let _task = self.tasks.spawn(async move {
            let call = this.write_approval(&vm, seal);
            let written = this.fenced(seal.epoch, Operation::Approve, call).await;
            match &written {
                Ok(()) => tracing::info!(
                    vm = vm.name, namespace = vm.namespace, generation = seal.generation,
                    epoch = seal.epoch, size = %seal.size, why = why.label(), "approval written"
                ),
                Err(err) => tracing::warn!(
                    vm = vm.name, namespace = vm.namespace, generation = seal.generation,
                    error = %Chain(err), "approval not written"
                ),
            }
            let (generation, written) = (seal.generation, written.is_ok());
            let _ = this.core.tell(Event::ApproveEnded { vm: vm.uid, generation, written }).await;
        });
    }

    async fn write_approval(&self, vm: &ObjectRef, seal: Seal) -> Result<(), CallError> {
        let api: Api<VirtualMachine> = Api::namespaced(self.client.clone(), &vm.namespace);
        let object = api.get(&vm.name).await?;
        // Whatever else is there, such as an older one that was put back, is replaced.
        if self.signer.visible(&object).is_some_and(|shown| shown.place() >= seal.place()) {
            return Err(CallError::OutOfDate("the object shows it or a newer one"));
        }
        if !self.lease.holds(seal.epoch) {
            return Err(CallError::NotHeld);
        }
        let approval =
            self.signer.sign(&vm.uid, seal).map_err(|source| CallError::Sign { source })?;
        let patch = serde_json::from_value(approval_patch(&object.metadata, vm, &approval))
            .map_err(|source| CallError::Patch { source })?;
        api.patch(&vm.name, &PatchParams::default(), &Patch::<()>::Json(patch)).await?;
        Ok(())
    }

    /// Notes what an agent asked for, as the reference does. Best effort: nothing depends on it.
    pub(crate) fn note_requested(&self, vm: ObjectRef, want: Size) {
        if !self.requested.put(&vm.uid, want) {
            return;
        }
        let this = self.clone();
        let _task = self.tasks.spawn(async move {
            let api: Api<VirtualMachine> = Api::namespaced(this.client.clone(), &vm.namespace);
            let call = async {
                let Some(want) = this.requested.take(&vm.uid) else { return Ok(()) };
                let text = json!(want).to_string();
                let patch = json!({ "metadata": {
                    "uid": vm.uid, "annotations": { names::ANNOTATION_REQUESTED: text }
                } });
                api.patch(&vm.name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
                Ok(())
            };
            if let Err(err) = this.call(Operation::NoteRequested, call).await {
                tracing::debug!(vm = vm.name, error = %Chain(&err), "request not noted");
            }
        });
    }

    /// Tells the users of a VM.
    pub(crate) fn notice(&self, vm: ObjectRef, notice: Notice) {
        let this = self.clone();
        let _task = self.tasks.spawn(async move {
            let (type_, reason, note) = match notice {
                Notice::Denied { reason } => (EventType::Warning, "PermitDenied", reason),
                Notice::Served { size } => {
                    (EventType::Normal, "PermitServed", format!("there is room now: {size}"))
                }
            };
            let event = UserEvent {
                type_,
                reason: reason.to_owned(),
                note: Some(note),
                action: "Permit".to_owned(),
                secondary: None,
            };
            let object = ObjectReference {
                api_version: Some(VirtualMachine::api_version(&()).into_owned()),
                kind: Some(VirtualMachine::kind(&()).into_owned()),
                name: Some(vm.name.clone()),
                namespace: Some(vm.namespace.clone()),
                uid: Some(vm.uid),
                ..ObjectReference::default()
            };
            let call = async { Ok(this.recorder.publish(&event, &object).await?) };
            if let Err(err) = this.call(Operation::Event, call).await {
                tracing::warn!(vm = vm.name, error = %Chain(&err), "event not written");
            }
        });
    }

    /// Binds a pod to a node.
    pub(crate) async fn bind(&self, args: &BindingArgs, epoch: u64) -> Result<(), CallError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &args.pod_namespace);
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(args.pod_name.clone()),
                namespace: Some(args.pod_namespace.clone()),
                uid: Some(args.pod_uid.clone()),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(args.node.clone()),
                ..ObjectReference::default()
            },
        };
        let parameters = PostParams::default();
        let call = async {
            let posted =
                api.create_subresource("binding", &args.pod_name, &parameters, &binding).await;
            let _status: Value = posted?;
            Ok(())
        };
        self.fenced(epoch, Operation::Bind, call).await
    }

    /// Makes a pod another version: resizes that were sent for earlier ones come to nothing. Tells the ledger how the pod is then;
    /// without an answer it is told nothing, and orders another. One that is urgent takes the place of one that waits.
    pub(crate) fn fence_pod(&self, pod: ObjectRef, place: (u64, u64), urgent: bool) {
        if !self.fences.put(&pod.uid, place) && !urgent {
            return;
        }
        let this = self.clone();
        let _task = self.tasks.spawn(async move {
            let Some((number, answer)) = this.send_fence(&pod, urgent).await else { return };
            let found = match answer {
                Ok(answer) => convert::pod(&answer).filter(|it| it.uid == pod.uid),
                Err(err) if err.status() == Some(404) => None,
                Err(err) => {
                    tracing::warn!(
                        pod = pod.name, namespace = pod.namespace, error = %Chain(&err), "pod not fenced"
                    );
                    if matches!(err.status(), Some(409 | 422)) {
                        // Another pod has the name by now.
                        this.look_up(&pod).await;
                    }
                    return;
                }
            };
            let _ = this.core.tell(Event::Fenced { uid: pod.uid, number, found }).await;
        });
    }

    /// Sends the newest fence that waits for a pod, unless that was sent in another lane.
    async fn send_fence(
        &self,
        pod: &ObjectRef,
        urgent: bool,
    ) -> Option<(u64, Result<Pod, CallError>)> {
        let _turn = if urgent {
            self.lanes.urgent_turn().await
        } else {
            self.lanes.turn(Operation::Fence).await
        };
        let (epoch, number) = self.fences.take(&pod.uid)?;
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let patch = fence_patch(&pod.uid, epoch, Timestamp::now());
        let (parameters, patch) = (PatchParams::default(), Patch::Strategic(&patch));
        let call = async { Ok(api.patch_status(&pod.name, &parameters, &patch).await?) };
        Some((number, self.held(epoch, Operation::Fence, call).await))
    }

    /// Asks the API server for a pod, and tells the ledger. Without an answer it is told nothing, and asks again.
    pub(crate) async fn look_up(&self, pod: &ObjectRef) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        match self.call(Operation::GetPod, async { Ok(api.get_opt(&pod.name).await?) }).await {
            Ok(found) => {
                let found = found.as_ref().and_then(convert::pod).filter(|it| it.uid == pod.uid);
                let _ = self.core.tell(Event::LookedUp { uid: pod.uid.clone(), found }).await;
            }
            Err(err) => tracing::warn!(
                pod = pod.name, namespace = pod.namespace, error = %Chain(&err), "pod not looked up"
            ),
        }
    }

    /// The same, beside everything else.
    pub(crate) fn start_look_up(&self, pod: ObjectRef) {
        self.look_up_after(Duration::ZERO, pod);
    }

    /// The same, later.
    pub(crate) fn look_up_after(&self, pause: Duration, pod: ObjectRef) {
        let this = self.clone();
        let _task = self.tasks.spawn(async move {
            sleep(pause).await;
            this.look_up(&pod).await;
        });
    }
}

/// A resize that the ledger orders.
pub(crate) struct ResizeOrder {
    pub(crate) pod: ObjectRef,
    pub(crate) version: u64,
    pub(crate) epoch: u64,
    pub(crate) number: u64,
    pub(crate) requests: Amount,
}

pub(crate) fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The uid makes the API server refuse a later pod of the same name, the version a pod that is not as it was when this was
/// decided.
fn resize_patch(uid: &str, version: u64, requests: Amount) -> Value {
    let Amount { cpu_millis, memory_bytes } = requests;
    let mut metadata = json!({ "uid": uid });
    if version != 0 {
        metadata["resourceVersion"] = version.to_string().into();
    }
    json!({
        "metadata": metadata,
        "spec": { "containers": [{
            "name": names::RUNNER_CONTAINER,
            "resources": { "requests": {
                "cpu": format!("{cpu_millis}m"),
                "memory": Bytes(memory_bytes).to_string(),
            } },
        }] },
    })
}

/// A condition that says when it was written, and nothing else that is not so already: each makes another version.
fn fence_patch(uid: &str, epoch: u64, at: Timestamp) -> Value {
    json!({
        "metadata": { "uid": uid },
        "status": { "conditions": [{
            "type": names::CONDITION_FENCED,
            "status": "True",
            "reason": "ReadAnew",
            "message": format!("The scheduler of epoch {epoch} has read the pod at {at}; earlier resizes come to nothing"),
        }] },
    })
}

/// Replaces the approval that was read, or nothing.
fn approval_patch(metadata: &ObjectMeta, vm: &ObjectRef, approval: &Approval) -> Value {
    let mut steps = vec![json!({ "op": "test", "path": "/metadata/uid", "value": vm.uid })];
    let annotations = metadata.annotations.as_ref();
    match annotations.and_then(|all| all.get(names::ANNOTATION_APPROVED_PROOF)) {
        Some(proof) => steps.push(json!({
            "op": "test", "path": annotation_path(names::ANNOTATION_APPROVED_PROOF), "value": proof,
        })),
        // That something is absent cannot be tested: nothing at all may have changed.
        None => steps.push(json!({
            "op": "test", "path": "/metadata/resourceVersion", "value": metadata.resource_version,
        })),
    }
    if annotations.is_none_or(|all| all.is_empty()) {
        steps.push(json!({ "op": "add", "path": "/metadata/annotations", "value": {} }));
    }
    for (key, value) in approval.to_annotations() {
        steps.push(json!({ "op": "add", "path": annotation_path(&key), "value": value }));
    }
    Value::Array(steps)
}

fn annotation_path(key: &str) -> String {
    format!("/metadata/annotations/{}", key.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_units::MilliCpu;

    #[test]
    fn a_resize_touches_requests_of_the_main_container_only() {
        let patch = resize_patch(
            "p1",
            7,
            Amount { cpu_millis: 1100, memory_bytes: (1 << 30) + (256 << 20) },
        );
        assert_eq!(
            patch,
            json!({"metadata": {"uid": "p1", "resourceVersion": "7"}, "spec": {"containers": [{"name": "neonvm-runner",
                "resources": {"requests": {"cpu": "1100m", "memory": "1280Mi"}}}]}})
        );
    }

    #[test]
    fn an_approval_replaces_only_what_was_read() {
        let vm = ObjectRef { namespace: "d".into(), name: "v".into(), uid: "u1".into() };
        let approval = Approval {
            size: Size { cpu: MilliCpu(1000), memory: Bytes::from_gib(1) },
            epoch: 1,
            generation: 2,
            signature: "s".into(),
        };
        let mut metadata =
            ObjectMeta { resource_version: Some("7".into()), ..ObjectMeta::default() };
        let patch = approval_patch(&metadata, &vm, &approval);
        assert_eq!(patch[1]["path"], "/metadata/resourceVersion");
        assert_eq!(patch[2], json!({"op": "add", "path": "/metadata/annotations", "value": {}}));
        assert_eq!(patch.as_array().unwrap().len(), 5);
        metadata.annotations =
            Some([(names::ANNOTATION_APPROVED_PROOF.to_owned(), "old".to_owned())].into());
        let patch = approval_patch(&metadata, &vm, &approval);
        assert_eq!(
            patch[1],
            json!({"op": "test", "value": "old",
                "path": "/metadata/annotations/internal.autoscaling.neon.tech~1resources-approved-proof"})
        );
        assert_eq!(patch.as_array().unwrap().len(), 4);
        let _patch: Patch<()> = Patch::Json(serde_json::from_value(patch).unwrap());
    }
}
