//! The whole of the extender around the ledger, over real TLS, with a fake API server.

mod fencing;
mod flood;
mod fuzz;
mod limits;
mod load;
mod versions;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use guest_units::{Bytes, MilliCpu, Size};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use prometheus_client::registry::Registry;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use scheduler_ledger::{
    Amount, Event, NodeFacts, PodFacts, PodKind, RunnerFacts, Settings, VmFacts,
};
use scheduler_protocol::{KUBE_SCHEDULER_SAN, PermitAnswer, Refusal, RefusalCode};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Authenticator;
use crate::core::{Command, Core, Known, Owner};
use crate::effects::{CallError, Effects};
use crate::lanes::{Lanes, Newest};
use crate::lease::{Candidate, LeaseState};
use crate::metrics::Metrics;
use crate::routes::{MAX_PERMITS, Shared};
use crate::sign::Signer;
use crate::{core, http as server, routes, sign, tls};

const GIB: u64 = 1 << 30;

type Calls = Arc<Mutex<Vec<(Method, String, Value)>>>;
/// Answers that are given once: method, end of the path, status, body.
type Answers = Arc<Mutex<Vec<(Method, &'static str, u16, Value)>>>;

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Certificate and key, PEM.
    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// An API server that knows three tokens, a lease, and says yes to everything else.
async fn api(
    calls: Calls,
    answers: Answers,
    request: Request<kube::client::Body>,
) -> Result<Response<Body>, BoxError> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let path = parts.uri.path().to_owned();
    let prepared = {
        let mut answers = answers.lock().unwrap();
        let at = answers.iter().position(|it| it.0 == parts.method && path.ends_with(it.1));
        at.map(|at| answers.remove(at))
    };
    if let Some((method, _, status, answer)) = prepared {
        calls.lock().unwrap().push((method, path, body));
        return Ok(Response::builder().status(status).body(Body::from(answer.to_string()))?);
    }
    let answer = if path.ends_with("/tokenreviews") {
        review(body["spec"]["token"].as_str().unwrap_or_default())
    } else if path.ends_with("/leases/autoscale-scheduler") && parts.method == Method::GET {
        let status = json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": ""});
        return Ok(Response::builder().status(404).body(Body::from(status.to_string()))?);
    } else if path.ends_with("/pods/pg-x") && parts.method == Method::GET
        || path.ends_with("/pods/pg-x/status")
    {
        pod_json("7")
    } else if path.ends_with("/resize") {
        json!({"metadata": {"name": "pg-x", "namespace": "default", "generation": 2}})
    } else if path.ends_with("/binding") {
        json!({"kind": "Status", "status": "Success"})
    } else {
        body.clone()
    };
    calls.lock().unwrap().push((parts.method, path, body));
    Ok(Response::new(Body::from(answer.to_string())))
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn review(token: &str) -> Value {
    let node = match token {
        "agent-n1" => "n1",
        "agent-n2" => "n2",
        _ => return json!({"spec": {"token": ""}, "status": {"authenticated": false}}),
    };
    json!({"spec": {"token": ""}, "status": {
        "authenticated": true, "audiences": ["autoscale-scheduler"],
        "user": {
            "username": "system:serviceaccount:kube-system:autoscaler-agent",
            "extra": {"authentication.kubernetes.io/node-name": [node]}
        }
    }})
}

struct Extender {
    address: SocketAddr,
    authority: Authority,
    core: Core,
    calls: Calls,
    answers: Answers,
    effects: Effects,
    signer: Signer,
    shared: Arc<Shared>,
    files: Arc<tls::TlsFiles>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Drop for Extender {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn file(name: &str, content: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("extender-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

async fn extender(name: &str) -> Extender {
    extender_with(name, Settings { confirm_pod: Duration::from_millis(500), ..Settings::default() })
        .await
}

async fn extender_with(name: &str, settings: Settings) -> Extender {
    let (calls, answers) = (Calls::default(), Answers::default());
    let (seen, given) = (Arc::clone(&calls), Arc::clone(&answers));
    let service =
        tower::service_fn(move |request| api(Arc::clone(&seen), Arc::clone(&given), request));
    let client = Client::new(service, "default");
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost", ExtendedKeyUsagePurpose::ServerAuth);
    let files = Arc::new(tls::files(
        file(&format!("{name}.crt"), &certificate),
        file(&format!("{name}.key"), &key),
        file(&format!("{name}.ca"), &authority.issuer.pem()),
    ));
    let (core, inbox) = core::channel(settings);
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let (known, lease, signer) =
        (Arc::new(Known::default()), LeaseState::default(), sign::tests::signer(name));
    let metrics = Metrics::register(&mut Registry::default());
    let limit = Duration::from_secs(5);
    let fenced = TaskTracker::new();
    let effects = Effects {
        client: client.clone(),
        signer: signer.clone(),
        lease: lease.clone(),
        recorder: Recorder::new(client.clone(), Reporter::from("test")),
        core: core.clone(),
        tasks: tasks.clone(),
        fenced: fenced.clone(),
        metrics: metrics.clone(),
        limit,
        lanes: Arc::new(Lanes::new()),
        fences: Newest::default(),
        requested: Newest::default(),
    };
    let shared = Arc::new(Shared {
        agents: Authenticator::new(client.clone(), limit),
        effects: effects.clone(),
        permits: Semaphore::new(MAX_PERMITS),
    });
    let owner = Owner { effects: effects.clone(), known: Arc::clone(&known) };
    let leases = kube::Api::namespaced(client, "kube-system");
    let (leads, _) = tokio::sync::watch::channel(None);
    let candidate = Candidate::new(leases, "pod".into(), lease, known, core.clone(), fenced, leads);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _owner = tasks.spawn(owner.run(inbox, shutdown.clone()));
    let _candidate = tasks.spawn(candidate.run(shutdown.clone()));
    let routes = routes::router(Arc::clone(&shared));
    let (tls, stop) = (Arc::clone(&files), shutdown.clone());
    let _server = tasks.spawn(server::serve(listener, tls, routes, tasks.clone(), stop));
    Extender {
        address,
        authority,
        core,
        calls,
        answers,
        effects,
        signer,
        shared,
        files,
        tasks,
        shutdown,
    }
}

type Connection = hyper::client::conn::http1::Connection<
    TokioIo<tokio_rustls::client::TlsStream<TcpStream>>,
    Full<axum::body::Bytes>,
>;
type Sender = hyper::client::conn::http1::SendRequest<Full<axum::body::Bytes>>;

impl Extender {
    async fn dial(
        &self,
        address: SocketAddr,
        identity: Option<&(String, String)>,
    ) -> Result<(Sender, Connection), BoxError> {
        self.speak(TcpStream::connect(address).await?, identity).await
    }

    async fn speak(
        &self,
        stream: TcpStream,
        identity: Option<&(String, String)>,
    ) -> Result<(Sender, Connection), BoxError> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.issuer.pem().as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match identity {
            Some((certificate, key)) => config.with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes())?],
                PrivateKeyDer::from_pem_slice(key.as_bytes())?,
            )?,
            None => config.with_no_client_auth(),
        };
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(ServerName::try_from("localhost")?, stream).await?;
        Ok(hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?)
    }

    async fn request(
        &self,
        identity: Option<&(String, String)>,
        path: &str,
        token: Option<&str>,
        body: impl Into<Vec<u8>>,
    ) -> Result<(StatusCode, Value), BoxError> {
        let (mut sender, connection) = self.dial(self.address, identity).await?;
        let mut request = Request::post(path).header("host", "localhost");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::new(axum::body::Bytes::from(body.into())))?;
        // With the sender the connection ends, if it has not been closed before.
        let exchange = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            Ok::<_, BoxError>((status, serde_json::from_slice(&body)?))
        };
        let (answered, _ended) = tokio::join!(exchange, connection);
        answered
    }

    async fn refusal(&self, token: Option<&str>, body: impl Into<Vec<u8>>) -> (u16, RefusalCode) {
        let (status, body) = self.request(None, "/v1/permit", token, body).await.unwrap();
        let refusal: Refusal = serde_json::from_value(body).unwrap();
        (status.as_u16(), refusal.code)
    }

    /// A node, and a VM of 1 CPU and 1 GiB on it.
    async fn running(&self) {
        // So that nothing is known from before.
        for listed in [Event::NodesListed, Event::PodsListed, Event::VmsListed] {
            self.core.tell(listed([].into())).await.unwrap();
        }
        self.until("a lease", |_| true, || async { self.dump().await.epoch.is_some() }).await;
        let allocatable = Amount { cpu_millis: 8000, memory_bytes: 16 * GIB };
        self.core
            .tell(Event::Node(NodeFacts { name: "n1".into(), allocatable, ..NodeFacts::default() }))
            .await
            .unwrap();
        self.core.tell(Event::NodesListed(["n1".into()].into())).await.unwrap();
        self.core.tell(Event::Pod(pod(1100, 1))).await.unwrap();
        self.core.tell(Event::PodsListed(["p1".into()].into())).await.unwrap();
        self.core.tell(Event::Vm(vm())).await.unwrap();
        self.core.tell(Event::VmsListed(["u1".into()].into())).await.unwrap();
        self.until(
            "an answer",
            |_| true,
            || async {
                let (_, answer) = self.filter().await;
                answer["Error"].is_null()
            },
        )
        .await;
    }

    async fn filter(&self) -> (StatusCode, Value) {
        let identity =
            self.authority.issue(KUBE_SCHEDULER_SAN, ExtendedKeyUsagePurpose::ClientAuth);
        let args = json!({"Pod": {"metadata": {"name": "x", "namespace": "d", "uid": "x"},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}},
            "NodeNames": ["n1", "n9"]});
        self.request(Some(&identity), "/scheduler/filter", None, args.to_string()).await.unwrap()
    }

    fn answer(&self, method: Method, path: &'static str, status: u16, body: Value) {
        self.answers.lock().unwrap().push((method, path, status, body));
    }

    fn called(&self, method: &Method, path: &str) -> Vec<Value> {
        let calls = self.calls.lock().unwrap();
        let calls = calls.iter().filter(|call| call.0 == *method && call.1.ends_with(path));
        calls.map(|call| call.2.clone()).collect()
    }

    async fn dump(&self) -> scheduler_ledger::Dump {
        self.core.ask(|reply| Command::Dump { reply }).await.unwrap()
    }

    async fn until<F: Future<Output = bool>>(
        &self,
        what: &str,
        call: impl Fn(&(Method, String, Value)) -> bool,
        extra: impl Fn() -> F,
    ) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let called = self.calls.lock().unwrap().iter().any(&call);
            if called && extra().await {
                return;
            }
            assert!(Instant::now() < deadline, "{what} did not come");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn vm() -> VmFacts {
    let size = |cpu, gib| Size { cpu: MilliCpu(cpu), memory: Bytes::from_gib(gib) };
    VmFacts {
        uid: "u1".into(),
        namespace: "default".into(),
        name: "pg".into(),
        min: size(250, 1),
        max: size(4000, 4),
        wanted: size(1000, 1),
        slot: Bytes::from_gib(1),
        floor: Amount::ZERO,
        autoscaled: true,
        visible: None,
        obeyed: None,
        plugged: Some(size(1000, 1)),
        pod_name: Some("pg-x".into()),
        deleting: false,
        movable: None,
    }
}

