//! One task against a guest, a scheduler and an API server of our own: demand becomes size and back.

use std::cell::RefCell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use guest_protocol::{
    Link, LinkOptions, Received, ScalerGuest, ScalerRequest, ScalerResponse, Session, accept,
};
use guest_units::{Bytes, MilliCpu};
use host_protocol::Endpoint;
use prometheus_client::registry::Registry;
use scheduler_protocol::{PERMIT_PATH, PermitAnswer, PermitRequest};
use serde_json::Value;
use tokio::sync::oneshot;

use super::*;
use crate::effects::scheduler::tests::{client, folder, grant, identity, serve_tls};
use crate::view::{Seen, look};

fn size(cpu: u32, gib: u64) -> Size {
    Size { cpu: MilliCpu(cpu), memory: Bytes(gib << 30) }
}

/// The VM object, and every patch that was applied to it. Plays the operator, too: what the spec says is
/// plugged at once.
#[derive(Clone)]
struct Api {
    object: Arc<Mutex<Value>>,
    patches: Arc<Mutex<Vec<Value>>>,
    views: watch::Sender<VmView>,
}

/// The shipped configuration, with pauses that a test can wait for.
fn quick() -> crate::config::FileConfig {
    let mut file = crate::config::shipped();
    file.policies.headroom = host_scaling::Headroom {
        cpu_calm: Duration::from_millis(300),
        memory_calm: Duration::from_millis(300),
        step_pause: Duration::from_millis(50),
        ..host_scaling::Headroom::default()
    };
    file.policies.retries.veto_valid = Duration::from_millis(300);
    file.policies.retries.veto_pause = Duration::from_millis(100);
    file.policies.retries.permit_denied = Duration::from_millis(200);
    file
}

fn view_of(object: &Value) -> VmView {
    let vm = serde_json::from_value(object.clone()).unwrap();
    match look(&vm, "n1", &quick()) {
        Seen::Ours(view) => *view,
        other => panic!("{other:?}"),
    }
}

