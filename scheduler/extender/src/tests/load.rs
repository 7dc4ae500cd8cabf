//! What a call costs, beside what it costs to be called at all: the real listener and routes over TLS on loopback, the API
//! server alone is a fake. A table for whoever changes something here:
//!
//! `cargo test --release -p scheduler-extender load -- --ignored --nocapture`
//!
//! Everything runs in this one process, client included, and in turns; each line is the median of five rounds, with the
//! lowest and the highest. Permits stand beside an echo of the same body by the same listener, placements beside the form
//! without `nodeCacheCapable`: whole nodes, 4 kB each, parsed and sent back. Every permit writes its line of log, into nothing.
//! Figures and wishes are in ARCHITECTURE.md, "What it costs".

#![expect(clippy::print_stdout, reason = "a table for whoever runs it")]

use axum::body::{Bytes as Body_, to_bytes};
use axum::middleware::{Next, from_fn};
use axum::routing::post;
use axum::{Extension, Json, Router};
use k8s_openapi::api::core::v1::Node;
use serde::Deserialize;

use super::*;
use crate::visitors::Visitor;

const ROUNDS: usize = 5;
const NODES: usize = 10_000;
/// What kube-scheduler samples of a large cluster.
const SOME: usize = 500;
/// In a round.
const PERMITS: u64 = 1000;
const PODS: usize = 200;
const PODS_EVERYWHERE: usize = 20;

/// A connection that stays.
struct Caller(Sender);

impl Caller {
    async fn new(extender: &Extender, address: SocketAddr, placing: bool) -> Self {
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        let identity = placing.then(|| extender.authority.issue(KUBE_SCHEDULER_SAN, usage));
        let (sender, connection) = extender.dial(address, identity.as_ref()).await.unwrap();
        let _connection = extender.tasks.spawn(connection);
        Self(sender)
    }

    /// The answer, and how long it took.
    async fn call(&mut self, path: &str, body: Body_) -> (Body_, Duration) {
        let request = Request::post(path)
            .header("host", "localhost")
            .header("authorization", "Bearer agent-n1")
            .body(Full::new(body))
            .unwrap();
        let started = Instant::now();
        self.0.ready().await.unwrap();
        let response = self.0.send_request(request).await.unwrap();
        let status = response.status();
        let answer = response.into_body().collect().await.unwrap().to_bytes();
        let took = started.elapsed();
        assert_eq!(status, StatusCode::OK, "{path}: {answer:?}");
        (answer, took)
    }
}

/// The form without `nodeCacheCapable`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WholeNodes {
    pod: crate::objects::Pod,
    nodes: Items,
}

#[derive(Deserialize)]
struct Items {
    items: Vec<Node>,
}

async fn whole(body: Body) -> (PodFacts, Vec<Node>, Vec<String>) {
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let WholeNodes { pod, nodes: Items { items } } = serde_json::from_slice(&body).unwrap();
    let name = |node: &Node| node.metadata.name.clone().unwrap_or_default();
    let names = items.iter().map(name).collect();
    (crate::convert::pod(&pod).unwrap(), items, names)
}

async fn naive_filter(core: Core, body: Body) -> Json<Value> {
    let (pod, nodes, names) = whole(body).await;
    let names = || names.iter().map(String::as_str);
    let short = core.read(|ledger| ledger.filter(&pod, names())).unwrap().unwrap().short;
    let kept = nodes.into_iter().zip(short).filter(|(_, short)| short.is_none());
    let kept: Vec<Node> = kept.map(|(node, _)| node).collect();
    Json(json!({"Nodes": {"items": kept}, "FailedNodes": {}}))
}

async fn naive_prioritize(core: Core, body: Body) -> Json<Value> {
    let (pod, _, names) = whole(body).await;
    let scores =
        core.read(|ledger| ledger.prioritize(&pod, names.iter().map(String::as_str))).unwrap();
    let scored = names.iter().zip(scores);
    Json(scored.map(|(host, score)| json!({"Host": host, "Score": score})).collect())
}

/// The controls, behind a listener like the real one.
async fn controls(extender: &Extender) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (one, other) = (extender.core.clone(), extender.core.clone());
    let routes = Router::new()
        .route("/echo", post(|body: Body_| async { body }))
        .route("/filter", post(|body: Body| naive_filter(one, body)))
        .route("/prioritize", post(|body: Body| naive_prioritize(other, body)))
        .layer(from_fn(let_in));
    let (files, stop) = (Arc::clone(&extender.files), extender.shutdown.clone());
    let serving = server::serve(listener, files, routes, extender.tasks.clone(), stop);
    let _server = extender.tasks.spawn(serving);
    address
}

/// Controls of measurements: whoever asks is let in, as an agent is.
pub(super) async fn let_in(
    Extension(visitor): Extension<Arc<Visitor>>,
    request: axum::extract::Request,
    next: Next,
) -> axum::response::Response {
    let _let_in = visitor.is_agent_of("control");
    next.run(request).await
}

fn node_name(index: usize) -> String {
    format!("ip-10-0-{}-{}.eu-central-1.compute.internal", index >> 8, index & 255)
}

