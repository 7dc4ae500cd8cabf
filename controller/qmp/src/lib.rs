//! controller-qmp
