//! The datagrams of ethcloud: an 8-byte head, then a whole Ethernet frame or addresses of peers. All numbers big-endian.
//!
//! ```text
//!  0                                            7        8
//! +--------------------------------------------+--------+-----------------------------------------------------------+
//! | token, 56 bits                             | type   | 0 frame: the frame, from its destination to its end       |
//! |                                            |        | 1 peers: n, n of (IPv4, port), m, m of (IPv6, port)       |
//! |                                            |        | 2 get peers: nothing, or what our kind says of itself     |
//! |                                            |        | 3 close: nothing                                          |
//! +--------------------------------------------+--------+-----------------------------------------------------------+
//! ```
//!
//! Nothing is sealed, numbered or acknowledged: whoever knows the token is believed. Bytes that follow a message are
//! passed over, as the program of 2015 does, and so is a list that ends before its second half. That is what lets a Get
//! or a list carry a [`Sign`], by which a node recognises itself, and others that two addresses are one node.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::counters::DropReason;
use crate::ids::{MacAddr, VlanId};

/// Bytes before the message.
pub const HEAD_LEN: usize = 8;
/// Bytes of one entry of a list.
const V4_LEN: usize = 6;
const V6_LEN: usize = 18;
/// A list is no longer than this, so that it is not cut on an Ethernet underlay: 1,500 less the headers of IPv6 and UDP.
pub const LIST_MAX: usize = 1_500 - 48;
/// IPv4 entries of one list; the byte that counts them has room for 255.
pub const V4_MAX: usize = (LIST_MAX - HEAD_LEN - 2) / V4_LEN;

/// What a network is known by: 56 bits. Whoever knows it is in.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Token([u8; 7]);

/// The text is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write a number from 0 to 72057594037927935; higher ones do not fit the 7 bytes a token has")]
pub struct TokenError;

/// 16 bytes drawn by the sender of a Get for the address it goes to.
pub type Mark = [u8; 16];

/// What follows a Get of our kind, or a list to our kind, each part 16 bytes; who has less to say ends earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sign {
    pub mark: Option<Mark>,
    /// Drawn by its sender when it started. A hint and no proof: others could have copied it.
    pub id: Option<Mark>,
    /// The mark that the receiver drew for another address of the sender: only who is there, too, has it.
    pub proof: Option<Mark>,
}

/// What a datagram says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// A frame of 14 bytes or more, 16 if it says that it has a VLAN tag.
    Frame(&'a [u8]),
    Peers(PeerList<'a>),
    GetPeers(Sign),
    Close,
}

/// Addresses of peers, as they lie in a datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PeerList<'a> {
    v4: &'a [u8],
    v6: &'a [u8],
    pub sign: Sign,
}

impl Token {
    /// The token of a number, if it has no more than 56 bits.
    pub fn new(number: u64) -> Result<Self, TokenError> {
        match number.to_be_bytes() {
            [0, token @ ..] => Ok(Self(token)),
            _ => Err(TokenError),
        }
    }

    fn head(self, kind: u8) -> [u8; HEAD_LEN] {
        let mut head = [kind; HEAD_LEN];
        head[..7].copy_from_slice(&self.0);
        head
    }

    /// The head of a frame's datagram.
    pub fn frame_head(self) -> [u8; HEAD_LEN] {
        self.head(FRAME)
    }
}

/// Like the program: decimal digits only.
impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(TokenError);
        }
        text.parse().map_err(|_| TokenError).and_then(Self::new)
    }
}

/// The token is all that keeps strangers out, so it is not printed.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("token")
    }
}

impl<'a> Message<'a> {
    /// Reads a datagram. Hot: once per datagram.
    ///
    /// # Errors
    /// `OtherNetwork` for another token, `Malformed`, and `Runt` or `BadTag` for a frame cut short.
    pub fn parse(token: Token, datagram: &'a [u8]) -> Result<Self, DropReason> {
        let (head, rest) = datagram.split_first_chunk::<HEAD_LEN>().ok_or(DropReason::Malformed)?;
        if head[..7] != token.0 {
            return Err(DropReason::OtherNetwork);
        }
        match head[7] {
            FRAME if rest.len() < 14 => Err(DropReason::Runt),
            FRAME if rest.len() < 16 && rest[12..14] == TAGGED => Err(DropReason::BadTag),
            FRAME => Ok(Self::Frame(rest)),
            PEERS => PeerList::parse(rest).map(Self::Peers).ok_or(DropReason::Malformed),
            GET_PEERS => Ok(Self::GetPeers(Sign::parse(rest))),
            CLOSE => Ok(Self::Close),
            _ => Err(DropReason::Malformed),
        }
    }
}

impl Sign {
    fn parse(bytes: &[u8]) -> Self {
        let mut parts = bytes.chunks_exact(16).map(|part| part.try_into().expect("16 bytes"));
        Self { mark: parts.next(), id: parts.next(), proof: parts.next() }
    }