/// A node as the API server shows it: images, conditions, labels.
fn whole_node(index: usize) -> Value {
    let name = node_name(index);
    let image = |number: usize| {
        let digest = format!("{number:064x}");
        json!({"names": [format!("registry.example.com/team/image-{number}@sha256:{digest}"),
            format!("registry.example.com/team/image-{number}:v1.{number}")], "sizeBytes": 50_000_000 + number})
    };
    let condition = |kind: &str| {
        json!({"type": kind, "status": "False", "reason": format!("KubeletHasNo{kind}"), "message": format!("kubelet has no {kind}"),
            "lastHeartbeatTime": "2026-11-28T12:00:00Z", "lastTransitionTime": "2026-11-01T12:00:00Z"})
    };
    let conditions = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"].map(condition);
    let images: Vec<Value> = (0..12).map(image).collect();
    json!({
        "metadata": {"name": name, "uid": format!("{index:08x}-0000-4000-8000-000000000000"), "resourceVersion": "123456789",
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/arch": "amd64", "topology.kubernetes.io/zone": "eu-central-1a",
                "node.kubernetes.io/instance-type": "m7i.metal-48xl"},
            "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}},
        "spec": {"providerID": format!("aws:///eu-central-1a/i-{index:017x}"), "podCIDR": "10.0.0.0/24"},
        "status": {
            "capacity": {"cpu": "192", "memory": "792Gi", "pods": "110"}, "allocatable": {"cpu": "190", "memory": "780Gi", "pods": "110"},
            "conditions": conditions,
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": name}],
            "images": images,
            "nodeInfo": {"machineID": "x", "systemUUID": "x", "bootID": "x", "kernelVersion": "6.12", "osImage": "Linux",
                "containerRuntimeVersion": "containerd://2.1", "kubeletVersion": "v1.36.0", "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": "amd64"}
        }
    })
}

fn newcomer() -> Value {
    let variable = |number: usize| json!({"name": format!("SETTING_{number}"), "value": "some value of some length"});
    let environment: Vec<Value> = (0..20).map(variable).collect();
    json!({"metadata": {"name": "new-0", "namespace": "default", "uid": "0b7e5a52-7d43-4c7b-9f57-2f1f0c9d7a11", "labels": {"app": "web"}},
        "spec": {"schedulerName": "autoscale-scheduler", "containers": [{"name": "c", "image": "registry.example.com/team/web:v1",
            "env": environment, "resources": {"requests": {"cpu": "1500m", "memory": "2Gi"}}}]}})
}

fn placing(names: &[String]) -> Body_ {
    json!({"Pod": newcomer(), "NodeNames": names}).to_string().into()
}

/// One in ten nodes is full.
async fn fill(extender: &Extender) {
    for index in 0..NODES {
        let allocatable = Amount { cpu_millis: 190_000, memory_bytes: 780 * GIB };
        let name = node_name(index);
        let used = if index % 10 == 0 { 189_000 } else { 100_000 + 10 * index as u64 };
        let requests = Amount { cpu_millis: used, memory_bytes: 300 * GIB };
        let facts = PodFacts {
            uid: format!("pod-{index}"),
            name: format!("pod-{index}"),
            node: Some(name.clone()),
            kind: PodKind::Ordinary { requests },
            ..super::pod(0, 1)
        };
        extender
            .core
            .tell(Event::Node(NodeFacts { name, allocatable, ..NodeFacts::default() }))
            .await
            .unwrap();
        extender.core.tell(Event::Pod(facts)).await.unwrap();
    }
    let _all_told = extender.dump().await;
}

/// One figure per round: the median and the span of them.
#[derive(Default)]
struct Figures(Vec<f64>);

impl Figures {
    fn text(&mut self, unit: &str) -> String {
        self.0.sort_by(f64::total_cmp);
        let [lowest, .., highest] = self.0[..] else { return String::new() };
        format!("{:.1} {unit} ({lowest:.1} to {highest:.1})", self.median())
    }

    fn median(&self) -> f64 {
        let mut all = self.0.clone();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    }
}

/// p50 and p99 of each round, in microseconds.
#[derive(Default)]
struct Latency {
    p50: Figures,
    p99: Figures,
}

impl Latency {
    fn add(&mut self, mut round: Vec<Duration>) {
        round.sort_unstable();
        let micros = |percent: usize| round[round.len() * percent / 100].as_secs_f64() * 1e6;
        self.p50.0.push(micros(50));
        self.p99.0.push(micros(99));
    }

