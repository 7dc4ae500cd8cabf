//! For tests: an API server that keeps objects by their path, and checks versions as the real one does.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tower::service_fn;

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Value>,
    /// Every write, as `METHOD path`.
    writes: Vec<String>,
    version: u64,
    /// Whatever concerns these paths fails.
    broken: Option<String>,
}

/// The server.
#[derive(Debug, Default, Clone)]
pub(crate) struct ApiServer(Arc<Mutex<State>>);

impl ApiServer {
    pub(crate) fn client(&self) -> Client {
        let server = self.clone();
        let service = service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let (status, answer) = server.answer(&parts.method, parts.uri.path(), body);
                let answer = Body::from(answer.to_string().into_bytes());
                Ok::<_, Infallible>(Response::builder().status(status).body(answer).unwrap())
            }
        });
        Client::new(service, "default")
    }

    pub(crate) fn objects(&self) -> BTreeMap<String, Value> {
        self.lock().objects.clone()
    }

    pub(crate) fn writes(&self) -> Vec<String> {
        self.lock().writes.clone()
    }

    pub(crate) fn put(&self, path: &str, object: Value) {
        self.lock().store(path, object);
    }

    pub(crate) fn remove(&self, path: &str) {
        self.lock().objects.remove(path);
    }

    /// Fails all calls about paths that begin like this one; with none, all is well again.
    pub(crate) fn break_down(&self, path: Option<&str>) {
        self.lock().broken = path.map(str::to_owned);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn answer(&self, method: &Method, path: &str, body: Value) -> (StatusCode, Value) {
        let mut state = self.lock();
        if *method != Method::GET {
            state.writes.push(format!("{method} {path}"));
        }
        if state.broken.as_ref().is_some_and(|broken| path.starts_with(broken)) {
            return refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
        }
        let object = path.strip_suffix("/status").unwrap_or(path);
        if *method == Method::GET && object.ends_with("/nodes") {
            return (
                StatusCode::OK,
                json!({"apiVersion": "v1", "kind": "NodeList", "metadata": {}, "items": []}),
            );
        }
        if *method == Method::POST {
            let name = body["metadata"]["name"].as_str().unwrap_or("unnamed");
            let path = format!("{path}/{name}");
            if state.objects.contains_key(&path) {
                return refusal(StatusCode::CONFLICT, "AlreadyExists");
            }
            return (StatusCode::CREATED, state.store(&path, body));
        }
        let Some(old) = state.objects.get(object).cloned() else {
            return refusal(StatusCode::NOT_FOUND, "NotFound");
        };
        match *method {
            Method::GET => (StatusCode::OK, old),
            Method::DELETE => {
                state.objects.remove(object);
                (StatusCode::OK, old)
            }
            Method::PUT
                if body["metadata"]["resourceVersion"] != old["metadata"]["resourceVersion"] =>
            {
                refusal(StatusCode::CONFLICT, "Conflict")
            }
            Method::PUT => (StatusCode::OK, state.store(object, body)),
            _ => match patched(old, &body) {
                Some(new) => (StatusCode::OK, state.store(object, new)),
                None => refusal(StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
            },
        }
    }
}

impl State {
    fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path.to_owned(), object.clone());
        object
    }
}

fn refusal(status: StatusCode, reason: &str) -> (StatusCode, Value) {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": status.as_u16(),
    });
    (status, body)
}

/// JSON patches of `test` and `add` on whole members, or merge patches.
fn patched(mut object: Value, patch: &Value) -> Option<Value> {
    let Some(operations) = patch.as_array() else {
        merge(&mut object, patch);
        return Some(object);
    };
    for operation in operations {
        let path = operation["path"].as_str()?;
        match operation["op"].as_str()? {
            "test" if object.pointer(path) == Some(&operation["value"]) => {}
            "add" => object[path.trim_start_matches('/')] = operation["value"].clone(),
            _ => return None,
        }
    }
    Some(object)
}

fn merge(object: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else { return *object = patch.clone() };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut object[key], value);
        }
    }
}
