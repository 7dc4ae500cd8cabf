//! The scheduler that leads is killed, freezes, or cannot reach the API server: the other one goes on, nothing is lost,
//! and no two of them give the same room.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_units::MilliCpu;
use rustix::process::Signal;
use serde_json::Value;

use super::books::{Books, check_node};
use super::claims::{Claimant, Claims, FIRST, POD_MILLI, Word};
use super::space::Space;
use super::vm::Vm;
use super::{Needs, Scenario, figure, ordinary, scheduler, victim};
use crate::cluster::Cluster;
use crate::command::Run;
use crate::process::Process;

pub(super) fn scenarios() -> Vec<Scenario> {
    let scenario = |name, run| Scenario {
        name,
        needs: Needs::System,
        deadline: Duration::from_secs(480),
        run,
    };
    vec![
        scenario("a scheduler that is killed fifty times loses and doubles nothing", killed),
        scenario("a scheduler that freezes is replaced, and grants nothing when it wakes", frozen),
        scenario("a scheduler that is cut off grants nothing that its successor grants", cut_off),
    ]
}

const NODE: &str = "n1";
const KILLS: usize = 50;
const CLAIMANTS: usize = 6;
/// CPU that the permits of each claimant grow by, a thousandth at a time.
const MORE: u32 = 25;
const SOON: Duration = Duration::from_secs(30);
/// From exec to the first answer, and from the end of a leader to the first answer of its successor.
const START: Duration = Duration::from_secs(1);
const FAILOVER: Duration = Duration::from_secs(5);
/// What one of the two could have, if the other had not.
const LAST: u32 = 200;
/// A program that was woken has looked at everything by then.
const WOKEN: Duration = Duration::from_secs(3);

/// Where permits are asked for, and the replicas that are asked.
struct Track {
    space: Space,
    claims: Claims,
}

impl Track {
    fn new(cluster: &Cluster, name: &str, claimants: usize, left: u32) -> Result<Self> {
        let space = Space::new(cluster, name)?;
        let held = u64::try_from(claimants)? * POD_MILLI + u64::from(left);
        ordinary::fill(&space, NODE, held)?;
        let claims = Claims::new(&space, NODE, claimants)?;
        Ok(Self { space, claims })
    }

    /// Neither the books nor the node are overdrawn.
    fn check(&self) -> Result<()> {
        check_node(&self.space.api, NODE)?;
        Books::read(&self.space.cluster)?.check()
    }

    /// The first of these replicas that answers what raises nothing; its place among them, and its epoch.
    fn first_answer(&self, of: &[SocketAddr]) -> Result<(usize, u64)> {
        let begun = Instant::now();
        while begun.elapsed() < SOON {
            for (place, address) in of.iter().enumerate() {
                let word = self.claims.ask(*address, &self.claims.all[0], MilliCpu(FIRST))?;
                if let Word::Permit(_, epoch) = word {
                    return Ok((place, epoch));
                }
            }
            thread::sleep(Duration::from_millis(5));
        }
        bail!("no replica answers");
    }
}