    fn bytes(&self) -> Vec<u8> {
        [self.mark, self.id, self.proof].into_iter().map_while(|part| part).flatten().collect()
    }
}

impl<'a> PeerList<'a> {
    /// A second half that is cut short is as none: the program never reads it.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (count, rest) = bytes.split_first()?;
        let (v4, rest) = rest.split_at_checked(usize::from(*count) * V4_LEN)?;
        let v6 = rest.split_first().and_then(|(count, rest)| rest.split_at_checked(usize::from(*count) * V6_LEN));
        let (v6, rest) = v6.unwrap_or_default();
        Some(Self { v4, v6, sign: Sign::parse(rest) })
    }

    /// IPv4 addresses first, each family in the order of the list.
    pub fn addresses(self) -> impl Iterator<Item = SocketAddr> + 'a {
        let port = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
        let v4 = self.v4.chunks_exact(V4_LEN).map(move |entry| {
            let ip = Ipv4Addr::new(entry[0], entry[1], entry[2], entry[3]);
            SocketAddr::new(ip.into(), port(&entry[4..]))
        });
        let v6 = self.v6.chunks_exact(V6_LEN).map(move |entry| {
            let ip: [u8; 16] = entry[..16].try_into().expect("an entry has 18 bytes");
            SocketAddr::new(Ipv6Addr::from(ip).into(), port(&entry[16..]))
        });
        v4.chain(v6)
    }

    pub fn is_empty(self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

impl fmt::Debug for PeerList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.addresses()).finish()
    }
}

/// A Get, with what our kind says in it.
pub fn get_peers(token: Token, sign: &Sign) -> Vec<u8> {
    [&token.head(GET_PEERS)[..], &sign.bytes()].concat()
}

/// A list of nobody, with what our kind says in it: a Get that asks for nothing.
pub fn greeting(token: Token, sign: &Sign) -> Vec<u8> {
    [&token.head(PEERS)[..], &[0, 0], &sign.bytes()].concat()
}

pub fn close(token: Token) -> [u8; HEAD_LEN] {
    token.head(CLOSE)
}

/// As many lists as the addresses need, one at least, none longer than [`LIST_MAX`]. The order is kept within a family.
pub fn peer_lists(token: Token, addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<Vec<u8>> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for addr in addresses {
        match addr {
            SocketAddr::V4(addr) => v4.push([&addr.ip().octets()[..], &addr.port().to_be_bytes()].concat()),
            SocketAddr::V6(addr) => v6.push([&addr.ip().octets()[..], &addr.port().to_be_bytes()].concat()),
        }
    }
    let (mut v4, mut v6) = (v4.as_slice(), v6.as_slice());
    let mut lists = Vec::new();
    while lists.is_empty() || !v4.is_empty() || !v6.is_empty() {
        let (first, rest) = v4.split_at(v4.len().min(V4_MAX));
        let room = (LIST_MAX - HEAD_LEN - 2 - first.len() * V4_LEN) / V6_LEN;
        let (second, rest6) = v6.split_at(v6.len().min(room));
        (v4, v6) = (rest, rest6);
        let mut list = token.head(PEERS).to_vec();
        for part in [first, second] {
            list.push(u8::try_from(part.len()).expect("the limits are below 256"));
            list.extend(part.iter().flatten());
        }
        lists.push(list);
    }
    lists
}

/// The VLAN whose table a frame belongs to: the low 12 bits of an outer 802.1Q tag, 0 without one. `frame` is one that
/// [`Message::parse`] would take.
pub fn vlan(frame: &[u8]) -> VlanId {
    match frame.get(12..16) {
        Some([a, b, high, low]) if [*a, *b] == TAGGED => VlanId(u16::from_be_bytes([*high, *low]) & 0x0fff),
        _ => VlanId(0),
    }
}

/// Destination and source of a frame of 12 bytes or more.
pub fn stations(frame: &[u8]) -> (MacAddr, MacAddr) {
    let mac = |at: usize| MacAddr(frame[at..at + 6].try_into().expect("six bytes"));
    (mac(0), mac(6))
}

