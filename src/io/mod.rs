//! Every syscall and every unsafe line.
pub mod batch;
pub mod control_socket;
pub mod files;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod notify;
pub mod packet;
pub mod poll;
pub mod signals;
pub mod store;
pub mod tap;
pub mod tap_slot;
pub mod tcp;
pub mod udp;
pub mod uplinks;
