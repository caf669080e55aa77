//! Subcommands: one file each, their arguments together in `args`.
pub mod args;
pub mod check;
pub mod completions;
