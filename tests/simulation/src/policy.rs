//! The policies that a brain can be given, by their names.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use host_scaling::Policy;
use host_scaling::reference::{ComputeUnit, ReferenceConfig};
use serde_json::{Map, Value};

use crate::json;

/// Whose rules decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum PolicyName {
    /// What the guest says that it needs, and a reserve.
    Headroom,
    /// Load averages and memory in use, in compute units.
    Reference,
}

impl PolicyName {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Headroom, Self::Reference];

    /// As on the command line.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Headroom => "headroom",
            Self::Reference => "reference",
        }
    }

    /// The policy with the numbers that ship, the reference with these of its own.
    #[must_use]
    pub fn policy(self, config: ReferenceConfig, unit: ComputeUnit) -> Policy {
        match self {
            Self::Headroom => Policy::default(),
            Self::Reference => Policy::reference(config, unit),
        }
    }
}

/// The reference's configuration: what a file changes of the one that ships.
///
/// # Errors
/// The file cannot be read, is no JSON object, or has fields that are wrong: all of them are named.
pub fn read_config(file: &Path) -> Result<ReferenceConfig> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let changes: Map<String, Value> = json::read(&text)
        .map_err(anyhow::Error::msg)
        .with_context(|| file.display().to_string())?;
    match ReferenceConfig::default().with(&changes) {
        Ok(config) => Ok(config),
        Err(problems) => {
            let named: Vec<_> = problems.iter().map(ToString::to_string).collect();
            bail!("{}: {}", file.display(), named.join("; "))
        }
    }
}
