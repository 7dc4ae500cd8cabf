//! Who says what to whom: the types of a connection, for each role and end.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bounds::Bounded;
use crate::greeting::RoleName;
use crate::message::{
    KeeperRequest, KeeperResponse, Never, ScalerNotify, ScalerRequest, ScalerResponse,
};

/// What may be sent.
pub trait Sendable: Serialize + Send + 'static {}
impl<T: Serialize + Send + 'static> Sendable for T {}

/// What may be received.
pub trait Receivable: DeserializeOwned + Bounded + Send + 'static {}
impl<T: DeserializeOwned + Bounded + Send + 'static> Receivable for T {}

/// One end of a connection.
pub trait Side: Send + Sync + 'static {
    /// Whom the connection is about.
    const ROLE: RoleName;
    /// Requests that this end makes.
    type Asks: Sendable;
    /// Responses that it gets.
    type Gets: Receivable;
    /// Requests that it is made.
    type Asked: Receivable;
    /// Responses that it gives.
    type Gives: Sendable;
    /// Notifications that it sends.
    type Tells: Sendable;
    /// Notifications that it receives.
    type Told: Receivable;
}

/// The host's end of a scaler connection.
#[derive(Debug, Clone, Copy)]
pub enum ScalerHost {}
/// The guest's end of a scaler connection.
#[derive(Debug, Clone, Copy)]
pub enum ScalerGuest {}
/// The host's end of a keeper connection.
#[derive(Debug, Clone, Copy)]
pub enum KeeperHost {}
/// The guest's end of a keeper connection.
#[derive(Debug, Clone, Copy)]
pub enum KeeperGuest {}

impl Side for ScalerHost {
    const ROLE: RoleName = RoleName::Scaler;
    type Asks = ScalerRequest;
    type Gets = ScalerResponse;
    type Asked = Never;
    type Gives = Never;
    type Tells = Never;
    type Told = ScalerNotify;
}

impl Side for ScalerGuest {
    const ROLE: RoleName = RoleName::Scaler;
    type Asks = Never;
    type Gets = Never;
    type Asked = ScalerRequest;
    type Gives = ScalerResponse;
    type Tells = ScalerNotify;
    type Told = Never;
}

impl Side for KeeperHost {
    const ROLE: RoleName = RoleName::Keeper;
    type Asks = KeeperRequest;
    type Gets = KeeperResponse;
    type Asked = Never;
    type Gives = Never;
    type Tells = Never;
    type Told = Never;
}

impl Side for KeeperGuest {
    const ROLE: RoleName = RoleName::Keeper;
    type Asks = Never;
    type Gets = Never;
    type Asked = KeeperRequest;
    type Gives = KeeperResponse;
    type Tells = Never;
    type Told = Never;
}
