//! host-scaling
