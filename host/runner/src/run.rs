//! `vm-runner run`: one VM from its disks to its end.
//!
//! ```text
//! disks -> vsock back end -> QEMU -> its monitor -> { keeper, orders, readiness, events }
//!                              '-------------------------> ends -> the pod ends with its result
//! ```
//!
//! SIGTERM presses the power button, again and again, as a guest that still boots does not hear it; the
//! kubelet's grace period is the limit. The runner leaves nothing behind: disks and sockets go with the pod,
//! and as the first process of its container it takes every other process along.

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use controller_qmp::{Client, Events, QueryStatus};
use guest_protocol::KEEPER_PORT;
use guest_units::Chain;
use host_protocol::{GUEST_ADDRESS, RunnerSpec, Transport, VmState};
use prometheus_client::registry::Registry;
use rustix::fs::Mode;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{Plain, Ready};
use crate::cmdline::{Accel, Machine, arguments, cpus};
use crate::config::RunConfig;
use crate::execute::{Executor, Layout, cpu_additions};
use crate::keeper::{self, Keeper};
use crate::metrics::Metrics;
use crate::process::{Child, Children, Ended};
use crate::ready::Readiness;
use crate::serve::{self, Serving};
use crate::state::State;
use crate::tls::TlsFiles;
use crate::vsock::{self, Backend};
use crate::{console, disk};

/// Only this user.
const PRIVATE: Mode = Mode::from_raw_mode(0o077);
/// QEMU opens its monitor within a second.
const MONITOR_LIMIT: Duration = Duration::from_secs(60);
const MONITOR_LOOK: Duration = Duration::from_millis(10);
const COMMAND_LIMIT: Duration = Duration::from_secs(5);
/// Between two presses of the power button.
const BUTTON_EVERY: Duration = Duration::from_secs(5);
/// Between two tries to reach a port of the guest, and for each of them.
const PORT_LOOK: Duration = Duration::from_millis(100);
const PORT_LIMIT: Duration = Duration::from_millis(300);
/// For tasks to end after QEMU has.
const DRAIN: Duration = Duration::from_secs(1);

/// Everything that runs beside QEMU.
#[derive(Clone)]
struct Around {
    tasks: TaskTracker,
    /// QEMU has ended.
    stop: CancellationToken,
    state: State,
    metrics: Metrics,
    ready: Ready,
    /// The keeper's task asks for a new vsock device.
    renew_vsock: Arc<Notify>,
}

/// Runs the VM; returns the exit code that tells how it ended.
pub(crate) async fn run(config: RunConfig, shutdown: CancellationToken) -> anyhow::Result<u8> {
    let mut registry = Registry::default();
    let layout = layout(&config.spec);
    let needs_port = config.spec.ports.iter().any(|port| port.protocol == Transport::Tcp);
    let around = Around {
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
        state: State::new(cpu_additions(&layout)),
        metrics: Metrics::register(&mut registry),
        ready: Ready::new(needs_port),
        renew_vsock: Arc::default(),
    };
    let children = Children::default();
    around.tasks.spawn(children.collect(around.stop.clone())?);
    let result = life(&config, layout, Arc::new(registry), &children, &around, &shutdown).await;
    around.stop.cancel();
    around.tasks.close();
    if timeout(DRAIN, around.tasks.wait()).await.is_err() {
        tracing::warn!(late = around.tasks.len(), "stopped without waiting further");
    }
    result.map(Ended::code)
}

async fn life(
    config: &RunConfig,
    layout: Layout,
    registry: Arc<Registry>,
    children: &Children,
    around: &Around,
    shutdown: &CancellationToken,
) -> anyhow::Result<Ended> {
    make_disks(config, children).await?;
    let backend = Backend {
        children: children.clone(),
        vsock: config.vsock.clone(),
        socket: config.vsock_backend.clone(),
        renew: Arc::clone(&around.renew_vsock),
    };
    let mut vsock = backend.start().await.context("start the vsock back end")?;
    vsock::log(&mut vsock, &around.tasks);
    let mut qemu = start_qemu(config, &layout, children, around)?;
    let qmp = tokio::select! {
        connected = connect_monitor(&config.qmp_socket, around) => connected,
        ended = qemu.ended() => {
            vsock.kill();
            return Ok(ended?);
        }
    };
    let qmp = match qmp {
        Ok(qmp) => qmp,
        Err(err) => {
            qemu.kill();
            vsock.kill();
            return Err(err);
        }
    };
    around.tasks.spawn(vsock::supervise(
        backend,
        vsock,
        qmp.clone(),
        around.metrics.clone(),
        around.tasks.clone(),
        around.stop.clone(),
    ));
    let executor = attend(config, layout, registry, qmp, around).await?;
    watch_over(&mut qemu, &executor, shutdown).await
}