fn killed(cluster: &Cluster) -> Result<()> {
    let track = Track::new(cluster, "killed", CLAIMANTS, u32::try_from(CLAIMANTS)? * MORE)?;
    let replicas = scheduler::replicas(&track.space.api)?;
    let addresses: Vec<_> = replicas.iter().map(scheduler::address).collect::<Result<_>>()?;
    let over = AtomicBool::new(false);
    let (mut starts, mut returns) = (Vec::new(), Vec::new());
    thread::scope(|scope| {
        // The first one asks for what raises nothing.
        let (_, growing) = track.claims.all.split_at(1);
        let (one, other) = growing.split_at(growing.len() / 2);
        let load = [one, other].map(|some| {
            let (track, over, addresses) = (&track, &over, &addresses);
            scope.spawn(move || load(track, some, addresses, over))
        });
        let kills = (0..KILLS).try_for_each(|kill| {
            let (start, after) =
                kill_leader(&track, &addresses).with_context(|| format!("kill {kill}"))?;
            starts.extend(start);
            returns.push(after);
            track.check()
        });
        over.store(true, Ordering::Relaxed);
        for one in load {
            one.join().map_err(|_| anyhow::anyhow!("the thread broke"))??;
        }
        kills
    })?;
    starts.sort_unstable();
    returns.sort_unstable();
    let (median, last) =
        (|all: &[Duration]| all[all.len() / 2], |all: &[Duration]| all[all.len() - 1]);
    ensure!(!starts.is_empty(), "no killed scheduler came back before the other one led");
    figure(format!(
        "killed {KILLS} times: {} came back to lead, from exec to the first answer {:?} (median), {:?} (longest); \
         from the kill to the next answer {:?} and {:?}",
        starts.len(),
        median(&starts),
        last(&starts),
        median(&returns),
        last(&returns),
    ));
    ensure!(median(&starts) <= START, "from exec to the first answer: {starts:?}");
    ensure!(last(&returns) <= FAILOVER, "from the kill to the next answer: {returns:?}");
    agreed(&track, &addresses)
}

/// Asks without a pause for a bit more than there is. No permit ever becomes smaller, and no answer is of an older epoch.
fn load(
    track: &Track,
    claimants: &[Claimant],
    replicas: &[SocketAddr],
    over: &AtomicBool,
) -> Result<()> {
    let mut known = vec![(FIRST, 0_u64); claimants.len()];
    let mut granted = 0;
    while !over.load(Ordering::Relaxed) {
        for (claimant, (best, newest)) in claimants.iter().zip(&mut known) {
            let want = (*best + 1).min(FIRST + MORE);
            for replica in replicas {
                let word = track.claims.ask(*replica, claimant, MilliCpu(want))?;
                let Word::Permit(cpu, epoch) = word else { continue };
                let name = &claimant.name;
                ensure!(cpu.0 >= *best, "{name} had {best}m and is told {cpu}: it was lost");
                // An agent refuses it.
                ensure!(epoch >= *newest, "epoch {epoch} answers after epoch {newest}");
                (*best, *newest) = (cpu.0, epoch);
                granted += 1;
            }
        }
    }
    ensure!(granted > 0, "nobody was answered");
    Ok(())
}

/// How long the killed process took from its new start to its first answer, if it still leads, and how long there was none.
fn kill_leader(track: &Track, addresses: &[SocketAddr]) -> Result<(Option<Duration>, Duration)> {
    track.first_answer(addresses)?;
    let leader = scheduler::leader(&track.space.api)?;
    let before = victim::running(&leader, "autoscale-scheduler")?.context("it does not run")?;
    before.signal(Signal::KILL)?;
    let killed = Instant::now();
    let (place, _) = track.first_answer(addresses)?;
    let after = killed.elapsed();
    if scheduler::address(&leader)? != addresses[place] {
        return Ok((None, after));
    }
    let now = victim::running(&leader, "autoscale-scheduler")?.context("it does not run again")?;
    ensure!(now != before, "it answers after it was killed");
    Ok((now.age(), after))
}

/// What each was told last is what is promised to it.
fn agreed(track: &Track, addresses: &[SocketAddr]) -> Result<()> {
    let Track { space, claims } = track;
    let (place, _) = track.first_answer(addresses)?;
    let mut told = Vec::new();
    for claimant in &claims.all {
        let word = claims.ask(addresses[place], claimant, MilliCpu(FIRST + MORE))?;
        let Word::Permit(cpu, _) = word else { bail!("{} is sent away", claimant.name) };
        told.push(cpu);
    }
    let books = Books::read(&space.cluster)?;
    for (claimant, cpu) in claims.all.iter().zip(told) {
        let vm = Vm::new(&space.api, space.name(), &claimant.name);
        let promise = books.promise(&vm).map(|promise| promise.cpu);
        ensure!(promise == Some(cpu), "{} was told {cpu}, and is promised {promise:?}", vm.name);
    }
    track.check()
}

