//! Actors: thin owners of a core, a mailbox and perhaps a reading end. They decide nothing.
pub mod ext;
pub mod supervisor;
pub mod system;
