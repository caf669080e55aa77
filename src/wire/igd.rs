//! UPnP Internet Gateway Device (WANIPConnection 1 and 2): the search (SSDP), the description (XML over HTTP) and the
//! orders (SOAP), as texts and back.
//!
//! Nothing here follows where a text leads: an address found in one is given back as a [`Url`], whose host is an IPv4
//! address and not a name, and the caller decides whether to believe it. Headers are read by `httparse`, XML by
//! `roxmltree` without document types, so that nothing expands; both within [`REPLY_MAX`].

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use roxmltree::{Document, Node, ParsingOptions};

use super::natpmp::Transport;

/// Where gateways listen to searches.
pub const SSDP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);
/// What is searched for. A gateway of version 2 answers to the first as well; some answer to the service only.
pub const TARGETS: [&str; 2] =
    ["urn:schemas-upnp-org:device:InternetGatewayDevice:1", "urn:schemas-upnp-org:service:WANIPConnection:1"];
/// The most bytes of an answer over HTTP that are read. Descriptions in the wild have up to 20 KB.
pub const REPLY_MAX: usize = 64 * 1024;
/// Headers of an answer.
const HEADERS_MAX: usize = 64;
/// Nodes of an XML document.
const NODES_MAX: u32 = 8192;
/// Bytes of a path in a URL.
const PATH_MAX: usize = 512;
/// What a mapping is called in the gateway's list.
const DESCRIPTION: &str = "eps-actor";

/// The services that map ports, the best first.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];

/// A place on a gateway: `http://` with an IPv4 address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    pub addr: SocketAddrV4,
    /// Begins with `/`; printable ASCII without spaces.
    pub path: String,
}

/// A service that maps ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// One of the known ones.
    pub kind: &'static str,
    pub control: Url,
}

/// Why an answer is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IgdError {
    #[error("it does not speak HTTP as it should")]
    Http,
    #[error("its answer is HTTP {0}")]
    Status(u16),
    #[error("its answer is no XML that makes sense")]
    Xml,
    #[error("its description names no service that maps ports")]
    NoService,
    /// A UPnP error code.
    #[error("{}", refusal(*.0))]
    Refused(u16),
}

/// The gateway has only mappings without an end.
pub const ONLY_PERMANENT: u16 = 725;
/// Somebody else has the outside port.
pub const CONFLICT: u16 = 718;

fn refusal(code: u16) -> String {
    let words = match code {
        401 | 602 => "it does not know how",
        606 => "it is not allowed to map ports",
        714 => "it has no such mapping",
        CONFLICT => "somebody else has the outside port",
        728 => "it has no room for another mapping",
        _ => "it refused",
    };
    format!("{words} (UPnP error {code})")
}

impl Url {
    /// Reads an absolute URL.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_at_checked(7)?;
        if !scheme.eq_ignore_ascii_case("http://") {
            return None;
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let addr = match authority.parse() {
            Ok(addr) => addr,
            Err(_) => SocketAddrV4::new(authority.parse().ok()?, 80),
        };
        let url = Self { addr, path: if path.is_empty() { "/".to_owned() } else { path.to_owned() } };
        (addr.port() != 0 && is_path(&url.path)).then_some(url)
    }

    /// Where a reference in a document of this place leads.
    fn join(&self, reference: &str) -> Option<Self> {
        let reference = reference.trim();
        if reference.contains("://") {
            return Self::parse(reference);
        }
        let path = if reference.starts_with('/') {
            reference.to_owned()
        } else {
            let directory = &self.path[..=self.path.rfind('/')?];
            format!("{directory}{reference}")
        };
        is_path(&path).then_some(Self { addr: self.addr, path })
    }
}

fn is_path(path: &str) -> bool {
    path.len() <= PATH_MAX && path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A search for one target, to be sent to [`SSDP`] and to the gateway itself. It answers within a second.
pub fn search(target: &str) -> Vec<u8> {
    format!("M-SEARCH * HTTP/1.1\r\nHOST: {SSDP}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {target}\r\n\r\n")
        .into_bytes()
}

/// Where the description is, from the answer to a search.
pub fn parse_found(bytes: &[u8]) -> Option<Url> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let complete = response.parse(bytes).is_ok_and(|status| status.is_complete());
    if !complete || response.code != Some(200) {
        return None;
    }
    Url::parse(header(response.headers, "location")?)
}

