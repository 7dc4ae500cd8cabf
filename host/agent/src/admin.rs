//! `why` and `top`: a Unix socket that answers one question with lines of JSON, and the subcommands that ask it.
//!
//! The socket lies in the pod's own folder: whoever may exec into the pod may ask. A question is one line,
//! `{"why":{"namespace":"..","name":".."}}` or `"top"`; the answer ends with the connection. An error is one line
//! `{"error":".."}`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Command;
use crate::view::VmKey;

/// Longest question.
const MAX_QUESTION: u64 = 4096;
/// A question is asked and answered within this.
const LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Question {
    Why { namespace: String, name: String },
    Top,
}

/// A question to the task of one VM; the answer is lines of JSON.
#[derive(Debug)]
pub(crate) enum Query {
    Why(oneshot::Sender<Vec<String>>),
    Top(oneshot::Sender<Vec<String>>),
}

/// What is known of a VM's task.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) queries: mpsc::Sender<Query>,
    pub(crate) is_endpoint: bool,
    pub(crate) stuck: bool,
}

/// The tasks of all VMs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Board(Arc<Mutex<BTreeMap<VmKey, Entry>>>);

impl Board {
    pub(crate) fn insert(&self, key: VmKey, entry: Entry) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, entry);
    }

    pub(crate) fn remove(&self, key: &VmKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    pub(crate) fn set_stuck(&self, key: &VmKey, stuck: bool) {
        if let Some(entry) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(key) {
            entry.stuck = stuck;
        }
    }

    pub(crate) fn entries(&self) -> Vec<(VmKey, Entry)> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }

    async fn answer(&self, question: Question) -> Result<Vec<String>, String> {
        match question {
            Question::Why { namespace, name } => {
                let key = VmKey { namespace, name };
                let found = self.entries().into_iter().find(|(it, _)| *it == key);
                let Some((_, entry)) = found else {
                    return Err(format!(
                        "{}/{} is not autoscaled on this node",
                        key.namespace, key.name
                    ));
                };
                Ok(ask(&entry, Query::Why).await)
            }
            Question::Top => {
                let mut lines = Vec::new();
                for (_, entry) in self.entries() {
                    lines.extend(ask(&entry, Query::Top).await);
                }
                Ok(lines)
            }
        }
    }
}

async fn ask(entry: &Entry, query: fn(oneshot::Sender<Vec<String>>) -> Query) -> Vec<String> {
    let (sender, receiver) = oneshot::channel();
    if entry.queries.send(query(sender)).await.is_err() {
        return Vec::new(); // the VM has just left
    }
    receiver.await.unwrap_or_default()
}

/// Makes the socket; one of an earlier run is replaced.
pub(crate) fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            return Err(err).with_context(|| format!("remove the old {}", path.display()));
        }
        _ => {}
    }
    UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))
}

pub(crate) async fn serve(
    listener: UnixListener,
    board: Board,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await; // out of descriptors
            continue;
        };
        let board = board.clone();
        tasks.spawn(async move {
            if let Ok(Err(err)) = timeout(LIMIT, one_question(stream, &board)).await {
                tracing::debug!(error = %err, "question not answered");
            }
        });
    }
}

async fn one_question(stream: UnixStream, board: &Board) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_QUESTION)).read_line(&mut line).await?;
    let answer = match serde_json::from_str(&line) {
        Ok(question) => board.answer(question).await,
        Err(_) => Err("the question is not understood".to_owned()),
    };
    let lines = answer.unwrap_or_else(|err| vec![serde_json::json!({ "error": err }).to_string()]);
    for line in lines {
        write.write_all(format!("{line}\n").as_bytes()).await?;
    }
    write.shutdown().await
}

/// The subcommands: puts the question to the running agent and returns its lines.
pub(crate) async fn put(socket: &Path, command: &Command) -> anyhow::Result<String> {
    let question = match command.clone() {
        Command::Why { namespace, name } => Question::Why { namespace, name },
        Command::Top => Question::Top,
    };
    let exchange = async {
        let mut stream = UnixStream::connect(socket)
            .await
            .with_context(|| format!("reach the agent at {}", socket.display()))?;
        let line = serde_json::to_string(&question).context("encode the question")?;
        stream.write_all(format!("{line}\n").as_bytes()).await.context("send the question")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.context("read the answer")?;
        anyhow::Ok(answer)
    };
    let answer = timeout(LIMIT, exchange).await.context("no answer of the agent in time")??;
    if let Ok(Refused { error }) = serde_json::from_str(answer.trim()) {
        anyhow::bail!("{error}");
    }
    Ok(answer)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refused {
    error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn questions_reach_the_task_and_unknown_vms_are_said_to_be_unknown() {
        let path = std::env::temp_dir().join(format!("agent-admin-{}.sock", std::process::id()));
        let listener = bind(&path).unwrap();
        let board = Board::default();
        let (queries, mut asked) = mpsc::channel(4);
        let key = VmKey { namespace: "default".into(), name: "pg".into() };
        board.insert(key, Entry { queries, is_endpoint: false, stuck: false });
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(serve(listener, board, tasks.clone(), stop.clone()));
        tasks.spawn(async move {
            while let Some(query) = asked.recv().await {
                match query {
                    Query::Why(to) => to.send(vec!["{\"rule\":\"grow\"}".into()]).unwrap(),
                    Query::Top(to) => to.send(vec!["{\"name\":\"pg\"}".into()]).unwrap(),
                }
            }
        });
        let why = |name: &str| Command::Why { namespace: "default".into(), name: name.into() };
        assert_eq!(put(&path, &why("pg")).await.unwrap(), "{\"rule\":\"grow\"}\n");
        assert_eq!(put(&path, &Command::Top).await.unwrap(), "{\"name\":\"pg\"}\n");
        let err = put(&path, &why("other")).await.unwrap_err();
        assert_eq!(err.to_string(), "default/other is not autoscaled on this node");
        stop.cancel();
        std::fs::remove_file(path).unwrap();
    }
}
