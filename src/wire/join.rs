//! The join line: everything a new client needs to find a server, to know it, and to be let in.
//!
//! ```text
//! eps://HOST[:PORT][,HOST[:PORT]…]/FINGERPRINT/TOKEN
//! ```
//!
//! FINGERPRINT and TOKEN are lower-case base32 (RFC 4648, section 6) without padding. FINGERPRINT is 16 bytes.
//! TOKEN is the 16 bytes of the token, none for an open network, and then two bytes of checksum over fingerprint
//! and token, so that a line cut short or mistyped is told apart from a token the server does not know. The hosts
//! are outside the checksum: somebody who knows a better address of the server may write it in.
//!
//! No error here repeats what stood in the line, because the line holds a secret.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use blake2::{Blake2s256, Digest};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::ids::PublicKey;

/// The port of the server where none is written, UDP and TCP; the one EPS Conduits used.
pub const DEFAULT_PORT: u16 = 43439;

/// The most hosts one join line may name; a client tries them in turn, so more would only hide that none answers.
pub const MAX_HOSTS: usize = 16;

/// What `eps-actor client --join` takes. It holds the token: show it to the person who is to join, nobody else.
#[derive(Debug, Clone)]
pub struct JoinLine {
    /// Where the server may be reached, in the order to try; 1 to [`MAX_HOSTS`].
    pub hosts: Vec<HostPort>,
    /// The server's key in short; see [`fingerprint`].
    pub fingerprint: [u8; 16],
    /// The right to join; `None` where the network is open.
    pub token: Option<Token>,
}

/// An invitation's secret: 16 random bytes. It is wiped when dropped, does not print and does not compare; compare
/// [`Token::id`], which is public.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Token([u8; 16]);

/// A host and a port to dial: `vpn.example.org:43439`, `192.0.2.1:43439` or `[2001:db8::1]:43439`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// A name or an IP address; an IPv6 address without its brackets.
    pub host: String,
    /// 1 to 65535.
    pub port: u16,
}

/// Why a text is not a join line. No variant carries the line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinLineError {
    #[error("does not begin with eps://")]
    NotEps,
    #[error("names no host between eps:// and the next /")]
    NoHost,
    #[error("names more than {MAX_HOSTS} hosts")]
    TooManyHosts,
    #[error("names a host that is none: {0}")]
    Host(#[from] HostPortError),
    #[error("is cut short")]
    CutShort,
    #[error("has something behind its end")]
    TooLong,
    #[error("has a letter other than a to z and 2 to 7 in its last two parts")]
    Letter,
    #[error("is mistyped: its checksum does not fit")]
    Mistyped,
}

/// Why a text is not HOST or HOST:PORT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostPortError {
    #[error("there is no host")]
    NoHost,
    #[error("the port is not a number from 1 to 65535")]
    Port,
    #[error("an IPv6 address with a port needs brackets, like [2001:db8::1]:43439")]
    Brackets,
    #[error("it is neither an IP address nor a host name")]
    Host,
}

/// A server's key in short: the first 16 bytes of BLAKE2s("eps1 server" ‖ X25519 public key).
pub fn fingerprint(server: &PublicKey) -> [u8; 16] {
    first(Blake2s256::new().chain_update(b"eps1 server").chain_update(server.0))
}

impl JoinLine {
    /// Reads a join line; hosts written without a port get `default_port`.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, JoinLineError> {
        let rest = text.trim().strip_prefix("eps://").ok_or(JoinLineError::NotEps)?;
        let mut parts = rest.split('/');
        let hosts = parts.next().filter(|hosts| !hosts.is_empty()).ok_or(JoinLineError::NoHost)?;
        let hosts: Vec<_> =
            hosts.split(',').map(|host| HostPort::parse(host, default_port)).collect::<Result<_, _>>()?;
        if hosts.len() > MAX_HOSTS {
            return Err(JoinLineError::TooManyHosts);
        }
        let (Some(key), Some(secret)) = (parts.next(), parts.next()) else { return Err(JoinLineError::CutShort) };
        if parts.next().is_some() {
            return Err(JoinLineError::TooLong);
        }
        let fingerprint = exactly::<16>(&from_base32(key)?)?;
        let secret = from_base32(secret)?;
        let (token, check) = match secret.len() {
            CHECK_LEN => (None, &secret[..]),
            length if length < TOKEN_LEN + CHECK_LEN => return Err(JoinLineError::CutShort),
            _ => (Some(Token(exactly(&secret[..TOKEN_LEN])?)), &secret[TOKEN_LEN..]),
        };
        if exactly::<CHECK_LEN>(check)? != checksum(&fingerprint, token.as_ref()) {
            return Err(JoinLineError::Mistyped);
        }
        Ok(Self { hosts, fingerprint, token })
    }
}

