//! Subcommands: one file each, their arguments together in `args`.
pub mod args;
pub mod ask;
pub mod check;
pub mod completions;
pub mod reply;
pub mod table;
