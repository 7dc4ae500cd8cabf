//! Who may do what on a running cluster: tokens, certificates and the API server's policies, each with its counter-proof.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::api::{Api, items};
use super::claims::{authority, reference};
use super::crash::agent_of;
use super::https::{Answer, Request, Tls};
use super::scheduler;
use super::space::Space;
use super::vm::{Shape, Vm};
use super::{Needs, Scenario};
use crate::cluster::Cluster;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "strangers are turned away, and agents from what is not theirs",
        needs: Needs::System,
        deadline: Duration::from_secs(240),
        run: identity,
    }]
}

const AGENT: &str = "autoscaler-agent";
const AUDIENCE: &str = "autoscale-scheduler";
const PERMITS_NAME: &str = "autoscale-scheduler.kube-system.svc";
const ORDERS_PORT: u16 = 20186;

fn identity(cluster: &Cluster) -> Result<()> {
    let shape = Shape { scaled: true, node: "n1", ..Shape::default() };
    let (space, vm) = Space::with_vm(cluster, "identity", &shape)?;
    let own = agent_of(&space, "n1")?;
    let other = agent_of(&space, "n2")?;
    permits(&space, &vm, &own, &other).context("the extender's permits")?;
    orders(&space, &vm).context("the runner's orders")?;
    patches(&space, &vm, &own, &other).context("the agents' patches")?;
    endpoints(&space).context("endpoints of Services")?;
    status_and_resize(&space, &vm).context("status and pod size")
}

/// The extender leads clients of its own Service, and of no other.
fn endpoints(space: &Space) -> Result<()> {
    let extender = scheduler::leader(&space.api)?;
    let token = space.api.token("kube-system", "autoscale-scheduler", None, Some(&extender))?;
    let api = Api::with_token(&space.cluster, &token)?;
    let slices = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices";
    for (service, status) in [("autoscale-scheduler", 201), ("kube-dns", 403)] {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "autoscale-scheduler-x",
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": "IPv4",
            "endpoints": [],
            "ports": [],
        });
        let answer = api.post(&format!("{slices}?dryRun=All"), &slice)?;
        let (got, said) = (answer.status, answer.message());
        ensure!(got == status, "endpoints of {service} are answered {got}, not {status}: {said}");
    }
    let dns = format!("{slices}?labelSelector=kubernetes.io%2Fservice-name%3Dkube-dns");
    let dns = items(space.api.get(&dns)?);
    let dns = dns.iter().filter_map(|slice| slice["metadata"]["name"].as_str()).next();
    let dns = format!("{slices}/{}?dryRun=All", dns.context("DNS has endpoints")?);
    let answer = api.patch(&dns, &json!({"endpoints": []}))?;
    ensure!(answer.status == 403, "another's endpoints are answered {}", answer.status);
    Ok(())
}

fn address(pod: &Value, port: u16) -> Result<SocketAddr> {
    let ip = pod["status"]["podIP"].as_str().context("the pod has an address")?;
    Ok(SocketAddr::new(ip.parse::<IpAddr>().context("read the pod's address")?, port))
}

fn permits(space: &Space, vm: &Vm, own: &Value, other: &Value) -> Result<()> {
    let api = &space.api;
    let address = scheduler::address(&scheduler::leader(api)?)?;
    let tls = Tls::trusting(&authority(api)?)?;
    let body = permit(api, vm)?.to_string();
    let ask = |token: Option<&str>| -> Result<Answer> {
        let (method, path, content_type) = ("POST", "/v1/permit", "application/json");
        let request = Request { method, path, content_type, token, body: &body };
        tls.send(address, PERMITS_NAME, request)
    };
    let token = |account, audience, pod| api.token("kube-system", account, audience, pod);
    for (whose, token, status) in [
        ("nobody's", None, 401),
        ("a forged one", Some("e30.e30.e30".to_owned()), 401),
        ("one for the API server", Some(token(AGENT, None, Some(own))?), 401),
        ("one for somebody else", Some(token(AGENT, Some("elsewhere"), Some(own))?), 401),
        ("one without a pod", Some(token(AGENT, Some(AUDIENCE), None)?), 403),
        ("another account's", Some(token("default", Some(AUDIENCE), None)?), 403),
        ("the other node's", Some(token(AGENT, Some(AUDIENCE), Some(other))?), 403),
        // The counter-proof: it is the token that decides.
        ("the right one", Some(token(AGENT, Some(AUDIENCE), Some(own))?), 200),
    ] {
        let answer = ask(token.as_deref())?;
        let (got, said) = (answer.status, answer.message());
        ensure!(got == status, "the token {whose} is answered {got}, not {status}: {said}");
    }
    let scheduler_call = Request {
        method: "POST",
        path: "/scheduler/filter",
        content_type: "application/json",
        token: None,
        body: "{}",
    };
    let answer = tls.send(address, PERMITS_NAME, scheduler_call)?;
    ensure!(
        [401, 403].contains(&answer.status),
        "kube-scheduler's call without its certificate is answered {}",
        answer.status
    );
    Ok(())
}

