//! tests-tidy