impl Token {
    /// Makes a token of 16 bytes from a random generator fit for keys.
    pub fn new(random: [u8; 16]) -> Self {
        Self(random)
    }

    /// The public name of the token, which a client shows in the clear: the first 8 bytes, little endian, of
    /// BLAKE2s("eps1 token id" ‖ token).
    pub fn id(&self) -> u64 {
        u64::from_le_bytes(first(Blake2s256::new().chain_update(b"eps1 token id").chain_update(self.0)))
    }

    /// The pre-shared key of the joining handshake: BLAKE2s("eps1 token psk" ‖ token).
    pub fn psk(&self) -> Zeroizing<[u8; 32]> {
        let mut psk = Zeroizing::new([0; 32]);
        psk.copy_from_slice(&Blake2s256::new().chain_update(b"eps1 token psk").chain_update(self.0).finalize());
        psk
    }
}

impl HostPort {
    /// Reads `HOST`, `HOST:PORT`, `ADDRESS`, `ADDRESS:PORT`, `[ADDRESS6]`, `[ADDRESS6]:PORT` or a bare `ADDRESS6`;
    /// `default_port` where none is written.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, HostPortError> {
        if text.is_empty() {
            return Err(HostPortError::NoHost);
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (host, port) = rest.split_once(']').ok_or(HostPortError::Brackets)?;
            let host = host.parse::<Ipv6Addr>().map_err(|_| HostPortError::Host)?.to_string();
            let port = match port {
                "" => default_port,
                _ => read_port(port.strip_prefix(':').ok_or(HostPortError::Port)?)?,
            };
            return Ok(Self { host, port });
        }
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Ok(Self { host: address.to_string(), port: default_port });
        }
        let (host, port) = match text.split_once(':') {
            None => (text, default_port),
            Some((_, port)) if port.contains(':') => return Err(HostPortError::Brackets),
            Some((host, port)) => (host, read_port(port)?),
        };
        if host.is_empty() {
            return Err(HostPortError::NoHost);
        }
        if !is_host(host) {
            return Err(HostPortError::Host);
        }
        Ok(Self { host: host.to_owned(), port })
    }

    /// The address, where the host is one and no name.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

/// As [`HostPort::parse`] with [`DEFAULT_PORT`].
impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text, DEFAULT_PORT)
    }
}

/// As [`JoinLine::parse`] with [`DEFAULT_PORT`].
impl FromStr for JoinLine {
    type Err = JoinLineError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text, DEFAULT_PORT)
    }
}

/// Always with the port, so that a reader's own default does not matter.
impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The line as it is handed to a new member, secret included.
impl fmt::Display for JoinLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("eps://")?;
        for (index, host) in self.hosts.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{host}")?;
        }
        let mut secret = Zeroizing::new(Vec::with_capacity(TOKEN_LEN + CHECK_LEN));
        if let Some(token) = &self.token {
            secret.extend_from_slice(&token.0);
        }
        secret.extend_from_slice(&checksum(&self.fingerprint, self.token.as_ref()));
        write!(f, "/{}/{}", to_base32(&self.fingerprint).as_str(), to_base32(&secret).as_str())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

const TOKEN_LEN: usize = 16;
const CHECK_LEN: usize = 2;

fn checksum(fingerprint: &[u8; 16], token: Option<&Token>) -> [u8; CHECK_LEN] {
    let mut hash = Blake2s256::new().chain_update(b"eps1 join check").chain_update(fingerprint);
    if let Some(token) = token {
        hash.update(token.0);
    }
    first(hash)
}

