//! STUN's Binding request and its answer (RFC 8489), as far as one asks a public server where one is seen.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::observe::Number;

/// The port of STUN over UDP.
pub const STUN_PORT: u16 = 3478;

const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const MAGIC_COOKIE: u32 = 0x2112_a442;
const HEADER_LEN: usize = 20;
const MAPPED_ADDRESS: u16 = 0x0001;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;

/// A Binding request without attributes.
pub fn ask(number: Number) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..2].copy_from_slice(&BINDING_REQUEST.to_be_bytes());
    bytes[4..8].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    bytes[8..].copy_from_slice(&number);
    bytes
}

/// The number of the question and the address it was seen to come from; `None` for anything but a success.
pub fn parse(datagram: &[u8]) -> Option<(Number, SocketAddr)> {
    let (header, mut attributes) = datagram.split_at_checked(HEADER_LEN)?;
    let length = usize::from(u16_at(header, 2)?);
    if u16_at(header, 0)? != BINDING_SUCCESS || header[4..8] != MAGIC_COOKIE.to_be_bytes() || attributes.len() != length
    {
        return None;
    }
    let number: Number = header[8..].try_into().ok()?;
    let mut plain = None;
    while attributes.len() >= 4 {
        let (kind, length) = (u16_at(attributes, 0)?, usize::from(u16_at(attributes, 2)?));
        let value = attributes.get(4..4 + length)?;
        match kind {
            XOR_MAPPED_ADDRESS => return Some((number, address(value, Some(&header[4..]))?)),
            MAPPED_ADDRESS => plain = address(value, None),
            _ => {}
        }
        // Values are filled up to four bytes.
        attributes = attributes.get(4 + length.next_multiple_of(4)..).unwrap_or_default();
    }
    // Servers older than RFC 5389 know no other form.
    plain.map(|addr| (number, addr))
}

/// An address attribute; `mask`: the magic cookie and the number, where it is masked with them.
fn address(value: &[u8], mask: Option<&[u8]>) -> Option<SocketAddr> {
    let unmasked = |bytes: &[u8]| -> Vec<u8> {
        let mask = mask.unwrap_or(&[0; 16]);
        bytes.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect()
    };
    let port = u16_at(&unmasked(value.get(2..4)?), 0)?;
    let ip = match (*value.get(1)?, value.len()) {
        (1, 8) => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(unmasked(&value[4..])).ok()?)),
        (2, 20) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(unmasked(&value[4..])).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The answer of a server, for those that play one.
pub fn tell(number: Number, observed: SocketAddr) -> Vec<u8> {
    let mut head = Vec::from(BINDING_SUCCESS.to_be_bytes());
    let mut mask = Vec::from(MAGIC_COOKIE.to_be_bytes());
    mask.extend(number);
    let (family, ip) = match observed.ip() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    let masked = |bytes: &[u8]| bytes.iter().zip(&mask).map(|(byte, mask)| byte ^ mask).collect::<Vec<u8>>();
    let mut attribute = Vec::from(XOR_MAPPED_ADDRESS.to_be_bytes());
    attribute.extend((4 + ip.len() as u16).to_be_bytes());
    attribute.extend([0, family]);
    attribute.extend(masked(&observed.port().to_be_bytes()));
    attribute.extend(masked(&ip));
    head.extend((attribute.len() as u16).to_be_bytes());
    [head, mask, attribute].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The sample answer of RFC 5769, section 2.2, whose address is 192.0.2.1 port 32853.
    const SAMPLE: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220\
                          002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96";

    fn unhex(text: &str) -> Vec<u8> {
        crate::proto::map::unhex(text).expect("hex")
    }

    #[test]
    fn the_sample_answer_of_rfc_5769_is_read() {
        let sample = unhex(SAMPLE);
        let number: Number = sample[8..20].try_into().expect("twelve bytes");
        assert_eq!(parse(&sample), Some((number, "192.0.2.1:32853".parse().expect("an address"))));
        let asked = ask(number);
        assert_eq!(asked[..8], unhex("000100002112a442")[..]);
    }

    #[test]
    fn answers_of_both_families_and_of_the_old_form_read_back_and_what_is_cut_does_not() {
        for addr in ["192.0.2.7:1", "[2001:db8::7]:65535"] {
            let (addr, number) = (addr.parse().expect("an address"), [7; 12]);
            let answer = tell(number, addr);
            assert_eq!(parse(&answer), Some((number, addr)));
            (0..answer.len()).for_each(|cut| assert_eq!(parse(&answer[..cut]), None));
        }
        let old = unhex("0101000c2112a442b7e7a701bc34d686fa87dfae000100080001800ac0000201");
        assert_eq!(parse(&old).map(|(_, addr)| addr), Some("192.0.2.1:32778".parse().expect("an address")));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(mut bytes in proptest::collection::vec(any::<u8>(), 20..100)) {
            let length = (bytes.len() - 20) as u16;
            bytes[..2].copy_from_slice(&BINDING_SUCCESS.to_be_bytes());
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            bytes[4..8].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
            let _ = parse(&bytes);
        }
    }
}
