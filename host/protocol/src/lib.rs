//! host-protocol