fn first<const N: usize>(hash: Blake2s256) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&hash.finalize()[..N]);
    bytes
}

fn exactly<const N: usize>(bytes: &[u8]) -> Result<[u8; N], JoinLineError> {
    match bytes.len() {
        length if length < N => Err(JoinLineError::CutShort),
        length if length > N => Err(JoinLineError::TooLong),
        _ => bytes.try_into().map_err(|_| JoinLineError::Mistyped),
    }
}

fn read_port(text: &str) -> Result<u16, HostPortError> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(HostPortError::Port);
    }
    text.parse().ok().filter(|port| *port != 0).ok_or(HostPortError::Port)
}

/// An IPv4 address, or a name by RFC 1123, section 2.1: a last label of digits alone is a broken address, no name.
fn is_host(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    text.parse::<Ipv4Addr>().is_ok() || (!numeric && name.len() <= 253 && name.split('.').all(label))
}

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

fn to_base32(bytes: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(bytes.len().div_ceil(5) * 8));
    let (mut held, mut bits) = (0_u32, 0);
    for byte in bytes {
        held = (held << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(ALPHABET[(held >> bits) as usize & 31]));
        }
    }
    if bits > 0 {
        text.push(char::from(ALPHABET[(held << (5 - bits)) as usize & 31]));
    }
    text
}

