//! Writes a VM object.

use std::time::Duration;

use controller_api::VirtualMachine;
use kube::{Api, Client};
use serde_json::Value;
use tokio::time::timeout;

use crate::view::VmKey;

/// Why a VM object was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PatchError {
    #[error("encode the patch of {}/{}", key.namespace, key.name)]
    Encode { key: VmKey, source: serde_json::Error },
    #[error("build the request for {}/{}", key.namespace, key.name)]
    Request { key: VmKey, source: http::Error },
    #[error("patch {}/{}", key.namespace, key.name)]
    Api { key: VmKey, source: Box<kube::Error> },
    #[error("no answer to the patch of {}/{} within {limit:?}", key.namespace, key.name)]
    Deadline { key: VmKey, limit: Duration },
}

impl PatchError {
    /// Fixed text for metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Encode { .. } => "[error: encode]",
            Self::Request { .. } => "[error: request]",
            Self::Api { .. } if self.raced() => "[error: raced]",
            Self::Api { .. } => "[error: api]",
            Self::Deadline { .. } => "[error: deadline]",
        }
    }

    /// A test of the patch failed: another writer was faster, or the pod is another one. An object that the
    /// patch would make invalid has the same status, but is named in the message.
    pub(crate) fn raced(&self) -> bool {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => match status.code {
                    409 => true,
                    422 => !status.message.contains(" is invalid"),
                    _ => false,
                },
                _ => false,
            },
            _ => false,
        }
    }
}

/// Applies a JSON patch; the answer is the object as it is now.
pub(crate) async fn patch(
    client: &Client,
    key: &VmKey,
    operations: &[Value],
    limit: Duration,
) -> Result<VirtualMachine, PatchError> {
    let body = serde_json::to_vec(operations)
        .map_err(|source| PatchError::Encode { key: key.clone(), source })?;
    let path = format!(
        "/apis/{}/{}/namespaces/{}/virtualmachines/{}",
        controller_api::GROUP,
        controller_api::VERSION,
        key.namespace,
        key.name
    );
    let request = http::Request::patch(path)
        .header(http::header::CONTENT_TYPE, "application/json-patch+json")
        .header(http::header::ACCEPT, "application/json")
        .body(body)
        .map_err(|source| PatchError::Request { key: key.clone(), source })?;
    timeout(limit, client.request(request))
        .await
        .map_err(|_| PatchError::Deadline { key: key.clone(), limit })?
        .map_err(|source| PatchError::Api { key: key.clone(), source: Box::new(source) })
}

/// Reads the object again, after a lost race.
pub(crate) async fn read(client: &Client, key: &VmKey, limit: Duration) -> Option<VirtualMachine> {
    let api: Api<VirtualMachine> = Api::namespaced(client.clone(), &key.namespace);
    timeout(limit, api.get(&key.name)).await.ok()?.ok()
}