impl Api {
    fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let api = api.clone();
            async move { Ok::<_, std::convert::Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    async fn answer(
        &self,
        request: http::Request<kube::client::Body>,
    ) -> http::Response<kube::client::Body> {
        assert_eq!(
            request.uri().path(),
            "/apis/vm.neon.tech/v1/namespaces/default/virtualmachines/pg"
        );
        let patch = request.method() == http::Method::PATCH;
        let bytes = request.into_body().collect_bytes().await.unwrap();
        let (status, body) = if patch {
            self.patch(&serde_json::from_slice(&bytes).unwrap())
        } else {
            (200, self.object.lock().unwrap().clone())
        };
        let body = serde_json::to_vec(&body).unwrap();
        http::Response::builder().status(status).body(body.into()).unwrap()
    }

    fn patch(&self, operations: &Value) -> (u16, Value) {
        let mut object = self.object.lock().unwrap();
        let mut next = object.clone();
        for operation in operations.as_array().unwrap() {
            let path = operation["path"].as_str().unwrap();
            let (parent, key) = path.rsplit_once('/').unwrap();
            let key = key.replace("~1", "/");
            let parent = next.pointer_mut(parent).and_then(Value::as_object_mut).unwrap();
            if operation["op"] == "test" {
                if parent.get(&key) != Some(&operation["value"]) {
                    let status = serde_json::json!({
                        "kind": "Status", "apiVersion": "v1", "status": "Failure",
                        "reason": "Invalid", "message": "test failed", "code": 422,
                    });
                    return (422, status);
                }
            } else {
                parent.insert(key, operation["value"].clone());
            }
        }
        let version: u64 = next["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        next["metadata"]["resourceVersion"] = (version + 1).to_string().into();
        if next["spec"] != object["spec"] {
            let generation = next["metadata"]["generation"].as_u64().unwrap();
            next["metadata"]["generation"] = (generation + 1).into();
        }
        self.patches.lock().unwrap().push(operations.clone());
        *object = next.clone();
        drop(object);
        self.plug();
        (200, next)
    }

    fn plug(&self) {
        let mut object = self.object.lock().unwrap();
        let spec = view_of(&object).spec;
        object["status"]["cpus"] = serde_json::json!(spec.cpu);
        object["status"]["memorySize"] = serde_json::json!(spec.memory);
        let version: u64 = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        object["metadata"]["resourceVersion"] = (version + 1).to_string().into();
        self.views.send_replace(view_of(&object));
    }

    fn plugged(&self) -> Size {
        view_of(&self.object.lock().unwrap()).plugged
    }
}

/// A guest whose demand can be set, and which can veto.
struct Guest {
    link: Mutex<Option<Link<ScalerGuest>>>,
    demand: Mutex<Size>,
    /// In thousandths.
    load: AtomicU32,
    veto: AtomicBool,
    questions: Mutex<Vec<ScalerRequest>>,
}

impl Guest {
    fn answer(&self, request: &ScalerRequest) -> ScalerResponse {
        self.questions.lock().unwrap().push(request.clone());
        match *request {
            ScalerRequest::MayShrink { from, .. } if self.veto.load(Ordering::Relaxed) => {
                ScalerResponse::Veto { least: from, reason: "busy".into() }
            }
            ScalerRequest::MayShrink { .. } => ScalerResponse::Fine {},
            ScalerRequest::Resized { plugged, .. } => ScalerResponse::Confirmed {
                cpus_online: plugged.cpu.whole_up(),
                memory_total: plugged.memory,
            },
        }
    }

    async fn run(self: Arc<Self>, mut listener: host_protocol::MemListener, tasks: TaskTracker) {
        while let Some(stream) = listener.accept().await {
            let limit = Duration::from_secs(5);
            let session = accept::<ScalerGuest, _>(stream, "boot", LinkOptions::default(), limit);
            let Session { link, mut incoming, driver, .. } = session.await.unwrap();
            *self.link.lock().unwrap() = Some(link.clone());
            tasks.spawn(driver.run());
            let samples = Arc::clone(&self);
            tasks.spawn(async move {
                while !link.is_closed() {
                    let demand = *samples.demand.lock().unwrap();
                    let signals = guest_protocol::Signals::default();
                    let load = samples.load.load(Ordering::Relaxed);
                    let metrics = guest_protocol::Metrics {
                        load1_milli: load,
                        load5_milli: load,
                        memory_total: Bytes(1 << 30),
                        memory_available: Bytes(1 << 29),
                        memory_cached: Bytes(0),
                    };
                    let (metrics, cache) = (Some(metrics), None);
                    let sample =
                        guest_protocol::Sample { demand, used: demand, signals, metrics, cache };
                    let _closed = link.notify(ScalerNotify::Sample(sample));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
            let guest = Arc::clone(&self);
            tasks.spawn(async move {
                while let Some(received) = incoming.next().await {
                    let Received::Request(request, responder) = received;
                    responder.respond(guest.answer(&request)).unwrap();
                }
            });
        }
    }
}

/// Grants at most `cap`.
async fn permit(
    State(cap): State<Arc<Mutex<Size>>>,
    Json(request): Json<PermitRequest>,
) -> Json<PermitAnswer> {
    let cap = *cap.lock().unwrap();
    Json(grant(&request, request.want.min(cap.max(request.least)), 1))
}

struct World {
    api: Api,
    guest: Arc<Guest>,
    cap: Arc<Mutex<Size>>,
    queries: mpsc::Sender<Query>,
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
    folder: std::path::PathBuf,
}

async fn world(name: &str) -> World {
    let tasks = TaskTracker::new();
    let (identity, folder) = (identity(), folder(name));
    std::fs::write(folder.join("ca.crt"), &identity.pem).unwrap();
    std::fs::write(folder.join("token"), "good").unwrap();
    let cap = Arc::new(Mutex::new(size(64_000, 64)));
    let router = Router::new().route(PERMIT_PATH, post(permit)).with_state(Arc::clone(&cap));
    let port = serve_tls(&identity, router, &tasks).await;

    let mut object = crate::view::tests::object();
    object["spec"]["guest"]["cpus"]["use"] = "250m".into();
    object["spec"]["guest"]["memorySlots"]["use"] = 8.into();
    object["status"]["cpus"] = "250m".into();
    object["status"]["memorySize"] = "1Gi".into();
    let view = view_of(&object);
    let (views, received) = watch::channel(view.clone());
    let api = Api { object: Arc::new(Mutex::new(object)), patches: Arc::default(), views };

    let (endpoint, listener) = Endpoint::mem();
    let guest = Arc::new(Guest {
        link: Mutex::new(None),
        demand: Mutex::new(Size { cpu: MilliCpu(50), memory: Bytes(300 << 20) }),
        load: AtomicU32::new(0),
        veto: AtomicBool::new(false),
        questions: Mutex::default(),
    });
    tasks.spawn(Arc::clone(&guest).run(listener, tasks.clone()));

    let file = quick();
    let shared = Arc::new(Shared {
        file,
        node: "n1".to_owned(),
        client: api.client(),
        scheduler: client(&folder, port, &tasks),
        metrics: Metrics::register(&mut Registry::default()),
        events: crate::events::channel().0,
        board: Board::default(),
        tasks: tasks.clone(),
    });
    let stop = CancellationToken::new();
    let (queries, asked) = mpsc::channel(4);
    let start = Start {
        view,
        pod_uid: "pod-1".to_owned(),
        place: GuestPlace::Mem(endpoint),
        views: received,
        queries: asked,
        stop: stop.clone(),
    };
    tasks.spawn(run(Arc::clone(&shared), start));
    World { api, guest, cap, queries, shared, stop, tasks, folder }
}

impl World {
    fn demand(&self, cpu: u32, mib: u64) {
        *self.guest.demand.lock().unwrap() = Size { cpu: MilliCpu(cpu), memory: Bytes(mib << 20) };
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..2000 {
            if done(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not within 20 s: {what}; {:?}", self.api.plugged());
    }

    async fn why(&self) -> Vec<Value> {
        let (to, lines) = oneshot::channel();
        self.queries.send(Query::Why(to)).await.unwrap();
        let lines = lines.await.unwrap();
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tasks.close();
        let _gone = std::fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test]
async fn demand_becomes_size_and_back_and_the_guest_is_asked_and_told() {
    let world = world("task").await;
    world.demand(1500, 3000);
    let large = Size { cpu: MilliCpu(2000), memory: Bytes(3456 << 20) };
    world.until("grown", |world| world.api.plugged() == large).await;
    world.demand(50, 300);
    world.until("back", |world| world.api.plugged() == size(250, 1)).await;
    world
        .until("returned", |world| {
            let object = world.api.object.lock().unwrap();
            view_of(&object).approved == Some(size(250, 1))
        })
        .await;
    let told = ScalerRequest::Resized { generation: 0.into(), plugged: large };
    let questions = world.guest.questions.lock().unwrap().clone();
    assert!(questions.iter().any(|it| matches!((it, &told),
        (ScalerRequest::Resized { plugged: a, .. }, ScalerRequest::Resized { plugged: b, .. }) if a == b)));
    let shrinks = |it: &&ScalerRequest| matches!(it, ScalerRequest::MayShrink { .. });
    assert!(questions.iter().filter(shrinks).count() >= 2);

    let lines = world.why().await;
    assert_eq!(lines[0]["to"], serde_json::json!({"vCPUs": 2, "mem": "3456Mi"}));
    assert_eq!(lines[0]["rule"], "cpu grow, memory grow");
    assert_eq!(lines[0]["outcome"], "done");
    assert!(lines[0]["at"].as_str().unwrap().ends_with('Z'), "{}", lines[0]["at"]);
    assert_eq!(lines[0]["inputs"]["guestLive"], true);
    let (to, top) = oneshot::channel();
    world.queries.send(Query::Top(to)).await.unwrap();
    let top: Value = serde_json::from_str(&top.await.unwrap()[0]).unwrap();
    assert_eq!((&top["name"], &top["plugged"]["mem"]), (&"pg".into(), &"1Gi".into()));
}

#[tokio::test]
async fn the_policy_of_a_running_vm_is_changed_by_its_annotation() {
    let world = world("policy").await;
    world.guest.load.store(1800, Ordering::Relaxed);
    world.until("held", |world| world.guest.link.lock().unwrap().is_some()).await;
    assert_eq!(world.api.plugged(), size(250, 1), "a load is nothing to the policy headroom");
    let annotate = |text: &str| {
        let mut object = world.api.object.lock().unwrap();
        object["metadata"]["annotations"]["autoscaling.neon.tech/policy"] = text.into();
        drop(object);
        world.api.plug();
    };
    annotate("reference");
    // 1.8 / 0.9 / 0.25 is 8 units.
    world.until("grown", |world| world.api.plugged() == size(2000, 8)).await;
    let why = world.why().await;
    let last = why.last().unwrap();
    assert_eq!(last["rule"], "goal 8 by cpu");
    assert_eq!(last["inputs"]["reference"]["load1"], 1.8);
    annotate("headroom");
    world.until("back", |world| world.api.plugged() == size(250, 1)).await;
}

#[tokio::test]
async fn a_vetoed_shrink_is_never_written() {
    let world = world("veto").await;
    world.demand(1500, 3000);
    let large = Size { cpu: MilliCpu(2000), memory: Bytes(3456 << 20) };
    world.until("grown", |world| world.api.plugged() == large).await;
    world.guest.veto.store(true, Ordering::Relaxed);
    world.demand(50, 300);
    world
        .until("asked several times", |world| {
            let questions = world.guest.questions.lock().unwrap();
            questions.iter().filter(|it| matches!(it, ScalerRequest::MayShrink { .. })).count() >= 3
        })
        .await;
    assert_eq!(world.api.plugged(), large);
    world.guest.veto.store(false, Ordering::Relaxed);
    world.until("shrunk", |world| world.api.plugged() == size(250, 1)).await;
}

#[tokio::test]
async fn a_partial_permit_bounds_the_patch_and_a_lost_race_is_repeated() {
    let world = world("partial").await;
    *world.cap.lock().unwrap() = size(1000, 2);
    world.demand(1500, 3000);
    world.until("grown in part", |world| world.api.plugged() == size(1000, 2)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.api.plugged(), size(1000, 2), "never above the permit");
    // Another writer replaces the proof: the next patch tests the old one and loses.
    {
        let mut object = world.api.object.lock().unwrap();
        let proof = r#"{"epoch":1,"generation":1,"signature":"eHh4"}"#;
        object["metadata"]["annotations"][controller_api::names::ANNOTATION_APPROVED_PROOF] =
            proof.into();
    }
    *world.cap.lock().unwrap() = size(64_000, 64);
    let large = Size { cpu: MilliCpu(2000), memory: Bytes(3456 << 20) };
    world.until("grown after the race", |world| world.api.plugged() == large).await;
}

#[tokio::test]
async fn a_late_patch_does_nothing() {
    let world = world("late").await;
    let approved = |object: &Value| view_of(object).proof.is_some();
    world.until("approved", |world| approved(&world.api.object.lock().unwrap())).await;
    let seen = view_of(&world.api.object.lock().unwrap());
    let smaller = Size { cpu: MilliCpu(50), ..seen.spec };
    let late = crate::patch::operations(&seen, smaller, None, Timestamp::UNIX_EPOCH);
    world.demand(1500, 3000);
    let large = Size { cpu: MilliCpu(2000), memory: Bytes(3456 << 20) };
    world.until("grown", |world| world.api.plugged() == large).await;
    assert_eq!(world.api.patch(&Value::Array(late)).0, 422);
    assert_eq!(world.api.plugged(), large);
}

/// A task whose effects are left to the test.
fn task(world: &World) -> (Task, mpsc::Receiver<Report>) {
    let (report, reports) = mpsc::channel(4);
    let view = view_of(&world.api.object.lock().unwrap());
    (Task::new(Arc::clone(&world.shared), view, "pod-1".to_owned(), report), reports)
}

fn permit_of(generation: u64, size: Size) -> Report {
    let approval = Approval { size, epoch: 1, generation, signature: String::new() };
    Report::Permit { generation, permit: size, reason: String::new(), approval, want: size }
}

#[tokio::test]
async fn an_approval_is_kept_only_when_its_permit_was_adopted() {
    let world = world("adopted").await;
    let (mut task, _reports) = task(&world);
    let ask = |task: &mut Task| {
        let start = task.scaler.next(task.now()).start;
        let (action, _) =
            start.into_iter().find(|(it, _)| matches!(it, Action::AskPermit { .. }))?;
        task.handle(Event::Started(action));
        Some(action.generation())
    };
    let first = ask(&mut task).unwrap();
    task.reported(permit_of(first, size(250, 1)));
    assert_eq!(task.approval.as_ref().unwrap().0, first);
    task.handle(Event::Asked(size(1000, 2)));
    let second = ask(&mut task).unwrap();
    let too_small = Size { cpu: MilliCpu(100), memory: Bytes(1 << 30) };
    task.reported(permit_of(second, too_small));
    assert_eq!(task.approval.as_ref().unwrap().0, first, "an answer that does not fit is not used");
}

#[tokio::test]
async fn a_patch_whose_approval_is_not_at_hand_fails() {
    let world = world("missing").await;
    let (task, mut reports) = task(&world);
    let (from, size) = (task.view.spec, task.view.spec);
    let patch = Action::PatchVm { generation: 7, from, size, approval: Some(6) };
    perform::start(&task, patch, Why::Approval);
    let ended = reports.recv().await.unwrap();
    assert!(matches!(ended, Report::PatchFailed { generation: 7, raced: false, .. }));
}

thread_local! {
    /// What the tests of a thread have logged.
    static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Lines;

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LINES.with_borrow_mut(|lines| lines.write(bytes))
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_log_says_how_old_the_demand_was() {
    // One for all threads: whether anybody wants a line is remembered for all of them, and the others want none.
    let log = tracing_subscriber::fmt().json().with_writer(|| Lines).finish();
    tracing::subscriber::set_global_default(log).unwrap();
    let world = world("age").await;
    world.demand(1500, 3000);
    let large = Size { cpu: MilliCpu(2000), memory: Bytes(3456 << 20) };
    world.until("grown", |world| world.api.plugged() == large).await;
    let text = String::from_utf8(LINES.take()).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut asked = lines.filter(|line| line["fields"]["message"] == "permit asked");
    let grow = asked.find(|line| line["fields"]["why"] == "grow").unwrap();
    assert!(grow["fields"]["demand_age_ms"].as_u64().unwrap() < 1000, "{grow}");
}
