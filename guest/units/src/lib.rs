//! guest-units