/// A request for what the VM has already.
fn permit(api: &Api, vm: &Vm) -> Result<Value> {
    let seen = vm.see()?;
    let pod = api.get(&vm.pod_path()?)?;
    let now = SystemTime::UNIX_EPOCH.elapsed().context("read the clock")?;
    let size = seen.plugged()?;
    Ok(json!({
        "version": 1,
        "vm": reference(&seen.0),
        "pod": reference(&pod),
        "generation": u64::try_from(now.as_millis()).context("count milliseconds")?,
        "want": size,
        "least": size,
        "current": size,
    }))
}

fn orders(space: &Space, vm: &Vm) -> Result<()> {
    let pod = space.api.get(&vm.pod_path()?)?;
    let address = address(&pod, ORDERS_PORT)?;
    let name = format!("{}.runner.neonvm.internal", vm.see()?.status("podName"));
    let authority = authority(&space.api)?;
    let pki = space.cluster.layout().pki();
    let request = Request {
        method: "GET",
        path: "/v1/state",
        content_type: "application/json",
        token: None,
        body: "",
    };
    let stranger = Tls::as_client(&authority, &pki.join("admin.crt"), &pki.join("admin.key"))?;
    for (whose, tls) in
        [("nobody", Tls::trusting(&authority)?), ("another authority's client", stranger)]
    {
        match tls.send(address, &name, request) {
            Ok(answer) => anyhow::bail!("{whose} is answered: {answer:?}"),
            // The counter-proof: the server was reached and has proved who it is, and it is the one that ends it.
            Err(err) => {
                let said = format!("{err:#}").to_lowercase();
                ensure!(
                    said.contains("alert"),
                    "{whose} was not turned away by the runner: {said}"
                );
            }
        }
    }
    Ok(())
}

fn patches(space: &Space, vm: &Vm, own: &Value, other: &Value) -> Result<()> {
    let token = |pod| space.api.token("kube-system", AGENT, None, pod);
    let size = json!({"spec": {"guest": {"cpus": {"use": "300m"}}}});
    let label = json!({"metadata": {"labels": {"mine": "yes"}}});
    let bound = json!({"spec": {"guest": {"cpus": {"max": 2}}}});
    let dry = format!("{}?dryRun=All", vm.path());
    for (whose, pod, changes, status) in [
        ("the node's own agent", Some(own), &size, 200),
        ("another node's agent", Some(other), &size, 403),
        ("an agent without a pod", None, &size, 403),
        ("the own agent, with a label", Some(own), &label, 403),
        ("the own agent, with a maximum", Some(own), &bound, 403),
    ] {
        let api = Api::with_token(&space.cluster, &token(pod)?)?;
        let answer = api.patch(&dry, changes)?;
        let (got, said) = (answer.status, answer.message());
        ensure!(got == status, "{whose} is answered {got}, not {status}: {said}");
    }
    let agent = Api::with_token(&space.cluster, &token(Some(own))?)?;
    let answer = agent.delete(&dry)?;
    ensure!(answer.status == 403, "an agent may delete a VM: {}", answer.status);
    Ok(())
}

fn status_and_resize(space: &Space, vm: &Vm) -> Result<()> {
    let changes = json!({"status": {"node": "n2"}});
    let answer = space.api.patch(&format!("{}/status", vm.path()), &changes)?;
    ensure!(
        answer.status == 403 && answer.message().contains("only the controller"),
        "the administrator's status is answered {}: {}",
        answer.status,
        answer.message()
    );
    let requests = json!({"requests": {"cpu": "777m"}});
    let changes =
        json!({"spec": {"containers": [{"name": "neonvm-runner", "resources": requests}]}});
    let words = ["patch", "pod", vm.see()?.status("podName"), "--subresource", "resize", "-p"]
        .map(str::to_owned);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let refused = space.kubectl_run(&words).arg(changes.to_string()).output();
    let said = refused.err().map(|err| format!("{err:#}")).unwrap_or_default();
    ensure!(said.contains("only the scheduler's extender"), "the pod was resized by hand: {said}");
    let owner = json!([{
        "apiVersion": "vm.neon.tech/v1", "kind": "VirtualMachine", "name": vm.name, "controller": true,
        "uid": vm.see()?.0["metadata"]["uid"],
    }]);
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "impostor", "ownerReferences": owner},
        "spec": {"containers": [{"name": "neonvm-runner", "image": "localhost/busybox:local"}]},
    });
    let answer = space.api.post(&format!("/api/v1/namespaces/{}/pods", space.name()), &pod)?;
    let said = answer.message();
    ensure!(
        answer.status == 403 && said.contains("only the controller makes"),
        "a pod that a VM seems to own is answered {}: {said}",
        answer.status
    );
    Ok(())
}
