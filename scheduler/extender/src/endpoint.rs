//! Leads agents and kube-scheduler to the replica that holds the lease: it writes the one EndpointSlice of the Service.
//!
//! The Service has no selector, so nobody else writes its endpoints, and no other controller has to act before the new one is
//! found. A label on the leader's pod would do the same, but whoever may label pods of a namespace may change their images.

use std::net::IpAddr;
use std::time::Duration;

use controller_api::names::SCHEDULER_SERVICE as NAME;
use guest_units::Chain;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::effects::CallError;
use crate::lease::{LeaseState, MARGIN};

/// The Service's port by name.
const PORT: &str = "permits";
/// Somebody may have changed or removed it.
const WRITE_EVERY: Duration = Duration::from_secs(5);
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// The way to this replica, for as long as it leads.
pub(crate) struct Endpoint {
    slices: Api<EndpointSlice>,
    lease: LeaseState,
    /// Calls that only the holder may make.
    fenced: TaskTracker,
    /// The epoch in which this replica leads, as it changes.
    led: watch::Receiver<Option<u64>>,
    pod_name: String,
    pod_ip: IpAddr,
    node_name: Option<String>,
    port: u16,
}

impl Endpoint {
    pub(crate) fn new(
        client: &Client,
        config: &Config,
        lease: LeaseState,
        fenced: TaskTracker,
        led: watch::Receiver<Option<u64>>,
    ) -> Self {
        let Config { namespace, pod_name, pod_ip, node_name, listen, .. } = config;
        Self {
            slices: Api::namespaced(client.clone(), namespace),
            lease,
            fenced,
            led,
            pod_name: pod_name.clone(),
            pod_ip: *pod_ip,
            node_name: node_name.clone(),
            port: listen.port(),
        }
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let epoch = *self.led.borrow_and_update();
            let pause = match epoch {
                Some(epoch) => self.fenced.track_future(self.lead_here(epoch)).await,
                None => WRITE_EVERY,
            };
            tokio::select! {
                changed = self.led.changed() => if changed.is_err() { break },
                () = sleep(pause) => {}
                () = shutdown.cancelled() => return,
            }
        }
        shutdown.cancelled().await;
    }

    /// Says when to look again.
    async fn lead_here(&self, epoch: u64) -> Duration {
        if !self.lease.holds(epoch) {
            // It may be renewed this very moment, and nobody would say so.
            return TRY_AGAIN;
        }
        // It ends before another can hold the lease: what is late cannot lead back here.
        let written = timeout(MARGIN, self.write()).await;
        let written = written.unwrap_or(Err(CallError::Deadline { limit: MARGIN }));
        let Err(err) = written else { return WRITE_EVERY };
        tracing::warn!(error = %Chain(&err), "nobody is led to this replica yet");
        TRY_AGAIN
    }

    async fn write(&self) -> Result<(), CallError> {
        let parameters = PatchParams::apply(NAME).force();
        let slice = Patch::Apply(self.slice());
        self.slices.patch(&self.slice_name(), &parameters, &slice).await?;
        Ok(())
    }

    /// The family of an existing slice's addresses cannot be changed.
    fn slice_name(&self) -> String {
        format!("{NAME}-{}", self.family().to_lowercase())
    }

    fn family(&self) -> &'static str {
        if self.pod_ip.is_ipv4() { "IPv4" } else { "IPv6" }
    }

    fn slice(&self) -> Value {
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": self.slice_name(),
                "labels": {
                    "kubernetes.io/service-name": NAME,
                    "endpointslice.kubernetes.io/managed-by": NAME,
                },
            },
            "addressType": self.family(),
            "endpoints": [{
                "addresses": [self.pod_ip],
                "conditions": {"ready": true},
                // kube-proxy lets a pod reach itself through a Service only where it knows that both are on its own node.
                "nodeName": self.node_name,
                "targetRef": {
                    "kind": "Pod",
                    "namespace": self.slices.namespace(),
                    "name": self.pod_name,
                },
            }],
            "ports": [{"name": PORT, "port": self.port, "protocol": "TCP"}],
        })
    }
}
