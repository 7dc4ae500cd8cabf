//! The two replicas of the scheduler: which one leads, and its process, as somebody outside sees them.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::api::{Api, items};
use super::crash::one;

/// The extender's port.
const PORT: u16 = 10299;
const LEASE: &str =
    "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/autoscale-scheduler";

/// Name of the pod that holds the lease.
pub(super) fn leader_name(api: &Api) -> Result<String> {
    let lease = api.get(LEASE)?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    // A process adds to it what tells it from earlier ones in the same pod.
    let pod = holder.rsplit_once('_').map(|(pod, _)| pod.to_owned());
    pod.with_context(|| format!("find the pod of the lease's holder {holder:?}"))
}

pub(super) fn leader(api: &Api) -> Result<Value> {
    let name = leader_name(api)?;
    one(replicas(api)?.into_iter().filter(|pod| pod["metadata"]["name"] == name).collect())
}

/// The replica that does not lead.
pub(super) fn standby(api: &Api) -> Result<Value> {
    let name = leader_name(api)?;
    one(replicas(api)?.into_iter().filter(|pod| pod["metadata"]["name"] != name).collect())
}

pub(super) fn replicas(api: &Api) -> Result<Vec<Value>> {
    let pods = api.pods("kube-system", "name=autoscale-scheduler")?;
    ensure!(!pods.is_empty(), "the scheduler has no pod");
    Ok(pods)
}

/// The addresses to which clients of the Service are led.
pub(super) fn led_to(api: &Api) -> Result<Vec<String>> {
    let path = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices\
                ?labelSelector=kubernetes.io%2Fservice-name%3Dautoscale-scheduler";
    let slices = items(api.get(path)?);
    let endpoints = slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten();
    let addresses = endpoints.filter_map(|one| one["addresses"].as_array()).flatten();
    Ok(addresses.filter_map(|address| address.as_str().map(str::to_owned)).collect())
}

/// Where a pod answers permits, and kube-scheduler.
pub(super) fn address(pod: &Value) -> Result<SocketAddr> {
    let ip = pod["status"]["podIP"].as_str().context("the pod has an address")?;
    Ok(SocketAddr::new(ip.parse::<IpAddr>().context("read the pod's address")?, PORT))
}
