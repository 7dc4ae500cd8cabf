//! The listeners over real sockets: who is let in, and what is answered.

use std::net::SocketAddr;
use std::path::PathBuf;

use guest_units::{Bytes as Memory, MilliCpu};
use host_protocol::{CLIENT_SAN, Endpoint, Generation, OrderResult, Outcome, RunnerState, What};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::cmdline::{Accel, Cpus};
use crate::execute::Layout;
use crate::keeper::Keeper;
use crate::serve::{self, Serving};
use crate::testing::{silent_monitor, spec};
use crate::tls::TlsFiles;

const SERVER_SAN: &str = "pg-x7k2p.runner.neonvm.internal";
type Ca = CertifiedIssuer<'static, KeyPair>;

/// Certificate and key as PEM.
struct Pair {
    chain: String,
    key: String,
}

fn ca() -> Ca {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn issue(ca: &Ca, san: &str, usage: ExtendedKeyUsagePurpose) -> Pair {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([san.to_owned()]).unwrap();
    params.extended_key_usages = vec![usage];
    Pair { chain: params.signed_by(&key, ca).unwrap().pem(), key: key.serialize_pem() }
}

fn client(ca: &Ca, san: &str) -> Pair {
    issue(ca, san, ExtendedKeyUsagePurpose::ClientAuth)
}

/// A runner's listeners, with a CA of its own; everything ends with it.
struct Bench {
    ca: Ca,
    folder: PathBuf,
    plain: SocketAddr,
    orders: SocketAddr,
    state: State,
    ready: Ready,
    stop: CancellationToken,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
        let _gone = std::fs::remove_dir_all(&self.folder);
    }
}

impl Bench {
    async fn new(name: &str) -> Self {
        let ca = ca();
        let folder = std::env::temp_dir().join(format!("runner-api-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        install(&folder, &ca, &ca);

        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let (state, ready) = (State::new(None), Ready::new(false));
        let qmp = silent_monitor(&tasks).await;
        let layout = Layout { spec: spec(), accel: Accel::Tcg, cpus: Cpus { start: 3, places: 3 } };
        let keeper = Keeper::at(Endpoint::mem().0);
        let executor = Arc::new(Executor::new(layout, qmp, keeper, state.clone(), metrics.clone()));

        let serving = |router| Serving { router, tasks: tasks.clone(), shutdown: stop.clone() };
        let answers = Plain {
            ready: ready.clone(),
            state: state.clone(),
            metrics: metrics.clone(),
            registry: Arc::new(registry),
        };
        let listener = serve::listen(0).await.unwrap();
        let plain = local(&listener);
        tasks.spawn(serve::plain(listener, serving(super::plain(answers))));
        let listener = serve::listen(0).await.unwrap();
        let orders = local(&listener);
        let router = super::orders(executor, state.clone(), tasks.clone());
        let files = Arc::new(TlsFiles::new(folder.clone()));
        tasks.spawn(serve::mutual_tls(listener, serving(router), files, metrics));
        Self { ca, folder, plain, orders, state, ready, stop }
    }

    /// A connection as this client, when the runner lets it in.
    async fn connect(&self, ca: &Ca, pair: Option<&Pair>) -> std::io::Result<Connection> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match pair {
            None => config.with_no_client_auth(),
            Some(Pair { chain, key }) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes());
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                config.with_client_auth_cert(chain.map(Result::unwrap).collect(), key).unwrap()
            }
        };
        let stream = TcpStream::connect(self.orders).await?;
        let name = ServerName::try_from(SERVER_SAN).unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        Ok(Connection(Box::new(stream)))
    }

    async fn operator(&self) -> Connection {
        self.connect(&self.ca, Some(&client(&self.ca, CLIENT_SAN))).await.unwrap()
    }

    /// Whether this client gets an answer. A refusal may come only after the handshake.
    async fn lets_in(&self, pair: Option<&Pair>) -> bool {
        let Ok(mut connection) = self.connect(&self.ca, pair).await else { return false };
        connection.request("GET /v1/state HTTP/1.1", "").await.is_some()
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let stream = TcpStream::connect(self.plain).await.unwrap();
        Connection(Box::new(stream)).request(&format!("GET {path} HTTP/1.1"), "").await.unwrap()
    }
}

