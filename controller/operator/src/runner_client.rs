//! Talks to the runner of one pod: HTTPS with mutual TLS to the pod's address, where the pod's name must be in
//! the certificate. Each [`RunnerClient`] keeps one connection and opens another when that one is gone.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use host_protocol::{
    Generation, ORDER_DEADLINE, ORDERS_PATH, ORDERS_PORT, Order, Outcome, RunnerState, STATE_PATH,
    STATE_WAIT, server_san,
};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use crate::certs::Keys;
use crate::pki;

/// No answer is longer.
const MAX_ANSWER_BYTES: usize = 64 << 10;
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// An answer may take this much longer than the runner promises.
const SLACK: Duration = Duration::from_secs(2);

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunnerError {
    #[error("prepare TLS for the runner")]
    Tls { source: Box<dyn std::error::Error + Send + Sync> },
    #[error("connect to the runner at {ip}")]
    Connect { ip: IpAddr, source: std::io::Error },
    #[error("no connection to the runner at {ip} within {limit:?}")]
    ConnectDeadline { ip: IpAddr, limit: Duration },
    #[error("speak HTTP with the runner")]
    Http { source: hyper::Error },
    #[error("no answer from the runner within {limit:?}")]
    Deadline { limit: Duration },
    #[error("read the runner's answer")]
    Body { source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the runner answered {status}")]
    Status { status: StatusCode },
    #[error("understand the runner's answer")]
    Answer { source: serde_json::Error },
}

/// One connection to one runner.
pub(crate) struct RunnerClient {
    pod: String,
    ip: IpAddr,
    port: u16,
    keys: Arc<Keys>,
    tasks: TaskTracker,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl RunnerClient {
    pub(crate) fn new(pod: &str, ip: IpAddr, keys: Arc<Keys>, tasks: TaskTracker) -> Self {
        Self { pod: pod.to_owned(), ip, port: ORDERS_PORT, keys, tasks, connection: None }
    }

    /// Gives an order and waits for its end.
    pub(crate) async fn order(&mut self, order: &Order) -> Result<Outcome, RunnerError> {
        let body = serde_json::to_vec(order).map_err(|source| RunnerError::Answer { source })?;
        self.exchange(Method::PUT, ORDERS_PATH, body, ORDER_DEADLINE + SLACK).await
    }

    /// The runner's state as soon as it differs from the known revision, or after a while. It refuses every order before
    /// `first` from then on.
    pub(crate) async fn state(
        &mut self,
        first: Generation,
        known: Option<u64>,
    ) -> Result<RunnerState, RunnerError> {
        let known = known.map(|known| format!("&known={known}")).unwrap_or_default();
        let Generation { epoch, counter } = first;
        let path = format!("{STATE_PATH}?epoch={epoch}&counter={counter}{known}");
        self.exchange(Method::GET, &path, Vec::new(), STATE_WAIT + SLACK).await
    }

    async fn exchange<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<T, RunnerError> {
        let answer = tokio::time::timeout(limit, self.send(method, path, body)).await;
        let answer = answer.unwrap_or(Err(RunnerError::Deadline { limit }));
        if answer.is_err() {
            // Whatever is half said on it: the next request gets a fresh one.
            self.connection = None;
        }
        serde_json::from_slice(&answer?).map_err(|source| RunnerError::Answer { source })
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Bytes, RunnerError> {
        let mut connection =
            match self.connection.take().filter(|connection| !connection.is_closed()) {
                Some(connection) => connection,
                None => self.connect().await?,
            };
        connection.ready().await.map_err(|source| RunnerError::Http { source })?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, server_san(&self.pod))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("constant parts and a path without spaces make a request");
        let response = connection
            .send_request(request)
            .await
            .map_err(|source| RunnerError::Http { source })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|source| RunnerError::Body { source })?
            .to_bytes();
        self.connection = Some(connection);
        if status == StatusCode::OK { Ok(body) } else { Err(RunnerError::Status { status }) }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, RunnerError> {
        let config = tls(&self.keys)?;
        let name = ServerName::try_from(server_san(&self.pod))
            .map_err(|err| RunnerError::Tls { source: Box::new(err) })?;
        let ip = self.ip;
        let connecting = async {
            let stream = TcpStream::connect((ip, self.port)).await?;
            stream.set_nodelay(true)?;
            TlsConnector::from(Arc::new(config)).connect(name, stream).await
        };
        let stream = tokio::time::timeout(CONNECT_DEADLINE, connecting)
            .await
            .map_err(|_| RunnerError::ConnectDeadline { ip, limit: CONNECT_DEADLINE })?
            .map_err(|source| RunnerError::Connect { ip, source })?;
        let (connection, driver) =
            handshake(TokioIo::new(stream)).await.map_err(|source| RunnerError::Http { source })?;
        // Ends with the connection, which ends with its sender.
        self.tasks.spawn(async move {
            if let Err(err) = driver.await {
                tracing::debug!(error = %err, "connection to a runner ended");
            }
        });
        Ok(connection)
    }
}

fn tls(keys: &Keys) -> Result<ClientConfig, RunnerError> {
    fn boxed(err: impl std::error::Error + Send + Sync + 'static) -> RunnerError {
        RunnerError::Tls { source: Box::new(err) }
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add(pki::ca_der(keys.ca_cert()).map_err(boxed)?).map_err(boxed)?;
    let cert = CertificateDer::from_pem_slice(keys.client.cert.as_bytes()).map_err(boxed)?;
    let key = PrivateKeyDer::from_pem_slice(keys.client.key.as_bytes()).map_err(boxed)?;
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(boxed)?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![cert], key)
        .map_err(boxed)
}

#[cfg(test)]
#[path = "runner_client_tests.rs"]
pub(crate) mod tests;