fn pod(cpu_millis: u64, generation: u64) -> PodFacts {
    let requests = Amount { cpu_millis, memory_bytes: GIB + (256 << 20) };
    PodFacts {
        uid: "p1".into(),
        namespace: "default".into(),
        name: "pg-x".into(),
        node: Some("n1".into()),
        finished: false,
        unplaced: None,
        version: 6 + generation,
        kind: PodKind::Runner(RunnerFacts {
            vm_uid: "u1".into(),
            spec: requests,
            allocated: Some(requests),
            beside: Amount::ZERO,
            init_peak: Amount::ZERO,
            generation,
            observed: generation,
            pending: None,
            price: scheduler_ledger::Price::default(),
            created: 0,
        }),
    }
}

/// The same, of 1100 thousandths of a CPU, as the API server tells of it.
fn pod_json(version: &str) -> Value {
    json!({
        "metadata": {"name": "pg-x", "namespace": "default", "uid": "p1", "generation": 1, "resourceVersion": version,
            "ownerReferences": [{"apiVersion": "vm.neon.tech/v1", "kind": "VirtualMachine", "name": "pg", "uid": "u1", "controller": true}]},
        "spec": {"nodeName": "n1", "containers": [
            {"name": "neonvm-runner", "resources": {"requests": {"cpu": "1100m", "memory": "1280Mi"}}}]},
        "status": {"containerStatuses": [{"name": "neonvm-runner", "image": "", "imageID": "", "ready": true,
            "restartCount": 0, "allocatedResources": {"cpu": "1100m", "memory": "1280Mi"}}]}
    })
}

