//! The first frame of each side.

use serde::{Deserialize, Serialize};

use crate::message::ErrorBody;
use crate::text::Text;
use crate::version::Versions;

/// Who in the guest is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleName {
    /// Measures, asks and vetoes.
    Scaler,
    /// Carries out privileged acts.
    Keeper,
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

/// What the host says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Whom it wants to speak to.
    pub role: RoleName,
    /// What it speaks.
    pub versions: Versions,
}

/// What the guest answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Who it is.
    pub role: RoleName,
    /// The version that both speak from now on.
    pub version: u32,
    /// Differs after each boot of the guest.
    pub boot_id: Text,
}

/// A first frame: `{"hello":{..}}`, `{"welcome":{..}}` or `{"error":{..}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Greeting {
    /// From the host.
    Hello(Hello),
    /// From the guest.
    Welcome(Welcome),
    /// From the guest, which closes then.
    Error(ErrorBody),
}
