//! What a member that bridges an ethcloud tells others with the right to bridge: a frame of its own, sealed like any.
//!
//! ```text
//! destination, source, 88-B5, "eps-cloud-bridge", whose cloud (16 bytes: a hash of its token), 1 or 0: bridges or not
//! ```
//!
//! Its destination is nobody's station, so it goes to the bridges only; every member takes it for itself and never gives
//! it to a device, and nobody sends it to a cloud.

use blake2::{Blake2s256, Digest};

use super::ethernet::FrameView;
use crate::ids::MacAddr;

/// Locally administered, and of no certificate.
pub const HELLO: MacAddr = MacAddr([0x02, b'e', b'p', b's', b'c', b'b']);
/// Of local experiments (IEEE 802, 9.2).
const ETHERTYPE: u16 = 0x88b5;
const MAGIC: &[u8; 16] = b"eps-cloud-bridge";
/// The shortest frame of Ethernet.
const LEN: usize = 60;

/// Which cloud: the same for all who have its token.
pub type CloudTag = [u8; 16];

/// The tag of a token, given as the head of its datagrams.
pub fn tag(token_head: &[u8]) -> CloudTag {
    let digest = Blake2s256::new().chain_update(MAGIC).chain_update(token_head).finalize();
    digest[..16].try_into().expect("a digest has 32 bytes")
}

pub fn write(own: MacAddr, tag: &CloudTag, bridges: bool) -> Vec<u8> {
    let mut frame = [&HELLO.0[..], &own.0, &ETHERTYPE.to_be_bytes(), MAGIC, tag, &[u8::from(bridges)]].concat();
    frame.resize(LEN, 0);
    frame
}

/// Which cloud its sender speaks of, and whether it bridges it.
pub fn parse(frame: &FrameView<'_>) -> Option<(CloudTag, bool)> {
    if frame.dst() != HELLO || frame.ethertype() != ETHERTYPE || frame.is_tagged() {
        return None;
    }
    let (tag, rest) = frame.payload().strip_prefix(MAGIC)?.split_first_chunk()?;
    Some((*tag, *rest.first()? == 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ethernet::tests::view;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let (own, tag) = (MacAddr([2, 0, 0, 0, 0, 1]), tag(&[1; 8]));
        for bridges in [true, false] {
            let frame = write(own, &tag, bridges);
            assert_eq!((parse(&view(&frame)), view(&frame).src()), (Some((tag, bridges)), own));
        }
        let whole = write(own, &tag, true);
        for at in [0, 12, 14, 29] {
            let mut frame = whole.clone();
            frame[at] ^= 0x10;
            assert_eq!(FrameView::parse(&frame).ok().and_then(|frame| parse(&frame)), None, "{at}");
        }
        for length in 14..14 + 16 + 16 + 1 {
            assert_eq!(parse(&view(&whole[..length])), None, "{length}");
        }
    }
}
