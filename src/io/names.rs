//! What the system's resolver says of names.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

/// Why a name stands for no address.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    #[error(transparent)]
    Resolver(#[from] io::Error),
    #[error("it has no address")]
    NoAddress,
}

/// The addresses that a name stands for, at least one; an address stands for itself. Waits for the resolver, which may
/// take as long as it likes.
///
/// # Errors
/// What the resolver says.
pub fn look_up(host: &str, port: u16) -> Result<Vec<SocketAddr>, LookupError> {
    let found: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    if found.is_empty() { Err(LookupError::NoAddress) } else { Ok(found) }
}

/// As [`look_up`], on a thread for what waits.
///
/// # Errors
/// What the resolver says.
pub async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, LookupError> {
    let host = host.to_owned();
    smol::unblock(move || look_up(&host, port)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stand_for_themselves_and_what_is_no_name_for_nothing() {
        let found = smol::block_on(resolve("192.0.2.7", 5)).expect("an address");
        assert_eq!(found, ["192.0.2.7:5".parse().expect("an address")]);
        assert!(!look_up("localhost", 1).expect("a name of every machine").is_empty());
        let error = look_up("no.such.name.invalid", 1).expect_err("reserved for this (RFC 2606)");
        assert!(!error.to_string().is_empty());
    }
}
