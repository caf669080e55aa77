//! The real program in namespaces, and what is done to it: processes killed, devices deleted, clocks moved, actors made
//! to panic. Each test begins with the number of its criterion and prints its figure.
//!
//! `EPS_LONG=1` runs them at the lengths of the criteria; the default form is shorter.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a load has a pace, and figures are printed")]

mod absurd;
mod clock;
#[path = "../shared/crowd.rs"]
mod crowd;
mod device;
mod fallback;
mod leases;
mod load;
#[path = "../shared/paced.rs"]
mod paced;
mod panics;
mod process;
#[path = "../shared/programs.rs"]
mod programs;
mod roaming;
mod server;
mod stage;
mod start;
#[path = "../shared/turn.rs"]
mod turn;
mod wall;