/// Whether this is what a device sends to [`SSDP`] when it starts or ends.
pub fn is_notice(bytes: &[u8]) -> bool {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let complete = request.parse(bytes).is_ok_and(|status| status.is_complete());
    complete && request.method == Some("NOTIFY") && header(request.headers, "nts").is_some()
}

fn header<'a>(headers: &[httparse::Header<'a>], name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(found.value).ok()
}

/// Asks for a description.
pub fn get(url: &Url) -> Vec<u8> {
    format!("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", url.path, url.addr).into_bytes()
}

/// Asks for the outside address.
pub fn ask_address(service: &Service) -> Vec<u8> {
    call(service, "GetExternalIPAddress", &[])
}

/// Asks for a mapping to `inside` for `lifetime` seconds; 0 for one without an end.
pub fn ask_mapping(
    service: &Service,
    transport: Transport,
    inside: SocketAddrV4,
    outside: u16,
    lifetime: u32,
) -> Vec<u8> {
    let arguments = [
        ("NewRemoteHost", String::new()),
        ("NewExternalPort", outside.to_string()),
        ("NewProtocol", transport.name().to_owned()),
        ("NewInternalPort", inside.port().to_string()),
        ("NewInternalClient", inside.ip().to_string()),
        ("NewEnabled", "1".to_owned()),
        ("NewPortMappingDescription", DESCRIPTION.to_owned()),
        ("NewLeaseDuration", lifetime.to_string()),
    ];
    call(service, "AddPortMapping", &arguments)
}

/// Asks for the end of a mapping.
pub fn ask_deletion(service: &Service, transport: Transport, outside: u16) -> Vec<u8> {
    let arguments = [
        ("NewRemoteHost", String::new()),
        ("NewExternalPort", outside.to_string()),
        ("NewProtocol", transport.name().to_owned()),
    ];
    call(service, "DeletePortMapping", &arguments)
}

/// The values are numbers, addresses and words of ours: nothing in them has to be escaped.
fn call(Service { kind, control }: &Service, action: &str, arguments: &[(&str, String)]) -> Vec<u8> {
    let mut body = String::from(
        "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>",
    );
    let _ = write!(body, "<u:{action} xmlns:u=\"{kind}\">");
    for (name, value) in arguments {
        let _ = write!(body, "<{name}>{value}</{name}>");
    }
    let _ = write!(body, "</u:{action}></s:Body></s:Envelope>\r\n");
    format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: text/xml; charset=\"utf-8\"\r\n\
         Content-Length: {}\r\nSOAPAction: \"{kind}#{action}\"\r\n\r\n{body}",
        control.path,
        control.addr,
        body.len()
    )
    .into_bytes()
}

/// Whether an answer over HTTP has come to its end, so that nobody has to wait for the connection's.
pub fn is_whole(bytes: &[u8]) -> bool {
    matches!(split(bytes), Ok((_, Body::Whole(_))) | Err(_))
}

/// The services of a description that map ports, the best first.
pub fn parse_description(reply: &[u8], place: &Url) -> Result<Vec<Service>, IgdError> {
    let text = text_of(reply, |status| status == 200)?;
    let document = document(&text)?;
    let base = document.descendants().find(|node| node.has_tag_name_of("URLBase"));
    let base = base.and_then(|node| Url::parse(node.text()?)).unwrap_or_else(|| place.clone());
    let found: Vec<Service> = SERVICES
        .iter()
        .flat_map(|kind| {
            let services = document.descendants().filter(|node| node.has_tag_name_of("service"));
            let of_kind = services.filter(|node| node.text_of("serviceType") == Some(kind));
            let base = &base;
            of_kind.filter_map(move |node| Some(Service { kind, control: base.join(node.text_of("controlURL")?)? }))
        })
        .take(8)
        .collect();
    if found.is_empty() { Err(IgdError::NoService) } else { Ok(found) }
}