/// Two claimants, each of which wants all that is left; the replica that leads, and the other.
struct Duel {
    track: Track,
    old: Value,
    old_address: SocketAddr,
    new_address: SocketAddr,
    epoch: u64,
}

impl Duel {
    fn new(cluster: &Cluster, name: &str) -> Result<Self> {
        let track = Track::new(cluster, name, 2, LAST)?;
        let (old, new) =
            (scheduler::leader(&track.space.api)?, scheduler::standby(&track.space.api)?);
        let (old_address, new_address) = (scheduler::address(&old)?, scheduler::address(&new)?);
        let (_, epoch) = track.first_answer(&[old_address])?;
        Ok(Self { track, old, old_address, new_address, epoch })
    }

    /// What a replica gives one of the two beyond its first size.
    fn ask(&self, of: SocketAddr, claimant: usize) -> Result<Option<(u32, u64)>> {
        let Track { claims, .. } = &self.track;
        Ok(match claims.ask(of, &claims.all[claimant], MilliCpu(FIRST + LAST))? {
            Word::Permit(cpu, epoch) => Some((cpu.0.saturating_sub(FIRST), epoch)),
            Word::Away => None,
        })
    }

    /// The successor gives all that is left to the second one.
    fn successor_grants(&self) -> Result<()> {
        self.track.space.cluster.wait_until("the successor grants", SOON, || {
            let given = self.ask(self.new_address, 1)?;
            Ok(given.is_some_and(|(more, epoch)| more == LAST && epoch > self.epoch))
        })
    }

    /// Clients of the Service are led to the successor.
    fn successor_is_found(&self) -> Result<()> {
        let wanted = self.new_address.ip().to_string();
        self.track.space.cluster.wait_until("clients are led to the successor", FAILOVER, || {
            let found = scheduler::led_to(&self.track.space.api)?;
            ensure!(found == [wanted.clone()], "clients are led to {found:?}, not to {wanted}");
            Ok(true)
        })
    }

    /// kube-scheduler finds it, too: another VM gets its place.
    fn places(&self) -> Result<()> {
        let begun = Instant::now();
        Claims::new(&self.track.space, "n2", 1).context("place a VM")?;
        figure(format!("a VM that was made after the failover ran after {:?}", begun.elapsed()));
        Ok(())
    }
}

/// A process that stands still until this is dropped.
struct Frozen(Process);

impl Frozen {
    fn new(process: Process) -> Result<Self> {
        process.signal(Signal::STOP)?;
        Ok(Self(process))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _gone_by_now = self.0.signal(Signal::CONT);
    }
}

fn frozen(cluster: &Cluster) -> Result<()> {
    let duel = Duel::new(cluster, "frozen")?;
    let running = || victim::running(&duel.old, "autoscale-scheduler");
    let process = running()?.context("it does not run")?;
    let sleep = Frozen::new(process)?;
    let took = successor_answers(&duel)?;
    duel.successor_is_found()?;
    figure(format!("a frozen scheduler was replaced after {took:?}"));
    duel.successor_grants()?;
    thread::scope(|scope| {
        // It finds this when it wakes, before it has looked at its lease.
        let waiting = scope.spawn(|| duel.ask(duel.old_address, 0));
        thread::sleep(Duration::from_millis(200));
        drop(sleep);
        let word = waiting.join().map_err(|_| anyhow::anyhow!("the thread broke"))??;
        ensure!(word.is_none(), "it woke up and answered {word:?}");
        let woken = Instant::now();
        while woken.elapsed() < WOKEN {
            let word = duel.ask(duel.old_address, 0)?;
            ensure!(word.is_none(), "it was replaced and answered {word:?}");
        }
        ensure!(running()? == Some(process), "it was killed before it woke");
        duel.track.check()
    })?;
    duel.places()?;
    stands_by(&duel)
}

