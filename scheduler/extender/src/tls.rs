//! The server's certificate, and who the client is.

use std::io::Cursor;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use scheduler_protocol::KUBE_SCHEDULER_SAN;

use crate::files::{FileError, Reloaded};

/// Server certificate and certificate authority, read again when they change.
pub(crate) type TlsFiles = Reloaded<ServerConfig>;

pub(crate) fn files(certificate: PathBuf, key: PathBuf, ca: PathBuf) -> TlsFiles {
    Reloaded::new([certificate, key, ca], |contents| match contents {
        [certificate, key, ca] => server_config(certificate, key, ca),
        _ => Err(FileError::content("the certificates", "three files were expected")),
    })
}

fn server_config(certificate: &[u8], key: &[u8], ca: &[u8]) -> Result<ServerConfig, FileError> {
    let chain = certificates(certificate)
        .map_err(|err| FileError::content("the server certificate", err))?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|err| FileError::content("the server key", err))?;
    let mut roots = RootCertStore::empty();
    for root in certificates(ca).map_err(|err| FileError::content("the authority", err))? {
        roots.add(root).map_err(|err| FileError::content("the authority", err))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|err| FileError::content("the authority", err))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|err| FileError::content("the TLS versions", err))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|err| FileError::content("the server certificate", err))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, rustls::pki_types::pem::Error> {
    CertificateDer::pem_reader_iter(Cursor::new(pem)).collect()
}

/// Who is on the other side, by the certificate.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Peer {
    /// kube-scheduler.
    pub(crate) kube_scheduler: bool,
}

impl Peer {
    /// The chain was verified in the handshake; the name is compared here.
    pub(crate) fn of(certificates: Option<&[CertificateDer<'_>]>) -> Self {
        let certificate = certificates.and_then(<[_]>::first);
        let kube_scheduler = certificate.is_some_and(|certificate| {
            let name = ServerName::try_from(KUBE_SCHEDULER_SAN);
            let certificate = webpki::EndEntityCert::try_from(certificate);
            name.is_ok_and(|name| {
                certificate.is_ok_and(|it| it.verify_is_valid_for_subject_name(&name).is_ok())
            })
        });
        Self { kube_scheduler }
    }
}
