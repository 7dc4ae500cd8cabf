//! Names, addresses and places of the cluster: the one page that says what is where.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// The bridge in the root namespace that is the cluster's wire.
pub const BRIDGE: &str = "neonvm0";
/// The bridge's address, on which the API server listens.
pub const HOST: &str = "172.30.0.1";
/// The network of the wire.
pub const WIRE: &str = "172.30.0";
/// The range of Service addresses.
pub const SERVICES: &str = "10.96.0.0/16";
/// The first Service address: the API server as pods see it.
pub const API_SERVICE: &str = "10.96.0.1";
/// The Service address of the cluster's DNS.
pub const DNS: &str = "10.96.0.10";
/// The range of all pods' addresses.
pub const PODS: &str = "10.244.0.0/16";
/// The API server's port.
pub const API_PORT: u16 = 6443;
/// Port on which etcd serves the API server, on loopback.
pub const ETCD_PORT: u16 = 12379;
/// Port on which etcd would serve other etcds, on loopback.
pub const ETCD_PEER_PORT: u16 = 12380;
/// In the environment of every process of the cluster, with the state folder as its value: how they are found again.
pub const MARK: &str = "NEONVM_CLUSTER";

const STATE_VARIABLE: &str = "NEONVM_CLUSTER_DIR";
const DEFAULT_STATE: &str = "/run/neonvm-cluster";
/// Images and volumes are large, and `/run` is memory on most machines.
const DEFAULT_DATA: &str = "/var/lib/neonvm-cluster";

/// Where the cluster keeps things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    state: PathBuf,
    data: PathBuf,
}

impl Layout {
    /// The usual folders, or those below `$NEONVM_CLUSTER_DIR`.
    pub fn from_env() -> Result<Self> {
        match std::env::var_os(STATE_VARIABLE).filter(|value| !value.is_empty()) {
            Some(dir) => Self::below(Path::new(&dir)),
            None => Ok(Self { state: DEFAULT_STATE.into(), data: DEFAULT_DATA.into() }),
        }
    }

    fn below(dir: &Path) -> Result<Self> {
        // Both folders are removed as a whole: never accept one that could hold something else.
        ensure!(
            dir.is_absolute() && dir.components().count() > 2,
            "{STATE_VARIABLE}={} must be an absolute path below a top-level folder",
            dir.display()
        );
        Ok(Self { state: dir.join("state"), data: dir.join("data") })
    }

    /// Small files that live as long as the cluster: records, keys, namespaces.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Large files that live as long as the cluster: images, volumes, etcd's data, logs.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.pki().join("admin.kubeconfig")
    }

    /// Keys, certificates and kubeconfigs.
    pub fn pki(&self) -> PathBuf {
        self.state.join("pki")
    }

    /// A file of `pki`.
    pub fn pki_file(&self, name: &str) -> String {
        self.pki().join(name).to_string_lossy().into_owned()
    }

    /// The logs of all components.
    pub fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    /// The log of a component.
    pub fn log(&self, component: &str) -> PathBuf {
        self.logs().join(format!("{}.log", component.replace('/', "-")))
    }

    /// What was started, with which options, and whether it was completed.
    pub fn facts(&self) -> PathBuf {
        self.state.join("cluster.json")
    }

    /// Programs for the people who use the cluster, to be put on their PATH.
    pub fn programs(&self) -> PathBuf {
        self.state.join("bin")
    }

    /// One line per process that was started.
    pub fn processes(&self) -> PathBuf {
        self.state.join("processes")
    }

    /// One line per folder of the machine that was made for the nodes' mounts.
    pub fn made_folders(&self) -> PathBuf {
        self.state.join("made-folders")
    }

    /// One line per image that was loaded for the system: name and archive.
    pub fn loaded_images(&self) -> PathBuf {
        self.state.join("loaded-images")
    }

    /// The nodes.
    pub fn nodes(&self) -> [Node; 2] {
        [1, 2].map(|index| Node {
            index,
            state: self.state.join(format!("n{index}")),
            data: self.data.join(format!("n{index}")),
        })
    }
}

/// One node: a network and a mount namespace with a container runtime and a kubelet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    index: u8,
    state: PathBuf,
    data: PathBuf,
}

impl Node {
    /// `n1`, `n2`.
    pub fn name(&self) -> String {
        format!("n{}", self.index)
    }

    /// The node's address on the wire.
    pub fn address(&self) -> String {
        format!("{WIRE}.{}", 10 + self.index)
    }

    /// The addresses of the node's pods.
    pub fn pods(&self) -> String {
        format!("10.244.{}.0/24", self.index)
    }

    /// The root namespace's end of the node's cable.
    pub fn cable(&self) -> String {
        format!("neonvm-n{}", self.index)
    }

    /// The node's group in every hierarchy, below their roots.
    pub fn cgroup(&self) -> String {
        format!("neonvm-n{}", self.index)
    }

    /// A component's name with the node's in front.
    pub fn component(&self, name: &str) -> String {
        format!("n{}/{name}", self.index)
    }

    /// Configuration and namespaces.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// What the node sees as its own `/var/lib/…`.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The file to which the node's network namespace is bound.
    pub fn network_namespace(&self) -> PathBuf {
        self.state.join("net")
    }

    /// The file to which the node's mount namespace is bound.
    pub fn mount_namespace(&self) -> PathBuf {
        self.state.join("mnt")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_differ_in_every_name() {
        let [one, two] = Layout::below(Path::new("/srv/cluster")).unwrap().nodes();
        assert_eq!(one.name(), "n1");
        assert_eq!(two.address(), "172.30.0.12");
        assert_ne!(one.pods(), two.pods());
        assert_ne!(one.cgroup(), two.cgroup());
        assert_eq!(one.component("kubelet"), "n1/kubelet");
        // An interface's name has at most 15 bytes.
        assert!(one.cable().len() < 16);
    }

    #[test]
    fn a_folder_that_may_hold_other_things_is_refused() {
        for bad in ["relative/dir", "/", "/var"] {
            assert!(Layout::below(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
