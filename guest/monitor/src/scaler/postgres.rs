//! Makes Postgres follow the size. In a task of its own: Postgres may be slow, down or away, and the
//! sampling goes on.

use std::fmt::Write;
use std::time::Duration;

use guest_policy::postgres::{Managed, Setting, settings};
use guest_units::Size;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, Config, NoTls};

/// Everything that is done for one size may take so long.
const LIMIT: Duration = Duration::from_secs(15);
/// First pause after a failure; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why the settings were not made.
#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error("connect to Postgres")]
    Connect { source: tokio_postgres::Error },
    #[error("run {statement}")]
    Statement { statement: String, source: tokio_postgres::Error },
    #[error("keep the connection to Postgres")]
    Connection { source: tokio_postgres::Error },
    #[error("Postgres closed the connection")]
    Closed,
    #[error("not done within {LIMIT:?}")]
    Deadline,
}

/// Applies each size that comes; the newest counts. Ends when no more can come.
pub(crate) async fn follow(
    config: Box<Config>,
    managed: Managed,
    mut sizes: watch::Receiver<Option<Size>>,
) {
    let mut applied: Option<Vec<Setting>> = None;
    let mut pause = FIRST_PAUSE;
    let mut failed = false;
    loop {
        if failed {
            tokio::select! {
                () = sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                changed = sizes.changed() => if changed.is_err() { return },
            }
        } else if sizes.changed().await.is_err() {
            return;
        }
        let Some(size) = *sizes.borrow_and_update() else { continue };
        let wanted = settings(size, managed);
        if applied.as_ref() == Some(&wanted) {
            failed = false;
            continue;
        }
        // What is done by halves is neither the old nor the new.
        applied = None;
        match timeout(LIMIT, apply(&config, &wanted)).await.unwrap_or(Err(ApplyError::Deadline)) {
            Ok(()) => {
                tracing::info!(%size, settings = %describe(&wanted), "postgres follows the size");
                (applied, failed, pause) = (Some(wanted), false, FIRST_PAUSE);
            }
            Err(err) => {
                let error = anyhow::Error::from(err);
                tracing::warn!(error = %format_args!("{error:#}"), "postgres does not follow the size");
                failed = true;
            }
        }
    }
}

/// A connection for this one change: nothing to keep alive, nothing that can be stale.
async fn apply(config: &Config, settings: &[Setting]) -> Result<(), ApplyError> {
    let (client, connection) =
        config.connect(NoTls).await.map_err(|source| ApplyError::Connect { source })?;
    tokio::select! {
        // It ends before the client is dropped only when it is broken.
        ended = connection => match ended {
            Err(source) => Err(ApplyError::Connection { source }),
            Ok(()) => Err(ApplyError::Closed),
        },
        done = run(&client, settings) => done,
    }
}

async fn run(client: &Client, settings: &[Setting]) -> Result<(), ApplyError> {
    for setting in settings {
        execute(client, statement(setting)).await?;
    }
    execute(client, "SELECT pg_reload_conf()".to_owned()).await
}

/// One at a time: ALTER SYSTEM refuses to run in the transaction that several would make.
async fn execute(client: &Client, statement: String) -> Result<(), ApplyError> {
    match client.batch_execute(&statement).await {
        Ok(()) => Ok(()),
        Err(source) => Err(ApplyError::Statement { statement, source }),
    }
}

/// Names and values come from our own table and hold nothing that would need quoting.
fn statement(setting: &Setting) -> String {
    format!("ALTER SYSTEM SET {} = '{}'", setting.name, setting.value)
}

fn describe(settings: &[Setting]) -> String {
    let mut text = String::new();
    for Setting { name, value } in settings {
        let _infallible = write!(text, "{name}={value} ");
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use guest_units::{Bytes, MilliCpu};

    use super::*;

    #[test]
    fn statements_hold_only_plain_words() {
        let size = Size::new(MilliCpu(4000), Bytes::from_gib(8));
        let settings = settings(size, Managed::default());
        assert_eq!(statement(&settings[1]), "ALTER SYSTEM SET work_mem = '39MB'");
        for setting in settings {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
            assert!(setting.name.chars().chain(setting.value.chars()).all(plain));
        }
    }
}
