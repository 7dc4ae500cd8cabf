//! The client against a monitor that behaves well, badly and not at all.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::time::Duration;

use controller_qmp::{
    Client, Events, LINE_LIMIT, QmpError, QomGet, QueryStatus, Quit, SystemPowerdown,
};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(20);
const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"major": 10}}, "capabilities": ["oob"]}}"#;

/// QEMU's end of the connection, spoken by the test.
struct Monitor(BufReader<DuplexStream>);

impl Monitor {
    async fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
        self.0.write_all(b"\r\n").await.unwrap();
    }

    /// The next command: name and id.
    async fn hear(&mut self) -> (String, u64) {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        let command: Value = serde_json::from_str(&line).unwrap();
        (command["execute"].as_str().unwrap().to_owned(), command["id"].as_u64().unwrap())
    }

    async fn answer(&mut self, id: u64, value: &Value) {
        self.say(&json!({"return": value, "id": id}).to_string()).await;
    }
}

type Driving = JoinHandle<Result<(), QmpError>>;

#[expect(clippy::disallowed_methods, reason = "a test joins its tasks by hand")]
fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    tokio::spawn(future)
}

async fn connected() -> (Client, Driving, Monitor) {
    let (ours, theirs) = tokio::io::duplex(4096);
    let mut monitor = Monitor(BufReader::new(theirs));
    let monitoring = spawn(async move {
        monitor.say(GREETING).await;
        let (name, id) = monitor.hear().await;
        assert_eq!((name.as_str(), id), ("qmp_capabilities", 0));
        monitor.say(r#"{"event": "EARLY"}"#).await;
        monitor.answer(0, &json!({})).await;
        monitor
    });
    let (client, driver) = Client::over(ours, LIMIT).await.unwrap();
    (client, spawn(driver.run()), monitoring.await.unwrap())
}

async fn name_of_next(events: &mut Events) -> String {
    events.next().await.unwrap().name
}

#[tokio::test]
async fn answers_find_their_commands_in_any_order() {
    let (client, _driving, mut monitor) = connected().await;
    let mut events = client.events();
    let get = |property: &'static str| {
        let client = client.clone();
        let command = QomGet { path: "/x".to_owned(), property: property.to_owned() };
        spawn(async move { client.execute(&command, LIMIT).await.unwrap() })
    };
    let first = get("a");
    let (_, first_id) = monitor.hear().await;
    let second = get("b");
    let (_, second_id) = monitor.hear().await;
    assert_ne!(first_id, second_id);
    monitor.say(r#"{"event": "RESUME", "timestamp": {"seconds": 1}}"#).await;
    monitor.answer(second_id, &json!("b")).await;
    monitor.say(r#"{"event": "NEVER_HEARD_OF", "data": {"deep": [{"er": 1}]}}"#).await;
    monitor.answer(first_id, &json!("a")).await;
    assert_eq!(first.await.unwrap(), json!("a"));
    assert_eq!(second.await.unwrap(), json!("b"));
    assert_eq!(name_of_next(&mut events).await, "RESUME");
    assert_eq!(name_of_next(&mut events).await, "NEVER_HEARD_OF");
}

#[tokio::test]
async fn refusals_and_strange_shapes_leave_the_connection_usable() {
    let (client, _driving, mut monitor) = connected().await;
    let monitoring = spawn(async move {
        let (_, id) = monitor.hear().await;
        monitor
            .say(&json!({"error": {"class": "GenericError", "desc": "no"}, "id": id}).to_string())
            .await;
        let (_, id) = monitor.hear().await;
        monitor.answer(id, &json!({"running": "perhaps"})).await;
        monitor.say(r#"{"error": {"class": "GenericError", "desc": "what?"}}"#).await;
        let (_, id) = monitor.hear().await;
        monitor.answer(id, &json!({"running": true, "status": "running"})).await;
        monitor
    });
    let refused = client.execute(&Quit {}, LIMIT).await.unwrap_err();
    assert_eq!(refused.to_string(), "quit refused: no (GenericError)");
    let strange = client.execute(&QueryStatus {}, LIMIT).await.unwrap_err();
    assert_eq!(strange.label(), "shape");
    assert!(client.execute(&QueryStatus {}, LIMIT).await.unwrap().running);
    drop(monitoring.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_dropped() {
    let (client, _driving, mut monitor) = connected().await;
    let late = client.execute(&SystemPowerdown {}, Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(late.label(), "deadline");
    let (name, late_id) = monitor.hear().await;
    assert_eq!(name, "system_powerdown");
    let next = {
        let client = client.clone();
        spawn(async move { client.execute(&QueryStatus {}, LIMIT).await })
    };
    let (_, id) = monitor.hear().await;
    monitor.answer(late_id, &json!({})).await;
    monitor.answer(late_id, &json!({})).await; // twice, even
    monitor.answer(id, &json!({"running": false, "status": "paused"})).await;
    assert!(!next.await.unwrap().unwrap().running);
}

#[tokio::test]
async fn dropping_a_command_is_harmless() {
    let (client, _driving, mut monitor) = connected().await;
    let dropped = {
        let client = client.clone();
        spawn(async move { client.execute(&SystemPowerdown {}, LIMIT).await })
    };
    let (_, dropped_id) = monitor.hear().await;
    dropped.abort();
    let _cancelled = dropped.await;
    let next = {
        let client = client.clone();
        spawn(async move { client.execute(&Quit {}, LIMIT).await })
    };
    let (_, id) = monitor.hear().await;
    monitor.answer(dropped_id, &json!({})).await;
    monitor.answer(id, &json!({})).await;
    next.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_end_of_the_connection_ends_every_command() {
    let (client, driving, mut monitor) = connected().await;
    let mut events = client.events();
    let waiting = {
        let client = client.clone();
        spawn(async move { client.execute(&Quit {}, LIMIT).await })
    };
    monitor.hear().await;
    drop(monitor);
    assert_eq!(waiting.await.unwrap().unwrap_err().label(), "closed");
    driving.await.unwrap().unwrap();
    assert_eq!(client.execute(&Quit {}, LIMIT).await.unwrap_err().label(), "closed");
    drop(client);
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn junk_and_endless_lines_end_the_connection() {
    for junk in ["no JSON at all".to_owned(), "{}".to_owned(), "x".repeat(LINE_LIMIT + 2)] {
        let (client, driving, mut monitor) = connected().await;
        let waiting = {
            let client = client.clone();
            spawn(async move { client.execute(&Quit {}, LIMIT).await })
        };
        monitor.hear().await;
        let monitoring = spawn(async move {
            let _closed_early = monitor.0.write_all(junk.as_bytes()).await;
            let _closed_early = monitor.0.write_all(b"\n").await;
            monitor
        });
        assert_eq!(driving.await.unwrap().unwrap_err().label(), "wire");
        assert_eq!(waiting.await.unwrap().unwrap_err().label(), "closed");
        drop(monitoring.await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_negotiate_is_not_talked_to() {
    for (said, label) in [
        ("", "deadline"),
        ("{\"event\": \"X\"}\n", "negotiation"),
        ("220 smtp ready\n", "wire"),
        (
            "{\"QMP\": {}}\n{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"busy\"}}\n",
            "negotiation",
        ),
    ] {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        theirs.write_all(said.as_bytes()).await.unwrap();
        let ended = Client::over(ours, Duration::from_secs(1)).await;
        assert_eq!(ended.map(|_| ()).unwrap_err().label(), label, "{said}");
    }
    let (ours, theirs) = tokio::io::duplex(4096);
    drop(theirs);
    assert!(matches!(Client::over(ours, LIMIT).await, Err(QmpError::Negotiation { .. })));
}
