//! The cluster's keys, certificates and kubeconfigs: one authority, a client certificate per component, all for ten years.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};

use crate::layout::{API_PORT, API_SERVICE, HOST, Layout};

/// A certificate to be issued.
struct Wanted {
    file: String,
    common_name: String,
    organization: Option<&'static str>,
    usage: ExtendedKeyUsagePurpose,
    names: Vec<String>,
    kubeconfig: bool,
}

impl Wanted {
    fn client(file: &str, common_name: &str) -> Self {
        Self {
            file: file.into(),
            common_name: common_name.into(),
            organization: None,
            usage: ExtendedKeyUsagePurpose::ClientAuth,
            names: Vec::new(),
            kubeconfig: false,
        }
    }

    fn user(file: &str, common_name: &str) -> Self {
        Self { kubeconfig: true, ..Self::client(file, common_name) }
    }

    fn of(self, organization: &'static str) -> Self {
        Self { organization: Some(organization), ..self }
    }
}

fn wanted(layout: &Layout) -> Vec<Wanted> {
    let names = [HOST, "127.0.0.1", API_SERVICE, "localhost"];
    let service = ["", ".default", ".default.svc", ".default.svc.cluster.local"]
        .map(|end| format!("kubernetes{end}"));
    let mut all = vec![
        Wanted {
            usage: ExtendedKeyUsagePurpose::ServerAuth,
            names: names.iter().map(|&name| name.to_owned()).chain(service).collect(),
            ..Wanted::client("apiserver", "kube-apiserver")
        },
        Wanted::client("kubelet-client", "apiserver-kubelet-client").of("system:masters"),
        Wanted::client("front-proxy-client", "front-proxy-client"),
        Wanted::user("admin", "admin").of("system:masters"),
        Wanted::user("kcm", "system:kube-controller-manager"),
        Wanted::user("scheduler", "system:kube-scheduler"),
        Wanted::user("proxy", "system:kube-proxy"),
    ];
    all.extend(layout.nodes().iter().map(|node| {
        let name = node.name();
        Wanted::user(&format!("node-{name}"), &format!("system:node:{name}")).of("system:nodes")
    }));
    all
}

/// Writes everything into the `pki` folder.
pub fn write(layout: &Layout) -> Result<()> {
    let dir = layout.pki();
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let authority = authority().context("make the cluster's authority")?;
    put(&dir, "ca.crt", &authority.pem())?;
    put(&dir, "ca.key", &authority.key().serialize_pem())?;
    let accounts = KeyPair::generate().context("make the key of service accounts")?;
    put(&dir, "sa.key", &accounts.serialize_pem())?;
    put(&dir, "sa.pub", &accounts.public_key_pem())?;
    for wanted in wanted(layout) {
        issue(&dir, &authority, &wanted)
            .with_context(|| format!("issue the certificate {}", wanted.file))?;
        if wanted.kubeconfig {
            let text = kubeconfig(&dir, &wanted.file);
            put(&dir, &format!("{}.kubeconfig", wanted.file), &text)?;
        }
    }
    Ok(())
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "neonvm-cluster-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    dated(&mut params);
    let key = KeyPair::generate().context("make a key")?;
    CertifiedIssuer::self_signed(params, key).context("sign the certificate")
}

fn issue(dir: &Path, authority: &CertifiedIssuer<'_, KeyPair>, wanted: &Wanted) -> Result<()> {
    let mut params = CertificateParams::new(wanted.names.clone()).context("take the names")?;
    if let Some(organization) = wanted.organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.distinguished_name.push(DnType::CommonName, wanted.common_name.as_str());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![wanted.usage.clone()];
    params.use_authority_key_identifier_extension = true;
    dated(&mut params);
    let key = KeyPair::generate().context("make a key")?;
    let certificate = params.signed_by(&key, authority).context("sign the certificate")?;
    put(dir, &format!("{}.crt", wanted.file), &certificate.pem())?;
    put(dir, &format!("{}.key", wanted.file), &key.serialize_pem())
}

/// Fixed dates: a machine whose clock is wrong can still talk to itself.
fn dated(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2049, 1, 1);
}

fn kubeconfig(dir: &Path, user: &str) -> String {
    let dir = dir.display();
    format!(
        r#"apiVersion: v1
kind: Config
clusters:
- name: neonvm
  cluster: {{server: "https://{HOST}:{API_PORT}", certificate-authority: "{dir}/ca.crt"}}
users:
- name: {user}
  user: {{client-certificate: "{dir}/{user}.crt", client-key: "{dir}/{user}.key"}}
contexts:
- name: neonvm
  context: {{cluster: neonvm, user: {user}}}
current-context: neonvm
"#
    )
}

fn put(dir: &Path, name: &str, text: &str) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;

    let path = dir.join(name);
    fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    #[test]
    fn every_user_has_a_kubeconfig_and_every_node_a_certificate_of_its_group() {
        let all = wanted(&Layout::from_env().unwrap());
        let node = all.iter().find(|wanted| wanted.file == "node-n2").unwrap();
        assert_eq!(node.common_name, "system:node:n2");
        assert_eq!(node.organization, Some("system:nodes"));
        assert_eq!(all.iter().filter(|wanted| wanted.kubeconfig).count(), 6);
    }

    #[test]
    fn certificates_are_written_as_pem() {
        let dir = std::env::temp_dir().join(format!("neonvm-pki-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let wanted = Wanted::user("admin", "admin").of("system:masters");
        issue(&dir, &authority().unwrap(), &wanted).unwrap();
        let text = fs::read_to_string(dir.join("admin.crt")).unwrap();
        assert!(text.starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(fs::read_to_string(dir.join("admin.key")).unwrap().contains("PRIVATE KEY"));
        fs::remove_dir_all(dir).unwrap();
    }
}
