//! The plug-in against a kubelet of our own.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

use super::v1beta1::device_plugin_client::DevicePluginClient;
use super::v1beta1::registration_server::{Registration, RegistrationServer};
use super::v1beta1::{AllocateRequest, ContainerAllocateRequest, Empty, RegisterRequest};
use super::*;

#[derive(Clone, Default)]
struct Kubelet(Arc<Mutex<Vec<RegisterRequest>>>);

#[tonic::async_trait]
impl Registration for Kubelet {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(Empty {}))
    }
}

fn start_kubelet(tasks: &TaskTracker, folder: &Path, kubelet: Kubelet, stop: CancellationToken) {
    let path = folder.join("kubelet.sock");
    let _absent = std::fs::remove_file(&path);
    let listener = UnixListener::bind(path).unwrap();
    let accepted = futures::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let server = Server::builder().add_service(RegistrationServer::new(kubelet));
    tasks.spawn(async move {
        let stopped = stop.cancelled_owned();
        server.serve_with_incoming_shutdown(accepted, stopped).await.unwrap();
    });
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not within 20 s: {what}");
}

#[tokio::test]
async fn registers_serves_and_registers_again_with_a_new_kubelet() {
    let folder = std::env::temp_dir().join(format!("agent-plugin-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let resource = Resource {
        name: "neonvm/tun",
        socket: "neonvm-tun.sock",
        count: 3,
        devices: vec![device("net/tun"), device("vhost-net")],
    };
    let plugin = tasks.spawn(Plugin::new(resource, folder.clone()).run(stop.clone()));
    let (first, first_stop) = (Kubelet::default(), CancellationToken::new());
    start_kubelet(&tasks, &folder, first.clone(), first_stop.clone());
    until("registered", || first.0.lock().unwrap().len() == 1).await;
    let request = first.0.lock().unwrap()[0].clone();
    assert_eq!(request.resource_name, "neonvm/tun");
    assert_eq!(
        (request.version.as_str(), request.endpoint.as_str()),
        ("v1beta1", "neonvm-tun.sock")
    );

    let socket = folder.join("neonvm-tun.sock");
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel =
        Endpoint::from_static("http://plugin").connect_with_connector(connector).await.unwrap();
    let mut client = DevicePluginClient::new(channel);
    let mut list = client.list_and_watch(Empty {}).await.unwrap().into_inner();
    let devices = list.message().await.unwrap().unwrap().devices;
    assert_eq!(devices.len(), 3);
    assert_eq!((devices[0].id.as_str(), devices[0].health.as_str()), ("neonvm-tun-0", "Healthy"));
    let request = ContainerAllocateRequest { devices_ids: vec!["neonvm-tun-0".to_owned()] };
    let request = AllocateRequest { container_requests: vec![request.clone(), request] };
    let answer = client.allocate(request).await.unwrap().into_inner().container_responses;
    assert_eq!(answer.len(), 2);
    assert_eq!(answer[1].devices[0].host_path, "/dev/net/tun");
    assert_eq!(answer[1].devices[1].container_path, "/dev/vhost-net");

    first_stop.cancel();
    let second = Kubelet::default();
    start_kubelet(&tasks, &folder, second.clone(), stop.clone());
    until("registered again", || !second.0.lock().unwrap().is_empty()).await;
    stop.cancel();
    plugin.await.unwrap();
    assert!(!folder.join("neonvm-tun.sock").exists(), "the socket goes with the plug-in");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn the_network_device_is_always_offered() {
    let found = resources(Path::new("/nowhere"), Path::new("/proc/cpuinfo"));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].name, found[0].count, found[0].devices.len()), ("neonvm/tun", 1000, 1));
}
