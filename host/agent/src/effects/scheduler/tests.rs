//! The client against a TLS server of our own.

use std::path::{Path, PathBuf};

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::post;
use guest_units::{Bytes as Memory, MilliCpu, Size};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use scheduler_protocol::{Approval, ObjectRef, Outcome, RefusalCode, VERSION};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

pub(crate) const LOCALHOST: &str = "localhost";

/// A certificate for `localhost`, signed by itself.
pub(crate) struct Identity {
    pub(crate) pem: String,
    chain: CertificateDer<'static>,
    key: Vec<u8>,
}

pub(crate) fn identity() -> Identity {
    let made = rcgen::generate_simple_self_signed([LOCALHOST.to_owned()]).unwrap();
    Identity {
        pem: made.cert.pem(),
        chain: made.cert.der().clone(),
        key: made.signing_key.serialize_der(),
    }
}

/// Serves `router` over TLS; the port.
pub(crate) async fn serve_tls(identity: &Identity, router: Router, tasks: &TaskTracker) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.clone()));
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![identity.chain.clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tasks_of_connections = tasks.clone();
    tasks.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, router) = (acceptor.clone(), router.clone());
            tasks_of_connections.spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper_util::service::TowerToHyperService::new(router);
                let io = TokioIo::new(stream);
                let _ended =
                    hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
            });
        }
    });
    port
}

pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("agent-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

pub(crate) fn client(folder: &Path, port: u16, tasks: &TaskTracker) -> SchedulerClient {
    limited(folder, port, Duration::from_secs(5), tasks)
}

fn limited(folder: &Path, port: u16, limit: Duration, tasks: &TaskTracker) -> SchedulerClient {
    SchedulerClient::new(
        SchedulerUrl { host: LOCALHOST.to_owned(), port },
        folder.join("ca.crt"),
        folder.join("token"),
        limit,
        tasks.clone(),
    )
}

fn size(cpu: u32) -> Size {
    Size { cpu: MilliCpu(cpu), memory: Memory(1 << 30) }
}

fn request(generation: u64) -> PermitRequest {
    let object = |name: &str| ObjectRef {
        namespace: "default".into(),
        name: name.into(),
        uid: format!("{name}-uid"),
    };
    PermitRequest {
        version: VERSION,
        vm: object("pg"),
        pod: object("pg-abcde"),
        generation,
        want: size(2000),
        least: size(1000),
        current: size(1000),
    }
}

pub(crate) fn grant(request: &PermitRequest, permit: Size, epoch: u64) -> PermitAnswer {
    let outcome = if permit == request.want { Outcome::Granted } else { Outcome::Partial };
    let approval =
        Approval { size: permit, epoch, generation: request.generation, signature: "c2ln".into() };
    PermitAnswer {
        version: request.version,
        epoch,
        generation: request.generation,
        outcome,
        permit,
        approval,
        leased: (request.version >= 2).then_some(permit),
        reason: if permit == request.want { String::new() } else { "no room".into() },
    }
}

/// Grants all; the epoch is the CPU that is asked for. Refuses without the token `good`.
async fn permit(
    State(served): State<Arc<AtomicU64>>,
    headers: HeaderMap,
    Json(request): Json<PermitRequest>,
) -> axum::response::Response {
    served.fetch_add(1, Ordering::Relaxed);
    if headers.get("authorization").is_none_or(|it| it != "Bearer good") {
        let message = "no valid token".to_owned();
        let refusal = Refusal { code: RefusalCode::Unauthenticated, message, newest: None };
        return (StatusCode::UNAUTHORIZED, Json(refusal)).into_response();
    }
    if request.generation < 10 {
        let message = "a newer one was seen".to_owned();
        let refusal = Refusal { code: RefusalCode::Stale, message, newest: Some(10) };
        return (StatusCode::CONFLICT, Json(refusal)).into_response();
    }
    Json(grant(&request, request.want, u64::from(request.want.cpu.0))).into_response()
}

fn kept(client: &SchedulerClient) -> usize {
    client.kept.lock().unwrap().as_ref().map_or(0, Vec::len)
}

struct Setup {
    folder: PathBuf,
    client: SchedulerClient,
    served: Arc<AtomicU64>,
}

async fn setup(name: &str) -> Setup {
    let tasks = TaskTracker::new();
    let identity = identity();
    let folder = folder(name);
    std::fs::write(folder.join("ca.crt"), &identity.pem).unwrap();
    std::fs::write(folder.join("token"), "good\n").unwrap();
    let served = Arc::new(AtomicU64::new(0));
    let router = Router::new().route(PERMIT_PATH, post(permit)).with_state(Arc::clone(&served));
    let port = serve_tls(&identity, router, &tasks).await;
    Setup { client: client(&folder, port, &tasks), folder, served }
}

impl Drop for Setup {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test]
async fn a_permit_is_granted_and_the_connection_is_used_again() {
    let setup = setup("permit").await;
    for generation in 10..15 {
        let answer = setup.client.permit(&request(generation)).await.unwrap();
        assert_eq!((answer.generation, answer.permit), (generation, size(2000)));
        assert_eq!(kept(&setup.client), 1);
    }
}

/// As a scheduler of version 1 says it.
async fn permit_of_version_1(
    State(served): State<Arc<AtomicU64>>,
    Json(request): Json<PermitRequest>,
) -> axum::response::Response {
    served.fetch_add(1, Ordering::Relaxed);
    if request.version != 1 {
        let message = "protocol version 2 is not understood, versions 1 to 1 are".to_owned();
        let refusal = Refusal { code: RefusalCode::BadRequest, message, newest: None };
        return (StatusCode::BAD_REQUEST, Json(refusal)).into_response();
    }
    Json(grant(&request, request.want, 1)).into_response()
}

#[tokio::test]
async fn a_scheduler_of_the_version_before_is_spoken_to_in_its_version() {
    let tasks = TaskTracker::new();
    let (identity, folder) = (identity(), folder("version"));
    std::fs::write(folder.join("ca.crt"), &identity.pem).unwrap();
    std::fs::write(folder.join("token"), "good\n").unwrap();
    let served = Arc::new(AtomicU64::new(0));
    let route = post(permit_of_version_1);
    let router = Router::new().route(PERMIT_PATH, route).with_state(Arc::clone(&served));
    let port = serve_tls(&identity, router, &tasks).await;
    let client = client(&folder, port, &tasks);
    for generation in 10..13 {
        let answer = client.permit(&request(generation)).await.unwrap();
        assert_eq!((answer.version, answer.leased), (1, None));
    }
    assert_eq!(served.load(Ordering::Relaxed), 4, "the version is tried once on a connection");
    client.close();
    client.permit(&request(13)).await.unwrap();
    assert_eq!(served.load(Ordering::Relaxed), 6, "whoever answers now may know the newer one");
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn a_scheduler_of_this_version_says_what_is_leased() {
    let setup = setup("leased").await;
    let answer = setup.client.permit(&request(10)).await.unwrap();
    assert_eq!((answer.version, answer.leased), (VERSION, Some(size(2000))));
}

#[tokio::test]
async fn a_scheduler_that_does_not_answer_is_waited_for_as_configured() {
    let tasks = TaskTracker::new();
    let (identity, folder) = (identity(), folder("silent"));
    std::fs::write(folder.join("ca.crt"), &identity.pem).unwrap();
    std::fs::write(folder.join("token"), "good\n").unwrap();
    let router = Router::new().route(PERMIT_PATH, post(std::future::pending::<StatusCode>));
    let port = serve_tls(&identity, router, &tasks).await;
    let began = std::time::Instant::now();
    let client = limited(&folder, port, Duration::from_millis(300), &tasks);
    let err = client.permit(&request(10)).await.unwrap_err();
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(4), "{took:?}");
    assert_eq!(err.label(), "[error doing request: deadline]");
    std::fs::remove_dir_all(folder).unwrap();
}

/// A request that is answered while the agent stops.
#[tokio::test]
async fn once_the_agent_stops_no_connection_is_kept() {
    let (served, tasks) = (TaskTracker::new(), TaskTracker::new());
    let (identity, folder) = (identity(), folder("end"));
    std::fs::write(folder.join("ca.crt"), &identity.pem).unwrap();
    std::fs::write(folder.join("token"), "good\n").unwrap();
    let router = Router::new().route(PERMIT_PATH, post(permit)).with_state(Arc::default());
    let port = serve_tls(&identity, router, &served).await;
    let client = client(&folder, port, &tasks);
    client.end();
    client.permit(&request(10)).await.unwrap();
    tasks.close();
    tokio::time::timeout(Duration::from_secs(10), tasks.wait()).await.unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn the_token_is_read_again_for_each_request() {
    let setup = setup("token").await;
    std::fs::write(setup.folder.join("token"), "bad").unwrap();
    let err = setup.client.permit(&request(10)).await.unwrap_err();
    assert_eq!(err.label(), "unauthenticated");
    std::fs::write(setup.folder.join("token"), "good").unwrap();
    setup.client.permit(&request(10)).await.unwrap();
    std::fs::write(setup.folder.join("token"), " \n").unwrap();
    let err = setup.client.permit(&request(11)).await.unwrap_err();
    assert!(matches!(err, PermitError::TokenText { .. }), "{err}");
    std::fs::remove_file(setup.folder.join("token")).unwrap();
    let err = setup.client.permit(&request(11)).await.unwrap_err();
    assert!(matches!(err, PermitError::Token { .. }), "{err}");
    assert_eq!(setup.served.load(Ordering::Relaxed), 2, "nothing is sent without a token");
}

#[tokio::test]
async fn a_server_of_another_authority_gets_no_token() {
    let setup = setup("ca").await;
    std::fs::write(setup.folder.join("ca.crt"), identity().pem).unwrap();
    let err = setup.client.permit(&request(10)).await.unwrap_err();
    assert!(matches!(err, PermitError::Tls { .. }), "{err}");
    std::fs::write(setup.folder.join("ca.crt"), "nothing").unwrap();
    let err = setup.client.permit(&request(10)).await.unwrap_err();
    assert!(!matches!(err, PermitError::Refused { .. }), "{err}");
    std::fs::remove_file(setup.folder.join("ca.crt")).unwrap();
    let err = setup.client.permit(&request(10)).await.unwrap_err();
    assert!(matches!(err, PermitError::Ca { .. }), "{err}");
    assert_eq!(setup.served.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn the_name_in_the_certificate_must_fit() {
    let mut setup = setup("name").await;
    setup.client.url.host = "127.0.0.1".to_owned();
    let err = setup.client.permit(&request(10)).await.unwrap_err();
    assert!(matches!(err, PermitError::Tls { .. } | PermitError::Connect { .. }), "{err}");
    assert_eq!(setup.served.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn old_epochs_and_stale_generations_are_refused() {
    let setup = setup("epoch").await;
    setup.client.permit(&request(10)).await.unwrap();
    let older = PermitRequest { want: size(1500), ..request(11) };
    let err = setup.client.permit(&older).await.unwrap_err();
    assert!(matches!(err, PermitError::OldEpoch { epoch: 1500, newest: 2000 }), "{err}");
    assert_eq!(kept(&setup.client), 0, "the next one goes to the leader");
    setup.client.permit(&request(12)).await.unwrap();
    let err = setup.client.permit(&request(9)).await.unwrap_err();
    assert_eq!(err.newest(), Some(10));
    assert_eq!(kept(&setup.client), 0);
}

#[test]
fn an_answer_must_belong_to_its_request() {
    let folder = PathBuf::from("/nowhere");
    let client = client(&folder, 1, &TaskTracker::new());
    let asked = request(10);
    let good = grant(&asked, size(2000), 1);
    assert!(client.check(&asked, good.clone()).is_ok());
    let wrong = [
        PermitAnswer { version: 9, ..good.clone() },
        PermitAnswer { generation: 11, ..good.clone() },
        PermitAnswer { permit: size(1500), ..good.clone() },
        PermitAnswer { epoch: 2, ..good },
    ];
    for answer in wrong {
        let err = client.check(&asked, answer).unwrap_err();
        assert!(matches!(err, PermitError::Mismatch { .. }), "{err}");
    }
}