/// The time from now until the successor answers.
fn successor_answers(duel: &Duel) -> Result<Duration> {
    let begun = Instant::now();
    let (_, epoch) = duel.track.first_answer(&[duel.new_address])?;
    let took = begun.elapsed();
    ensure!(epoch > duel.epoch, "epoch {epoch} follows epoch {}", duel.epoch);
    ensure!(took <= FAILOVER, "the successor answered after {took:?}");
    Ok(took)
}

/// The old one is the standby now, and ready.
fn stands_by(duel: &Duel) -> Result<()> {
    let api = &duel.track.space.api;
    duel.track.space.cluster.wait_until("the old one stands by", SOON, || {
        let pod = scheduler::standby(api)?;
        let containers = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
        let mut ready = containers.filter(|it| it["name"] == "extender" && it["ready"] == true);
        Ok(pod["metadata"]["name"] == duel.old["metadata"]["name"] && ready.next().is_some())
    })
}

/// A pod whose packets to the API server are dropped until this is dropped.
struct CutOff(Vec<String>);

const TABLE: &str = "neonvm-cut-off";

impl CutOff {
    fn new(cluster: &Cluster, pod: &Value) -> Result<Self> {
        let node = cluster.node(pod["spec"]["nodeName"].as_str().context("the pod has a node")?)?;
        let inside = vec![format!("--net={}", node.network_namespace().display())];
        let ip = scheduler::address(pod)?.ip();
        let port = crate::layout::API_PORT;
        // Services' addresses are the API server's own by then.
        let rules = format!(
            "table ip {TABLE} {{\n chain cut {{\n type filter hook forward priority 0;\n\
             ip saddr {ip} tcp dport {port} drop\n ip daddr {ip} tcp sport {port} drop\n }}\n}}\n"
        );
        let cut = Self(inside);
        cut.nft(&rules).context("cut the pod off")?;
        Ok(cut)
    }

    fn nft(&self, rules: &str) -> Result<()> {
        Run::new("nsenter").args(&self.0).args(["nft", "-f", "-"]).input(rules).status()
    }
}

impl Drop for CutOff {
    fn drop(&mut self) {
        let _the_cluster_goes_away_with_it = self.nft(&format!("delete table ip {TABLE}\n"));
    }
}

fn cut_off(cluster: &Cluster) -> Result<()> {
    let duel = Duel::new(cluster, "cutoff")?;
    let cut = CutOff::new(cluster, &duel.old)?;
    let begun = Instant::now();
    let over = AtomicBool::new(false);
    let took = thread::scope(|scope| {
        let old = scope.spawn(|| {
            let (mut most, mut last) = (0, begun);
            while !over.load(Ordering::Relaxed) {
                if let Some((more, _)) = duel.ask(duel.old_address, 0)? {
                    (most, last) = (most.max(more), Instant::now());
                }
            }
            anyhow::Ok((most, last))
        });
        let new = successor_answers(&duel).and_then(|took| {
            let answered = Instant::now();
            duel.successor_is_found()?;
            duel.successor_grants()?;
            // Whoever was cut off is asked for as long again.
            thread::sleep(FAILOVER);
            Ok((took, answered))
        });
        over.store(true, Ordering::Relaxed);
        let (most, last) = old.join().map_err(|_| anyhow::anyhow!("the thread broke"))??;
        let (took, answered) = new?;
        ensure!(last < answered, "the old one answered after its successor");
        ensure!(most == 0, "{most}m were given of what its successor gave, too");
        Ok(took)
    })?;
    figure(format!("a scheduler that was cut off was replaced after {took:?}"));
    duel.places()?;
    drop(cut);
    stands_by(&duel)?;
    duel.track.check()
}