/// The address in an answer to [`ask_address`].
pub fn parse_address(reply: &[u8]) -> Result<Ipv4Addr, IgdError> {
    let text = reply_text(reply)?;
    let document = document(&text)?;
    let node = document.descendants().find(|node| node.has_tag_name_of("NewExternalIPAddress"));
    // An empty one is what gateways say that are not connected.
    let address = node.map(|node| node.text().unwrap_or_default().trim());
    match address {
        Some("") => Ok(Ipv4Addr::UNSPECIFIED),
        Some(text) => text.parse().map_err(|_| IgdError::Xml),
        None => Err(IgdError::Xml),
    }
}

/// Whether an order was carried out.
pub fn parse_done(reply: &[u8]) -> Result<(), IgdError> {
    reply_text(reply).map(drop)
}

/// The text of an answer to an order. Refusals are HTTP 500 with a code inside.
fn reply_text(reply: &[u8]) -> Result<String, IgdError> {
    let (status, _) = split(reply)?;
    let text = text_of(reply, |status| status == 200 || status == 500)?;
    if status == 200 {
        return Ok(text);
    }
    let fault = document(&text)?;
    let code = fault.descendants().find(|node| node.has_tag_name_of("errorCode"));
    let code = code.and_then(|node| node.text()?.trim().parse().ok());
    Err(code.map_or(IgdError::Status(status), IgdError::Refused))
}

enum Body {
    Whole(Vec<u8>),
    /// It ends with the connection, or more is to come.
    SoFar(Vec<u8>),
}

fn text_of(reply: &[u8], good: impl Fn(u16) -> bool) -> Result<String, IgdError> {
    let (status, body) = split(reply)?;
    if !good(status) {
        return Err(IgdError::Status(status));
    }
    let (Body::Whole(bytes) | Body::SoFar(bytes)) = body;
    String::from_utf8(bytes).map_err(|_| IgdError::Xml)
}

/// Status and body of an answer; of one that has not come to its headers' end, an empty beginning.
fn split(bytes: &[u8]) -> Result<(u16, Body), IgdError> {
    if bytes.len() > REPLY_MAX {
        return Err(IgdError::Http);
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let status = match response.parse(bytes).map_err(|_| IgdError::Http)? {
        httparse::Status::Complete(end) => (end, response.code.ok_or(IgdError::Http)?),
        httparse::Status::Partial => return Ok((0, Body::SoFar(Vec::new()))),
    };
    let (end, code) = status;
    let rest = &bytes[end..];
    if header(response.headers, "transfer-encoding").is_some_and(|how| how.trim().eq_ignore_ascii_case("chunked")) {
        return Ok((code, unchunk(rest)?));
    }
    let length = header(response.headers, "content-length").map(|text| text.trim().parse::<usize>());
    match length {
        Some(Ok(length)) if length <= REPLY_MAX => Ok((
            code,
            match rest.get(..length) {
                Some(body) => Body::Whole(body.to_vec()),
                None => Body::SoFar(rest.to_vec()),
            },
        )),
        Some(_) => Err(IgdError::Http),
        None => Ok((code, Body::SoFar(rest.to_vec()))),
    }
}

fn unchunk(mut rest: &[u8]) -> Result<Body, IgdError> {
    let mut body = Vec::new();
    loop {
        let (start, length) = match httparse::parse_chunk_size(rest).map_err(|_| IgdError::Http)? {
            httparse::Status::Complete(chunk) => chunk,
            httparse::Status::Partial => return Ok(Body::SoFar(body)),
        };
        if length == 0 {
            return Ok(Body::Whole(body));
        }
        let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length)).ok_or(IgdError::Http)?;
        let Some(chunk) = rest.get(start..end) else { return Ok(Body::SoFar(body)) };
        body.extend(chunk);
        // Its line end.
        rest = rest.get(end + 2..).unwrap_or_default();
    }
}

fn document(text: &str) -> Result<Document<'_>, IgdError> {
    let options = ParsingOptions { allow_dtd: false, nodes_limit: NODES_MAX, ..ParsingOptions::default() };
    // Some end with a zero byte, or begin with a line end.
    let text = text.trim_matches(|letter: char| letter.is_whitespace() || letter == '\0');
    Document::parse_with_options(text, options).map_err(|_| IgdError::Xml)
}

