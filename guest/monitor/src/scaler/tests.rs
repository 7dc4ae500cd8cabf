//! The whole scaler against a host, over a Unix socket and with a `proc` of its own.

use guest_protocol::{Ask, AskReason, ScalerHost};
use guest_units::{Bytes, MilliCpu};

use super::*;
use crate::config::{Config, Listen};
use crate::fake::{FakeGuest, Host, LIMIT};

fn config(guest: &FakeGuest) -> Config {
    Config::Scaler(ScalerConfig {
        listen: Listen::Unix(guest.socket()),
        root: guest.root.clone(),
        cgroup: guest.cgroup(),
        postgres: None,
        managed: guest_policy::postgres::Managed::default(),
    })
}

async fn next(host: &mut Host<ScalerHost>) -> ScalerNotify {
    match tokio::time::timeout(LIMIT, host.incoming.next()).await.unwrap() {
        Some(Received::Notify(notify)) => notify,
        Some(Received::Request(never, _)) => match never {},
        None => panic!("the connection ended"),
    }
}

async fn next_ask(host: &mut Host<ScalerHost>) -> Ask {
    loop {
        if let ScalerNotify::Ask(ask) = next(host).await {
            return ask;
        }
    }
}

fn size(cpu: u32, mib: u64) -> Size {
    Size::new(MilliCpu(cpu), Bytes::from_mib(mib))
}

/// Runs a scaler and a test beside it.
async fn beside<F: Future<Output = ()>>(guest: &FakeGuest, test: impl FnOnce(TaskTracker) -> F) {
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let running = crate::run::run(config(guest), shutdown.clone());
    let testing = async {
        test(tasks.clone()).await;
        shutdown.cancel();
    };
    let (ended, ()) = tokio::join!(running, testing);
    ended.unwrap();
}

#[tokio::test]
async fn a_host_gets_samples_answers_and_asks() {
    let guest = FakeGuest::new("scaler");
    beside(&guest, async |tasks| {
        let mut host = guest.host::<ScalerHost>(&tasks).await;
        assert_eq!(host.welcome.boot_id.as_str(), "b0071d");
        let ScalerNotify::Sample(sample) = next(&mut host).await else { panic!("no sample") };
        // 185 MiB in use, and 27 MiB that the kernel keeps for itself.
        assert_eq!(sample.used.memory, Bytes::from_mib(185 + 27));
        assert_eq!(sample.signals.memory_total, Bytes::from_mib(485));
        let metrics = sample.metrics.unwrap();
        assert_eq!((metrics.load1_milli, metrics.load5_milli), (300, 250));
        assert_eq!(metrics.memory_total, Bytes::from_mib(485));

        let generation = Generation::from(5);
        let ask = |to| ScalerRequest::MayShrink { generation, from: size(1000, 1024), to };
        let fine = host.link.request(ask(size(250, 900)), LIMIT).await.unwrap();
        assert_eq!(fine, ScalerResponse::Fine {});
        let veto = host.link.request(ask(size(250, 700)), LIMIT).await.unwrap();
        // 1024 - 300 are held, and a tenth of what remains must stay available.
        let ScalerResponse::Veto { least, .. } = veto else { panic!("{veto:?}") };
        assert!(least.memory >= Bytes::from_mib(804) && least.memory < Bytes::from_mib(806));

        // The shrink happens behind its back: a fresh measurement answers, not the last one.
        guest.memory(485, 30);
        let veto = host.link.request(ask(size(250, 900)), LIMIT).await.unwrap();
        assert!(matches!(veto, ScalerResponse::Veto { .. }), "{veto:?}");
        let ask = next_ask(&mut host).await;
        assert!(matches!(ask.reason, AskReason::MemorySlope | AskReason::MemoryReserve));
        assert!(ask.want.memory > Bytes::from_mib(512 + 64), "{ask:?}");
    })
    .await;
}

#[tokio::test]
async fn a_resize_is_confirmed_and_older_generations_are_refused() {
    let guest = FakeGuest::new("resized");
    beside(&guest, async |tasks| {
        let host = guest.host::<ScalerHost>(&tasks).await;
        let resized = |counter| ScalerRequest::Resized {
            generation: Generation { epoch: 2, counter },
            plugged: size(1000, 512),
        };
        let confirmed = host.link.request(resized(8), LIMIT).await.unwrap();
        let memory_total = Bytes::from_mib(485);
        assert_eq!(confirmed, ScalerResponse::Confirmed { cpus_online: 1, memory_total });
        assert!(host.link.request(resized(8), LIMIT).await.is_ok(), "a repeat is harmless");
        let Err(LinkError::Refused { error }) = host.link.request(resized(7), LIMIT).await else {
            panic!("a stale request was answered")
        };
        assert_eq!((error.code, error.message.as_str()), (ErrorCode::Stale, "newest seen is 2.8"));
    })
    .await;
}

#[tokio::test]
async fn a_new_host_takes_the_place_of_the_old() {
    let guest = FakeGuest::new("replaced");
    beside(&guest, async |tasks| {
        let mut old = guest.host::<ScalerHost>(&tasks).await;
        let _sample = next(&mut old).await;
        let mut new = guest.host::<ScalerHost>(&tasks).await;
        let _sample = next(&mut new).await;
        let ended = async { while old.incoming.next().await.is_some() {} };
        tokio::time::timeout(LIMIT, ended).await.unwrap();
        assert!(old.link.is_closed());
        let _still = next(&mut new).await;
    })
    .await;
}

#[tokio::test]
async fn a_system_that_cannot_be_measured_may_not_shrink() {
    let guest = FakeGuest::new("blind");
    std::fs::remove_file(guest.root.join("proc/meminfo")).unwrap();
    beside(&guest, async |tasks| {
        let host = guest.host::<ScalerHost>(&tasks).await;
        let request = ScalerRequest::MayShrink {
            generation: Generation::from(1),
            from: size(1000, 1024),
            to: size(1000, 512),
        };
        let Err(LinkError::Refused { error }) = host.link.request(request, LIMIT).await else {
            panic!("agreed blindly")
        };
        assert_eq!(error.code, ErrorCode::Failed);
    })
    .await;
}
