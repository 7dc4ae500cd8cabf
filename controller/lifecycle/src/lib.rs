//! controller-lifecycle
