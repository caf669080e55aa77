//! Subcommands: one file each, or small ones together; their arguments are in `args`.
pub mod args;
pub mod ask;
pub mod check;
pub mod completions;
pub mod configure;
pub mod demo;
pub mod install;
pub mod man;
pub mod members;
pub mod orders;
pub mod reply;
pub mod status;
pub mod table;
pub mod tunnel;
pub mod tunnel_status;
