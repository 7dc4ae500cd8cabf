//! A small certificate authority: pure functions from keys, names and a time to PEM.
//!
//! Every certificate is renewed when a third of its life is left. The authority's own certificate is renewed
//! with the same key and name, so whatever it signed stays valid under the old and the new one, and no peer
//! has to be told in any order.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

const DAY: Duration = Duration::from_secs(86_400);
/// Life of the authority's certificate.
const CA_LIFE: Duration = DAY.saturating_mul(3650);
/// Life of every other certificate.
const LEAF_LIFE: Duration = DAY.saturating_mul(90);
/// Certificates start in the past: clocks differ.
const BACKDATE: Duration = Duration::from_secs(3600);
const CA_NAME: &str = "neonvm";

/// Who a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Server,
    Client,
}

/// A certificate and its key, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PkiError {
    #[error("make a key")]
    Key { source: rcgen::Error },
    #[error("read the authority's key")]
    ReadKey { source: rcgen::Error },
    #[error("sign a certificate for {name}")]
    Sign { name: String, source: rcgen::Error },
    #[error("read the authority's certificate")]
    ReadCa { source: rustls::pki_types::pem::Error },
}

/// A new authority.
pub(crate) fn new_ca(now: SystemTime) -> Result<Pair, PkiError> {
    let key = KeyPair::generate().map_err(|source| PkiError::Key { source })?;
    sign_ca(&key, now)
}

/// The same authority with a new certificate.
pub(crate) fn renew_ca(old: &Pair, now: SystemTime) -> Result<Pair, PkiError> {
    let key = KeyPair::from_pem(&old.key).map_err(|source| PkiError::ReadKey { source })?;
    sign_ca(&key, now)
}

fn sign_ca(key: &KeyPair, now: SystemTime) -> Result<Pair, PkiError> {
    let cert = ca_params(now)
        .self_signed(key)
        .map_err(|source| PkiError::Sign { name: CA_NAME.to_owned(), source })?;
    Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
}

fn ca_params(now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + CA_LIFE).into();
    params
}

/// A certificate with these names (DNS names or addresses), signed by the authority.
pub(crate) fn issue(
    ca: &Pair,
    role: Role,
    sans: &[&str],
    now: SystemTime,
) -> Result<Pair, PkiError> {
    let first = sans.first().copied().unwrap_or_default();
    let sign = |source| PkiError::Sign { name: first.to_owned(), source };
    let ca_key = KeyPair::from_pem(&ca.key).map_err(|source| PkiError::ReadKey { source })?;
    let issuer = Issuer::from_ca_cert_pem(&ca.cert, ca_key).map_err(sign)?;
    let key = KeyPair::generate().map_err(|source| PkiError::Key { source })?;
    let names: Vec<String> = sans.iter().map(|&san| san.to_owned()).collect();
    let mut params = CertificateParams::new(names).map_err(sign)?;
    // Names live in the SAN; a common name is limited to 64 bytes and nobody reads it.
    params.distinguished_name = name(CA_NAME);
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match role {
        Role::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Role::Client => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + LEAF_LIFE).into();
    let cert = params.signed_by(&key, &issuer).map_err(sign)?;
    Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "neonvm");
    name.push(DnType::CommonName, common);
    name
}

/// The authority can be used and needs no renewal.
pub(crate) fn ca_is_fresh(ca: &Pair, now: SystemTime) -> bool {
    is_fresh(&ca.cert, now) && ca_key_matches(ca)
}

/// The authority's key belongs to its certificate, whatever its age.
pub(crate) fn ca_key_matches(ca: &Pair) -> bool {
    let Ok(key) = KeyPair::from_pem(&ca.key) else { return false };
    let Ok(der) = CertificateDer::from_pem_slice(ca.cert.as_bytes()) else { return false };
    let Ok((_, cert)) = X509Certificate::from_der(&der) else { return false };
    cert.is_ca() && cert.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
}

/// The certificate is from this authority, for this role, has exactly these names, its key fits, and it needs
/// no renewal.
pub(crate) fn leaf_is_good(
    pair: &Pair,
    ca_cert: &str,
    role: Role,
    sans: &[&str],
    now: SystemTime,
) -> bool {
    is_fresh(&pair.cert, now)
        && has_names(&pair.cert, sans)
        && key_fits(pair)
        && verifies(&pair.cert, ca_cert, role, now)
}

fn is_fresh(pem: &str, now: SystemTime) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return false };
    let Ok((_, cert)) = X509Certificate::from_der(&der) else { return false };
    let (from, to) =
        (cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp());
    let now =
        UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    from <= now && now < to - (to - from) / 3
}