/// QEMU's end is the VM's end; until then a stop presses the power button.
async fn watch_over(
    qemu: &mut Child,
    executor: &Executor<Keeper>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Ended> {
    let pressing = async {
        shutdown.cancelled().await;
        tracing::info!("asking the guest to power down");
        loop {
            let result = executor.power_down().await;
            tracing::debug!(result = result.label(), "pressed the power button");
            sleep(BUTTON_EVERY).await;
        }
    };
    tokio::select! {
        ended = qemu.ended() => {
            let ended = ended?;
            tracing::info!(%ended, "QEMU ended");
            Ok(ended)
        }
        () = pressing => unreachable!("it never ends"),
    }
}

fn layout(spec: &RunnerSpec) -> Layout {
    let openable = |path| OpenOptions::new().read(true).write(true).open(path).is_ok();
    let accel = match (spec.acceleration, openable("/dev/kvm")) {
        (true, true) => Accel::Kvm,
        (true, false) => {
            tracing::warn!("no hardware acceleration here; the VM is emulated");
            Accel::Tcg
        }
        (false, _) => Accel::Tcg,
    };
    Layout { spec: spec.clone(), accel, cpus: cpus(spec, accel) }
}

async fn make_disks(config: &RunConfig, children: &Children) -> anyhow::Result<()> {
    for path in [&config.root_disk, &config.vsock] {
        if let Some(folder) = path.parent() {
            disk::make_folder(folder)?;
        }
    }
    if !config.root_disk.exists() {
        let words = disk::overlay_arguments(&config.image, &config.root_disk);
        children.run("qemu-img", &words).await.context("make the root disk")?;
    }
    let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    disk::write_config(&config.config_disk, &config.spec, &resolv)?;
    Ok(())
}

fn start_qemu(
    config: &RunConfig,
    layout: &Layout,
    children: &Children,
    around: &Around,
) -> anyhow::Result<Child> {
    let machine = Machine {
        accel: layout.accel,
        vhost_net: OpenOptions::new().read(true).write(true).open("/dev/vhost-net").is_ok(),
        kernel: config.kernel.clone(),
        root_disk: config.root_disk.clone(),
        config_disk: config.config_disk.clone(),
        qmp_socket: config.qmp_socket.clone(),
        vsock_backend: config.vsock_backend.clone(),
    };
    let words = arguments(&config.spec, &machine);
    let mut qemu = children.start("qemu-system-x86_64", &words, PRIVATE)?;
    if let Some(output) = qemu.stdout.take() {
        around.tasks.spawn(console::copy_console(output, config.serial_log.clone()));
    }
    if let Some(output) = qemu.stderr.take() {
        around.tasks.spawn(console::log_lines("qemu".to_owned(), output));
    }
    tracing::info!(
        vm = config.spec.name,
        namespace = config.spec.namespace,
        accel = ?layout.accel,
        cpus = layout.cpus.start,
        "QEMU started"
    );
    Ok(qemu)
}

async fn connect_monitor(socket: &Path, around: &Around) -> anyhow::Result<Client> {
    let limit = Instant::now() + MONITOR_LIMIT;
    let (client, driver) = loop {
        match Client::connect(socket, COMMAND_LIMIT).await {
            Ok(connected) => break connected,
            Err(err) if Instant::now() >= limit => {
                return Err(err).context("connect to QEMU's monitor");
            }
            Err(_) => sleep(MONITOR_LOOK).await,
        }
    };
    let stop = around.stop.clone();
    around.tasks.spawn(async move {
        let ended = tokio::select! {
            ended = driver.run() => ended,
            () = stop.cancelled() => return,
        };
        let error = ended.err().map(|err| Chain(&err).to_string());
        tracing::warn!(error, "QEMU's monitor is gone");
    });
    Ok(client)
}

/// Starts everything that attends to a running QEMU.
async fn attend(
    config: &RunConfig,
    layout: Layout,
    registry: Arc<Registry>,
    qmp: Client,
    around: &Around,
) -> anyhow::Result<Arc<Executor<Keeper>>> {
    let Around { tasks, stop, state, metrics, ready, renew_vsock: _ } = around.clone();
    let events = qmp.events();
    let status = qmp.execute(&QueryStatus {}, COMMAND_LIMIT).await?;
    if status.running {
        state.change(|state| state.vm = VmState::Running);
    }
    let keeper = Keeper::new(config.vsock.clone(), KEEPER_PORT);
    let executor =
        Arc::new(Executor::new(layout, qmp, keeper.clone(), state.clone(), metrics.clone()));
    executor.observe().await.context("look at QEMU")?;
    tasks.spawn(cancellable(stop.clone(), follow(events, Arc::clone(&executor), state.clone())));
    let settling = Arc::clone(&executor);
    tasks.spawn(cancellable(stop.clone(), async move { match settling.settle().await {} }));
    let connecting = keeper::stay_connected(keeper, Arc::clone(&executor), around.link());
    tasks.spawn(cancellable(stop.clone(), connecting));
    tasks.spawn(cancellable(stop.clone(), find_open_port(config.spec.clone(), ready.clone())));

    let serving = |router| Serving { router, tasks: tasks.clone(), shutdown: stop.clone() };
    let answers = Plain { ready, state: state.clone(), metrics: metrics.clone(), registry };
    let listener = serve::listen(config.port).await.context("listen for readiness")?;
    tasks.spawn(serve::plain(listener, serving(crate::api::plain(answers))));
    let files = Arc::new(TlsFiles::new(config.tls_dir.clone()));
    let listener = serve::listen(config.orders_port).await.context("listen for orders")?;
    let router = crate::api::orders(Arc::clone(&executor), state, tasks.clone());
    tasks.spawn(serve::mutual_tls(listener, serving(router), files, metrics));
    Ok(executor)
}

impl Around {
    fn link(&self) -> keeper::Surroundings {
        keeper::Surroundings {
            state: self.state.clone(),
            metrics: self.metrics.clone(),
            ready: self.ready.clone(),
            renew_vsock: Arc::clone(&self.renew_vsock),
        }
    }
}

async fn cancellable(stop: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = task => {}
        () = stop.cancelled() => {}
    }
}

