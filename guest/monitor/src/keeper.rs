//! The keeper: a closed list of privileged acts, and nothing else. There is no generic execution.

mod cpus;
mod power;
mod quota;

use std::time::Duration;

use guest_policy::{Event, Policy, Tuning, Verdict};
use guest_protocol::{
    ErrorBody, ErrorCode, Generation, KeeperGuest, KeeperRequest, KeeperResponse, KeeperState,
    Received, Text,
};
use guest_units::{Bytes, MilliCpu, Moment, Size};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::config::KeeperConfig;
use crate::kernel::Reader;
use crate::serve::{self, Peer, refuse_older};

use self::cpus::Cpus;
use self::power::Poweroff;
use self::quota::Quota;

/// Memory is looked at so often before a shrink is agreed to, since growth shows only over time.
const LOOKS: u32 = 3;
const BETWEEN_LOOKS: Duration = Duration::from_millis(25);

/// Runs until `shutdown`; lifts the CPU limit then.
pub(crate) async fn run(
    config: KeeperConfig,
    mut peers: mpsc::Receiver<Peer<KeeperGuest>>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let KeeperConfig { listen: _, root, cgroup, cpu_period, poweroff, power_button } = config;
    let poweroff = Poweroff::new(poweroff);
    if power_button {
        power::watch(poweroff.clone());
    }
    let mut keeper = Keeper {
        reader: Reader::new(&root, &cgroup),
        cpus: Cpus::new(&root),
        quota: Quota::new(&cgroup, cpu_period),
        newest_cpu: Generation::default(),
        newest_memory: Generation::default(),
        poweroff,
    };
    let mut peer: Option<Peer<KeeperGuest>> = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(new) = peers.recv() => {
                tracing::info!("host connected");
                peer = Some(new);
            }
            heard = serve::heard(&mut peer) => match heard {
                Some(Received::Request(request, responder)) => {
                    serve::answer(responder, keeper.answer(request).await);
                }
                Some(Received::Notify(never)) => match never {},
                None => peer = None,
            },
        }
    }
    keeper.quota.release();
    Ok(())
}

/// Why an act was not done.
#[derive(Debug, thiserror::Error)]
enum ActError {
    #[error("limit the CPU of the workload")]
    Quota { source: std::io::Error },
    #[error("look at the CPUs")]
    Cpus { source: std::io::Error },
    #[error("measure the system")]
    Read { source: crate::kernel::ReadError },
    #[error("run the power-off command")]
    Poweroff { source: std::io::Error },
}

struct Keeper {
    reader: Reader,
    cpus: Cpus,
    quota: Quota,
    /// Over all connections: an order that was overtaken stays so. CPU and memory are ordered independently of each other.
    newest_cpu: Generation,
    newest_memory: Generation,
    poweroff: Poweroff,
}

impl Keeper {
    async fn answer(&mut self, request: KeeperRequest) -> Result<KeeperResponse, ErrorBody> {
        let done = match request {
            KeeperRequest::State {} => self.state().map(KeeperResponse::State),
            KeeperRequest::SetCpu { generation, cpu } => {
                refuse_older(&mut self.newest_cpu, generation)?;
                if cpu.is_zero() {
                    let message = "a workload without CPU would never answer";
                    return Err(ErrorBody::new(ErrorCode::Unsupported, message));
                }
                self.set_cpu(generation, cpu).await.map(KeeperResponse::State)
            }
            KeeperRequest::MayShrinkMemory { generation, from, to } => {
                refuse_older(&mut self.newest_memory, generation)?;
                self.may_shrink(generation, from, to).await
            }
            KeeperRequest::PowerDown {} => self
                .poweroff
                .run("the host asked")
                .map(|()| KeeperResponse::PoweringDown {})
                .map_err(|source| ActError::Poweroff { source }),
        };
        done.map_err(|err| {
            let error = serve::chain(err);
            tracing::error!(error, "an order was not carried out");
            ErrorBody::new(ErrorCode::Failed, &error)
        })
    }

    fn state(&mut self) -> Result<KeeperState, ActError> {
        let present = self.cpus.present().map_err(|source| ActError::Cpus { source })?;
        let online = self.cpus.online().map_err(|source| ActError::Cpus { source })?;
        let all = MilliCpu::from_cpus(count(&online));
        let reading = self.reader.read().map_err(|source| ActError::Read { source })?;
        Ok(KeeperState {
            cpus_present: count(&present),
            cpus_online: count(&online),
            quota: self.quota.get().unwrap_or(all),
            memory_total: reading.memory.total,
        })
    }

    /// Growing: first the CPUs, then the right to use them. Shrinking: the other way round.
    async fn set_cpu(
        &mut self,
        generation: Generation,
        cpu: MilliCpu,
    ) -> Result<KeeperState, ActError> {
        let started = Instant::now();
        let before = self.quota.get();
        if before.is_none_or(|before| cpu < before) {
            self.quota.set(cpu).map_err(|source| ActError::Quota { source })?;
        }
        let reached = self.cpus.bring(cpu.whole_up()).await;
        let online = self.cpus.online().map_err(|source| ActError::Cpus { source })?;
        let usable = cpu.min(MilliCpu::from_cpus(count(&online).max(1)));
        self.quota.set(usable).map_err(|source| ActError::Quota { source })?;
        if let Err(err) = reached {
            // Part of an order is an outcome: the state tells how far it came.
            tracing::warn!(error = %err, "not all CPUs could be changed");
        }
        let state = self.state()?;
        tracing::info!(
            generation = generation.counter, %cpu, cpus_online = state.cpus_online,
            ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX), "cpu set"
        );
        Ok(state)
    }

    async fn may_shrink(
        &mut self,
        generation: Generation,
        from: Bytes,
        to: Bytes,
    ) -> Result<KeeperResponse, ActError> {
        let mut policy = Policy::new(Tuning::default());
        let origin = Instant::now();
        for look in 0..LOOKS {
            if look > 0 {
                sleep(BETWEEN_LOOKS).await;
            }
            let reading = self.reader.read().map_err(|source| ActError::Read { source })?;
            policy.handle(Event::Read(reading), Moment(origin.elapsed()));
        }
        let size = |memory| Size::new(MilliCpu::ONE, memory);
        let verdict = policy.may_shrink(size(from), size(to));
        tracing::info!(generation = generation.counter, %from, %to, ?verdict, "shrink judged");
        Ok(match verdict {
            Verdict::Fine => KeeperResponse::Fine {},
            Verdict::Veto { least, reason } => {
                KeeperResponse::Veto { least: least.memory, reason: Text::new(reason.text()) }
            }
        })
    }
}

fn count(cpus: &[u32]) -> u32 {
    u32::try_from(cpus.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