    fn print(&mut self, name: &str, control: Option<&Self>) {
        let ratio = control.map_or_else(String::new, |control| {
            let of = |one: &Figures, other: &Figures| one.median() / other.median();
            let (p50, p99) = (of(&self.p50, &control.p50), of(&self.p99, &control.p99));
            format!("  {p50:.2}x, {p99:.2}x the control")
        });
        println!("{name:<44} p50 {}  p99 {}{ratio}", self.p50.text("us"), self.p99.text("us"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: minutes, and only a release build says anything"]
async fn load() {
    let log = tracing_subscriber::fmt().json().with_env_filter("info").with_writer(std::io::sink);
    let _ = log.try_init();
    let extender = extender("load").await;
    extender.running().await;
    permits(&extender).await;
    fill(&extender).await;
    placements(&extender).await;
}

async fn permits(extender: &Extender) {
    let mut agent = Caller::new(extender, extender.address, false).await;
    let mut echo = Caller::new(extender, controls(extender).await, false).await;
    let (mut same, mut other, mut control) = <(Latency, Latency, Latency)>::default();
    let mut generation = 0;
    for _ in 0..ROUNDS {
        let (mut of_same, mut of_other, mut of_control) = <(Vec<_>, Vec<_>, Vec<_>)>::default();
        for index in 0..PERMITS {
            // Both are within what the pod requests; each is asked for twice.
            for again in [false, true] {
                generation += 1;
                let body = permit(generation, if index % 2 == 0 { "1" } else { "750m" });
                let body = Body_::from(body.to_string());
                of_control.push(echo.call("/echo", body.clone()).await.1);
                let took = agent.call("/v1/permit", body).await.1;
                if again { of_same.push(took) } else { of_other.push(took) }
            }
        }
        same.add(of_same);
        other.add(of_other);
        control.add(of_control);
    }
    control.print("control: echo of a permit's body", None);
    same.print("permit, the same again", Some(&control));
    other.print("permit, another size that is backed", Some(&control));
    parts(extender, generation).await;
}

/// What the two largest parts of a permit take, without listener and client.
async fn parts(extender: &Extender, mut generation: u64) {
    let (mut signature, mut turn) = <(Latency, Latency)>::default();
    let size = Size { cpu: MilliCpu(1000), memory: Bytes::from_gib(1) };
    for _ in 0..ROUNDS {
        let (mut of_signature, mut of_turn) = <(Vec<_>, Vec<_>)>::default();
        for _ in 0..PERMITS {
            generation += 1;
            let request = serde_json::from_value(permit(generation, "1")).unwrap();
            let scheduler_protocol::PermitRequest { vm, pod, want, least, current, .. } = request;
            let asked = scheduler_ledger::Asked {
                ticket: scheduler_ledger::Ticket(0),
                caller_node: "n1".into(),
                vm,
                pod,
                generation,
                want,
                least,
                current,
            };
            let started = Instant::now();
            let _answer =
                extender.core.ask(|reply| Command::Permit { asked, reply }).await.unwrap();
            of_turn.push(started.elapsed());
            let started = Instant::now();
            let seal = scheduler_ledger::Seal { epoch: 1, generation, size };
            let _signed = extender.signer.sign("u1", seal).unwrap();
            of_signature.push(started.elapsed());
        }
        signature.add(of_signature);
        turn.add(of_turn);
    }
    signature.print("  of which the signature", None);
    turn.print("  of which the way to the ledger and back", None);
}

/// One pod: filter, and prioritize with what it leaves.
async fn place(caller: &mut Caller, names: Body_) -> Duration {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Left {
        node_names: Vec<String>,
    }
    let (answer, filtered) = caller.call("/scheduler/filter", names).await;
    let Left { node_names } = serde_json::from_slice(&answer).unwrap();
    assert!(!node_names.is_empty());
    let (_, scored) = caller.call("/scheduler/prioritize", placing(&node_names)).await;
    filtered + scored
}

async fn placements(extender: &Extender) {
    let mut scheduler = Caller::new(extender, extender.address, true).await;
    let mut naive = Caller::new(extender, controls(extender).await, false).await;
    let all: Vec<String> = (0..NODES).map(node_name).collect();
    let (some, all) = (placing(&all[..SOME]), placing(&all));
    let whole: Vec<Value> = (0..NODES).map(whole_node).collect();
    let whole = json!({"Pod": newcomer(), "Nodes": {"items": whole}}).to_string();
    println!("whole nodes: {} MB", whole.len() / 1_000_000);
    let whole = Body_::from(whole);
    let (mut few, mut many, mut slow) = <(Figures, Figures, Figures)>::default();
    let rate = |pods: usize, took: Duration| pods as f64 / took.as_secs_f64();
    for _ in 0..ROUNDS {
        let mut took = Duration::ZERO;
        for _ in 0..PODS {
            took += place(&mut scheduler, some.clone()).await;
        }
        few.0.push(rate(PODS, took));
        let mut took = Duration::ZERO;
        for _ in 0..PODS_EVERYWHERE {
            took += place(&mut scheduler, all.clone()).await;
        }
        many.0.push(rate(PODS_EVERYWHERE, took));
        let filtered = naive.call("/filter", whole.clone()).await.1;
        let scored = naive.call("/prioritize", whole.clone()).await.1;
        slow.0.push(rate(1, filtered + scored));
    }
    let ratio = many.median() / slow.median();
    println!("filter + prioritize, {SOME} names{:<12} {}", "", few.text("pods/s"));
    println!(
        "filter + prioritize, {NODES} names{:<10} {}  {ratio:.0}x the control",
        "",
        many.text("pods/s")
    );
    println!("control: {NODES} whole nodes{:<16} {}", "", slow.text("pods/s"));
}
