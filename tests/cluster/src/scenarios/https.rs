//! HTTPS as scenarios need it: one request per connection, with or without a client certificate, to a server by address.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(20);

/// Whom a connection trusts, and who it is.
#[derive(Debug, Clone)]
pub(super) struct Tls(Arc<ClientConfig>);

/// A request that is not sent yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) content_type: &'a str,
    pub(super) token: Option<&'a str>,
    pub(super) body: &'a str,
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

impl Answer {
    /// The body as JSON; `null` when it is none.
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// The server's own words about a refusal, else the whole body.
    pub(super) fn message(&self) -> String {
        self.json()["message"].as_str().map_or_else(|| self.body.clone(), str::to_owned)
    }
}

impl Tls {
    /// Trusts one authority and shows no certificate.
    pub(super) fn trusting(authority_pem: &str) -> Result<Self> {
        let config = builder(authority_pem)?.with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    /// Trusts one authority and shows a certificate, both files in PEM.
    pub(super) fn as_client(authority_pem: &str, certificate: &Path, key: &Path) -> Result<Self> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
        let chain = CertificateDer::pem_slice_iter(&read(certificate)?)
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("take the certificate {}", certificate.display()))?;
        let key = PrivateKeyDer::from_pem_slice(&read(key)?)
            .with_context(|| format!("take the key {}", key.display()))?;
        let config = builder(authority_pem)?
            .with_client_auth_cert(chain, key)
            .context("use the client certificate")?;
        Ok(Self(Arc::new(config)))
    }

    /// Sends a request to a server that must prove to be `server`.
    pub(super) fn send(
        &self,
        address: SocketAddr,
        server: &str,
        request: Request<'_>,
    ) -> Result<Answer> {
        let Request { method, path, content_type, token, body } = request;
        let asking = || format!("{method} {path} of {server} at {address}");
        let name = ServerName::try_from(server.to_owned()).context("take the server's name")?;
        let tls = ClientConnection::new(Arc::clone(&self.0), name).context("begin TLS")?;
        let tcp = TcpStream::connect_timeout(&address, LIMIT).with_context(asking)?;
        tcp.set_read_timeout(Some(LIMIT)).context("set a deadline")?;
        tcp.set_write_timeout(Some(LIMIT)).context("set a deadline")?;
        // HTTP/1.0: the answer ends with the connection and is not cut into chunks.
        let authorization =
            token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let text = format!(
            "{method} {path} HTTP/1.0\r\nHost: {server}\r\nAccept: application/json\r\n{authorization}\
             Content-Type: {content_type}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = StreamOwned::new(tls, tcp);
        stream.write_all(text.as_bytes()).with_context(asking)?;
        let mut bytes = Vec::new();
        match stream.read_to_end(&mut bytes) {
            // Some servers just close: whether all has come is seen below.
            Err(err) if err.kind() == ErrorKind::UnexpectedEof && !bytes.is_empty() => {}
            read => read.map(drop).with_context(asking)?,
        }
        parse(&String::from_utf8_lossy(&bytes)).with_context(asking)
    }
}

fn builder(
    authority_pem: &str,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority_pem.as_bytes()) {
        roots
            .add(certificate.context("read the authority's certificate")?)
            .context("trust the authority")?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("choose the versions of TLS")?
        .with_root_certificates(roots))
}

fn parse(text: &str) -> Result<Answer> {
    let (head, body) = text.split_once("\r\n\r\n").context("find the end of the answer's head")?;
    let status = head
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .with_context(|| format!("find the status in {:?}", head.lines().next()))?;
    Ok(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_a_status_and_a_body() {
        let answer = parse("HTTP/1.0 403 Forbidden\r\nA: b\r\n\r\n{\"message\":\"no\"}").unwrap();
        assert_eq!((answer.status, answer.message().as_str()), (403, "no"));
        assert_eq!(parse("HTTP/1.1 200 OK\r\n\r\nplain").unwrap().message(), "plain");
        assert!(parse("HTTP/1.1 200 OK\r\n").is_err());
        assert!(parse("nonsense\r\n\r\n").is_err());
    }
}
