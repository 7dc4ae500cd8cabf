//! scheduler-ledger
