//! Watches VMs and the runner pods of this node, and keeps one task for each VM that is ours.
//!
//! The whole cluster's VMs are watched (the node is in the status, which no field selector knows), but only
//! those of this node are kept. A VM's task starts once the UID of its pod is known, and ends when the VM is no
//! longer ours or has another pod.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use controller_api::{VirtualMachine, names};
use futures::{Stream, StreamExt, TryStreamExt};
use guest_units::Chain;
use k8s_openapi::api::core::v1::Pod;
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::admin::Entry;
use crate::effects::guest::GuestPlace;
use crate::events::{Limiter, Reason};
use crate::http::Ready;
use crate::view::{Seen, VmKey, VmView, look};
use crate::vm_metrics::VmMetrics;
use crate::vm_task::{self, Shared, Start};

/// Questions that wait for a task.
const QUERIES: usize = 8;
/// How often it is looked whether every task still runs.
const LOOK: Duration = Duration::from_secs(5);
/// A watch is begun anew, from where it was, after so long at least: what its connection lost without a sign is noticed then. Each
/// node has its agent, so that a shorter time would cost the API server of a large cluster more than it is worth.
const RENEW_S: u32 = 120;
/// Up to so much later, another time on each node: agents that began together, with the API server, do not stay together.
const SPREAD_S: u32 = 60;
/// The silence after which a connection to the API server counts as dead, which bounds a list too. A watch is renewed earlier.
const SILENCE: Duration = Duration::from_secs(210);

/// The client of the API server that all parts share.
pub(crate) async fn connect() -> anyhow::Result<Client> {
    let mut config = kube::Config::infer().await?;
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    Ok(Client::try_from(config)?)
}

/// Looks after the VMs of this node.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    vm_metrics: Arc<VmMetrics>,
    ready: Ready,
    pods_folder: PathBuf,
    /// UIDs of the node's runner pods.
    pods: HashMap<VmKey, String>,
    /// Ours, whether or not a task runs.
    views: HashMap<VmKey, VmView>,
    tasks: HashMap<VmKey, Running>,
    /// Said to be invalid, and why.
    invalid: HashMap<VmKey, String>,
    limiter: Limiter,
    stop: CancellationToken,
}

struct Running {
    pod_uid: String,
    views: watch::Sender<VmView>,
    stop: CancellationToken,
}

type Event<K> = watcher::Event<K>;
type GuardedVm = DeserializeGuard<VirtualMachine>;

impl Keeper {
    pub(crate) fn new(
        shared: Arc<Shared>,
        vm_metrics: Arc<VmMetrics>,
        ready: Ready,
        pods_folder: PathBuf,
        stop: CancellationToken,
    ) -> Self {
        Self {
            shared,
            vm_metrics,
            ready,
            pods_folder,
            pods: HashMap::new(),
            views: HashMap::new(),
            tasks: HashMap::new(),
            invalid: HashMap::new(),
            limiter: Limiter::default(),
            stop,
        }
    }

