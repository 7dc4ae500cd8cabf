//! Orders against a QEMU and a guest that do what the test says, and write down what they are asked.

mod cpu;
mod unsettled;

use std::collections::VecDeque;
use std::sync::Arc;

use controller_qmp::Driver;
use guest_units::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::task::JoinSet;

use super::*;
use crate::guest::{Consent, GuestCpu};
use crate::testing::spec;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(20);

/// What happened, in the order in which it happened.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn write(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    /// Everything so far; looks at QEMU are left out.
    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// A QEMU whose guest follows at once, as far as it can.
#[derive(Clone)]
struct Qemu {
    log: Log,
    facts: Arc<Mutex<QemuFacts>>,
}

struct QemuFacts {
    size: u64,
    requested: u64,
    /// The guest frees no more than down to this.
    floor: u64,
    /// The guest plugs no more than this.
    ceiling: u64,
    places: usize,
    cpus: Vec<Option<String>>,
    /// The guest lets no vCPU go.
    keeps_cpus: bool,
    /// The guest plugs so much before it hears that less is requested.
    surge: u64,
    /// Nothing is answered any more.
    silent: bool,
    /// The answer to the next look at vCPUs comes this much later.
    late_look: Option<Duration>,
}

impl Qemu {
    fn new(log: Log, size: u64, start: usize, places: usize) -> Self {
        let mut cpus = vec![None; places];
        for (i, cpu) in cpus.iter_mut().take(start).enumerate() {
            *cpu = Some(format!("/machine/unattached/device[{i}]"));
        }
        let facts = QemuFacts {
            size,
            requested: size,
            floor: 0,
            ceiling: u64::MAX,
            places,
            cpus,
            keeps_cpus: false,
            surge: 0,
            silent: false,
            late_look: None,
        };
        Self { log, facts: Arc::new(Mutex::new(facts)) }
    }

    async fn serve(self, stream: DuplexStream) {
        let (reader, mut writer) = tokio::io::split(stream);
        writer.write_all(b"{\"QMP\": {}}\n").await.unwrap();
        let mut lines = BufReader::new(reader).lines();
        let mut late: Option<(Instant, Value)> = None;
        loop {
            let due = late.as_ref().map_or(Instant::now() + LIMIT * 1000, |(due, _)| *due);
            let Ok(line) = timeout_at(due, lines.next_line()).await else {
                let (_, answer) = late.take().unwrap();
                writer.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
                continue;
            };
            let Some(line) = line.unwrap() else { return };
            let command: Value = serde_json::from_str(&line).unwrap();
            let mut answer = self.answer(&command);
            let event = answer.as_object_mut().unwrap().remove("then");
            answer["id"] = command["id"].clone();
            let look = command["execute"] == "query-cpus-fast";
            let (silent, wait) = self.manners(look);
            if let Some(wait) = wait {
                late = Some((Instant::now() + wait, answer));
                continue;
            }
            for value in [Some(answer), event].into_iter().flatten().filter(|_| !silent) {
                writer.write_all(format!("{value}\n").as_bytes()).await.unwrap();
            }
        }
    }

    /// Whether nothing is answered, and whether this answer is late.
    fn manners(&self, look: bool) -> (bool, Option<Duration>) {
        let mut facts = self.facts.lock().unwrap();
        let late = if look { facts.late_look.take() } else { None };
        (facts.silent, late)
    }