fn permit(generation: u64, cpu: &str) -> Value {
    json!({
        "version": 1,
        "vm": {"namespace": "default", "name": "pg", "uid": "u1"},
        "pod": {"namespace": "default", "name": "pg-x", "uid": "p1"},
        "generation": generation,
        "want": {"vCPUs": cpu, "mem": "1Gi"},
        "least": {"vCPUs": "500m", "mem": "1Gi"},
        "current": {"vCPUs": 1, "mem": "1Gi"}
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn growth_goes_by_way_of_a_resize_to_a_signed_answer() {
    let extender = extender("growth").await;
    extender.running().await;
    let body = permit(1, "2").to_string();
    let asked = extender.request(None, "/v1/permit", Some("agent-n1"), body);
    let kubelet = async {
        let resized = |call: &(Method, String, Value)| {
            call.1.ends_with("/pods/pg-x/resize")
                && call.2["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "2100m"
        };
        extender.until("the resize", resized, || async { true }).await;
        extender.core.tell(Event::Pod(pod(2100, 2))).await.unwrap();
    };
    let (answered, ()) = tokio::join!(asked, kubelet);
    let (status, body) = answered.unwrap();
    assert_eq!(status, StatusCode::OK, "{body}");
    let answer: PermitAnswer = serde_json::from_value(body).unwrap();
    assert_eq!((answer.outcome.label(), answer.permit.cpu), ("granted", MilliCpu(2000)));
    let mut vm = sign::tests::vm("u1");
    let scheduler_protocol::Approval { size, epoch, generation, signature } = answer.approval;
    let approval = controller_api::Approval { size, epoch, generation, signature };
    vm.metadata.annotations = Some(approval.to_annotations());
    assert_eq!(extender.signer.visible(&vm).map(|seal| seal.size), Some(answer.permit));
    let noted = |call: &(Method, String, Value)| {
        call.2["metadata"]["annotations"][controller_api::names::ANNOTATION_REQUESTED]
            .as_str()
            .is_some_and(|text| text.contains("\"vCPUs\":2"))
    };
    extender.until("the note of the request", noted, || async { true }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_are_known_by_their_tokens_and_bodies_are_checked() {
    let extender = extender("agents").await;
    extender.running().await;
    let good = permit(1, "1").to_string();
    assert_eq!(extender.refusal(None, good.clone()).await, (401, RefusalCode::Unauthenticated));
    let stolen = extender.refusal(Some("stolen"), good.clone()).await;
    assert_eq!(stolen, (401, RefusalCode::Unauthenticated));
    let other = extender.refusal(Some("agent-n2"), good.clone()).await;
    assert_eq!(other, (403, RefusalCode::Forbidden), "an agent of another node");
    let table: [(Vec<u8>, (u16, RefusalCode)); 5] = [
        (b"{".to_vec(), (400, RefusalCode::BadRequest)),
        (vec![0xff; 100], (400, RefusalCode::BadRequest)),
        (permit(1, "-1").to_string().into(), (400, RefusalCode::BadRequest)),
        (permit(1, "4000000").to_string().into(), (400, RefusalCode::BadRequest)),
        (vec![b' '; scheduler_protocol::MAX_BODY_BYTES + 1], (413, RefusalCode::TooLarge)),
    ];
    for (body, expected) in table {
        assert_eq!(extender.refusal(Some("agent-n1"), body).await, expected);
    }
    let mut unknown = permit(1, "1");
    unknown["vm"]["uid"] = json!("u2");
    let refused = extender.refusal(Some("agent-n1"), unknown.to_string()).await;
    assert_eq!(refused, (404, RefusalCode::Unknown));
    let (status, _) = extender.request(None, "/v1/permit", Some("agent-n1"), good).await.unwrap();
    assert_eq!(status, StatusCode::OK, "nothing of that did any harm");
    let reviews = |calls: &Calls| {
        calls.lock().unwrap().iter().filter(|call| call.1.ends_with("/tokenreviews")).count()
    };
    assert_eq!(reviews(&extender.calls), 3, "one for each token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_kube_scheduler_may_place() {
    let extender = extender("place").await;
    extender.running().await;
    let (status, answer) = extender.filter().await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        answer,
        json!({"NodeNames": ["n1"], "FailedNodes": {"n9": "node is not known yet"}})
    );
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    let other = extender.authority.issue("vm-controller.neonvm.internal", client.clone());
    for identity in [None, Some(&other)] {
        for path in ["filter", "prioritize", "preempt", "bind"] {
            let path = format!("/scheduler/{path}");
            let (status, _) =
                extender.request(identity, &path, Some("agent-n1"), "{}").await.unwrap();
            assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
        }
    }
    let stranger = Authority::new().issue(KUBE_SCHEDULER_SAN, client.clone());
    let refused = extender.request(Some(&stranger), "/scheduler/filter", None, "{}").await;
    assert!(refused.is_err(), "a certificate of another authority: {refused:?}");
    let identity = extender.authority.issue(KUBE_SCHEDULER_SAN, client);
    let (status, _) =
        extender.request(Some(&identity), "/scheduler/filter", None, "nonsense").await.unwrap();
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binding_is_checked_and_posted() {
    let extender = extender("bind").await;
    extender.running().await;
    let requests = Amount { cpu_millis: 5000, memory_bytes: GIB };
    for uid in ["o1", "o2"] {
        let facts = PodFacts {
            uid: uid.into(),
            namespace: "default".into(),
            name: uid.into(),
            node: None,
            finished: false,
            unplaced: None,
            version: 0,
            kind: PodKind::Ordinary { requests },
        };
        extender.core.tell(Event::Pod(facts)).await.unwrap();
    }
    let identity =
        extender.authority.issue(KUBE_SCHEDULER_SAN, ExtendedKeyUsagePurpose::ClientAuth);
    let bind = |uid: &'static str| {
        let args = json!({"PodName": uid, "PodNamespace": "default", "PodUID": uid, "Node": "n1"});
        extender.request(Some(&identity), "/scheduler/bind", None, args.to_string())
    };
    assert_eq!(bind("o1").await.unwrap().1, json!({}));
    let posted = |call: &(Method, String, Value)| {
        call.1.ends_with("/pods/o1/binding") && call.2["target"]["name"] == "n1"
    };
    extender.until("the binding", posted, || async { true }).await;
    let (status, answer) = bind("o2").await.unwrap();
    assert_eq!(status, StatusCode::OK);
    assert!(answer["Error"].as_str().unwrap().contains("not promised to others"), "{answer}");
}

#[test]
fn manifests_name_what_the_program_reads() {
    let scheduler = include_str!("../deploy/scheduler.yaml");
    for part in [
        "/etc/autoscale-scheduler/tls",
        "/etc/autoscale-scheduler/ca",
        "/run/autoscale-scheduler",
        "/etc/autoscale-scheduler/signing",
        "/etc/autoscale-scheduler/config",
        "secretName: autoscale-scheduler-signing",
        "port: 10299",
        "name: POD_IP",
        "name: NODE_NAME",
        "readOnlyRootFilesystem: true",
    ] {
        assert!(scheduler.contains(part), "{part}");
    }
    let rbac = include_str!("../deploy/rbac.yaml");
    for part in [
        "pods/resize",
        "pods/status",
        "pods/binding",
        "tokenreviews",
        "virtualmachines",
        "leases",
        "endpointslices",
    ] {
        assert!(rbac.contains(part), "{part}");
    }
}
