//! The cluster with the system on it: everything built, brought up, loaded, deployed.

use anyhow::Result;

use crate::cache::Cache;
use crate::cluster::Cluster;
use crate::options::NodeSize;
use crate::progress::Progress;
use crate::{artifacts, deploy, up};

/// Brings the cluster up with the system on it; does only what is not done yet.
pub fn up(cache: &Cache, progress: &Progress, size: NodeSize) -> Result<Cluster> {
    progress.expect_more(deploy::STEPS);
    let system = artifacts::images::all(progress)?;
    let cluster = up::up(cache, progress, size)?;
    cluster.offer("kubectl-vm", &system.kubectl_vm)?;
    let renewed = deploy::load(&cluster, progress, &system.images)?;
    deploy::deploy(&cluster, progress, renewed)?;
    Ok(cluster)
}