/// Makes known what QEMU tells by itself.
async fn follow(mut events: Events, executor: Arc<Executor<Keeper>>, state: State) {
    while let Some(event) = events.next().await {
        match event.name.as_str() {
            "MEMORY_DEVICE_SIZE_CHANGE" | "DEVICE_DELETED" | "RESET" => {
                if let Err(err) = executor.observe().await {
                    tracing::warn!(error = %Chain(&err), "cannot look at QEMU");
                }
            }
            "POWERDOWN" | "SHUTDOWN" => {
                tracing::info!(event = event.name, "the guest stops");
                state.change(|state| state.vm = VmState::Stopping);
            }
            "GUEST_PANICKED" => tracing::error!("the guest's kernel panicked"),
            _ => {}
        }
    }
}

/// Looks for the first TCP port of the guest that accepts a connection.
async fn find_open_port(spec: RunnerSpec, ready: Ready) {
    let ports = spec.ports.iter().filter(|port| port.protocol == Transport::Tcp);
    let addresses: Vec<SocketAddr> =
        ports.map(|port| SocketAddr::from((GUEST_ADDRESS, port.port))).collect();
    while ready.with(|facts, _| facts.wants_port()) {
        for address in &addresses {
            if let Ok(Ok(_)) = timeout(PORT_LIMIT, TcpStream::connect(address)).await {
                ready.tell(Readiness::port_opened);
                tracing::info!(port = address.port(), "the guest serves");
                return;
            }
        }
        sleep(PORT_LOOK).await;
    }
}
