//! Runs one subcommand. Nothing is left behind: this program only reads.

use std::io::Write;

use anyhow::Result;

use crate::cluster::Cluster;
use crate::config::{Command, Config};
use crate::kubectl::Kubectl;
use crate::{top, why};

pub(crate) fn run(config: &Config, out: &mut impl Write) -> Result<()> {
    let Config { command, kubectl, global_flags, agent_namespace } = config;
    let kubectl = Kubectl { program: kubectl, global_flags };
    let cluster = Cluster { kubectl, agent_namespace };
    match command {
        Command::Why { name, scope, json } => why::run(&cluster, name, scope, *json, out),
        Command::Top { name, scope, once } => {
            top::run(&cluster, name.as_deref(), scope, *once, out)
        }
    }
}
