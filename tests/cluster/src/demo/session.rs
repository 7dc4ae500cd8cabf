//! One psql session through the VM's port that stays open from before the load until after it.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::feed::{Lines, kubectl};
use super::recording::Identity;
use super::{CLIENT, sql_words};
use crate::cluster::Cluster;

/// Generous: a starved VM may be slow, but an answer that never comes is a broken connection.
const LIMIT: Duration = Duration::from_secs(60);
const BACKEND: &str = "SELECT pg_backend_pid();";
const POSTMASTER: &str = "SELECT extract(epoch FROM pg_postmaster_start_time());";

/// The open session.
#[derive(Debug)]
pub(super) struct Session(Lines);

impl Session {
    /// Opens it.
    pub(super) fn open(cluster: &Cluster) -> Result<Self> {
        let mut words = vec!["exec", "-i", CLIENT, "--", "psql"];
        words.extend(sql_words());
        Lines::start(kubectl(cluster, &words)).context("open the long session").map(Self)
    }

    /// Asks something that has one line as its answer.
    pub(super) fn ask(&mut self, sql: &str) -> Result<String> {
        self.0.tell(sql).context("the long session is broken")?;
        match self.0.next(LIMIT).context("wait for the long session's answer")? {
            Some(line) if !line.is_empty() => Ok(line),
            Some(_) => bail!("the long session answered nothing to {sql}"),
            None => bail!("the long session has ended"),
        }
    }

    /// Who answers.
    pub(super) fn identity(&mut self) -> Result<Identity> {
        Ok(Identity { postmaster_start: self.ask(POSTMASTER)?, backend_pid: self.ask(BACKEND)? })
    }
}