/// Takes capitals too: somebody may have read the line out on the telephone.
fn from_base32(text: &str) -> Result<Zeroizing<Vec<u8>>, JoinLineError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let (mut held, mut bits) = (0_u32, 0);
    for letter in text.bytes() {
        let value = match letter {
            b'a'..=b'z' => letter - b'a',
            b'A'..=b'Z' => letter - b'A',
            b'2'..=b'7' => letter - b'2' + 26,
            _ => return Err(JoinLineError::Letter),
        };
        held = ((held << 5) | u32::from(value)) & 0xfff;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
        }
    }
    // Five bits left over are a letter too many or the rest of a group cut through; zero bits only are padding.
    match (bits, held & ((1 << bits) - 1)) {
        (5.., _) => Err(JoinLineError::CutShort),
        (_, 0) => Ok(bytes),
        (_, _) => Err(JoinLineError::Mistyped),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINE: &str = "eps://vpn.example.org:43439,192.0.2.1:5000,[2001:db8::1]:43439\
                        /aaaqeayeaudaocajbifqydiob4/77777777777777777777777774l52";

    #[test]
    fn a_line_prints_as_it_parses() {
        let line = sample();
        assert_eq!(line.to_string(), LINE);
        let again: JoinLine = line.to_string().parse().expect("a join line");
        assert_eq!(again.to_string(), line.to_string());
        let open = JoinLine { token: None, ..line };
        let again: JoinLine = open.to_string().parse().expect("an open join line");
        assert!(again.token.is_none());
        assert_eq!(again.to_string(), open.to_string());
    }

    #[test]
    fn a_line_without_ports_takes_the_given_one() {
        let bare = LINE.replace(":43439", "");
        let line = JoinLine::parse(&bare, 7).expect("a join line");
        assert_eq!(line.hosts.iter().map(|host| host.port).collect::<Vec<_>>(), [7, 5000, 7]);
    }

    #[test]
    fn every_cut_line_is_known_as_such() {
        for end in 0..LINE.len() {
            let cut = JoinLine::parse(&LINE[..end], DEFAULT_PORT).map(|line| line.to_string());
            assert!(cut.is_err(), "{} passed", &LINE[..end]);
        }
    }

    #[test]
    fn every_mistyped_letter_is_known_as_such() {
        let start = LINE.rfind("/aaaq").expect("the fingerprint") + 1;
        for (place, letter) in LINE.char_indices().skip(start).filter(|(_, letter)| *letter != '/') {
            let other = if letter == 'b' { "c" } else { "b" };
            let mut typed = LINE.to_owned();
            typed.replace_range(place..=place, other);
            assert_eq!(error(&typed), JoinLineError::Mistyped, "{typed}");
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        assert_eq!(error("http://x/y/z"), JoinLineError::NotEps);
        assert_eq!(error("eps:///y/z"), JoinLineError::NoHost);
        assert_eq!(error("eps://a:0/y/z"), JoinLineError::Host(HostPortError::Port));
        assert_eq!(error("eps://a,/y/z"), JoinLineError::Host(HostPortError::NoHost));
        assert_eq!(error("eps://a"), JoinLineError::CutShort);
        assert_eq!(error(&format!("{LINE}/x")), JoinLineError::TooLong);
        assert_eq!(error(&format!("{LINE}aaaaaaaa")), JoinLineError::TooLong);
        assert_eq!(error(&LINE.replace("aaaq", "aa1q")), JoinLineError::Letter);
    }

    #[test]
    fn hosts_parse_in_every_spelling() {
        let spelt = |text: &str| HostPort::parse(text, 9).map(|host| host.to_string());
        assert_eq!(spelt("a.example").as_deref(), Ok("a.example:9"));
        assert_eq!(spelt("a.example:80").as_deref(), Ok("a.example:80"));
        assert_eq!(spelt("192.0.2.1").as_deref(), Ok("192.0.2.1:9"));
        assert_eq!(spelt("2001:db8::1").as_deref(), Ok("[2001:db8::1]:9"));
        assert_eq!(spelt("[2001:db8::1]:80").as_deref(), Ok("[2001:db8::1]:80"));
        assert_eq!(spelt("2001:db8:::80"), Err(HostPortError::Brackets));
        assert_eq!(spelt("[2001:db8::1"), Err(HostPortError::Brackets));
        assert_eq!(spelt("[a]:1"), Err(HostPortError::Host));
        assert_eq!(spelt("192.0.2.300"), Err(HostPortError::Host));
        assert_eq!(spelt("a_b-c.d"), Ok("a_b-c.d:9".to_owned()));
        assert_eq!(spelt("-a"), Err(HostPortError::Host));
        assert_eq!(spelt("a b"), Err(HostPortError::Host));
        assert_eq!(spelt(":80"), Err(HostPortError::NoHost));
        assert_eq!(spelt("a:+80"), Err(HostPortError::Port));
        assert_eq!(spelt("a:65536"), Err(HostPortError::Port));
    }

    #[test]
    fn base32_agrees_with_rfc_4648() {
        for (bytes, text) in [("", ""), ("f", "my"), ("fo", "mzxq"), ("foobar", "mzxw6ytboi")] {
            assert_eq!(to_base32(bytes.as_bytes()).as_str(), text);
            assert_eq!(from_base32(text).as_deref(), Ok(&bytes.as_bytes().to_vec()));
        }
    }

    #[test]
    fn a_token_does_not_print() {
        let line = sample();
        let shown = format!("{line:?}");
        assert!(shown.contains("Token(***)"), "{shown}");
        assert!(!shown.contains("255"), "{shown}");
    }

    #[test]
    fn id_and_key_of_a_token_differ() {
        let token = Token::new([255; 16]);
        assert_ne!(token.id().to_le_bytes(), token.psk()[..8]);
        assert_eq!(token.id(), token.clone().id());
        assert_ne!(token.id(), Token::new([254; 16]).id());
    }

    proptest! {
        #[test]
        fn any_line_survives_the_journey(key: [u8; 16], token: Option<[u8; 16]>, port in 1_u16..) {
            let hosts = vec![HostPort { host: "h.example".into(), port }];
            let line = JoinLine { hosts, fingerprint: key, token: token.map(Token) };
            let again: JoinLine = line.to_string().parse().expect("a join line");
            prop_assert_eq!(again.to_string(), line.to_string());
        }

        #[test]
        fn no_text_panics(text in "(eps://)?[ -~é]{0,80}") {
            let _ = text.parse::<JoinLine>();
            let _ = text.parse::<HostPort>();
        }
    }

    fn sample() -> JoinLine {
        let hosts = ["vpn.example.org", "192.0.2.1:5000", "[2001:db8::1]"];
        JoinLine {
            hosts: hosts.iter().map(|host| host.parse().expect("a host")).collect(),
            fingerprint: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
            token: Some(Token([255; 16])),
        }
    }

    fn error(text: &str) -> JoinLineError {
        JoinLine::parse(text, DEFAULT_PORT).expect_err("no join line")
    }
}
