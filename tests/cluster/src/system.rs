//! The cluster with the system on it: everything built, brought up, loaded, deployed.

use std::path::PathBuf;

use anyhow::Result;

use crate::cache::Cache;
use crate::cluster::Cluster;
use crate::options::NodeSize;
use crate::progress::Progress;
use crate::{artifacts, deploy, up};

/// Builds what the system is made of, name and archive of every image.
pub fn images(progress: &Progress) -> Result<Vec<(String, PathBuf)>> {
    artifacts::images::all(progress)
}

/// Brings the cluster up with the system on it; does only what is not done yet.
pub fn up(cache: &Cache, progress: &Progress, size: NodeSize) -> Result<Cluster> {
    progress.expect_more(deploy::STEPS);
    let images = images(progress)?;
    let cluster = up::up(cache, progress, size)?;
    let renewed = deploy::load(&cluster, progress, &images)?;
    deploy::deploy(&cluster, progress, renewed)?;
    Ok(cluster)
}
