//! The task of one VM against the fake API server.

use std::time::Instant;

use clap::Parser as _;
use controller_api::VirtualMachineStatus;
use kube::runtime::events::{Recorder, Reporter};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::task::TaskTracker;

use super::*;
use crate::certs::Certs;
use crate::config::{Args, Config};
use crate::fake::ApiServer;
use crate::metrics::Metrics;
use crate::term::Term;

const VM: &str = "/apis/vm.neon.tech/v1/namespaces/default/virtualmachines/vm";
const PODS: &str = "/api/v1/namespaces/default/pods/";
const SECRETS: &str = "/api/v1/namespaces/default/secrets/";
const DEADLINE: Duration = Duration::from_secs(20);

struct World {
    server: ApiServer,
    context: Arc<Context>,
    shutdown: CancellationToken,
}

impl World {
    async fn new() -> Self {
        let server = ApiServer::default();
        let args = Args::try_parse_from(["vm-controller", "--runner-image=runner"]).unwrap();
        let mut registry = Registry::default();
        let client = server.client();
        let certs = Certs::establish(client.clone(), "neonvm-system".into()).await.unwrap();
        let reporter = Reporter { controller: "test".into(), instance: None };
        let context = Arc::new(Context {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            config: Config::try_from(args).unwrap(),
            certs,
            metrics: Metrics::register(&mut registry),
            tasks: TaskTracker::new(),
            term: Term::new(1, Instant::now(), Duration::from_secs(600)),
            calls: Semaphore::new(4),
            kvm: Mutex::new(None),
        });
        server.put(
            VM,
            json!({
                "apiVersion": "vm.neon.tech/v1", "kind": "VirtualMachine",
                "metadata": {"name": "vm", "namespace": "default", "uid": "vm-uid"},
                "spec": {"guest": {
                    "cpus": {"min": 1, "max": 2, "use": 1},
                    "memorySlots": {"min": 1, "max": 2, "use": 1},
                    "rootDisk": {"image": "image"},
                }},
            }),
        );
        Self { server, context, shutdown: CancellationToken::new() }
    }

    /// What the watches would show; that of pods selects them by their label.
    fn snapshot(&self) -> Snapshot {
        let objects = self.server.objects();
        let vm = objects.get(VM).map(|vm| Arc::new(serde_json::from_value(vm.clone()).unwrap()));
        let pods = objects.iter().filter_map(|(path, pod)| {
            let name = path.strip_prefix(PODS)?;
            pod["metadata"]["labels"].get("vm.neon.tech/name")?;
            Some((name.to_owned(), Arc::new(serde_json::from_value(pod.clone()).unwrap())))
        });
        Snapshot { vm, pods: pods.collect() }
    }

    fn start(&self) -> watch::Sender<Snapshot> {
        let (tell, snapshots) = watch::channel(self.snapshot());
        let drive =
            drive(Arc::clone(&self.context), "vm-uid".into(), snapshots, self.shutdown.clone());
        self.context.tasks.spawn(drive);
        tell
    }