    fn answer(&self, command: &Value) -> Value {
        let mut facts = self.facts.lock().unwrap();
        let arguments = &command["arguments"];
        let text = |key: &str| arguments[key].as_str().unwrap().to_owned();
        match command["execute"].as_str().unwrap() {
            "qom-set" => {
                facts.size += std::mem::take(&mut facts.surge);
                facts.requested = arguments["value"].as_u64().unwrap();
                self.log.write(format!("request {}", facts.requested / MIB));
                json!({"return": {}})
            }
            "qom-get" if text("property") == "requested-size" => json!({"return": facts.requested}),
            "qom-get" => {
                let wanted = facts.requested.min(facts.ceiling.max(facts.size));
                facts.size = if wanted < facts.size { wanted.max(facts.floor) } else { wanted };
                json!({"return": facts.size})
            }
            "query-cpus-fast" => {
                let paths = facts.cpus.iter().flatten().enumerate();
                let cpus = paths.map(|(i, path)| json!({"cpu-index": i, "qom-path": path}));
                json!({"return": cpus.collect::<Vec<_>>()})
            }
            "query-hotpluggable-cpus" => json!({"return": slots(&facts)}),
            "device_add" => {
                let id = text("id");
                self.log.write(format!("add {id}"));
                let place = usize::try_from(arguments["core-id"].as_u64().unwrap()).unwrap();
                facts.cpus[place] = Some(format!("/machine/peripheral/{id}"));
                json!({"return": {}})
            }
            "device_del" => {
                let id = text("id");
                self.log.write(format!("remove {id}"));
                let path = format!("/machine/peripheral/{id}");
                if facts.keeps_cpus {
                    let data = json!({"path": path});
                    return json!({"return": {}, "then": {"event": "DEVICE_UNPLUG_GUEST_ERROR", "data": data}});
                }
                for cpu in &mut facts.cpus {
                    cpu.take_if(|found| *found == path);
                }
                let data = json!({"path": format!("{path}/lapic")});
                json!({"return": {}, "then": {"event": "DEVICE_DELETED", "data": data}})
            }
            "system_powerdown" => {
                self.log.write("button".to_owned());
                json!({"return": {}})
            }
            _ => json!({"return": {}}),
        }
    }
}

/// From the last place to the first, as QEMU does.
fn slots(facts: &QemuFacts) -> Vec<Value> {
    let slot = |core: usize| {
        let mut slot =
            json!({"type": "max-x86_64-cpu", "props": {"core-id": core, "socket-id": 0}});
        if let Some(path) = &facts.cpus[core] {
            slot["qom-path"] = json!(path);
        }
        slot
    };
    (0..facts.places).rev().map(slot).collect()
}

/// A guest that agrees to everything unless told otherwise.
#[derive(Clone)]
struct Keeper {
    log: Log,
    answers: Arc<Mutex<VecDeque<Result<Consent, GuestError>>>>,
    cpu: Arc<Mutex<VecDeque<Result<GuestCpu, GuestError>>>>,
    connected: bool,
}

impl Guest for Keeper {
    fn reachable(&self) -> Result<(), GuestError> {
        if self.connected { Ok(()) } else { Err(GuestError::NotConnected) }
    }

    async fn set_cpu(
        &self,
        generation: Generation,
        cpu: MilliCpu,
        _limit: Duration,
    ) -> Result<GuestCpu, GuestError> {
        if !self.connected {
            return Err(GuestError::NotConnected);
        }
        self.log.write(format!("guest cpu {} ({})", cpu.0, generation.counter));
        let done = Ok(GuestCpu { online: cpu.whole_up(), quota: cpu });
        self.cpu.lock().unwrap().pop_front().unwrap_or(done)
    }

    async fn may_shrink_memory(
        &self,
        _generation: Generation,
        from: Bytes,
        to: Bytes,
        _limit: Duration,
    ) -> Result<Consent, GuestError> {
        if !self.connected {
            return Err(GuestError::NotConnected);
        }
        self.log.write(format!("ask {} -> {}", from.0 / MIB, to.0 / MIB));
        self.answers.lock().unwrap().pop_front().unwrap_or(Ok(Consent::Fine))
    }

    async fn power_down(&self, _limit: Duration) -> Result<(), GuestError> {
        self.log.write("power down".to_owned());
        Ok(())
    }
}

/// Everything of one test. Sizes are what virtio-mem has plugged above 1 GiB.
struct Bench {
    log: Log,
    qemu: Qemu,
    keeper: Keeper,
    executor: Arc<Executor<Keeper>>,
    _tasks: JoinSet<()>,
}

