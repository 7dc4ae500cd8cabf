//! Who may give orders: mutual TLS with the certificates of the pod's Secret.
//!
//! The files are read again when they change, as kubelet renews them in place; when the new ones are of no
//! use the old ones stay. Trust in the CA is not enough: the CA also signs other roles, so the client's
//! certificate must carry the operator's name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use host_protocol::CLIENT_SAN;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("look at {path}")]
    Look { path: PathBuf, source: io::Error },
    #[error("read {path}")]
    Read { path: PathBuf, source: pem::Error },
    #[error("trust the certificates of {path}")]
    Trust { path: PathBuf, source: rustls::Error },
    #[error("check client certificates")]
    Verifier { source: VerifierBuilderError },
    #[error("serve with the certificate and key of {folder}")]
    Serve { folder: PathBuf, source: rustls::Error },
    #[error("the client showed no certificate")]
    NoCertificate,
    #[error("the client is not {CLIENT_SAN}")]
    WrongClient { source: webpki::Error },
}

/// Certificate, key and CA of the runner, as they are on disk.
#[derive(Debug)]
pub(crate) struct TlsFiles {
    folder: PathBuf,
    loaded: Mutex<Option<Loaded>>,
}

#[derive(Debug, Clone)]
struct Loaded {
    stamps: Stamps,
    config: Arc<ServerConfig>,
}

/// When each file was changed, and its length.
type Stamps = [(SystemTime, u64); 3];

const NAMES: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];

impl TlsFiles {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, loaded: Mutex::new(None) }
    }

    /// The configuration for a new connection.
    pub(crate) fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = stamps(&self.folder).and_then(|stamps| match &*loaded {
            Some(old) if old.stamps == stamps => Ok(old.clone()),
            _ => load(&self.folder).map(|config| Loaded { stamps, config }),
        });
        match (fresh, &*loaded) {
            (Ok(fresh), _) => {
                let config = Arc::clone(&fresh.config);
                *loaded = Some(fresh);
                Ok(config)
            }
            (Err(err), Some(old)) => {
                tracing::warn!(error = %guest_units::Chain(&err), "kept the old certificates");
                Ok(Arc::clone(&old.config))
            }
            (Err(err), None) => Err(err),
        }
    }
}

/// Checks that a client whose chain was verified is the operator.
pub(crate) fn check_client(certificates: Option<&[CertificateDer<'_>]>) -> Result<(), TlsError> {
    let certificate = certificates.and_then(<[_]>::first).ok_or(TlsError::NoCertificate)?;
    let name = ServerName::try_from(CLIENT_SAN).expect("a constant that is a DNS name");
    let certificate = webpki::EndEntityCert::try_from(certificate)
        .map_err(|source| TlsError::WrongClient { source })?;
    certificate
        .verify_is_valid_for_subject_name(&name)
        .map_err(|source| TlsError::WrongClient { source })
}

fn stamps(folder: &Path) -> Result<Stamps, TlsError> {
    let mut stamps = [(SystemTime::UNIX_EPOCH, 0); 3];
    for (stamp, name) in stamps.iter_mut().zip(NAMES) {
        let path = folder.join(name);
        let look = || -> io::Result<_> {
            let metadata = fs::metadata(&path)?;
            Ok((metadata.modified()?, metadata.len()))
        };
        *stamp = look().map_err(|source| TlsError::Look { path: path.clone(), source })?;
    }
    Ok(stamps)
}

fn load(folder: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let [chain, key, ca] = NAMES.map(|name| folder.join(name));
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&ca)? {
        roots.add(certificate).map_err(|source| TlsError::Trust { path: ca.clone(), source })?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|source| TlsError::Verifier { source })?;
    let key = PrivateKeyDer::from_pem_file(&key)
        .map_err(|source| TlsError::Read { path: key.clone(), source })?;
    let chain = certificates(&chain)?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder.with_client_cert_verifier(verifier).with_single_cert(chain, key)
        })
        .map_err(|source| TlsError::Serve { folder: folder.to_owned(), source })?;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(failed)
}
