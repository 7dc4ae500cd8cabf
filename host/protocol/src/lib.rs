//! What crosses the border of a VM's pod: orders from the operator to the runner, the runner's state, the
//! description of the VM that the pod starts with, and (feature `io`) how the host reaches the guest.
//!
//! ```text
//! operator --PUT /v1/orders {Order}-----------> runner      mutual TLS, port ORDERS_PORT
//!          <-- {Outcome} within ORDER_DEADLINE
//!          --GET /v1/state?epoch=&counter=&known=-> runner  answers when the revision differs,
//!          <-- {RunnerState}                                at the latest after STATE_WAIT
//! operator --NEONVM_SPEC={RunnerSpec}---------> pod         environment variable
//! agent, runner --Endpoint::Hybrid------------> guest       CONNECT over the VM's vsock socket
//! ```
//!
//! Orders carry a generation: the runner refuses one that is older than what it has seen for the same
//! resource, and every order before the generation that somebody has looked with.

#![forbid(unsafe_code)]

#[cfg(feature = "io")]
mod endpoint;
mod order;
mod place;
mod spec;
mod state;

#[cfg(feature = "io")]
pub use endpoint::{ConnectError, Endpoint, HybridSocket, MemListener, Stream};
pub use order::{Generation, Order, OrderResult, Outcome, Plugged, Resource, What};
pub use place::{
    CLIENT_SAN, CONFIG_DISK_SERIAL, DISK_IMAGE, DISKS_DIR, GUEST_ADDRESS, HOST_ADDRESS,
    NET_CONTAINER_NAME, ORDER_DEADLINE, ORDERS_PATH, ORDERS_PORT, QMP_SOCKET, RUN_DIR, RUNNER_PORT,
    RUNNER_UID, SERIAL_LOG, SPEC_ENV, STATE_PATH, STATE_WAIT, TAP_NAME, TLS_DIR, VSOCK_NAME,
    server_san, vsock_folder,
};
pub use spec::{CpuScaling, EnvVar, GuestPort, Problem, RunnerSpec, Transport};
pub use state::{GuestLink, RunnerState, VmState};
