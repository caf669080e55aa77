//! What the server keeps for good: the records the coordinator writes and reads back.
//!
//! The coordinator emits [`StoreOp`]s and waits until they are durable before it answers; the store applies a
//! batch of them in one transaction. Secret keys are not here: they live in files of their own.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::ids::{MacAddr, NetworkId, PublicKey};

/// One member: a key, its name, and what is leased to it. Keys, names, MACs and addresses are unique in a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRecord {
    pub key: PublicKey,
    pub name: String,
    pub mac: MacAddr,
    pub ip4: Ipv4Addr,
    pub ip6: Option<Ipv6Addr>,
    /// Rights bits of the certificate.
    pub rights: u8,
    /// Serial of the newest certificate issued to it.
    pub serial: u64,
    /// Unix seconds of admission; for people only.
    pub joined_unix: u64,
    /// Where the member last spoke from, so that a restarted server can call it.
    pub last_endpoint: Option<SocketAddr>,
}

/// The network's own row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkRecord {
    pub id: NetworkId,
    /// Version of the member map; each change of a member raises it.
    pub version: u64,
    /// The network epoch: raised hourly and on every revocation.
    pub epoch: u64,
    /// The next certificate serial.
    pub next_serial: u64,
    /// Raised at each start of the server, before its first handshake.
    pub boots: u64,
}

/// An invitation. Only a digest of the token is kept besides the key derived from it.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// What the client shows in the clear to name its token: first 8 bytes of BLAKE2s("eps1 token id" ‖ token).
    pub id: u64,
    /// The pre-shared key derived from the token.
    pub psk: [u8; 32],
    /// Unix seconds after which it is refused; `None` for never.
    pub expires_unix: Option<u64>,
    /// How many members it may still admit; `None` for any number.
    pub uses_left: Option<u32>,
}

impl std::fmt::Debug for TokenRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenRecord")
            .field("expires_unix", &self.expires_unix)
            .field("uses_left", &self.uses_left)
            .finish_non_exhaustive()
    }
}

/// A revoked certificate serial, kept until certificates of that age have expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RevokedRecord {
    pub serial: u64,
    /// Network epoch of the revocation.
    pub epoch: u64,
}

/// One write. Each is a whole row, so applying one twice does no harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreOp {
    PutNetwork(NetworkRecord),
    PutMember(MemberRecord),
    RemoveMember(PublicKey),
    PutToken(TokenRecord),
    RemoveToken(u64),
    PutRevoked(RevokedRecord),
    RemoveRevoked(u64),
}

/// Everything a server reads at its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredState {
    pub network: Option<NetworkRecord>,
    pub members: Vec<MemberRecord>,
    pub tokens: Vec<TokenRecord>,
    pub revoked: Vec<RevokedRecord>,
}