fn has_names(pem: &str, sans: &[&str]) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return false };
    let Ok((_, cert)) = X509Certificate::from_der(&der) else { return false };
    let Ok(Some(extension)) = cert.subject_alternative_name() else { return false };
    let mut found: Vec<String> = extension
        .value
        .general_names
        .iter()
        .map(|name| match name {
            GeneralName::DNSName(name) => (*name).to_owned(),
            GeneralName::IPAddress([a, b, c, d]) => format!("{a}.{b}.{c}.{d}"),
            other => format!("{other:?}"),
        })
        .collect();
    let mut wanted: Vec<&str> = sans.to_vec();
    found.sort_unstable();
    wanted.sort_unstable();
    found == wanted
}

fn key_fits(pair: &Pair) -> bool {
    let Ok(key) = KeyPair::from_pem(&pair.key) else { return false };
    let Ok(der) = CertificateDer::from_pem_slice(pair.cert.as_bytes()) else { return false };
    X509Certificate::from_der(&der).is_ok_and(|(_, cert)| {
        cert.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
    })
}

fn verifies(pem: &str, ca_pem: &str, role: Role, now: SystemTime) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return false };
    let Ok(ca) = CertificateDer::from_pem_slice(ca_pem.as_bytes()) else { return false };
    let (Ok(cert), Ok(anchor)) = (EndEntityCert::try_from(&der), anchor_from_trusted_cert(&ca))
    else {
        return false;
    };
    let now =
        UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    let usage: KeyUsage = match role {
        Role::Server => KeyUsage::server_auth(),
        Role::Client => KeyUsage::client_auth(),
    };
    chain_holds(&cert, &anchor, now, usage)
}

fn chain_holds(
    cert: &EndEntityCert<'_>,
    anchor: &rustls::pki_types::TrustAnchor<'_>,
    now: UnixTime,
    usage: impl ExtendedKeyUsageValidator,
) -> bool {
    let anchors = [anchor.clone()];
    cert.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &[], now, usage, None, None)
        .is_ok()
}

/// The authority's certificate, decoded.
pub(crate) fn ca_der(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|source| PkiError::ReadCa { source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    const SANS: [&str; 3] = ["a.example", "localhost", "127.0.0.1"];

    #[test]
    fn a_certificate_chains_has_its_names_and_its_role() {
        let ca = new_ca(now()).unwrap();
        let server = issue(&ca, Role::Server, &SANS, now()).unwrap();
        assert!(leaf_is_good(&server, &ca.cert, Role::Server, &SANS, now()));
        assert!(!leaf_is_good(&server, &ca.cert, Role::Client, &SANS, now()), "wrong role");
        assert!(!leaf_is_good(&server, &ca.cert, Role::Server, &SANS[..2], now()), "wrong names");
        let other = new_ca(now()).unwrap();
        assert!(!leaf_is_good(&server, &other.cert, Role::Server, &SANS, now()), "wrong authority");
        let swapped = Pair { key: other.key, ..server };
        assert!(!leaf_is_good(&swapped, &ca.cert, Role::Server, &SANS, now()), "wrong key");
    }

    #[test]
    fn a_certificate_is_renewed_when_a_third_of_its_life_is_left() {
        let ca = new_ca(now()).unwrap();
        let pair = issue(&ca, Role::Client, &["a.example"], now()).unwrap();
        let good = |days: u32| {
            leaf_is_good(
                &pair,
                &ca.cert,
                Role::Client,
                &["a.example"],
                now() + DAY.saturating_mul(days),
            )
        };
        assert!(good(59));
        assert!(!good(61));
        assert!(ca_is_fresh(&ca, now() + DAY.saturating_mul(2400)));
        assert!(!ca_is_fresh(&ca, now() + DAY.saturating_mul(2500)));
        assert!(!ca_is_fresh(&ca, now() - DAY), "not yet valid");
    }

    #[test]
    fn renewing_the_authority_breaks_no_chain_in_either_direction() {
        let old = new_ca(now()).unwrap();
        let before = issue(&old, Role::Server, &["a.example"], now()).unwrap();
        let new = renew_ca(&old, now() + DAY).unwrap();
        assert_ne!(old.cert, new.cert);
        let after = issue(&new, Role::Server, &["a.example"], now() + DAY).unwrap();
        for (leaf, ca) in [(&before, &new), (&after, &old)] {
            assert!(leaf_is_good(leaf, &ca.cert, Role::Server, &["a.example"], now() + DAY));
        }
    }

    #[test]
    fn rubbish_is_never_good() {
        let rubbish = Pair { cert: "rubbish".into(), key: String::new() };
        assert!(!ca_is_fresh(&rubbish, now()));
        assert!(!leaf_is_good(&rubbish, "rubbish", Role::Server, &[], now()));
        assert!(ca_der("rubbish").is_err());
        assert!(issue(&rubbish, Role::Server, &["a.example"], now()).is_err());
        assert!(renew_ca(&rubbish, now()).is_err());
    }

    #[test]
    fn a_key_of_another_authority_is_noticed() {
        let (one, two) = (new_ca(now()).unwrap(), new_ca(now()).unwrap());
        assert!(ca_key_matches(&one));
        assert!(!ca_key_matches(&Pair { key: two.key, ..one }));
    }
}
