//! Kubernetes, etcd, containerd, CoreDNS and the CNI plug-ins, built from Go modules by one recipe.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cache::{Cache, Key, repo_root};
use crate::command::Run;
use crate::progress::{Progress, Step};
use crate::tools;

/// What `bin` holds when the build is complete.
pub const BINARIES: &[&str] = &[
    "bridge",
    "containerd",
    "containerd-shim-runc-v2",
    "coredns",
    "ctr",
    "etcd",
    "host-local",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "loopback",
    "portmap",
    "ptp",
];

const PACKAGES: &[&str] = &[
    "k8s.io/kubernetes/cmd/kube-apiserver",
    "k8s.io/kubernetes/cmd/kube-controller-manager",
    "k8s.io/kubernetes/cmd/kube-proxy",
    "k8s.io/kubernetes/cmd/kube-scheduler",
    "k8s.io/kubernetes/cmd/kubectl",
    "k8s.io/kubernetes/cmd/kubelet",
    "github.com/containerd/containerd/v2/cmd/containerd",
    "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
    "github.com/containerd/containerd/v2/cmd/ctr",
    "./etcd",
    "./coredns",
    "github.com/containernetworking/plugins/plugins/ipam/host-local",
    "github.com/containernetworking/plugins/plugins/main/bridge",
    "github.com/containernetworking/plugins/plugins/main/loopback",
    "github.com/containernetworking/plugins/plugins/main/ptp",
    "github.com/containernetworking/plugins/plugins/meta/portmap",
];

/// The container runtime's storage drivers that need C libraries or are of no use here.
const TAGS: &str = "no_btrfs no_zfs no_devmapper";
const FLAGS: &str = "-mod=readonly -trimpath -buildvcs=false";
const SOURCE: &str = "tests/cluster/go";
/// With cold caches the build takes minutes on a fast machine, and most of an hour on a slow one.
const DEADLINE: Duration = Duration::from_secs(2 * 3600);

/// Builds the cluster's binaries, or finds them in the cache; returns their folder.
pub fn ensure(cache: &Cache, progress: &Progress) -> Result<PathBuf> {
    tools::need_go()?;
    let source = repo_root()?.join(SOURCE);
    let versions = Versions::read(&source.join("go.mod"))?;
    let compiler =
        Run::new("go").args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local").output()?;
    let key = Key::new()
        .text(&compiler)
        .text(&[TAGS, FLAGS, &versions.linker_flags()].join("|"))
        .text(&PACKAGES.join("|"))
        .files(&source, &["go.mod", "go.sum", "etcd", "coredns"])?
        .finish();
    cache.ensure(progress, "kubernetes", &key, |out, step| build(&source, &versions, out, step))
}

fn build(source: &Path, versions: &Versions, out: &Path, step: &Step) -> Result<()> {
    step.say("compiling Kubernetes, etcd, containerd and CoreDNS; the first time downloads 0.7 GB of sources");
    let mut target = out.as_os_str().to_owned();
    target.push("/");
    Run::new("go")
        .args(["build", "-v", "-tags", TAGS, "-ldflags", &versions.linker_flags(), "-o"])
        .arg(target)
        .args(PACKAGES)
        .env("CGO_ENABLED", "0")
        .env("GOTOOLCHAIN", "local")
        .env("GOFLAGS", FLAGS)
        .dir(source)
        .log(step.log())
        .deadline(DEADLINE)
        .status()?;
    let absent: Vec<_> = BINARIES.iter().filter(|name| !out.join(name).is_file()).collect();
    ensure!(absent.is_empty(), "the Go build left out {absent:?}");
    Ok(())
}

/// The versions that go.mod pins and the binaries report.
#[derive(Debug, PartialEq, Eq)]
struct Versions {
    kubernetes: String,
    containerd: String,
    plugins: String,
}

impl Versions {
    fn read(go_mod: &Path) -> Result<Self> {
        let text = fs::read_to_string(go_mod)
            .with_context(|| format!("read the pinned versions in {}", go_mod.display()))?;
        Self::parse(&text)
    }

    fn parse(go_mod: &str) -> Result<Self> {
        let of = |module: &str| {
            go_mod
                .lines()
                .map(|line| line.trim().trim_start_matches("require "))
                .filter_map(|line| line.strip_prefix(module)?.strip_prefix(' '))
                .find_map(|rest| rest.split_whitespace().next().filter(|v| v.starts_with('v')))
                .map(str::to_owned)
                .with_context(|| format!("go.mod pins no version of {module}"))
        };
        Ok(Self {
            kubernetes: of("k8s.io/kubernetes")?,
            containerd: of("github.com/containerd/containerd/v2")?,
            plugins: of("github.com/containernetworking/plugins")?,
        })
    }

    fn linker_flags(&self) -> String {
        let mut parts = self.kubernetes.trim_start_matches('v').split('.');
        let (major, minor) = (parts.next().unwrap_or("0"), parts.next().unwrap_or("0"));
        let version = &self.kubernetes;
        let mut flags = String::from("-s -w");
        for package in ["k8s.io/client-go/pkg/version", "k8s.io/component-base/version"] {
            for (name, value) in [
                ("gitVersion", version.as_str()),
                ("gitMajor", major),
                ("gitMinor", minor),
                ("gitCommit", "module"),
                ("gitTreeState", "clean"),
                ("buildDate", "1970-01-01T00:00:00Z"),
            ] {
                flags += &format!(" -X {package}.{name}={value}");
            }
        }
        let Self { containerd, plugins, .. } = self;
        flags
            + &format!(
                " -X github.com/containerd/containerd/v2/version.Version={containerd}\
                 \u{20}-X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion={plugins}"
            )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GO_MOD: &str = "module x\nrequire k8s.io/kubernetes v1.36.3\nrequire (\n\
        \tgithub.com/containerd/containerd/v2 v2.2.9 // indirect\n\
        \tgithub.com/containerd/containerd v1.7.0 // indirect\n\
        \tgithub.com/containernetworking/plugins v1.9.1 // indirect\n)\n";

    #[test]
    fn pinned_versions_are_read_from_go_mod() {
        let versions = Versions::parse(GO_MOD).unwrap();
        assert_eq!(versions.kubernetes, "v1.36.3");
        assert_eq!(versions.containerd, "v2.2.9");
        assert_eq!(versions.plugins, "v1.9.1");
    }

    #[test]
    fn a_missing_pin_is_named() {
        let err = Versions::parse("module x\n").unwrap_err();
        assert!(err.to_string().contains("k8s.io/kubernetes"));
    }

    #[test]
    fn binaries_report_the_pinned_version() {
        let flags = Versions::parse(GO_MOD).unwrap().linker_flags();
        assert!(flags.contains("component-base/version.gitVersion=v1.36.3"));
        assert!(flags.contains("client-go/pkg/version.gitMinor=36 "));
        assert!(flags.contains("version.Version=v2.2.9 -X"), "{flags}");
    }
}
