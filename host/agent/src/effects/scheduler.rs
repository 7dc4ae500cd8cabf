//! Asks the scheduler for permits: HTTPS with the agent's own token.
//!
//! The authority's certificate and the token are read again whenever they are used, so that both can be rotated
//! under a running agent. Connections are kept and used again; a kept one that turns out dead is replaced once,
//! which repeats a request of the same generation. Answers of an older epoch are refused, and no connection is kept
//! to a server that did not answer well: the next request finds the one that leads. A server of the version before is spoken to in
//! its version, as long as the connection lasts.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use scheduler_protocol::{
    OLDEST_VERSION, PERMIT_PATH, PermitAnswer, PermitRequest, Refusal, RefusalCode,
};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use crate::config::SchedulerUrl;

/// Longest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;
/// Connections that are kept.
const MAX_KEPT: usize = 8;

/// Why there is no permit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PermitError {
    #[error("read the token {}", path.display())]
    Token { path: PathBuf, source: io::Error },
    #[error("the token {} is empty or not printable", path.display())]
    TokenText { path: PathBuf },
    #[error("read the authority's certificate {}", path.display())]
    Ca { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("use the authority's certificate {}", path.display())]
    CaUse { path: PathBuf, source: rustls::Error },
    #[error("the scheduler's host name {host:?} is not a name")]
    Host { host: String },
    #[error("connect to the scheduler at {host}:{port}")]
    Connect { host: String, port: u16, source: io::Error },
    #[error("greet the scheduler")]
    Tls { source: io::Error },
    #[error("send the request")]
    Send { source: hyper::Error },
    #[error("encode the request")]
    Encode { source: serde_json::Error },
    #[error("build the request")]
    Build { source: http::Error },
    #[error("read the answer")]
    Read { source: Box<dyn std::error::Error + Send + Sync> },
    #[error("decode the answer")]
    Decode { source: serde_json::Error },
    #[error("refused with status {status}: {message}")]
    Refused { status: u16, label: &'static str, message: String, newest: Option<u64> },
    #[error("the answer is of epoch {epoch}, epoch {newest} was seen")]
    OldEpoch { epoch: u64, newest: u64 },
    #[error("the answer does not belong to the request: {what}")]
    Mismatch { what: &'static str },
    #[error("no answer within {limit:?}")]
    Deadline { limit: Duration },
}

impl PermitError {
    /// Fixed text for metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Token { .. } | Self::TokenText { .. } => "[error doing request: token]",
            Self::Ca { .. } | Self::CaUse { .. } => "[error doing request: ca]",
            Self::Host { .. } | Self::Connect { .. } => "[error doing request: connect]",
            Self::Tls { .. } => "[error doing request: tls]",
            Self::Send { .. } | Self::Encode { .. } | Self::Build { .. } => {
                "[error doing request: send]"
            }
            Self::Read { .. } | Self::Decode { .. } => "[error doing request: answer]",
            Self::Refused { label, .. } => label,
            Self::OldEpoch { .. } => "[error doing request: old epoch]",
            Self::Mismatch { .. } => "[error doing request: mismatch]",
            Self::Deadline { .. } => "[error doing request: deadline]",
        }
    }

    fn is_bad_request(&self) -> bool {
        matches!(self, Self::Refused { label, .. } if *label == RefusalCode::BadRequest.label())
    }

    /// The scheduler has seen this generation: the next one must be newer.
    pub(crate) fn newest(&self) -> Option<u64> {
        match self {
            Self::Refused { newest, .. } => *newest,
            _ => None,
        }
    }
}

type Sender = SendRequest<Full<Bytes>>;

/// A connection, and the version that is spoken on it.
#[derive(Debug)]
struct Connection {
    sender: Sender,
    version: u32,
}

/// The way to the scheduler; shared by all VMs of the node.
#[derive(Debug)]
pub(crate) struct SchedulerClient {
    url: SchedulerUrl,
    ca_file: PathBuf,
    token_file: PathBuf,
    limit: Duration,
    /// None: nothing is kept any more.
    kept: Mutex<Option<Vec<Connection>>>,
    newest_epoch: AtomicU64,
    tasks: TaskTracker,
}

impl SchedulerClient {
    pub(crate) fn new(
        url: SchedulerUrl,
        ca_file: PathBuf,
        token_file: PathBuf,
        limit: Duration,
        tasks: TaskTracker,
    ) -> Self {
        let kept = Mutex::new(Some(Vec::new()));
        Self { url, ca_file, token_file, limit, kept, newest_epoch: AtomicU64::new(0), tasks }
    }

    /// One request, one answer, within the limit.
    pub(crate) async fn permit(
        &self,
        request: &PermitRequest,
    ) -> Result<PermitAnswer, PermitError> {
        let answer = match timeout(self.limit, self.exchange(request)).await {
            Err(_) => Err(PermitError::Deadline { limit: self.limit }),
            Ok(Err(err)) => Err(err),
            Ok(Ok((answer, connection))) => {
                let asked = PermitRequest { version: connection.version, ..request.clone() };
                self.check(&asked, answer).inspect(|_| self.keep(connection))
            }
        };
        answer.inspect_err(|_| self.close())
    }

    fn check(
        &self,
        request: &PermitRequest,
        answer: PermitAnswer,
    ) -> Result<PermitAnswer, PermitError> {
        if answer.version != request.version {
            return Err(PermitError::Mismatch { what: "version" });
        }
        if answer.generation != request.generation {
            return Err(PermitError::Mismatch { what: "generation" });
        }
        if answer.approval.size != answer.permit || answer.approval.epoch != answer.epoch {
            return Err(PermitError::Mismatch { what: "approval" });
        }
        let newest = self.newest_epoch.fetch_max(answer.epoch, Ordering::AcqRel);
        if answer.epoch < newest {
            return Err(PermitError::OldEpoch { epoch: answer.epoch, newest });
        }
        Ok(answer)
    }

