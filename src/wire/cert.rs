//! Signed objects: the membership certificate and the revocation.
//!
//! Both are fixed forms with an Ed25519 signature at the end, over a text that names their kind and all bytes before
//! it. Signing and verifying is in [`crate::proto::crypto`]; here are only the fields.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::header::u64_at;
use crate::counters::DropReason;
use crate::ids::{MacAddr, NetworkId, PublicKey};

/// Bytes of a certificate.
pub const CERT_LEN: usize = 160;
/// Bytes of a certificate that the signature covers.
pub const CERT_SIGNED_LEN: usize = 96;
/// What is put before the signed bytes of a certificate.
pub const CERT_CONTEXT: &[u8] = b"eps1 member";
/// What is put before the signed bytes of a revocation.
pub const REVOKE_CONTEXT: &[u8] = b"eps1 revoke";
/// Serials one revocation object can name; more are spread over several objects.
pub const REVOKE_SERIALS_MAX: usize = 120;
const SIGNATURE_LEN: usize = 64;

/// The facts a server signs about a member. Layout in 160 bytes, little-endian:
/// version 1, rights 1, groups 2, network id 8, node key 32, MAC 6, IPv4 prefix 1 and address 4, IPv6 prefix 1 and
/// address 16, epoch of issue 8, epoch of expiry 8, serial 8, signature 64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Bit 0 bridge, 1 DHCP server, 2 router, 3 relay, 4 no flooding.
    pub rights: u8,
    pub groups: u16,
    pub network: NetworkId,
    pub key: PublicKey,
    pub mac: MacAddr,
    pub ip4: Ipv4Addr,
    pub prefix4: u8,
    /// `None` is written as the zero address.
    pub ip6: Option<Ipv6Addr>,
    pub prefix6: u8,
    /// Network epoch at issue.
    pub issued: u64,
    /// Last network epoch in which it holds.
    pub expires: u64,
    pub serial: u64,
}

impl Certificate {
    /// The bytes a signature covers, without the context text.
    pub fn signed_bytes(&self) -> [u8; CERT_SIGNED_LEN] {
        let mut bytes = [0; CERT_SIGNED_LEN];
        bytes[0] = 1;
        bytes[1] = self.rights;
        bytes[2..4].copy_from_slice(&self.groups.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.network.0.to_le_bytes());
        bytes[12..44].copy_from_slice(&self.key.0);
        bytes[44..50].copy_from_slice(&self.mac.0);
        bytes[50] = self.prefix4;
        bytes[51..55].copy_from_slice(&self.ip4.octets());
        bytes[55] = self.prefix6;
        bytes[56..72].copy_from_slice(&self.ip6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets());
        bytes[72..80].copy_from_slice(&self.issued.to_le_bytes());
        bytes[80..88].copy_from_slice(&self.expires.to_le_bytes());
        bytes[88..96].copy_from_slice(&self.serial.to_le_bytes());
        bytes
    }

    /// Reads the fields. Says nothing about the signature.
    pub fn parse(bytes: &[u8; CERT_LEN]) -> Result<Self, DropReason> {
        if bytes[0] != 1 || bytes[1] & !0x1f != 0 || bytes[50] > 32 || bytes[55] > 128 {
            return Err(DropReason::BadCertificate);
        }
        let ip6 = Ipv6Addr::from(array::<16>(bytes, 56));
        Ok(Self {
            rights: bytes[1],
            groups: u16::from_le_bytes(array(bytes, 2)),
            network: NetworkId(u64_at(bytes, 4)),
            key: PublicKey(array(bytes, 12)),
            mac: MacAddr(array(bytes, 44)),
            prefix4: bytes[50],
            ip4: Ipv4Addr::from(array::<4>(bytes, 51)),
            prefix6: bytes[55],
            ip6: (!ip6.is_unspecified()).then_some(ip6),
            issued: u64_at(bytes, 72),
            expires: u64_at(bytes, 80),
            serial: u64_at(bytes, 88),
        })
    }
}

/// "As of this epoch, these serials are void." Objects add up: each stands for itself, in any order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    pub network: NetworkId,
    pub epoch: u64,
    /// At most [`REVOKE_SERIALS_MAX`].
    pub serials: Vec<u64>,
}

impl Revocation {
    /// The bytes a signature covers, without the context text.
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![1, self.serials.len() as u8];
        bytes.extend(self.network.0.to_le_bytes());
        bytes.extend(self.epoch.to_le_bytes());
        bytes.extend(self.serials.iter().flat_map(|serial| serial.to_le_bytes()));
        bytes
    }

    /// Splits an object into its fields, the bytes that are signed, and the signature.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8], [u8; SIGNATURE_LEN]), DropReason> {
        let [1, count, ..] = *bytes else { return Err(DropReason::Malformed) };
        let count = usize::from(count);
        let signed_len = 18 + 8 * count;
        if count > REVOKE_SERIALS_MAX || bytes.len() != signed_len + SIGNATURE_LEN {
            return Err(DropReason::Malformed);
        }
        let (signed, signature) = bytes.split_at(signed_len);
        let revocation = Self {
            network: NetworkId(u64_at(signed, 2)),
            epoch: u64_at(signed, 10),
            serials: (0..count).map(|index| u64_at(signed, 18 + 8 * index)).collect(),
        };
        Ok((revocation, signed, signature.try_into().expect("the length was checked")))
    }
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..offset + N].try_into().expect("within the fixed form")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_fields_stand_at_their_offsets() {
        let certificate = Certificate {
            rights: 1,
            groups: 0x0302,
            network: NetworkId(0x1122),
            key: PublicKey([9; 32]),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            ip4: Ipv4Addr::new(192, 168, 43, 7),
            prefix4: 24,
            ip6: None,
            prefix6: 0,
            issued: 5,
            expires: 29,
            serial: 77,
        };
        let mut bytes = [0; CERT_LEN];
        bytes[..CERT_SIGNED_LEN].copy_from_slice(&certificate.signed_bytes());
        assert_eq!(&bytes[..6], &[1, 1, 2, 3, 0x22, 0x11]);
        assert_eq!(&bytes[44..56], &[2, 0, 0, 0, 0, 1, 24, 192, 168, 43, 7, 0]);
        assert_eq!(Certificate::parse(&bytes), Ok(certificate));
        bytes[1] = 0x20;
        assert_eq!(Certificate::parse(&bytes), Err(DropReason::BadCertificate), "reserved rights");
    }

    #[test]
    fn a_revocation_reads_back_and_a_wrong_length_is_refused() {
        let revocation = Revocation { network: NetworkId(1), epoch: 2, serials: vec![3, 4] };
        let mut bytes = revocation.signed_bytes();
        bytes.extend([7; 64]);
        let (parsed, signed, signature) = Revocation::parse(&bytes).expect("well formed");
        assert_eq!((parsed, signed, signature), (revocation, &bytes[..34], [7; 64]));
        assert!(Revocation::parse(&bytes[..97]).is_err());
        assert!(Revocation::parse(&[1]).is_err());
    }
}
