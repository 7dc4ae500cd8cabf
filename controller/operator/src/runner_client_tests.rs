//! Tests of the connection to a runner: a real TLS server on the loopback, and everything that must not work.

use std::net::Ipv4Addr;

use axum::Router;
use axum::body::Body;
use axum::extract::Query;
use axum::routing::{get, put};
use guest_units::{Bytes as Memory, MilliCpu};
use host_protocol::{OrderResult, What};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::certs::{Certs, Keys};
use crate::fake::ApiServer;
use crate::pki::{Pair, Role};

const OUTCOME: &str =
    r#"{"revision":7,"plugged":{"vcpus":1,"cpu":1,"memory":"1Gi"},"result":"done"}"#;

/// What a question for the state says.
#[derive(serde::Deserialize)]
struct Asked {
    epoch: u64,
    counter: u64,
    known: Option<u64>,
}

async fn keys() -> Arc<Keys> {
    Certs::establish(ApiServer::default().client(), "neonvm-system".into()).await.unwrap().keys()
}

/// A client of a runner that obeys this epoch.
pub(crate) async fn client_of(epoch: u64) -> RunnerClient {
    let (tasks, keys) = (TaskTracker::new(), keys().await);
    let pair = keys.issue_for_test(Role::Server, &server_san("vm-abc"));
    let port = obeying(&tasks, &pair, keys.ca_cert(), epoch).await;
    client("vm-abc", port, &keys, &tasks)
}

/// A runner with this certificate that trusts the authority `ca`; returns its port.
async fn runner(tasks: &TaskTracker, pair: &Pair, ca: &str) -> u16 {
    obeying(tasks, pair, ca, 0).await
}

async fn obeying(tasks: &TaskTracker, pair: &Pair, ca: &str, obeyed: u64) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(pki::ca_der(ca).unwrap()).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap(),
        )
        .unwrap();
    let state = move |Query(Asked { epoch, counter, known }): Query<Asked>| async move {
        let newest = Generation { epoch, counter }.max(Generation { epoch: obeyed, counter: 0 });
        let state = json!({
            "revision": known.unwrap_or_default() + 1, "guest": "connected", "vm": "running",
            "plugged": {"vcpus": 1, "cpu": 1, "memory": "1Gi"}, "newest": newest, "busy": false,
        });
        Body::from(state.to_string())
    };
    let router = Router::new()
        .route(ORDERS_PATH, put(|| async { Body::from(OUTCOME) }))
        .route(STATE_PATH, get(state));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let service = TowerToHyperService::new(router.clone());
            let connection = hyper::server::conn::http1::Builder::new();
            let _ended = connection.serve_connection(TokioIo::new(stream), service).await;
        }
    });
    port
}

fn client(pod: &str, port: u16, keys: &Arc<Keys>, tasks: &TaskTracker) -> RunnerClient {
    let ip = Ipv4Addr::LOCALHOST.into();
    RunnerClient { port, ..RunnerClient::new(pod, ip, Arc::clone(keys), tasks.clone()) }
}

fn order() -> Order {
    let generation = Generation { epoch: 1, counter: 1 };
    Order { generation, what: What::SetCpu(MilliCpu(1000)) }
}

#[tokio::test]
async fn orders_and_states_go_over_one_connection() {
    let (tasks, keys) = (TaskTracker::new(), keys().await);
    let pair = keys.issue_for_test(Role::Server, &server_san("vm-abc"));
    let port = runner(&tasks, &pair, keys.ca_cert()).await;
    let mut client = client("vm-abc", port, &keys, &tasks);
    let outcome = client.order(&order()).await.unwrap();
    assert_eq!(outcome.result, OrderResult::Done);
    assert_eq!(outcome.plugged.memory, Memory(1 << 30));
    // The server serves one connection at a time: this would hang on a second one.
    let first = Generation { epoch: 2, counter: 5 };
    let state = client.state(first, Some(3)).await.unwrap();
    assert_eq!((state.revision, state.newest), (4, first));
}

#[tokio::test]
async fn another_name_another_authority_and_another_client_are_refused() {
    let (tasks, keys, other) = (TaskTracker::new(), keys().await, self::keys().await);
    let name = server_san("vm-abc");

    let pair = keys.issue_for_test(Role::Server, &name);
    let port = runner(&tasks, &pair, keys.ca_cert()).await;
    let wrong_pod = client("vm-xyz", port, &keys, &tasks).order(&order()).await;
    assert!(matches!(wrong_pod, Err(RunnerError::Connect { .. })), "{wrong_pod:?}");

    let foreign = other.issue_for_test(Role::Server, &name);
    let port = runner(&tasks, &foreign, keys.ca_cert()).await;
    let wrong_ca = client("vm-abc", port, &keys, &tasks).order(&order()).await;
    assert!(matches!(wrong_ca, Err(RunnerError::Connect { .. })), "{wrong_ca:?}");

    let client_only = keys.issue_for_test(Role::Client, &name);
    let port = runner(&tasks, &client_only, keys.ca_cert()).await;
    let wrong_role = client("vm-abc", port, &keys, &tasks).order(&order()).await;
    assert!(matches!(wrong_role, Err(RunnerError::Connect { .. })), "{wrong_role:?}");

    // The runner does not know this client's authority: the refusal comes with the first answer.
    let port = runner(&tasks, &pair, other.ca_cert()).await;
    assert!(client("vm-abc", port, &keys, &tasks).order(&order()).await.is_err());
}
