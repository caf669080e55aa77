//! What the network signs: certificates, revocations, and the epochs they are measured in.
//!
//! The only holder of the signing key. Every change of the network's row comes back as writes for the store.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::crypto::Signer;
use super::records::{MemberRecord, NetworkRecord, RevokedRecord, StoreOp};
use crate::wire::cert::{CERT_LEN, CERT_SIGNED_LEN, Certificate, REVOKE_SERIALS_MAX, Revocation};

/// Epochs a certificate holds for. With an epoch an hour long, a member that the server cannot reach for a day has to
/// be renewed before peers with newer news take it.
const CERT_EPOCHS: u64 = 24;

/// The signing side of a network.
pub struct Issuer {
    signer: Signer,
    network: NetworkRecord,
    /// Prefix lengths that leases carry, IPv4 and IPv6.
    prefixes: (u8, u8),
    /// Epoch of revocation by serial.
    revoked: BTreeMap<u64, u64>,
    /// This epoch's certificates by serial: a thousand members hear of each other, and each is signed once.
    issued: Mutex<BTreeMap<u64, [u8; CERT_LEN]>>,
}

impl Issuer {
    /// Goes on where the stored row and revocations end.
    pub fn new(signer: Signer, network: NetworkRecord, revoked: &[RevokedRecord], prefixes: (u8, u8)) -> Self {
        let revoked = revoked.iter().map(|revoked| (revoked.serial, revoked.epoch)).collect();
        Self { signer, network, prefixes, revoked, issued: Mutex::default() }
    }

    /// The network's row as it is.
    pub fn network(&self) -> NetworkRecord {
        self.network
    }

    /// The network's epoch.
    pub fn epoch(&self) -> u64 {
        self.network.epoch
    }

    /// The key that proves what is signed.
    pub fn public(&self) -> [u8; 32] {
        self.signer.public()
    }

    /// The certificate of a member, as of this epoch.
    pub fn certify(&self, record: &MemberRecord) -> [u8; CERT_LEN] {
        let certificate = Certificate {
            rights: record.rights,
            groups: 0,
            network: self.network.id,
            key: record.key,
            mac: record.mac,
            ip4: record.ip4,
            prefix4: self.prefixes.0,
            ip6: record.ip6,
            prefix6: self.prefixes.1,
            issued: self.network.epoch,
            expires: self.network.epoch + CERT_EPOCHS,
            serial: record.serial,
        };
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        match issued.get(&record.serial) {
            Some(bytes) if bytes[..CERT_SIGNED_LEN] == certificate.signed_bytes() => *bytes,
            Some(_) | None => {
                let bytes = self.signer.certify(&certificate);
                issued.insert(record.serial, bytes);
                bytes
            }
        }
    }

    /// The serial the next new member gets; [`take_serial`](Self::take_serial) uses it up.
    pub fn next_serial(&self) -> u64 {
        self.network.next_serial
    }

    /// Uses the next serial up.
    pub fn take_serial(&mut self) -> StoreOp {
        self.network.next_serial += 1;
        StoreOp::PutNetwork(self.network)
    }

    /// Revokes a serial: the signed object, and what to write.
    pub fn revoke(&mut self, serial: u64) -> (Vec<u8>, Vec<StoreOp>) {
        self.network.epoch += 1;
        let epoch = self.network.epoch;
        self.revoked.insert(serial, epoch);
        let object = self.sign(&[serial]);
        (object, vec![StoreOp::PutRevoked(RevokedRecord { serial, epoch }), StoreOp::PutNetwork(self.network)])
    }

    /// Everything revoked, in signed objects of bounded size.
    pub fn revocations(&self) -> Vec<Vec<u8>> {
        let serials: Vec<u64> = self.revoked.keys().copied().collect();
        serials.chunks(REVOKE_SERIALS_MAX).map(|serials| self.sign(serials)).collect()
    }

    /// Begins the next epoch: what to write. Revocations of certificates that have expired by themselves are forgotten.
    pub fn raise_epoch(&mut self) -> Vec<StoreOp> {
        self.network.epoch += 1;
        self.issued.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        let now = self.network.epoch;
        let mut ops = vec![StoreOp::PutNetwork(self.network)];
        self.revoked.retain(|serial, epoch| {
            let kept = *epoch + CERT_EPOCHS >= now;
            if !kept {
                ops.push(StoreOp::RemoveRevoked(*serial));
            }
            kept
        });
        ops
    }

    fn sign(&self, serials: &[u64]) -> Vec<u8> {
        let (network, epoch) = (self.network.id, self.network.epoch);
        self.signer.revoke(&Revocation { network, epoch, serials: serials.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::ids::{MacAddr, NetworkId, PublicKey};
    use crate::proto::crypto::Trust;

    fn issuer() -> Issuer {
        let network = NetworkRecord { id: NetworkId(1), version: 0, epoch: 5, next_serial: 1, boots: 1 };
        Issuer::new(Signer::from_seed(&Zeroizing::new([1; 32])), network, &[], (24, 64))
    }

    fn member(serial: u64) -> MemberRecord {
        MemberRecord {
            key: PublicKey([3; 32]),
            name: "m".into(),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            ip4: [10, 0, 0, 1].into(),
            ip6: None,
            rights: 0,
            serial,
            joined_unix: 0,
            last_endpoint: None,
        }
    }

    #[test]
    fn what_is_revoked_is_refused_and_stays_so_for_as_long_as_its_certificate_would_hold() {
        let mut issuer = issuer();
        let certificate = issuer.certify(&member(7));
        let mut trust = Trust::new(NetworkId(1), issuer.public(), issuer.epoch());
        assert!(trust.check(&certificate).is_ok());
        let (object, ops) = issuer.revoke(7);
        assert_eq!(ops.len(), 2);
        assert_eq!(trust.learn(&object), Ok(true));
        assert!(trust.check(&certificate).is_err());
        for _ in 0..CERT_EPOCHS {
            issuer.raise_epoch();
            assert_eq!(issuer.revocations().len(), 1, "epoch {}", issuer.epoch());
        }
        assert!(issuer.raise_epoch().contains(&StoreOp::RemoveRevoked(7)));
        assert!(issuer.revocations().is_empty());
    }

    #[test]
    fn a_certificate_always_says_what_holds_now() {
        let mut issuer = issuer();
        let mut record = member(7);
        let first = issuer.certify(&record);
        assert_eq!(issuer.certify(&record), first);
        record.rights ^= 1;
        assert_eq!(Certificate::parse(&issuer.certify(&record)).unwrap().rights, record.rights);
        issuer.raise_epoch();
        assert_eq!(Certificate::parse(&issuer.certify(&record)).unwrap().issued, issuer.epoch());
    }

    #[test]
    fn many_revocations_are_all_passed_on() {
        let mut issuer = issuer();
        for serial in 0..300 {
            issuer.revoke(serial);
        }
        let mut trust = Trust::new(NetworkId(1), issuer.public(), issuer.epoch());
        for object in issuer.revocations() {
            assert_eq!(trust.learn(&object), Ok(true));
        }
        let mut other = Trust::new(NetworkId(1), issuer.public(), issuer.epoch());
        trust.revocations().for_each(|object| assert_eq!(other.learn(object), Ok(true)));
        assert!((0..300).all(|serial| other.is_revoked(serial)));
    }
}