struct Setup {
    plugged: u64,
    scaling: CpuScaling,
    start: u32,
    places: u32,
    boot: MilliCpu,
    connected: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            plugged: 0,
            scaling: CpuScaling::QmpScaling,
            start: 1,
            places: 64,
            boot: spec().cpu_boot,
            connected: true,
        }
    }
}

async fn bench(setup: Setup) -> Bench {
    let Setup { plugged, scaling, start, places, boot, connected } = setup;
    let log = Log::default();
    let qemu = Qemu::new(log.clone(), plugged * MIB, start as usize, places as usize);
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let mut tasks = JoinSet::new();
    tasks.spawn(qemu.clone().serve(theirs));
    let (client, driver): (_, Driver<_>) = Client::over(ours, LIMIT).await.unwrap();
    tasks.spawn(async move { driver.run().await.unwrap() });
    let keeper =
        Keeper { log: log.clone(), answers: Arc::default(), cpu: Arc::default(), connected };
    let layout = Layout {
        spec: RunnerSpec { cpu_scaling: scaling, cpu_boot: boot, ..spec() },
        accel: Accel::Tcg,
        cpus: Cpus { start, places },
    };
    let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
    let state = State::new(cpu_additions(&layout));
    let executor = Arc::new(Executor::new(layout, client, keeper.clone(), state, metrics));
    executor.observe().await.unwrap();
    let settling = Arc::clone(&executor);
    tasks.spawn(async move { match settling.settle().await {} });
    Bench { log, qemu, keeper, executor, _tasks: tasks }
}

impl Bench {
    async fn order(&self, counter: u64, what: What) -> Outcome {
        let order = Order { generation: Generation { epoch: 1, counter }, what };
        let ended = tokio::time::timeout(ORDER_DEADLINE * 3, self.executor.perform(order)).await;
        ended.expect("every order ends")
    }

    async fn memory(&self, counter: u64, mib: u64) -> Outcome {
        self.order(counter, What::SetMemory(Bytes::from_mib(mib))).await
    }

    async fn cpu(&self, counter: u64, milli: u32) -> Outcome {
        self.order(counter, What::SetCpu(MilliCpu(milli))).await
    }

    fn answers(&self, answers: impl IntoIterator<Item = Result<Consent, GuestError>>) {
        self.keeper.answers.lock().unwrap().extend(answers);
    }

    fn qemu(&self, change: impl FnOnce(&mut QemuFacts)) {
        change(&mut self.qemu.facts.lock().unwrap());
    }

    fn busy(&self) -> bool {
        self.executor.state.get().busy
    }

    /// What QEMU shows after the guest had every chance to follow what is requested.
    async fn memory_in_the_end(&self) -> Bytes {
        self.qemu(|facts| (facts.ceiling, facts.floor) = (u64::MAX, 0));
        self.executor.observe().await.unwrap().memory
    }
}

fn veto(least_mib: u64) -> Result<Consent, GuestError> {
    Ok(Consent::Veto { least: Bytes::from_mib(least_mib), reason: "in use".to_owned() })
}

#[tokio::test(start_paused = true)]
async fn memory_grows_without_a_question() {
    let bench = bench(Setup::default()).await;
    let outcome = bench.memory(1, 3073).await;
    assert_eq!(outcome.result, OrderResult::Done);
    assert_eq!(outcome.plugged.memory, Bytes::from_mib(3072), "rounded down to a block");
    assert_eq!(bench.log.lines(), ["request 2048"]);
}

