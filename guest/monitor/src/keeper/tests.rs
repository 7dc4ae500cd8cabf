//! The whole keeper against a host, with a `sys` and a cgroup of its own.

use std::path::Path;

use guest_protocol::{KeeperHost, LinkError};
use tokio_util::task::TaskTracker;

use super::*;
use crate::config::{Config, Listen};
use crate::fake::{FakeGuest, Host, LIMIT};

const CPU: &str = "sys/devices/system/cpu";

/// A kernel that reacts to writes to the CPUs' files, as long as it is polled.
async fn kernel(root: &Path) {
    let folder = root.join(CPU);
    loop {
        let present = std::fs::read_to_string(folder.join("present")).unwrap();
        let online: Vec<String> = cpus(&present)
            .filter(|cpu| {
                let file = folder.join(format!("cpu{cpu}/online"));
                *cpu == 0 || std::fs::read_to_string(file).is_ok_and(|text| text == "1")
            })
            .map(|cpu| cpu.to_string())
            .collect();
        std::fs::write(folder.join("online"), online.join(",")).unwrap();
        sleep(Duration::from_millis(1)).await;
    }
}

fn cpus(list: &str) -> impl Iterator<Item = u32> {
    crate::kernel::cpu_list(list.as_bytes()).into_iter()
}

fn plug(guest: &FakeGuest, last: u32) {
    for cpu in 0..=last {
        std::fs::create_dir_all(guest.root.join(CPU).join(format!("cpu{cpu}"))).unwrap();
        let file = format!("{CPU}/cpu{cpu}/online");
        if cpu > 0 && !guest.root.join(&file).exists() {
            guest.write(&file, "0");
        }
    }
    guest.write(&format!("{CPU}/present"), &format!("0-{last}\n"));
}

async fn beside<F: Future<Output = ()>>(
    guest: &FakeGuest,
    test: impl FnOnce(Host<KeeperHost>) -> F,
) {
    guest.write(&format!("{CPU}/online"), "0\n");
    let config = Config::Keeper(KeeperConfig {
        listen: Listen::Unix(guest.socket()),
        root: guest.root.clone(),
        cgroup: guest.cgroup(),
        cpu_period: None,
        poweroff: vec!["touch".to_owned(), guest.root.join("off").display().to_string()],
        power_button: false,
    });
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let running = crate::run::run(config, shutdown.clone());
    let testing = async {
        test(guest.host(&tasks).await).await;
        shutdown.cancel();
    };
    let kernel = kernel(&guest.root);
    tokio::select! {
        (ended, ()) = async { tokio::join!(running, testing) } => ended.unwrap(),
        () = kernel => {}
    }
}

fn set_cpu(counter: u64, milli: u32) -> KeeperRequest {
    let generation = Generation { epoch: 1, counter };
    KeeperRequest::SetCpu { generation, cpu: MilliCpu(milli) }
}

