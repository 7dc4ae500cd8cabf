//! The API server without kubectl: a question costs a millisecond instead of a process, so it can be asked often, and
//! every refusal is seen as it was sent.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::https::{Answer, Request, Tls};
use crate::cluster::Cluster;
use crate::layout::{API_PORT, HOST};

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";

/// The API server as one user sees it.
#[derive(Debug, Clone)]
pub(super) struct Api {
    tls: Tls,
    token: Option<String>,
}

impl Api {
    /// As the administrator.
    pub(super) fn admin(cluster: &Cluster) -> Result<Self> {
        let pki = cluster.layout().pki();
        let tls =
            Tls::as_client(&authority(cluster)?, &pki.join("admin.crt"), &pki.join("admin.key"))?;
        Ok(Self { tls, token: None })
    }

    /// As the owner of a token, who is nobody else.
    pub(super) fn with_token(cluster: &Cluster, token: &str) -> Result<Self> {
        Ok(Self { tls: Tls::trusting(&authority(cluster)?)?, token: Some(token.to_owned()) })
    }

    fn send(&self, method: &str, path: &str, content_type: &str, body: &str) -> Result<Answer> {
        let host: IpAddr = HOST.parse().context("read the API server's address")?;
        let token = self.token.as_deref();
        let request = Request { method, path, content_type, token, body };
        self.tls.send(SocketAddr::new(host, API_PORT), HOST, request)
    }

    /// An object or list; anything but success is an error.
    pub(super) fn get(&self, path: &str) -> Result<Value> {
        let answer = self.send("GET", path, JSON, "")?;
        ensure!(answer.status == 200, "GET {path}: {} {}", answer.status, answer.message());
        Ok(answer.json())
    }

    /// An object that may not be there.
    pub(super) fn find(&self, path: &str) -> Result<Option<Value>> {
        let answer = self.send("GET", path, JSON, "")?;
        match answer.status {
            200 => Ok(Some(answer.json())),
            404 => Ok(None),
            status => anyhow::bail!("GET {path}: {status} {}", answer.message()),
        }
    }

    /// Creates an object.
    pub(super) fn post(&self, path: &str, object: &Value) -> Result<Answer> {
        self.send("POST", path, JSON, &object.to_string())
    }

    /// Merges changes into an object.
    pub(super) fn patch(&self, path: &str, changes: &Value) -> Result<Answer> {
        self.send("PATCH", path, MERGE, &changes.to_string())
    }

    /// Removes an object.
    pub(super) fn delete(&self, path: &str) -> Result<Answer> {
        self.send("DELETE", path, JSON, "")
    }

    /// A token of a service account, for an audience (the API server's own, if none), bound to a pod if one is given.
    pub(super) fn token(
        &self,
        namespace: &str,
        account: &str,
        audience: Option<&str>,
        pod: Option<&Value>,
    ) -> Result<String> {
        let bound = pod.map(|pod| {
            let meta = &pod["metadata"];
            json!({"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]})
        });
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": audience.into_iter().collect::<Vec<_>>(),
                "expirationSeconds": 600,
                "boundObjectRef": bound,
            },
        });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let answer = self.post(&path, &request)?;
        ensure!(answer.status == 201, "no token: {} {}", answer.status, answer.message());
        let token = answer.json()["status"]["token"].as_str().map(str::to_owned);
        token.context("find the token in the answer")
    }

    /// The pods with a label, all that were not asked to go.
    pub(super) fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<Value>> {
        let selector = selector.replace('=', "%3D").replace('/', "%2F");
        let path = format!("/api/v1/namespaces/{namespace}/pods?labelSelector={selector}");
        let pods = items(self.get(&path)?);
        Ok(pods.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect())
    }
}

/// The objects of a list.
pub(super) fn items(mut list: Value) -> Vec<Value> {
    match list["items"].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

/// The cluster's authority, in PEM.
fn authority(cluster: &Cluster) -> Result<String> {
    let path = cluster.layout().pki_file("ca.crt");
    fs::read_to_string(Path::new(&path)).with_context(|| format!("read {path}"))
}