    /// Waits until the objects are so; the watches show every change meanwhile.
    async fn until(&self, tell: &watch::Sender<Snapshot>, what: &str, so: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !so(self) {
            assert!(
                begun.elapsed() < DEADLINE,
                "{what}: not so; writes: {:#?}",
                self.server.writes()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
            tell.send_replace(self.snapshot());
        }
    }

    fn status(&self) -> Value {
        self.server.objects()[VM]["status"].clone()
    }

    fn pods(&self) -> Vec<String> {
        self.snapshot().pods.into_keys().collect()
    }

    fn set_pod_status(&self, name: &str, status: &Value) {
        let path = format!("{PODS}{name}");
        let mut pod = self.server.objects()[&path].clone();
        pod["status"] = status.clone();
        self.server.put(&path, pod);
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.context.tasks.close();
        tokio::time::timeout(DEADLINE, self.context.tasks.wait()).await.unwrap();
    }
}

fn running() -> Value {
    json!({
        "phase": "Running", "podIP": "127.0.0.1",
        "containerStatuses": [{
            "name": "neonvm-runner", "ready": true, "image": "", "imageID": "", "restartCount": 0,
        }],
    })
}

#[tokio::test]
async fn the_name_is_stored_then_the_certificate_made_then_the_pod() {
    let world = World::new().await;
    let tell = world.start();
    world.until(&tell, "a pod", |world| !world.pods().is_empty()).await;
    let pod = world.pods().remove(0);
    assert_eq!(world.status()["podName"], json!(pod));
    assert_eq!(world.status()["phase"], "Pending");
    let writes = world.server.writes();
    let place = |write: &str| writes.iter().position(|it| it == write).expect(write);
    let status = place(&format!("PATCH {VM}/status"));
    let certificate = place("POST /api/v1/namespaces/default/secrets");
    let created = place("POST /api/v1/namespaces/default/pods");
    assert!(status < certificate && certificate < created, "{writes:#?}");
    world
        .until(&tell, "the default mode", |world| {
            world.server.objects()[VM]["spec"]["cpuScalingMode"] == "QmpScaling"
        })
        .await;
    world.set_pod_status(&pod, &running());
    world.until(&tell, "Running", |world| world.status()["phase"] == "Running").await;
    assert_eq!(world.status()["podIP"], "127.0.0.1");
    assert_eq!(world.pods(), [pod]);
    world.stop().await;
}

#[tokio::test]
async fn a_pod_that_the_watch_does_not_show_yet_is_not_replaced() {
    let world = World::new().await;
    let tell = world.start();
    let mut blind = world.snapshot();
    world.until(&tell, "a pod", |world| !world.pods().is_empty()).await;
    let pods = world.pods();
    for round in 0..20 {
        // A watch that lags behind for ever.
        blind.vm = world.snapshot().vm;
        assert!(blind.pods.is_empty());
        tell.send_replace(blind.clone());
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(world.pods(), pods, "round {round}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_vanished_pod_is_replaced_and_counted_and_a_failed_one_is_deleted_with_its_certificate() {
    let world = World::new().await;
    let tell = world.start();
    world.until(&tell, "a pod", |world| !world.pods().is_empty()).await;
    let first = world.pods().remove(0);
    world.set_pod_status(&first, &running());
    world.until(&tell, "Running", |world| world.status()["phase"] == "Running").await;
    world.server.remove(&format!("{PODS}{first}"));
    world.until(&tell, "another pod", |world| world.pods().iter().any(|pod| *pod != first)).await;
    assert_eq!(world.status()["restartCount"], 1);
    let second = world.pods().remove(0);
    world.set_pod_status(&second, &running());
    world.until(&tell, "Running again", |world| world.status()["phase"] == "Running").await;
    world.set_pod_status(&second, &json!({"phase": "Failed"}));
    world
        .until(&tell, "a third pod alone", |world| {
            world.pods().len() == 1
                && world.pods()[0] != second
                && world.status()["restartCount"] == 2
        })
        .await;
    world
        .until(&tell, "the certificate of the last pod alone", |world| {
            let objects = world.server.objects();
            let secrets = objects.keys().filter(|path| path.contains("/default/secrets/"));
            secrets.count() == 1
        })
        .await;
    world.stop().await;
}

#[tokio::test]
async fn a_pod_that_lost_its_label_gets_it_back_and_is_not_replaced() {
    let world = World::new().await;
    let tell = world.start();
    world.until(&tell, "a pod", |world| !world.pods().is_empty()).await;
    let name = world.pods().remove(0);
    world.set_pod_status(&name, &running());
    world.until(&tell, "Running", |world| world.status()["phase"] == "Running").await;
    let path = format!("{PODS}{name}");
    let mut pod = world.server.objects()[&path].clone();
    pod["metadata"]["labels"].as_object_mut().unwrap().remove("vm.neon.tech/name");
    world.server.put(&path, pod);
    assert!(world.pods().is_empty(), "the watch does not show it any more");
    world.until(&tell, "its label", |world| world.pods() == [name.clone()]).await;
    assert_eq!(world.status()["restartCount"], 0);
    world.stop().await;
}

impl World {
    /// The authority that the first pod's certificate names.
    fn certified_by(&self) -> Value {
        let secret = format!("{SECRETS}{}-tls", self.pods()[0]);
        self.server.objects()[&secret]["data"]["ca.crt"].clone()
    }

    /// Somebody puts another authority in the place of the present one.
    async fn change_authority(&self) {
        let other = ApiServer::default();
        Certs::establish(other.client(), "neonvm-system".into()).await.unwrap();
        let authority = "/api/v1/namespaces/neonvm-system/secrets/neonvm-ca";
        self.server.put(authority, other.objects()[authority].clone());
        self.context.certs.refresh().await.unwrap();
    }
}

#[tokio::test]
async fn the_runners_certificate_follows_a_new_authority_at_once() {
    let world = World::new().await;
    let tell = world.start();
    world.until(&tell, "a pod", |world| !world.pods().is_empty()).await;
    let before = world.certified_by();
    world.change_authority().await;
    world.until(&tell, "a new certificate", |world| world.certified_by() != before).await;
    world.stop().await;
}

#[tokio::test]
async fn a_certificate_that_could_not_follow_a_new_authority_does_so_later() {
    let world = World::new().await;
    let tell = world.start();
    let blind = world.snapshot();
    world.until(&tell, "a pod", |world| !world.pods().is_empty()).await;
    let before = world.certified_by();

    // At first the API server does not answer about it.
    world.server.break_down(Some(SECRETS.trim_end_matches('/')));
    world.change_authority().await;
    for _ in 0..20 {
        tell.send_replace(world.snapshot());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.server.break_down(None);
    let begun = Instant::now();
    while world.certified_by() == before {
        assert!(begun.elapsed() < DEADLINE, "no second try, although nothing else happens");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    // Then the watch does not show the pod for a while.
    let before = world.certified_by();
    for round in 0..40 {
        tell.send_replace(Snapshot { vm: world.snapshot().vm, ..blind.clone() });
        tokio::time::sleep(Duration::from_millis(5)).await;
        if round == 20 {
            world.change_authority().await;
        }
    }
    world.until(&tell, "a look at what it shows", |world| world.certified_by() != before).await;
    world.stop().await;
}

#[tokio::test]
async fn after_its_term_a_leader_begins_nothing() {
    let world = World::new().await;
    world.context.term.end();
    let tell = world.start();
    for _ in 0..20 {
        tell.send_replace(world.snapshot());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!world.server.objects().contains_key(&format!("{VM}/status")));
    assert!(world.pods().is_empty() && world.status().is_null());
    // What was begun before it ended, but not sent yet.
    let vm = world.snapshot().vm.unwrap();
    let (kept, status) = (Kept::of(&vm), VirtualMachineStatus::default());
    let late = execute::write_status(&world.context, &vm, &kept, &status).await;
    assert!(matches!(late, Err(execute::ExecuteError::NotLeading { .. })), "{late:?}");
    let gone = execute::delete_pod(&world.context, &vm, "pod", false).await;
    assert_eq!(gone, Event::DeleteFailed("pod".into()));
    world.stop().await;
}

#[tokio::test]
async fn an_order_is_sent_at_once_or_not_at_all() {
    let world = World::new().await;
    let vm = world.snapshot().vm.unwrap();
    let give = |decided| {
        let runner = Some(("127.0.0.1".parse().unwrap(), "pod".to_owned()));
        let what = controller_lifecycle::What::Cpu(guest_units::MilliCpu(1000));
        order::give(Arc::clone(&world.context), Arc::clone(&vm), runner, 1, what, decided)
    };
    let stopped = |event| {
        let Event::OrderFailed { generation: 1, reason } = event else { panic!("{event:?}") };
        reason.contains("stopped for a while")
    };
    assert!(!stopped(give(Instant::now()).await), "it was sent, and nobody was there");
    assert!(stopped(give(Instant::now() - Duration::from_secs(2)).await));
    world.context.term.end();
    assert!(stopped(give(Instant::now()).await));
    world.stop().await;
}

#[tokio::test]
async fn the_task_ends_when_the_vm_is_gone() {
    let world = World::new().await;
    let tell = world.start();
    world.until(&tell, "a pod", |world| !world.pods().is_empty()).await;
    tell.send_replace(Snapshot::default());
    world.context.tasks.close();
    tokio::time::timeout(DEADLINE, world.context.tasks.wait()).await.unwrap();
}

#[tokio::test]
async fn a_status_that_arrives_late_undoes_nothing() {
    let world = World::new().await;
    let vm = world.snapshot().vm.unwrap();
    let write = async |kept: &Kept, restart_count| {
        let status = VirtualMachineStatus { restart_count, ..kept.status.clone() };
        execute::write_status(&world.context, &vm, kept, &status).await
    };
    let first = Kept::of(&vm);
    let second = write(&first, 1).await.unwrap();
    // Somebody edits the specification: that is no obstacle, though this VM is from before it.
    let mut object = world.server.objects()[VM].clone();
    object["spec"]["guest"]["cpus"]["use"] = json!(2);
    world.server.put(VM, object);
    let third = write(&second, 2).await.unwrap();
    assert_ne!(third.version, second.version);
    let late = write(&second, 7).await;
    let Err(execute::ExecuteError::Raced { found }) = late else { panic!("{late:?}") };
    assert_eq!(*found, third);
    assert_eq!(world.status()["restartCount"], 2);
    assert!(write(&third, 3).await.is_ok());
    world.stop().await;
}

#[tokio::test]
async fn a_status_that_somebody_else_wrote_is_replaced() {
    let world = World::new().await;
    let tell = world.start();
    world.until(&tell, "a phase", |world| world.status()["phase"] == "Pending").await;
    let mut object = world.server.objects()[VM].clone();
    object["status"] = json!({"phase": "Succeeded", "restartCount": 9});
    world.server.put(VM, object);
    let pod = world.pods().remove(0);
    world.set_pod_status(&pod, &running());
    world.until(&tell, "our status again", |world| world.status()["phase"] == "Running").await;
    assert_eq!(world.status()["restartCount"], 0);
    world.stop().await;
}