#[tokio::test(start_paused = true)]
async fn a_shrink_asks_before_each_step() {
    let bench = bench(Setup { plugged: 640, ..Setup::default() }).await;
    let outcome = bench.memory(1, 1024).await;
    assert_eq!(outcome.result, OrderResult::Done);
    assert_eq!(outcome.plugged.memory, Bytes::from_mib(1024));
    assert_eq!(
        bench.log.lines(),
        [
            "ask 1664 -> 1024",
            "request 384",
            "ask 1408 -> 1152",
            "request 128",
            "ask 1152 -> 1024",
            "request 0",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_veto_takes_nothing() {
    let bench = bench(Setup { plugged: 1024, ..Setup::default() }).await;
    bench.answers([veto(1800)]);
    let outcome = bench.memory(1, 1024).await;
    let least = Bytes::from_mib(1800);
    assert_eq!(outcome.result, OrderResult::Vetoed { least, reason: "in use".to_owned() });
    assert_eq!(outcome.plugged.memory, Bytes::from_mib(2048));
    assert_eq!(bench.log.lines(), ["ask 2048 -> 1024"]);
}

#[tokio::test(start_paused = true)]
async fn a_veto_between_steps_stops_there() {
    let bench = bench(Setup { plugged: 1024, ..Setup::default() }).await;
    bench.answers([Ok(Consent::Fine), veto(99_999)]);
    let outcome = bench.memory(1, 1024).await;
    let least = Bytes::from_mib(1792); // a guest cannot demand more than it has
    assert_eq!(outcome.result, OrderResult::Vetoed { least, reason: "in use".to_owned() });
    assert_eq!(outcome.plugged.memory, Bytes::from_mib(1792));
    assert_eq!(bench.log.lines(), ["ask 2048 -> 1024", "request 768", "ask 1792 -> 1536"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_from_a_guest_that_does_not_answer() {
    let bench = bench(Setup { plugged: 1024, connected: false, ..Setup::default() }).await;
    let outcome = bench.memory(1, 1024).await;
    let OrderResult::Failed { reason } = outcome.result else { panic!("{outcome:?}") };
    assert!(reason.contains("does not answer"), "{reason}");
    assert_eq!(bench.log.lines(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_pending_growth_is_withdrawn_without_a_question() {
    let bench = bench(Setup { plugged: 512, ..Setup::default() }).await;
    let pending = |facts: &mut QemuFacts| {
        facts.requested = 3072 * MIB;
        facts.ceiling = 0;
    };
    bench.qemu(pending);
    assert_eq!(bench.memory(1, 1536).await.result, OrderResult::Done);
    let before = bench.log.lines();
    assert!(before.iter().all(|line| line == "request 512"), "nothing is taken: {before:?}");

    bench.qemu(pending);
    bench.answers([veto(1536)]);
    assert_eq!(bench.memory(2, 1024).await.result.label(), "vetoed");
    assert_eq!(bench.log.lines()[before.len()..], ["request 512", "ask 1536 -> 1024"]);
}

#[tokio::test(start_paused = true)]
async fn what_came_while_a_growth_was_withdrawn_is_taken_only_with_consent() {
    let bench = bench(Setup { plugged: 512, ..Setup::default() }).await;
    bench.qemu(|facts| {
        facts.requested = 1024 * MIB;
        facts.ceiling = 0;
        (facts.surge, facts.floor) = (256 * MIB, 768 * MIB);
    });
    bench.answers([veto(1792)]);
    let outcome = bench.memory(1, 1536).await;
    assert_eq!(outcome.result.label(), "vetoed");
    assert_eq!(outcome.plugged.memory, Bytes::from_mib(1792));
    assert_eq!(bench.log.lines(), ["request 512", "request 768", "ask 1792 -> 1536"]);
}

#[tokio::test(start_paused = true)]
async fn a_pending_shrink_ends_before_another_is_asked_for() {
    let bench = bench(Setup { plugged: 512, ..Setup::default() }).await;
    bench.qemu(|facts| (facts.requested, facts.floor) = (256 * MIB, 512 * MIB));
    bench.answers([veto(1536)]);
    assert_eq!(bench.memory(1, 1024).await.result.label(), "vetoed");
    assert_eq!(bench.log.lines(), ["request 512", "ask 1536 -> 1024"]);
    assert_eq!(bench.memory_in_the_end().await, Bytes::from_mib(1536));
}

#[tokio::test(start_paused = true)]
async fn a_shrink_that_gets_stuck_is_accepted_as_it_is() {
    let bench = bench(Setup { plugged: 1024, ..Setup::default() }).await;
    bench.qemu(|facts| facts.floor = 700 * MIB);
    let started = Instant::now();
    let outcome = bench.memory(1, 1024).await;
    assert_eq!(outcome.result.label(), "partial");
    assert_eq!(outcome.plugged.memory, Bytes::from_mib(1724));
    assert!(started.elapsed() < ORDER_DEADLINE);
    let lines = bench.log.lines();
    assert!(lines.iter().filter(|line| *line == "request 512").count() > 3, "woken: {lines:?}");
    assert_eq!(lines.last().unwrap(), "request 700", "nothing more is taken later");
}

#[tokio::test(start_paused = true)]
async fn a_growth_that_takes_too_long_ends_in_time() {
    let bench = bench(Setup::default()).await;
    bench.qemu(|facts| facts.ceiling = 100 * MIB);
    let started = Instant::now();
    let outcome = bench.memory(1, 2048).await;
    assert_eq!(outcome.result.label(), "partial");
    assert_eq!(outcome.plugged.memory, Bytes::from_mib(1124));
    assert!(started.elapsed() <= ORDER_DEADLINE);
    assert_eq!(bench.log.lines().last().unwrap(), "request 100", "nothing more comes later");
}

#[tokio::test(start_paused = true)]
async fn a_newer_order_overtakes_a_shrink() {
    let bench = bench(Setup { plugged: 1024, ..Setup::default() }).await;
    bench.qemu(|facts| facts.floor = 900 * MIB);
    let (slow, fast) = tokio::join!(bench.memory(1, 1024), async {
        sleep(Duration::from_millis(50)).await;
        bench.memory(2, 3072).await
    });
    assert_eq!(slow.result.label(), "partial");
    assert_eq!(fast.result, OrderResult::Done);
    assert_eq!(fast.plugged.memory, Bytes::from_mib(3072));
}

#[tokio::test(start_paused = true)]
async fn it_is_busy_until_every_order_has_ended() {
    let bench = bench(Setup::default()).await;
    bench.qemu(|facts| facts.ceiling = 0);
    assert!(!bench.busy());
    let (outcome, ()) = tokio::join!(bench.memory(1, 2048), async {
        sleep(Duration::from_millis(50)).await;
        bench.executor.fence(Generation { epoch: 2, counter: 0 });
        assert!(bench.busy(), "an order of an earlier leader still runs");
    });
    assert_eq!(outcome.result.label(), "partial");
    assert!(!bench.busy());
}

#[tokio::test(start_paused = true)]
async fn a_stale_order_does_nothing() {
    let bench = bench(Setup { plugged: 1024, ..Setup::default() }).await;
    assert_eq!(bench.memory(5, 2048).await.result, OrderResult::Done);
    let before = bench.log.lines();
    let newest = Generation { epoch: 1, counter: 5 };
    assert_eq!(bench.memory(4, 1024).await.result, OrderResult::Stale { newest });
    assert_eq!(bench.log.lines(), before);
    assert_eq!(bench.executor.state.get().newest, newest);
    assert_eq!(bench.cpu(3, 250).await.result, OrderResult::Done, "another resource");
}

#[tokio::test(start_paused = true)]
async fn sizes_outside_the_bounds_are_refused() {
    let bench = bench(Setup::default()).await;
    for (counter, what) in [
        (1, What::SetMemory(Bytes::from_mib(1023))),
        (2, What::SetMemory(Bytes::from_mib(4097))),
        (3, What::SetCpu(MilliCpu(249))),
        (4, What::SetCpu(MilliCpu(3001))),
    ] {
        let outcome = bench.order(counter, what).await;
        assert_eq!(outcome.result.label(), "failed", "{what:?}");
    }
    assert_eq!(bench.log.lines(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn power_down_uses_both_ways() {
    let bench = bench(Setup::default()).await;
    assert_eq!(bench.order(1, What::PowerDown).await.result, OrderResult::Done);
    let mut lines = bench.log.lines();
    lines.sort();
    assert_eq!(lines, ["button", "power down"]);
    assert_eq!(bench.executor.state.get().vm, VmState::Stopping);
}