/// Elements by their names alone: gateways differ in their namespaces.
trait Named<'a> {
    fn has_tag_name_of(&self, name: &str) -> bool;
    fn text_of(&self, child: &str) -> Option<&'a str>;
}

impl<'a> Named<'a> for Node<'a, '_> {
    fn has_tag_name_of(&self, name: &str) -> bool {
        self.is_element() && self.tag_name().name() == name
    }

    fn text_of(&self, child: &str) -> Option<&'a str> {
        self.children().find(|node| node.has_tag_name_of(child))?.text().map(str::trim)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place() -> Url {
        Url::parse("http://192.168.1.1:5000/dir/root.xml").expect("a URL")
    }

    fn reply(status: u16, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    fn description(base: &str, services: &[(&str, &str)]) -> Vec<u8> {
        let list: String = services
            .iter()
            .map(|(kind, control)| {
                format!("<service><serviceType>{kind}</serviceType><controlURL>{control}</controlURL></service>")
            })
            .collect();
        let devices =
            format!("<device><deviceList><device><serviceList>{list}</serviceList></device></deviceList></device>");
        reply(
            200,
            &format!(
                "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\">{base}{devices}</root>\n\0"
            ),
        )
    }

    #[test]
    fn a_search_is_answered_with_the_place_of_a_description() {
        let text = String::from_utf8(search(TARGETS[0])).expect("text");
        assert!(text.starts_with("M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n"), "{text}");
        assert!(text.ends_with("ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"), "{text}");
        let found = b"HTTP/1.1 200 OK\r\nST: x\r\nLocation: http://192.168.1.1:5000/dir/root.xml\r\n\r\n";
        assert_eq!(parse_found(found), Some(place()));
        for bad in [
            "HTTP/1.1 200 OK\r\nST: x\r\n\r\n",
            "HTTP/1.1 404 No\r\nLocation: http://192.168.1.1:5000/\r\n\r\n",
            "HTTP/1.1 200 OK\r\nLocation: http://192.168.1.1:5000/\r\n",
            "NOTIFY * HTTP/1.1\r\nNTS: ssdp:alive\r\n\r\n",
        ] {
            assert_eq!(parse_found(bad.as_bytes()), None, "{bad}");
        }
        assert!(is_notice(b"NOTIFY * HTTP/1.1\r\nHOST: x\r\nNTS: ssdp:alive\r\n\r\n"));
        assert!(!is_notice(&search(TARGETS[0])));
    }

    #[test]
    fn urls_name_an_ipv4_address_and_a_path_that_fits_in_a_request() {
        assert_eq!(
            Url::parse("HTTP://10.0.0.1"),
            Some(Url { addr: "10.0.0.1:80".parse().expect("one"), path: "/".into() })
        );
        for bad in [
            "https://10.0.0.1/",
            "http://router/x",
            "http://10.0.0.1:0/",
            "http://user@10.0.0.1/",
            "http://10.0.0.1:80/a b",
            "http://10.0.0.1/a\r\nX: y",
            "http://[::1]/",
            "http:/",
        ] {
            assert_eq!(Url::parse(bad), None, "{bad}");
        }
        assert_eq!(Url::parse(&format!("http://10.0.0.1/{}", "x".repeat(600))), None);
    }

    #[test]
    fn a_description_gives_its_services_the_best_first_wherever_they_are() {
        let both =
            [("urn:schemas-upnp-org:service:WANPPPConnection:1", "/ppp"), (SERVICES[1], "ip"), ("urn:x:1", "/x")];
        let found = parse_description(&description("", &both), &place()).expect("services");
        let paths: Vec<_> = found.iter().map(|service| (service.kind, service.control.path.as_str())).collect();
        assert_eq!(paths, [(SERVICES[1], "/dir/ip"), (SERVICES[2], "/ppp")]);
        let based = description("<URLBase>http://192.168.1.1:80/</URLBase>", &both[1..2]);
        let found = parse_description(&based, &place()).expect("services");
        assert_eq!(found[0].control, Url { addr: "192.168.1.1:80".parse().expect("one"), path: "/ip".into() });
        let none = parse_description(&description("", &both[2..]), &place());
        assert_eq!(none, Err(IgdError::NoService));
    }

    #[test]
    fn an_order_says_what_it_carries_and_an_answer_what_became_of_it() {
        let service = Service { kind: SERVICES[1], control: place() };
        let inside = "192.168.1.2:43439".parse().expect("one");
        let order = String::from_utf8(ask_mapping(&service, Transport::Tcp, inside, 40000, 600)).expect("text");
        let (head, body) = order.split_once("\r\n\r\n").expect("a body");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        assert!(
            head.contains("SOAPAction: \"urn:schemas-upnp-org:service:WANIPConnection:1#AddPortMapping\""),
            "{head}"
        );
        let parsed = Document::parse(body).expect("XML");
        let said = |name: &str| {
            let node = parsed.descendants().find(|node| node.has_tag_name_of(name)).expect("there");
            node.text().unwrap_or_default().to_owned()
        };
        assert_eq!(said("NewExternalPort"), "40000");
        assert_eq!((said("NewInternalClient"), said("NewInternalPort")), ("192.168.1.2".into(), "43439".into()));
        assert_eq!((said("NewProtocol"), said("NewLeaseDuration")), ("TCP".into(), "600".into()));

        assert_eq!(parse_done(&reply(200, "<ok/>")), Ok(()));
        let fault = "<e><detail><UPnPError><errorCode>725</errorCode></UPnPError></detail></e>";
        assert_eq!(parse_done(&reply(500, fault)), Err(IgdError::Refused(ONLY_PERMANENT)));
        assert_eq!(parse_done(&reply(401, "<no/>")), Err(IgdError::Status(401)));
        let address = |text: &str| {
            parse_address(&reply(200, &format!("<a><NewExternalIPAddress>{text}</NewExternalIPAddress></a>")))
        };
        assert_eq!(address(" 198.51.100.7"), Ok(Ipv4Addr::new(198, 51, 100, 7)));
        assert_eq!(address(""), Ok(Ipv4Addr::UNSPECIFIED));
        assert_eq!(address("router"), Err(IgdError::Xml));
    }

    #[test]
    fn an_answer_ends_with_its_length_its_last_chunk_or_the_connection() {
        let whole = reply(200, "<ok/>");
        for length in 0..whole.len() {
            assert!(!is_whole(&whole[..length]), "{length}");
        }
        assert!(is_whole(&whole));
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n<ok\r\n2\r\n/>\r\n0\r\n\r\n";
        for length in 0..chunked.len() - 4 {
            assert!(!is_whole(&chunked[..length]), "{length}");
        }
        assert!(is_whole(chunked));
        assert_eq!(reply_text(chunked).as_deref(), Ok("<ok/>"));
        assert_eq!(reply_text(b"HTTP/1.0 200 OK\r\n\r\n<ok/>").as_deref(), Ok("<ok/>"));
    }

    #[test]
    fn what_is_too_large_or_would_grow_is_refused() {
        assert_eq!(parse_done(&reply(200, &"x".repeat(REPLY_MAX))), Err(IgdError::Http));
        assert!(is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"), "nobody waits for that");
        let bomb = "<!DOCTYPE x [<!ENTITY a \"aaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;\">]><x>&b;</x>";
        assert_eq!(parse_address(&reply(200, bomb)), Err(IgdError::Xml));
        let deep = format!("{}{}", "<a>".repeat(9000), "</a>".repeat(9000));
        assert_eq!(parse_address(&reply(200, &deep)), Err(IgdError::Xml));
    }

    proptest! {
        #[test]
        fn nothing_a_gateway_sends_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[ -~\r\n]{0,200}") {
            for bytes in [&bytes[..], text.as_bytes()] {
                let whole = [b"HTTP/1.1 200 OK\r\n\r\n", bytes].concat();
                let chunked = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", bytes].concat();
                for reply in [bytes, &whole, &chunked] {
                    let _ = (parse_found(reply), is_notice(reply), is_whole(reply), parse_done(reply));
                    let _ = (parse_address(reply), parse_description(reply, &place()));
                }
            }
            let _ = (Url::parse(&text), place().join(&text));
        }
    }
}