/// The runner's files, as kubelet would write them.
fn install(folder: &std::path::Path, issuer: &Ca, trusted: &Ca) {
    let pair = issue(issuer, SERVER_SAN, ExtendedKeyUsagePurpose::ServerAuth);
    for (name, text) in [("tls.crt", pair.chain), ("tls.key", pair.key), ("ca.crt", trusted.pem())]
    {
        std::fs::write(folder.join(name), text).unwrap();
    }
}

fn local(listener: &tokio::net::TcpListener) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()))
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// One HTTP connection.
struct Connection(Box<dyn Duplex>);

impl Connection {
    /// One request, after which the connection ends: status and body.
    async fn request(&mut self, line: &str, body: &str) -> Option<(u16, String)> {
        let request = format!(
            "{line}\r\nhost: runner\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        let _a_peer_that_refuses_may_reset = self.0.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }
}

#[tokio::test]
async fn only_the_operator_is_let_in() {
    let bench = Bench::new("who").await;
    let stranger = ca();
    for (who, pair, let_in) in [
        ("the operator", Some(client(&bench.ca, CLIENT_SAN)), true),
        ("nobody", None, false),
        ("another role", Some(client(&bench.ca, "kube-scheduler.neonvm.internal")), false),
        ("another runner", Some(client(&bench.ca, SERVER_SAN)), false),
        ("a wild card", Some(client(&bench.ca, "*.internal")), false),
        ("another CA", Some(client(&stranger, CLIENT_SAN)), false),
        (
            "a server's certificate",
            Some(issue(&bench.ca, CLIENT_SAN, ExtendedKeyUsagePurpose::ServerAuth)),
            false,
        ),
    ] {
        assert_eq!(bench.lets_in(pair.as_ref()).await, let_in, "{who}");
    }
    let (_, metrics) = bench.get("/metrics").await;
    assert!(metrics.contains("runner_refused_connections_total{reason=\"client\"} 3"), "{metrics}");
}

#[tokio::test]
async fn plain_text_is_not_understood_on_the_orders_port() {
    let bench = Bench::new("plain").await;
    let stream = TcpStream::connect(bench.orders).await.unwrap();
    let answer = Connection(Box::new(stream)).request("GET /v1/state HTTP/1.1", "").await;
    assert_eq!(answer, None);
}

#[tokio::test]
async fn renewed_certificates_are_used_and_broken_ones_are_not() {
    let mut bench = Bench::new("renewal").await;
    bench.operator().await;
    std::fs::write(bench.folder.join("tls.key"), "garbage").unwrap();
    bench.operator().await; // the old ones still serve
    let fresh = ca();
    install(&bench.folder, &fresh, &fresh);
    let old = std::mem::replace(&mut bench.ca, fresh);
    bench.operator().await;
    assert!(bench.connect(&old, Some(&client(&old, CLIENT_SAN))).await.is_err());
}

#[tokio::test]
async fn malformed_requests_get_typed_answers() {
    let bench = Bench::new("malformed").await;
    let big = format!("{{\"pad\": \"{}\"}}", "x".repeat(BODY_LIMIT));
    for (line, body, status, error) in [
        ("PUT /v1/orders HTTP/1.1", "", 400, "malformed_order"),
        ("PUT /v1/orders HTTP/1.1", "{\"generation\":", 400, "malformed_order"),
        ("PUT /v1/orders HTTP/1.1", "{\"what\": \"powerDown\"}", 400, "malformed_order"),
        ("PUT /v1/orders HTTP/1.1", big.as_str(), 413, "unreadable_body"),
        ("POST /v1/orders HTTP/1.1", "{}", 405, "wrong_method"),
        ("GET /v1/state?epoch=1&known=-1 HTTP/1.1", "", 400, "malformed_query"),
        ("GET /v1/state?epoch=1&counter=x HTTP/1.1", "", 400, "malformed_query"),
        ("GET /v1/state?known=1 HTTP/1.1", "", 400, "malformed_query"),
        ("GET /v1/state?seen=1 HTTP/1.1", "", 400, "malformed_query"),
        ("GET /ready HTTP/1.1", "", 404, "unknown_path"),
    ] {
        let (found, answer) = bench.operator().await.request(line, body).await.unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((found, answer["error"].as_str()), (status, Some(error)), "{line} {body:.40}");
    }
}

#[tokio::test]
async fn an_order_gets_its_outcome() {
    let bench = Bench::new("order").await;
    let order = Order {
        generation: Generation { epoch: 1, counter: 1 },
        what: What::SetCpu(MilliCpu(1000)),
    };
    let body = serde_json::to_string(&order).unwrap();
    let (status, answer) =
        bench.operator().await.request("PUT /v1/orders HTTP/1.1", &body).await.unwrap();
    let outcome: Outcome = serde_json::from_str(&answer).unwrap();
    let reason = "the guest does not answer: its keeper is not connected".to_owned();
    assert_eq!((status, outcome.result), (200, OrderResult::Unsettled { reason }));
}

#[tokio::test]
async fn a_state_is_answered_when_it_differs() {
    let bench = Bench::new("state").await;
    let (status, answer) =
        bench.operator().await.request("GET /v1/state?epoch=7 HTTP/1.1", "").await.unwrap();
    let state: RunnerState = serde_json::from_str(&answer).unwrap();
    assert_eq!((status, state), (200, bench.state.get()));
    assert_eq!(state.newest, Generation { epoch: 7, counter: 0 }, "whom it obeys");

    let known = bench.state.get().revision;
    let mut waiting = bench.operator().await;
    let line = format!("GET /v1/state?epoch=7&known={known} HTTP/1.1");
    let (answer, ()) = tokio::join!(waiting.request(&line, ""), async {
        tokio::task::yield_now().await;
        bench.state.change(|state| state.plugged.memory = Memory(1 << 30));
    });
    let state: RunnerState = serde_json::from_str(&answer.unwrap().1).unwrap();
    assert_eq!((state.revision, state.plugged.memory), (known + 1, Memory(1 << 30)));
}

#[tokio::test]
async fn a_look_refuses_what_its_leader_has_given_up_and_all_of_earlier_ones() {
    let bench = Bench::new("fence").await;
    let line = "GET /v1/state?epoch=7&counter=5 HTTP/1.1";
    let (_, answer) = bench.operator().await.request(line, "").await.unwrap();
    let state: RunnerState = serde_json::from_str(&answer).unwrap();
    assert_eq!(state.newest, Generation { epoch: 7, counter: 5 });
    for (epoch, counter, stale) in [(6, 9, true), (7, 4, true), (7, 5, false)] {
        let generation = Generation { epoch, counter };
        let order = Order { generation, what: What::SetCpu(MilliCpu(1000)) };
        let body = serde_json::to_string(&order).unwrap();
        let line = "PUT /v1/orders HTTP/1.1";
        let (_, answer) = bench.operator().await.request(line, &body).await.unwrap();
        let outcome: Outcome = serde_json::from_str(&answer).unwrap();
        assert_eq!(outcome.result.label() == "stale", stale, "{generation:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn the_plain_port_reads_only() {
    let bench = Bench::new("readiness").await;
    assert_eq!(bench.get("/ready").await.0, 503);
    bench.ready.tell(Readiness::keeper_heard);
    assert_eq!(bench.get("/ready").await.0, 200);
    assert!(bench.get("/metrics").await.1.ends_with("# EOF\n"));
    assert_eq!(bench.get("/v1/state").await.0, 404);
    let stream = TcpStream::connect(bench.plain).await.unwrap();
    let put = Connection(Box::new(stream)).request("PUT /ready HTTP/1.1", "x").await.unwrap();
    assert_eq!(put.0, 405);
}

#[tokio::test(start_paused = true)]
async fn a_no_waits_a_moment_for_a_yes_but_only_for_a_few() {
    let (ready, asked) = (Ready::new(false), Instant::now());
    let mut requests = JoinSet::new();
    for _ in 0..READY_PLACES + 2 {
        let ready = ready.clone();
        requests.spawn(async move { (ready.soon().await, asked.elapsed()) });
    }
    let moment = Duration::from_millis(300);
    sleep(moment).await;
    ready.tell(Readiness::keeper_heard);
    let mut answers = requests.join_all().await;
    answers.sort();
    let (at_once, waited) = answers.split_at(2);
    assert_eq!(at_once, [(false, Duration::ZERO); 2]);
    assert_eq!(waited, [(true, moment); READY_PLACES]);

    let (never, asked) = (Ready::new(false), Instant::now());
    assert!(!never.soon().await);
    assert_eq!(asked.elapsed(), READY_WAIT);
}
