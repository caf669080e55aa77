//! Bytes to values and back: no state, no time, no randomness, no I/O.
//!
//! Every datagram of the native protocol is little-endian, starts with the same 16-byte header, and is told by its
//! first byte alone (which cannot be STUN, DTLS, RTP or WireGuard):
//!
//! ```text
//!  0        1        2        3        4                        8                                              16
//! +--------+--------+--------+--------+------------------------+-----------------------------------------------+
//! | type   | pad or | suites | 0      | receiver index         | counter, network tag, token id                |
//! |        | version|        |        | (sender's in E4, E5)   | or channel token                              |
//! +--------+--------+--------+--------+------------------------+-----------------------------------------------+
//! E0 DATA   header, sealed [frame][0 to 15 zero bytes], tag 16; bit 4 of byte 1: the frame's checksum is partial
//! E1 CTRL   header, sealed list of {kind, flags, length, body}, tag 16
//! E2        reserved (AGG)
//! E3 FRAG   header with index and count of the fragment in bytes 2 and 3, then a part of one sealed message
//! E4 INIT   header, Noise message 1 (288), MAC1, MAC2                     336 bytes
//! E5 RESP   header, Noise message 2 (240), MAC1, MAC2                     288 bytes
//! E6 COOKIE header, nonce 24, sealed cookie 32                             72 bytes
//! E7 HINT   header only: "I have no such session"                          16 bytes
//! E8 RELAY  header with a channel token, then one whole inner datagram
//! EC        "where do you see me?" and its answer, without a session ([`observe`])                     64 bytes
//! E9-EB     first contact with a token (Noise XXpsk3)                336, 208, 304 bytes
//! ED        an announcement in a LAN, with a header of its own ([`lan`])                               24 bytes
//! ```
//!
//! Decoders answer [`DropReason`](crate::counters::DropReason) and never allocate on the data path; nothing from the
//! network makes them panic.

pub mod cert;
pub mod checksum;
pub mod control;
pub mod ethcloud;
pub mod ethernet;
pub mod handshake;
pub mod header;
pub mod hello;
pub mod igd;
pub mod join;
pub mod lan;
pub mod nat;
pub mod natpmp;
pub mod observe;
pub mod pcp;
pub mod relay;
pub mod stun;
pub mod vnet;
pub mod why;
