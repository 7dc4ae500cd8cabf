//! controller-api
