//! What the TAP reader is told.

/// The lease has changed: look at it and bring the device up to it.
#[derive(Debug, Clone, Copy)]
pub struct Configure;
