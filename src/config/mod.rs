//! Configuration.
pub mod check;
pub mod raw;
