//! guest-policy