async fn state(host: &Host<KeeperHost>, request: KeeperRequest) -> KeeperState {
    match host.link.request(request, LIMIT).await.unwrap() {
        KeeperResponse::State(state) => state,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn cpus_and_quota_follow_the_orders() {
    let guest = FakeGuest::new("cpus");
    plug(&guest, 3);
    beside(&guest, async |host| {
        let before = state(&host, KeeperRequest::State {}).await;
        assert_eq!((before.cpus_present, before.cpus_online), (4, 1));
        assert_eq!(before.quota, MilliCpu(1000), "no limit: all CPUs");

        let grown = state(&host, set_cpu(1, 2500)).await;
        assert_eq!((grown.cpus_online, grown.quota), (3, MilliCpu(2500)));
        assert_eq!(guest.read("cgroup/cpu.max"), "50000 20000");

        let shrunk = state(&host, set_cpu(2, 250)).await;
        assert_eq!((shrunk.cpus_online, shrunk.quota), (1, MilliCpu(250)));
        assert_eq!(guest.read("cgroup/cpu.max"), "10000 40000");
        assert_eq!(guest.read(&format!("{CPU}/cpu1/online")), "0");

        let stale = host.link.request(set_cpu(1, 4000), LIMIT).await;
        let Err(LinkError::Refused { error }) = stale else { panic!("{stale:?}") };
        assert_eq!(error.code, ErrorCode::Stale);
        assert_eq!(guest.read("cgroup/cpu.max"), "10000 40000", "a stale order does nothing");
        assert!(host.link.request(set_cpu(3, 0), LIMIT).await.is_err());
    })
    .await;
    assert_eq!(guest.read("cgroup/cpu.max"), "max 100000", "the limit ends with the keeper");
}

#[tokio::test]
async fn a_newer_cpu_order_does_not_age_a_memory_question() {
    let guest = FakeGuest::new("apart");
    plug(&guest, 0);
    beside(&guest, async |host| {
        let _newer = state(&host, set_cpu(9, 1000)).await;
        let generation = Generation { epoch: 1, counter: 8 };
        let (from, to) = (Bytes::from_gib(2), Bytes::from_gib(1));
        let question = |generation| KeeperRequest::MayShrinkMemory { generation, from, to };
        assert!(host.link.request(question(generation), LIMIT).await.is_ok());
        let older = Generation { epoch: 1, counter: 7 };
        assert!(host.link.request(question(older), LIMIT).await.is_err(), "but its own kind does");
    })
    .await;
}

#[tokio::test]
async fn a_cpu_that_appears_late_is_brought_online() {
    let guest = FakeGuest::new("late");
    plug(&guest, 0);
    beside(&guest, async |host| {
        let late = async {
            sleep(Duration::from_millis(100)).await;
            plug(&guest, 1);
        };
        let (state, ()) = tokio::join!(state(&host, set_cpu(1, 2000)), late);
        assert_eq!((state.cpus_present, state.cpus_online), (2, 2));
    })
    .await;
}

#[tokio::test]
async fn cpus_that_never_appear_are_not_claimed() {
    let guest = FakeGuest::new("never");
    plug(&guest, 1);
    beside(&guest, async |host| {
        let state = state(&host, set_cpu(1, 4000)).await;
        assert_eq!((state.cpus_online, state.quota), (2, MilliCpu(2000)));
    })
    .await;
}

#[tokio::test]
async fn a_missing_cgroup_is_a_failure_with_its_cause() {
    let guest = FakeGuest::new("nocgroup");
    plug(&guest, 0);
    std::fs::remove_dir_all(guest.cgroup()).unwrap();
    beside(&guest, async |host| {
        let failed = host.link.request(set_cpu(1, 500), LIMIT).await;
        let Err(LinkError::Refused { error }) = failed else { panic!("{failed:?}") };
        assert_eq!(error.code, ErrorCode::Failed);
        assert!(error.message.as_str().starts_with("limit the CPU of the workload: "));
    })
    .await;
}

#[tokio::test]
async fn a_shrink_is_judged_by_what_is_free_now() {
    let guest = FakeGuest::new("shrink");
    plug(&guest, 0);
    guest.memory(2000, 1500);
    beside(&guest, async |host| {
        let ask = |counter, to| KeeperRequest::MayShrinkMemory {
            generation: Generation { epoch: 1, counter },
            from: Bytes::from_mib(2048),
            to: Bytes::from_mib(to),
        };
        let fine = host.link.request(ask(1, 1024), LIMIT).await.unwrap();
        assert_eq!(fine, KeeperResponse::Fine {});
        guest.memory(2000, 900);
        let veto = host.link.request(ask(2, 1024), LIMIT).await.unwrap();
        let KeeperResponse::Veto { least, .. } = veto else { panic!("{veto:?}") };
        assert!(least >= Bytes::from_mib(1148 + 64) && least <= Bytes::from_mib(1300), "{least}");
    })
    .await;
}

#[tokio::test]
async fn the_host_can_power_the_guest_down() {
    let guest = FakeGuest::new("power");
    plug(&guest, 0);
    beside(&guest, async |host| {
        let answer = host.link.request(KeeperRequest::PowerDown {}, LIMIT).await.unwrap();
        assert_eq!(answer, KeeperResponse::PoweringDown {});
        let off = async {
            while !guest.root.join("off").exists() {
                sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(LIMIT, off).await.unwrap();
    })
    .await;
}
