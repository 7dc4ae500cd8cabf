//! VMs that grow beside a stream of ordinary pods of the default scheduler: nobody is promised what is not there, and
//! kubelet turns no pod away because of a VM.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_units::MilliCpu;
use serde_json::json;

use super::books::{Overdraft, check_node};
use super::claims::{Claims, FIRST, POD_MILLI, Word};
use super::space::Space;
use super::{Needs, Scenario, figure, ordinary, scheduler};
use crate::cluster::Cluster;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "growing VMs and a stream of ordinary pods take nothing from each other",
        needs: Needs::System,
        deadline: Duration::from_secs(3600),
        run: rivals,
    }]
}

/// In the environment: for how long, in seconds.
const SECONDS: &str = "NEONVM_RIVALS_SECONDS";
const SHORT: u64 = 40;
const NODE: &str = "n1";
const CLAIMANTS: usize = 4;
/// Room that all compete for.
const LEFT: u64 = 900;
/// What a VM wants on top of its first size, at most, and what a pod asks for.
const MORE: u32 = 400;
const POD: u32 = 150;
/// So many pods at a time are wanted: with the VMs more than there is room for.
const PODS: u32 = 4;
const LIFE: Duration = Duration::from_secs(3);
/// VMs that are asked to go, so that others grow in their place.
const TERM: Duration = Duration::from_secs(8);
const PATIENCE: Duration = Duration::from_secs(60);

/// What came of the pods.
#[derive(Default)]
struct Fates {
    ran: AtomicU32,
    turned_away: AtomicU32,
}

fn rivals(cluster: &Cluster) -> Result<()> {
    let seconds = std::env::var(SECONDS).ok().map_or(Ok(SHORT), |text| text.parse());
    let end =
        Instant::now() + Duration::from_secs(seconds.with_context(|| format!("read {SECONDS}"))?);
    let space = Space::new(cluster, "rivals")?;
    ordinary::fill(&space, NODE, u64::try_from(CLAIMANTS)? * POD_MILLI + LEFT)?;
    let (fates, grown, over) = (Fates::default(), AtomicU32::new(0), AtomicBool::new(false));
    let goes_on = || !over.load(Ordering::Relaxed) && Instant::now() < end;
    let (mut looks, mut overdraft) = (0_u32, Overdraft::default());
    thread::scope(|scope| {
        let others: Vec<_> = (0..PODS)
            .map(|lane| {
                let (space, fates, goes_on) = (&space, &fates, &goes_on);
                scope.spawn(move || pods(space, lane, fates, goes_on))
            })
            .chain([scope.spawn(|| vms(&space, &grown, &goes_on))])
            .collect();
        let mut watch = || {
            while goes_on() && !others.iter().any(ScopedJoinHandle::is_finished) {
                check_node(&space.api, NODE)?;
                overdraft.look(cluster)?;
                looks += 1;
            }
            anyhow::Ok(())
        };
        let watched = watch();
        over.store(true, Ordering::Relaxed);
        for one in others {
            one.join().map_err(|_| anyhow::anyhow!("the thread broke"))??;
        }
        watched
    })?;
    let (ran, away) = (fates.ran.into_inner(), fates.turned_away.into_inner());
    let grown = grown.into_inner();
    figure(format!(
        "{grown} permits granted, {ran} pods ran, {away} were turned away, {looks} looks at the books"
    ));
    ensure!(ran > 0 && grown > 0, "{ran} pods ran, {grown} permits were granted");
    ensure!(away == 0, "kubelet turned {away} pods away, {ran} ran");
    Ok(())
}

/// One pod after the other.
fn pods(space: &Space, lane: u32, fates: &Fates, goes_on: &impl Fn() -> bool) -> Result<()> {
    let mut count = 0;
    while goes_on() {
        count += 1;
        let name = format!("rival-{lane}-{count}");
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": NODE},
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": false,
                "containers": [{
                    "name": "c",
                    "image": "localhost/busybox:local",
                    "imagePullPolicy": "Never",
                    "command": ["sleep", LIFE.as_secs().to_string()],
                    "resources": {"requests": {"cpu": format!("{POD}m")}},
                }],
            },
        });
        let answer = space.api.post(&format!("/api/v1/namespaces/{}/pods", space.name()), &pod)?;
        ensure!(answer.status == 201, "the pod {name} was refused: {}", answer.message());
        let made = Instant::now();
        loop {
            let seen = ordinary::see(space, &name)?;
            if ordinary::turned_away(&seen) {
                fates.turned_away.fetch_add(1, Ordering::Relaxed);
                figure(format!("{name} was turned away: {}", seen["status"]["message"]));
                break;
            }
            if ordinary::phase(&seen) == "Succeeded" {
                fates.ran.fetch_add(1, Ordering::Relaxed);
                break;
            }
            if !goes_on() {
                break;
            }
            // The room is the others' as often as its own, but not for ever.
            ensure!(
                made.elapsed() < PATIENCE,
                "{name} waits since {:?}: {}",
                made.elapsed(),
                seen["status"]
            );
            thread::sleep(Duration::from_millis(100));
        }
        ordinary::remove(space, &name)?;
    }
    Ok(())
}

/// VMs that ask for more and more, again and again from the beginning.
fn vms(space: &Space, grown: &AtomicU32, goes_on: &impl Fn() -> bool) -> Result<()> {
    while goes_on() {
        let claims = Claims::new(space, NODE, CLAIMANTS)?;
        let begun = Instant::now();
        let mut want = FIRST;
        while goes_on() && begun.elapsed() < TERM {
            want = (want + 10).min(FIRST + MORE);
            let leader = scheduler::address(&scheduler::leader(&space.api)?)?;
            for claimant in &claims.all {
                match claims.ask(leader, claimant, MilliCpu(want))? {
                    Word::Permit(cpu, _) if cpu.0 > FIRST => {
                        grown.fetch_add(1, Ordering::Relaxed);
                    }
                    Word::Permit(..) | Word::Away => {}
                }
            }
        }
        for claimant in &claims.all {
            let path = format!(
                "/apis/vm.neon.tech/v1/namespaces/{}/virtualmachines/{}",
                space.name(),
                claimant.name
            );
            space.api.delete(&path)?;
        }
        let begun = Instant::now();
        while !space.api.pods(space.name(), "vm.neon.tech/name")?.is_empty() {
            if begun.elapsed() > PATIENCE {
                bail!("the VMs do not go");
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}
