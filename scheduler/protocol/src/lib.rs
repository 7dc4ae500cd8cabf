//! scheduler-protocol