const FRAME: u8 = 0;
const PEERS: u8 = 1;
const GET_PEERS: u8 = 2;
const CLOSE: u8 = 3;
const TAGGED: [u8; 2] = [0x81, 0];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::ethernet::tests::hex;

    fn token() -> Token {
        Token::new(4660).expect("small")
    }

    #[test]
    fn messages_are_the_bytes_that_the_program_sends() {
        assert_eq!(get_peers(token(), &Sign::default()), hex("0000000000123402"));
        assert_eq!(close(token()).to_vec(), hex("0000000000123403"));
        let one = "10.77.0.1:3210".parse().expect("an address");
        assert_eq!(peer_lists(token(), [one]), [hex("0000000000123401 01 0a4d00010c8a 00")]);
        assert_eq!(peer_lists(token(), []), [hex("0000000000123401 00 00")]);
        assert_eq!(token().frame_head().to_vec(), hex("0000000000123400"));
    }

    #[test]
    fn tokens_are_decimal_numbers_of_56_bits() {
        for (text, first) in [("0", "0000000000000002"), ("72057594037927935", "ffffffffffffff02")] {
            assert_eq!(get_peers(text.parse().expect(text), &Sign::default()), hex(first));
        }
        for text in ["", "x", "0x12", "-1", "+1", " 1", "72057594037927936", "18446744073709551616"] {
            assert_eq!(text.parse::<Token>(), Err(TokenError), "{text}");
        }
    }

    #[test]
    fn what_is_cut_short_is_refused_and_what_follows_is_passed_over() {
        let parse = |text: &str| Message::parse(token(), &hex(text)).map(|message| format!("{message:?}"));
        for (datagram, reason) in [
            ("", DropReason::Malformed),
            ("00000000001234", DropReason::Malformed),
            ("0000000000123502", DropReason::OtherNetwork),
            ("0000000000123404", DropReason::Malformed),
            ("0000000000123401", DropReason::Malformed),
            ("0000000000123401 02 01020304007b", DropReason::Malformed),
            ("0000000000123400 02aabbccdd02 02aabbccdd01 08", DropReason::Runt),
            ("0000000000123400 02aabbccdd02 02aabbccdd01 8100", DropReason::BadTag),
        ] {
            assert_eq!(parse(datagram), Err(reason), "{datagram}");
        }
        for (datagram, said) in [
            ("0000000000123401 00", "Peers([])"),
            ("0000000000123401 01 0a4d00040fa2", "Peers([10.77.0.4:4002])"),
            ("0000000000123401 00 01 0000", "Peers([])"),
            ("0000000000123401 00 01 20010db8000000000000000000000001 0fa2 6a", "Peers([[2001:db8::1]:4002])"),
            ("0000000000123402 6a756e6b", "GetPeers(Sign { mark: None, id: None, proof: None })"),
            ("0000000000123403 6a756e6b", "Close"),
        ] {
            assert_eq!(parse(datagram).as_deref(), Ok(said), "{datagram}");
        }
    }

    #[test]
    fn a_get_carries_what_our_kind_says_of_itself() {
        for (parts, length) in [(0, 8), (1, 24), (2, 40), (3, 56)] {
            let part = |number: u8| (number <= parts).then_some([number; 16]);
            let sign = Sign { mark: part(1), id: part(2), proof: part(3) };
            let mut datagram = get_peers(token(), &sign);
            assert_eq!(datagram.len(), length);
            assert_eq!(Message::parse(token(), &datagram), Ok(Message::GetPeers(sign)));
            datagram.extend([9; 15]);
            assert_eq!(
                Message::parse(token(), &datagram),
                Ok(Message::GetPeers(sign)),
                "and what follows is passed over"
            );
            let datagram = greeting(token(), &sign);
            let Ok(Message::Peers(list)) = Message::parse(token(), &datagram) else { panic!("a list") };
            assert!(list.is_empty() && list.sign == sign, "{list:?}");
        }
    }

    #[test]
    fn vlans_are_told_by_12_bits_of_the_outer_8100() {
        for (tag, vlan_id) in [
            ("88b5", 0),
            ("8100 0005", 5),
            ("8100 6005", 5),
            ("8100 0000", 0),
            ("8100 6000", 0),
            ("88a8 0007 8100 0008", 0),
        ] {
            let frame = hex(&format!("02aabbccdd01 02aabbccdd77 {tag} 88b5 0000"));
            assert_eq!(vlan(&frame), VlanId(vlan_id), "{tag}");
        }
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        (any::<bool>(), any::<u128>(), any::<u16>()).prop_map(|(four, bits, port)| match four {
            true => SocketAddr::new(Ipv4Addr::from(bits as u32).into(), port),
            false => SocketAddr::new(Ipv6Addr::from(bits).into(), port),
        })
    }

    proptest! {
        #[test]
        fn nothing_makes_the_parser_panic(head in 0..5_u8, bytes: Vec<u8>) {
            let datagram = [&token().head(head)[..], &bytes].concat();
            if let Ok(Message::Peers(list)) = Message::parse(token(), &datagram) {
                prop_assert!(list.addresses().count() <= bytes.len() / V4_LEN);
            }
            let _ = Message::parse(token(), &bytes);
        }

        #[test]
        fn lists_come_back_whole_in_datagrams_that_are_not_cut(addresses in proptest::collection::vec(address(), 0..600)) {
            let mut back = Vec::new();
            for list in peer_lists(token(), addresses.iter().copied()) {
                prop_assert!(list.len() <= LIST_MAX);
                let Ok(Message::Peers(list)) = Message::parse(token(), &list) else { panic!("a list") };
                back.extend(list.addresses());
            }
            let order = |addr: &SocketAddr| addr.is_ipv6();
            back.sort_by_key(order);
            let mut expected = addresses;
            expected.sort_by_key(order);
            prop_assert_eq!(back, expected);
        }
    }
}