    async fn exchange(
        &self,
        request: &PermitRequest,
    ) -> Result<(PermitAnswer, Connection), PermitError> {
        let token = self.token().await?;
        if let Some(mut kept) = self.keep_out() {
            let body = body(request, kept.version)?;
            let sent = kept.sender.send_request(self.http(&token, body)?).await;
            if let Ok(response) = sent {
                return Ok((answer(response).await?, kept));
            }
        }
        let mut fresh = Connection { sender: self.connect().await?, version: request.version };
        let mut answered = self.once(&mut fresh, request, &token).await;
        if answered.as_ref().is_err_and(PermitError::is_bad_request)
            && fresh.version > OLDEST_VERSION
        {
            // It does not say more: it may be that the version is not understood. Nothing was done.
            fresh.version -= 1;
            answered = self.once(&mut fresh, request, &token).await;
        }
        Ok((answered?, fresh))
    }

    async fn once(
        &self,
        connection: &mut Connection,
        request: &PermitRequest,
        token: &str,
    ) -> Result<PermitAnswer, PermitError> {
        let body = body(request, connection.version)?;
        // It may have been answered on before.
        connection.sender.ready().await.map_err(|source| PermitError::Send { source })?;
        let sent = connection.sender.send_request(self.http(token, body)?).await;
        answer(sent.map_err(|source| PermitError::Send { source })?).await
    }

    fn http(&self, token: &str, body: Bytes) -> Result<http::Request<Full<Bytes>>, PermitError> {
        http::Request::post(PERMIT_PATH)
            .header(http::header::HOST, format!("{}:{}", self.url.host, self.url.port))
            .header(http::header::AUTHORIZATION, format!("Bearer {token}"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|source| PermitError::Build { source })
    }

    async fn token(&self) -> Result<String, PermitError> {
        let path = || self.token_file.clone();
        let text = tokio::fs::read_to_string(&self.token_file)
            .await
            .map_err(|source| PermitError::Token { path: path(), source })?;
        let token = text.trim();
        if token.is_empty() || !token.chars().all(|c| c.is_ascii_graphic()) {
            return Err(PermitError::TokenText { path: path() });
        }
        Ok(token.to_owned())
    }

    async fn connect(&self) -> Result<Sender, PermitError> {
        let SchedulerUrl { host, port } = &self.url;
        let connector = TlsConnector::from(Arc::new(self.tls()?));
        let name = ServerName::try_from(host.clone())
            .map_err(|_| PermitError::Host { host: host.clone() })?;
        let connect = |source| PermitError::Connect { host: host.clone(), port: *port, source };
        let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(connect)?;
        stream.set_nodelay(true).map_err(connect)?;
        let stream =
            connector.connect(name, stream).await.map_err(|source| PermitError::Tls { source })?;
        let (sender, driver) =
            handshake(TokioIo::new(stream)).await.map_err(|source| PermitError::Send { source })?;
        self.tasks.spawn(async move {
            // How a kept connection ends is of no interest: the next request makes a new one.
            let _ended = driver.await;
        });
        Ok(sender)
    }

    fn tls(&self) -> Result<rustls::ClientConfig, PermitError> {
        let path = || self.ca_file.clone();
        let ca = |source| PermitError::Ca { path: path(), source };
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&self.ca_file).map_err(ca)? {
            roots
                .add(certificate.map_err(ca)?)
                .map_err(|source| PermitError::CaUse { path: path(), source })?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|source| PermitError::CaUse { path: path(), source })?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(config)
    }

    fn keep_out(&self) -> Option<Connection> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut newest_first = std::iter::from_fn(|| kept.as_mut()?.pop());
        newest_first.find(|connection| connection.sender.is_ready())
    }

    fn keep(&self, connection: Connection) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept.as_mut().filter(|kept| kept.len() < MAX_KEPT) {
            kept.push(connection);
        }
    }

    /// Forgets the kept connections, so that their tasks end.
    pub(crate) fn close(&self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter_mut().for_each(Vec::clear);
    }

    /// The agent stops: requests under way end, and none of them leaves a connection behind that would be waited for.
    pub(crate) fn end(&self) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn body(request: &PermitRequest, version: u32) -> Result<Bytes, PermitError> {
    let request = PermitRequest { version, ..request.clone() };
    serde_json::to_vec(&request).map(Bytes::from).map_err(|source| PermitError::Encode { source })
}

async fn answer(
    response: http::Response<hyper::body::Incoming>,
) -> Result<PermitAnswer, PermitError> {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await
        .map_err(|source| PermitError::Read { source })?
        .to_bytes();
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|source| PermitError::Decode { source });
    }
    Err(refusal(status.as_u16(), &body))
}

fn refusal(status: u16, body: &[u8]) -> PermitError {
    match serde_json::from_slice::<Refusal>(body) {
        Ok(Refusal { code, message, newest }) => {
            let message = message.chars().filter(|c| !c.is_control()).take(256).collect();
            PermitError::Refused { status, label: code.label(), message, newest }
        }
        Err(_) => PermitError::Refused {
            status,
            label: "unreadable",
            message: "without a readable reason".to_owned(),
            newest: None,
        },
    }
}

#[cfg(test)]
pub(crate) mod tests;
