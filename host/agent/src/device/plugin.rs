//! One resource: its gRPC service on a socket of its own, and its registration with kubelet.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use guest_units::Chain;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

use super::Resource;
use super::v1beta1::device_plugin_server::{DevicePlugin, DevicePluginServer};
use super::v1beta1::registration_client::RegistrationClient;
use super::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, Device, DevicePluginOptions,
    Empty, ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse,
    PreferredAllocationRequest, PreferredAllocationResponse, RegisterRequest,
};

/// Kubelet's own socket in the folder.
const KUBELET: &str = "kubelet.sock";
const API_VERSION: &str = "v1beta1";
const HEALTHY: &str = "Healthy";
const REGISTER_LIMIT: Duration = Duration::from_secs(5);
/// How often the sockets are looked at: a restart of kubelet is noticed within this.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum PluginError {
    #[error("listen on {}", path.display())]
    Listen { path: PathBuf, source: std::io::Error },
    #[error("connect to kubelet")]
    Connect { source: tonic::transport::Error },
    #[error("register with kubelet")]
    Register { source: Box<Status> },
    #[error("kubelet did not take the registration within {REGISTER_LIMIT:?}")]
    Deadline,
    #[error("serve kubelet")]
    Serve { source: tonic::transport::Error },
}

/// A socket is the same as long as these are.
type Identity = (u64, u64, i64);

/// The plug-in of one resource.
pub(super) struct Plugin {
    resource: Resource,
    folder: PathBuf,
}

impl Plugin {
    pub(super) fn new(resource: Resource, folder: PathBuf) -> Self {
        Self { resource, folder }
    }

    /// Serves and registers, anew whenever kubelet has started anew, until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                ended = self.one_kubelet(&stop) => match ended {
                    Ok(()) => tracing::info!(resource = self.resource.name, "kubelet started anew"),
                    Err(err) => tracing::warn!(
                        resource = self.resource.name,
                        error = %Chain(&err),
                        "device plug-in failed; it is repeated"
                    ),
                },
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(LOOK) => {}
            }
        }
        let _absent = std::fs::remove_file(self.folder.join(self.resource.socket));
    }

    async fn one_kubelet(&self, stop: &CancellationToken) -> Result<(), PluginError> {
        let path = self.folder.join(self.resource.socket);
        let listen = |source| PluginError::Listen { path: path.clone(), source };
        match std::fs::remove_file(&path) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => return Err(listen(err)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(listen)?;
        let service = Service { resource: self.resource.clone(), stop: stop.clone() };
        let serving = Server::builder()
            .add_service(DevicePluginServer::new(service))
            .serve_with_incoming(accepted(listener));
        let kubelet = self.folder.join(KUBELET);
        let registered = async {
            let before = identity(&kubelet);
            self.register(&kubelet).await?;
            tracing::info!(resource = self.resource.name, "registered with kubelet");
            while identity(&kubelet) == before && identity(&path).is_some() {
                sleep(LOOK).await;
            }
            Ok(())
        };
        tokio::select! {
            served = serving => served.map_err(|source| PluginError::Serve { source }),
            ended = registered => ended,
        }
    }

    async fn register(&self, kubelet: &Path) -> Result<(), PluginError> {
        let kubelet = kubelet.to_owned();
        let connector = tower::service_fn(move |_| {
            let kubelet = kubelet.clone();
            async move { UnixStream::connect(kubelet).await.map(TokioIo::new) }
        });
        let exchange = async {
            // The address is never used: the connector knows the socket.
            let channel = Endpoint::from_static("http://kubelet")
                .connect_with_connector(connector)
                .await
                .map_err(|source| PluginError::Connect { source })?;
            let request = RegisterRequest {
                version: API_VERSION.to_owned(),
                endpoint: self.resource.socket.to_owned(),
                resource_name: self.resource.name.to_owned(),
                options: Some(DevicePluginOptions::default()),
            };
            RegistrationClient::new(channel)
                .register(request)
                .await
                .map_err(|status| PluginError::Register { source: Box::new(status) })
        };
        timeout(REGISTER_LIMIT, exchange).await.map_err(|_| PluginError::Deadline)??;
        Ok(())
    }
}

/// Which socket lies there, if any.
fn identity(path: &Path) -> Option<Identity> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.ctime_nsec()))
}

fn accepted(listener: UnixListener) -> impl Stream<Item = std::io::Result<UnixStream>> {
    stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    })
}

/// What kubelet asks.
pub(super) struct Service {
    pub(super) resource: Resource,
    pub(super) stop: CancellationToken,
}

impl Service {
    fn devices(&self) -> ListAndWatchResponse {
        let device = |number| Device {
            id: format!("{}-{number}", self.resource.name.replace('/', "-")),
            health: HEALTHY.to_owned(),
        };
        ListAndWatchResponse { devices: (0..self.resource.count).map(device).collect() }
    }
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream =
        Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    /// One list, which never changes; the stream stays open, since its end would take the devices away.
    async fn list_and_watch(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let first = stream::once(std::future::ready(Ok(self.devices())));
        let open =
            stream::once(self.stop.clone().cancelled_owned()).filter_map(|()| async { None });
        Ok(Response::new(Box::pin(first.chain(open))))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        Ok(Response::new(PreferredAllocationResponse::default()))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let one = || ContainerAllocateResponse {
            devices: self.resource.devices.clone(),
            ..ContainerAllocateResponse::default()
        };
        let containers = request.into_inner().container_requests;
        let container_responses = containers.iter().map(|_| one()).collect();
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse::default()))
    }
}