    /// Runs until stopped. Watches repair themselves; their failures are logged.
    pub(crate) async fn run(mut self, client: Client) {
        let mut vms = std::pin::pin!(vm_events(client.clone(), &self.shared.node));
        let mut pods = std::pin::pin!(pod_events(client, &self.shared.node));
        let mut listed = (HashSet::new(), HashSet::new());
        let mut look = tokio::time::interval(LOOK);
        let stop = self.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                event = vms.try_next() => match event {
                    Ok(Some(event)) => self.vm_event(event, &mut listed.0),
                    Ok(None) => break,
                    Err(err) => self.watch_failed(&err),
                },
                event = pods.try_next() => match event {
                    Ok(Some(event)) => self.pod_event(event, &mut listed.1),
                    Ok(None) => break,
                    Err(err) => self.watch_failed(&err),
                },
                _ = look.tick() => self.restart_dead_tasks(),
            }
        }
        for running in self.tasks.values() {
            running.stop.cancel();
        }
    }

    fn watch_failed(&self, err: &watcher::Error) {
        self.shared.metrics.watch_errors.inc();
        tracing::warn!(error = %Chain(err), "watch failed; sizes are held, it is repeated");
    }

    fn vm_event(&mut self, event: Event<GuardedVm>, listed: &mut HashSet<VmKey>) {
        self.shared.metrics.watch_events.inc();
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(vm) => {
                listed.insert(VmKey::of(vm.meta()));
                self.vm_applied(vm);
            }
            watcher::Event::Apply(vm) => self.vm_applied(vm),
            watcher::Event::Delete(vm) => self.vm_gone(&VmKey::of(vm.meta())),
            watcher::Event::InitDone => {
                let known = self.views.keys().chain(self.invalid.keys());
                let gone: Vec<_> = known.filter(|key| !listed.contains(*key)).cloned().collect();
                gone.iter().for_each(|key| self.vm_gone(key));
                self.vm_metrics.retain(|key| listed.contains(key));
                self.ready.set();
            }
        }
    }

    fn vm_applied(&mut self, vm: GuardedVm) {
        let key = VmKey::of(vm.meta());
        let vm = match vm.0 {
            Ok(vm) => vm,
            Err(err) => {
                tracing::warn!(
                    vm = key.name,
                    namespace = key.namespace,
                    error = %Chain(&err),
                    "VM is not readable"
                );
                return self.vm_gone(&key);
            }
        };
        let here = vm.status.as_ref().and_then(|status| status.node.as_deref());
        if here != Some(self.shared.node.as_str()) {
            return self.vm_gone(&key);
        }
        self.vm_metrics.seen(&vm);
        match look(&vm, &self.shared.node, &self.shared.file) {
            Seen::Ours(view) => {
                self.invalid.remove(&key);
                self.views.insert(key.clone(), *view);
                self.settle(&key);
            }
            Seen::NotOurs => self.not_ours(&key),
            Seen::Invalid(reason) => {
                self.views.remove(&key);
                self.end_task(&key);
                let uid = vm.metadata.uid.as_deref().unwrap_or_default();
                self.say_invalid(key, uid, &reason);
            }
        }
    }

    fn say_invalid(&mut self, key: VmKey, uid: &str, reason: &str) {
        let reason: String = reason.chars().filter(|c| !c.is_control()).take(900).collect();
        if self.invalid.get(&key) == Some(&reason) {
            return;
        }
        tracing::warn!(vm = key.name, namespace = key.namespace, reason, "VM is not autoscaled");
        if self.limiter.allows(Reason::InvalidScalingConfig, std::time::Instant::now()) {
            let note = format!("not autoscaled until corrected: {reason}");
            self.shared.events.publish(&key, uid, Reason::InvalidScalingConfig, &note);
        }
        self.invalid.insert(key, reason);
    }

    fn vm_gone(&mut self, key: &VmKey) {
        self.vm_metrics.gone(key);
        self.not_ours(key);
    }

    fn not_ours(&mut self, key: &VmKey) {
        self.invalid.remove(key);
        self.views.remove(key);
        self.end_task(key);
    }

    fn pod_event(&mut self, event: Event<Pod>, listed: &mut HashSet<VmKey>) {
        self.shared.metrics.watch_events.inc();
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(pod) => {
                listed.insert(VmKey::of(&pod.metadata));
                self.pod_applied(&pod);
            }
            watcher::Event::Apply(pod) => self.pod_applied(&pod),
            watcher::Event::Delete(pod) => {
                self.pods.remove(&VmKey::of(&pod.metadata));
                self.settle_vm_of(&pod);
            }
            watcher::Event::InitDone => self.pods.retain(|key, _| listed.contains(key)),
        }
    }

    fn pod_applied(&mut self, pod: &Pod) {
        if let Some(uid) = pod.uid() {
            self.pods.insert(VmKey::of(&pod.metadata), uid);
        }
        self.settle_vm_of(pod);
    }

    fn settle_vm_of(&mut self, pod: &Pod) {
        if let Some(name) = pod.labels().get(names::LABEL_VM_NAME) {
            let namespace = pod.namespace().unwrap_or_default();
            self.settle(&VmKey { namespace, name: name.clone() });
        }
    }

    /// Brings the task of a VM in line with what is known.
    fn settle(&mut self, key: &VmKey) {
        let Some(view) = self.views.get(key).cloned() else { return };
        let pod = VmKey { namespace: key.namespace.clone(), name: view.pod_name.clone() };
        let Some(pod_uid) = self.pods.get(&pod).cloned() else {
            return self.end_task(key);
        };
        if let Some(running) = self.tasks.get(key) {
            let same = running.pod_uid == pod_uid && running.views.borrow().uid == view.uid;
            if same && running.views.send(view.clone()).is_ok() {
                return;
            }
            self.end_task(key);
        }
        self.start_task(key.clone(), view, pod_uid);
    }

    fn start_task(&mut self, key: VmKey, view: VmView, pod_uid: String) {
        let stop = self.stop.child_token();
        let (views, received) = watch::channel(view.clone());
        let (queries, asked) = mpsc::channel(QUERIES);
        let place = GuestPlace::Pod {
            pods: self.pods_folder.clone(),
            pod_uid: pod_uid.clone(),
            port: self.shared.file.guest.port,
        };
        let entry = Entry { queries, is_endpoint: view.is_endpoint, stuck: false };
        self.shared.board.insert(key.clone(), entry);
        self.shared.metrics.runner_starts.inc();
        tracing::info!(vm = key.name, namespace = key.namespace, "VM is ours");
        let start = Start {
            view,
            pod_uid: pod_uid.clone(),
            place,
            views: received,
            queries: asked,
            stop: stop.clone(),
        };
        self.shared.tasks.spawn(vm_task::run(Arc::clone(&self.shared), start));
        self.tasks.insert(key, Running { pod_uid, views, stop });
    }

    /// A task ends by itself only when it panics.
    fn restart_dead_tasks(&mut self) {
        let dead = self.tasks.iter().filter(|(_, running)| running.views.is_closed());
        let dead: Vec<_> = dead.map(|(key, _)| key.clone()).collect();
        for key in dead {
            tracing::error!(vm = key.name, namespace = key.namespace, "task died; it is restarted");
            self.shared.metrics.runner_panics.inc();
            self.end_task(&key);
            self.settle(&key);
        }
    }

    fn end_task(&mut self, key: &VmKey) {
        if let Some(running) = self.tasks.remove(key) {
            running.stop.cancel();
            self.shared.board.remove(key);
            tracing::info!(vm = key.name, namespace = key.namespace, "VM is no longer ours");
        }
    }
}

fn renewed(node: &str) -> watcher::Config {
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    let late = u32::try_from(hasher.finish() % u64::from(SPREAD_S)).unwrap_or(0);
    watcher::Config::default().timeout(RENEW_S + late)
}

fn vm_events(
    client: Client,
    node: &str,
) -> impl Stream<Item = Result<Event<GuardedVm>, watcher::Error>> + Send + use<> {
    let api: Api<GuardedVm> = Api::all(client);
    watcher(api, renewed(node)).default_backoff().boxed()
}

fn pod_events(
    client: Client,
    node: &str,
) -> impl Stream<Item = Result<Event<Pod>, watcher::Error>> + Send + use<> {
    let api: Api<Pod> = Api::all(client);
    let config =
        renewed(node).fields(&format!("spec.nodeName={node}")).labels(names::LABEL_VM_NAME);
    watcher(api, config).default_backoff().boxed()
}
