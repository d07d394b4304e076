//! Which of a request's fields reach its plugin, and what the core says there in its own name. Pure, but for
//! what is remembered of where requests come from.
//!
//! What only a proxy may say (`forwarded`, `x-forwarded-*`, `x-real-ip`) is replaced, unless the client is a proxy that
//! the configuration trusts: a plugin may believe these fields.

use std::borrow::Cow;
use std::net::IpAddr;
use std::str::FromStr;

use toru_http::{Field, RequestHead, is_authority};
use toru_plugin_api::from_core::EncodedHeaders;

/// Longer request ids of clients are replaced.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// So many pairs of client and host each worker remembers.
const SOURCES_KEPT: usize = 16;
/// Of hosts up to this length: then all of them take 16 KiB at most.
const KNOWN_HOST_BYTES_MAX: usize = 128;

/// An address with the number of its leading bits that count, as in `10.0.0.0/8`. An address alone stands for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// An IPv4 address in IPv6 clothes counts as what it is.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                same_prefix(own.to_bits().into(), other.to_bits().into(), 32 - self.prefix)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                same_prefix(own.to_bits(), other.to_bits(), 128 - self.prefix)
            }
            _ => false,
        }
    }
}

fn same_prefix(one: u128, other: u128, bits_ignored: u8) -> bool {
    // A shift by all bits is not defined; then everything is in.
    (one ^ other).checked_shr(bits_ignored.into()).unwrap_or(0) == 0
}

impl FromStr for Network {
    type Err = String;

    /// Errors: what is wrong with the text. Bits below the prefix must be zero, since a mistake is likelier than a wish.
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| format!("{text:?} is no address or network"))?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(digits) => digits
                .parse()
                .ok()
                .filter(|prefix| *prefix <= bits && digits.bytes().all(|byte| byte.is_ascii_digit()))
                .ok_or_else(|| format!("{text:?} has a prefix that is not from 0 to {bits}"))?,
        };
        let network = Self { address, prefix };
        let value = match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        if prefix < bits && value.trailing_zeros() < u32::from(bits - prefix) && value != 0 {
            return Err(format!("{text:?} has bits set beyond its prefix"));
        }
        Ok(network)
    }
}

/// A client as `forwarded` and its kin name it; the same for all of its requests.
#[derive(Debug)]
pub struct Origin {
    /// `x-forwarded-for`; `unknown` for who came through the control socket.
    plain: String,
    /// The `for=…;` of `forwarded` (RFC 7239 section 6).
    node: String,
    /// It is a proxy, and what it says of its own clients is passed on.
    believed: bool,
}

impl Origin {
    /// A client on the public listener.
    pub fn remote(address: IpAddr, trusted_proxies: &[Network]) -> Self {
        let address = address.to_canonical();
        let plain = address.to_string();
        let node = match address {
            IpAddr::V4(_) => format!("for={plain};"),
            IpAddr::V6(_) => format!("for=\"[{plain}]\";"),
        };
        Self { plain, node, believed: trusted_proxies.iter().any(|network| network.contains(address)) }
    }

    /// A client on the control socket, which has no address.
    pub fn local() -> Self {
        Self { plain: "unknown".into(), node: "for=unknown;".into(), believed: false }
    }
}

/// What the core says of where a request comes from.
struct Source<'a> {
    forwarded_for: Cow<'a, [u8]>,
    forwarded: Vec<u8>,
    proto: &'static str,
    host: Option<&'a [u8]>,
}

impl<'a> Source<'a> {
    /// `forwarded` is an empty buffer.
    fn new(head: &RequestHead<'a>, origin: &'a Origin, mut forwarded: Vec<u8>) -> Self {
        let mut forwarded_for = Cow::Borrowed(origin.plain.as_bytes());
        let mut proto = "http";
        let mut host = head.host.map(str::as_bytes);
        if origin.believed {
            let mut all = Vec::with_capacity(64);
            join(&mut all, head.fields.get_all("x-forwarded-for"));
            all.extend_from_slice(&forwarded_for);
            forwarded_for = Cow::Owned(all);
            join(&mut forwarded, head.fields.get_all("forwarded"));
            if only(head.fields.get_all("x-forwarded-proto"))
                .is_some_and(|said| said.eq_ignore_ascii_case(b"https"))
            {
                proto = "https";
            }
            let said = only(head.fields.get_all("x-forwarded-host")).filter(|said| is_authority(said));
            host = said.or(host);
        }
        forwarded.extend_from_slice(origin.node.as_bytes());
        if let Some(host) = head.host {
            // A host has no character that would have to be escaped between quotes.
            forwarded.extend_from_slice(b"host=\"");
            forwarded.extend_from_slice(host.as_bytes());
            forwarded.extend_from_slice(b"\";");
        }
        forwarded.extend_from_slice(b"proto=http");
        Self { forwarded_for, forwarded, proto, host }
    }

    fn fields(&self) -> impl Iterator<Item = (&str, &[u8])> + Clone {
        let fields = [
            Some(("forwarded", self.forwarded.as_slice())),
            Some(("x-forwarded-for", &*self.forwarded_for)),
            Some(("x-forwarded-proto", self.proto.as_bytes())),
            self.host.map(|host| ("x-forwarded-host", host)),
        ];
        fields.into_iter().flatten()
    }
}

/// The fields that say where requests come from, as frames bear them: the same for all that one client asks of one host, and
/// many ask for more than one thing.
#[derive(Default)]
pub struct Sources {
    known: [KnownSource; SOURCES_KEPT],
    /// That of the last request, where it is not kept.
    other: EncodedHeaders,
    /// What is written into before it is encoded.
    buffer: Vec<u8>,
}

/// Of nobody as long as its node is empty.
#[derive(Default)]
struct KnownSource {
    node: String,
    host: Option<String>,
    encoded: EncodedHeaders,
}

impl Sources {
    /// The fields that say where this request comes from.
    ///
    /// They are `forwarded` and `x-forwarded-*`, which are never among those of [`Own::fields`].
    pub fn of(&mut self, head: &RequestHead<'_>, origin: &Origin) -> &EncodedHeaders {
        let buffer = &mut self.buffer;
        let mut encode = |encoded: &mut EncodedHeaders| {
            let source = Source::new(head, origin, std::mem::take(buffer));
            encoded.replace(source.fields());
            *buffer = source.forwarded;
            buffer.clear();
        };
        if origin.believed || head.host.is_some_and(|host| host.len() > KNOWN_HOST_BYTES_MAX) {
            encode(&mut self.other);
            return &self.other;
        }
        // By the last bytes of the address and the length of the host.
        let mixed = origin.plain.bytes().rev().take(4).fold(0, |mixed, byte| mixed * 5 + usize::from(byte));
        let known = &mut self.known[(mixed + head.host.map_or(0, str::len)) % SOURCES_KEPT];
        if known.node != origin.node || known.host.as_deref() != head.host {
            known.node.clear();
            encode(&mut known.encoded);
            match (&mut known.host, head.host) {
                (Some(known), Some(host)) => host.clone_into(known),
                (known, host) => *known = host.map(str::to_owned),
            }
            known.node.push_str(&origin.node);
        }
        &known.encoded
    }
}

/// What a plugin gets of a request's fields, and the id that the core calls the request by.
pub struct Own<'a> {
    request_id: &'a str,
    /// The client's trace context is passed on.
    traced: bool,
    /// `authorization` bears the core's own token, or is what the core lets in by: no business of a plugin.
    keep_secret: bool,
}

impl<'a> Own<'a> {
    pub fn new(head: &RequestHead<'a>, request_id: &'a str, keep_secret: bool) -> Self {
        let traced = only(head.fields.get_all("traceparent")).is_some_and(is_traceparent);
        Self { request_id, traced, keep_secret }
    }

    /// The fields that the plugin gets, but for those of [`Sources::of`].
    pub fn fields<'s>(
        &'s self,
        head: &'s RequestHead<'_>,
    ) -> impl Iterator<Item = (&'s str, &'s [u8])> + Clone {
        let theirs =
            head.fields.iter().filter(|field| !self.stops(head, field)).map(|field| match head.host {
                // An absolute target names the host, whatever the field says (RFC 9112 section 3.2.2).
                Some(host) if field.name.eq_ignore_ascii_case("host") => (field.name, host.as_bytes()),
                _ => (field.name, field.value),
            });
        theirs.chain(std::iter::once(("x-request-id", self.request_id.as_bytes())))
    }

    /// Whether this field goes no further.
    fn stops(&self, head: &RequestHead<'_>, field: &Field<'_>) -> bool {
        let name = field.name;
        let own = match name.as_bytes()[0] | 0x20 {
            b'x' => {
                starts_like(name, "x-forwarded-")
                    || is_like(name, "x-real-ip")
                    || is_like(name, "x-request-id")
            }
            // The core has read what frames the content; an application must not read another thing into it.
            b'c' => name.contains('_') && is_like(name, "content-length"),
            b'f' => is_like(name, "forwarded"),
            b'e' => name.eq_ignore_ascii_case("expect"),
            b't' => {
                is_like(name, "transfer-encoding")
                    || !self.traced
                        && (name.eq_ignore_ascii_case("traceparent")
                            || name.eq_ignore_ascii_case("tracestate"))
            }
            // Which site is asked is nobody's to take away: an application may have several behind one address.
            b'h' if name.eq_ignore_ascii_case("host") => return false,
            b'a' => self.keep_secret && name.eq_ignore_ascii_case("authorization"),
            _ => false,
        };
        own || head.fields.is_hop_by_hop(name)
    }
}

/// `_` counts as `-`: to an application behind CGI or WSGI they are one name.
fn is_like(name: &str, pattern: &str) -> bool {
    name.len() == pattern.len() && starts_like(name, pattern)
}

fn starts_like(name: &str, pattern: &str) -> bool {
    name.len() >= pattern.len()
        && name.bytes().zip(pattern.bytes()).all(|(byte, wanted)| {
            if byte == b'_' { wanted == b'-' } else { byte.to_ascii_lowercase() == wanted }
        })
}

/// The values as one list, with a comma for what follows.
fn join<'a>(out: &mut Vec<u8>, values: impl Iterator<Item = &'a [u8]>) {
    for value in values.filter(|value| !value.is_empty()) {
        out.extend_from_slice(value);
        out.extend_from_slice(b", ");
    }
}

/// The one value; none where there are more.
fn only<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Option<&'a [u8]> {
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

/// A client's own request id, if it can be passed on: one, short, and of characters that need no escape in a log, a
/// shell or a URL's query.
pub fn usable_request_id<'a>(head: &RequestHead<'a>) -> Option<&'a str> {
    let value = only(head.fields.get_all("x-request-id"))?;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~:/+=@".contains(byte);
    let usable = !value.is_empty() && value.len() <= REQUEST_ID_BYTES_MAX && value.iter().all(plain);
    if usable { std::str::from_utf8(value).ok() } else { None }
}

/// W3C Trace Context, level 1, section 3.2: `version-trace-parent-flags` in lower-case hexadecimal. Versions to come may
/// append to it.
fn is_traceparent(value: &[u8]) -> bool {
    const LENGTH: usize = 55;
    let (Some(known), appended) = (value.get(..LENGTH), value.get(LENGTH)) else { return false };
    let hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |part: &[u8]| part.iter().all(|&byte| byte == b'0');
    let (version, trace, parent, flags) = (&known[..2], &known[3..35], &known[36..52], &known[53..]);
    let dashes = known[2] == b'-' && known[35] == b'-' && known[52] == b'-';
    let whole = match appended {
        None => true,
        Some(next) => version != b"00" && *next == b'-',
    };
    dashes
        && whole
        && [version, trace, parent, flags].into_iter().all(hex)
        && version != b"ff"
        && !zero(trace)
        && !zero(parent)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use toru_http::{Connection, Event, Limits};

    use super::*;

    fn networks(texts: &[&str]) -> Vec<Network> {
        texts.iter().map(|text| text.parse().expect(text)).collect()
    }

    /// The fields that a plugin gets of a request with these, as `name: value` lines.
    fn passed(fields: &str, origin: &Origin, keep_secret: bool) -> Vec<String> {
        let mut connection = Connection::new(Arc::new(Limits::default()));
        connection.handle_input(format!("GET / HTTP/1.1\r\n{fields}\r\n").as_bytes());
        let Event::Head(head) = connection.poll_event() else { panic!("{fields}") };
        let id = usable_request_id(&head).unwrap_or("made");
        let (own, source) = (Own::new(&head, id, keep_secret), Source::new(&head, origin, Vec::new()));
        let fields = own.fields(&head).chain(source.fields());
        fields.map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value))).collect()
    }

    fn client() -> Origin {
        Origin::remote("192.0.2.7".parse().expect("an address"), &[])
    }

    fn proxy() -> Origin {
        Origin::remote("127.0.0.1".parse().expect("an address"), &networks(&["127.0.0.0/8"]))
    }

    #[test]
    fn networks_hold_what_they_name() {
        for (network, address, expect) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("127.0.0.1/32", "::ffff:127.0.0.1", true),
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.128.0.0/9", "10.127.255.255", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "::1", false),
            ("::1", "::1", true),
            ("fd00::/8", "fdab::1", true),
            ("fd00::/8", "fe00::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "192.0.2.1", false),
        ] {
            let parsed: Network = network.parse().expect(network);
            assert_eq!(parsed.contains(address.parse().expect(address)), expect, "{address} in {network}");
        }
        for bad in
            ["", "a", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/", "::1/64", "fd00::/129", "10/8"]
        {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_client_is_not_believed_about_where_it_comes_from() {
        let said = "host: a:80\r\nForwarded: for=1.1.1.1\r\nX-Forwarded-For: 1.1.1.1\r\nX_Forwarded_For: 2.2.2.2\r\n\
                    x-forwarded-proto: https\r\nx-forwarded-host: b\r\nX-Forwarded-Port: 1\r\nx-real-ip: 1.1.1.1\r\n\
                    x-forward: kept\r\n";
        let expect = [
            "host: a:80",
            "x-forward: kept",
            "x-request-id: made",
            "forwarded: for=192.0.2.7;host=\"a:80\";proto=http",
            "x-forwarded-for: 192.0.2.7",
            "x-forwarded-proto: http",
            "x-forwarded-host: a:80",
        ];
        assert_eq!(passed(said, &client(), false), expect);
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_named() {
        let said = "host: a\r\nforwarded: for=1.1.1.1;proto=https\r\nforwarded: for=2.2.2.2\r\nx-forwarded-for: 1.1.1.1\r\n\
                    x-forwarded-for: 2.2.2.2, 3.3.3.3\r\nx-forwarded-proto: HTTPS\r\nx-forwarded-host: b:1\r\n";
        let expect = [
            "host: a",
            "x-request-id: made",
            "forwarded: for=1.1.1.1;proto=https, for=2.2.2.2, for=127.0.0.1;host=\"a\";proto=http",
            "x-forwarded-for: 1.1.1.1, 2.2.2.2, 3.3.3.3, 127.0.0.1",
            "x-forwarded-proto: https",
            "x-forwarded-host: b:1",
        ];
        assert_eq!(passed(said, &proxy(), false), expect);
        // What it says may still be nonsense.
        let odd = "host: a\r\nx-forwarded-proto: gopher\r\nx-forwarded-host: b c\r\nx-forwarded-for:\r\n";
        let expect = ["x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http", "x-forwarded-host: a"];
        assert_eq!(passed(odd, &proxy(), false)[3..], expect);
    }

    #[test]
    fn an_address_of_version_6_is_quoted_and_the_control_socket_has_none() {
        let origin = Origin::remote("::1".parse().expect("an address"), &[]);
        let expect = ["forwarded: for=\"[::1]\";host=\"a\";proto=http", "x-forwarded-for: ::1"];
        assert_eq!(passed("host: a\r\n", &origin, false)[2..4], expect);
        let expect = ["forwarded: for=unknown;host=\"a\";proto=http", "x-forwarded-for: unknown"];
        assert_eq!(passed("host: a\r\n", &Origin::local(), false)[2..4], expect);
    }

    #[test]
    fn what_is_remembered_of_a_source_is_what_would_be_written() {
        let mut origins: Vec<_> = (0..=255)
            .flat_map(|byte| {
                let mapped = format!("::ffff:192.0.2.{byte}");
                [format!("192.0.2.{byte}"), format!("2001:db8::{byte:x}"), mapped]
            })
            .map(|address| Origin::remote(address.parse().expect("an address"), &[]))
            .collect();
        origins.extend([Origin::local(), proxy()]);
        let long = "h".repeat(KNOWN_HOST_BYTES_MAX);
        let hosts = [
            "host: a\r\n",
            "host: b\r\n",
            "host: b:1\r\n",
            &format!("host: {long}\r\n"),
            &format!("host: {long}h\r\n"),
        ];
        let mut sources = Sources::default();
        for round in 0..3 {
            for (index, origin) in origins.iter().enumerate() {
                let fields = hosts[(index + round) % hosts.len()];
                let mut connection = Connection::new(Arc::new(Limits::default()));
                connection.handle_input(format!("GET / HTTP/1.1\r\n{fields}\r\n").as_bytes());
                let Event::Head(head) = connection.poll_event() else { panic!("{fields}") };
                let expect = EncodedHeaders::new(Source::new(&head, origin, Vec::new()).fields());
                for _ in 0..2 {
                    assert_eq!(format!("{:?}", sources.of(&head, origin)), format!("{expect:?}"));
                }
            }
        }
    }

    #[test]
    fn request_ids_are_taken_over_only_when_they_are_plain() {
        let long = "a".repeat(REQUEST_ID_BYTES_MAX);
        for (said, taken) in [
            ("x-request-id: abc-1_2.3~4:5/6+7=8@9\r\n", true),
            ("x-request-id: 01977c44-6a2f-7c3d-9f5b-0123456789ab\r\n", true),
            (&format!("x-request-id: {long}\r\n"), true),
            (&format!("x-request-id: {long}a\r\n"), false),
            ("x-request-id:\r\n", false),
            ("x-request-id: a b\r\n", false),
            ("x-request-id: a\"b\r\n", false),
            ("x-request-id: a\u{e9}\r\n", false),
            ("x-request-id: a\r\nx-request-id: a\r\n", false),
            ("x_request_id: a\r\n", false),
        ] {
            let passed = passed(&format!("host: a\r\n{said}"), &client(), false);
            assert_eq!(passed.iter().filter(|line| line.contains("request")).count(), 1, "{passed:?}");
            let made = passed.contains(&"x-request-id: made".to_owned());
            assert_eq!(!made, taken, "{said}");
        }
    }

    #[test]
    fn trace_context_is_passed_on_when_it_is_valid() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let zero_trace = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
        let zero_parent = format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", "0".repeat(16));
        let cases = [
            (good.to_owned(), true),
            (format!("cc{}", &good[2..]), true),
            (format!("cc{}-what-comes", &good[2..]), true),
            (format!("cc{}.", &good[2..]), false),
            (format!("{good}-x"), false),
            (format!("ff{}", &good[2..]), false),
            (good.to_uppercase(), false),
            (good[1..].to_owned(), false),
            (good.replace('-', "_"), false),
            (zero_trace, false),
            (zero_parent, false),
            (format!("{good}\r\ntraceparent: {good}"), false),
            (String::new(), false),
        ];
        for (value, expect) in cases {
            let fields = format!("host: a\r\ntraceparent: {value}\r\ntracestate: a=1\r\nTraceState: b=2\r\n");
            let traces = passed(&fields, &client(), false)
                .into_iter()
                .filter(|line| line.to_ascii_lowercase().starts_with("trace"))
                .count();
            assert_eq!(traces, if expect { 3 } else { 0 }, "{value:?}");
        }
        let alone = passed("host: a\r\ntracestate: a=1\r\n", &client(), false);
        assert!(!alone.iter().any(|line| line.starts_with("tracestate")), "{alone:?}");
    }

    #[test]
    fn what_concerns_the_client_alone_stops_here() {
        let said = "host: a\r\nconnection: x-mine, close\r\nx-mine: 1\r\nkeep-alive: 1\r\nte: trailers\r\nupgrade: h2c\r\n\
                    proxy-authorization: b\r\ntrailer: x\r\nexpect: 100-continue\r\nauthorization: c\r\n";
        let kept = passed(said, &client(), false);
        assert_eq!(kept[..3], ["host: a", "authorization: c", "x-request-id: made"]);
        // Not even a client that names it takes the host away from a plugin.
        let kept = passed("host: a\r\nconnection: host, x-mine\r\nx-mine: 1\r\n", &client(), false);
        assert_eq!(kept[..2], ["host: a", "x-request-id: made"]);
        // To an application behind CGI these would be what the core has read already.
        let kept = passed("host: a\r\nContent_Length: 9\r\nTransfer_Encoding: chunked\r\n", &client(), false);
        assert_eq!(kept[..2], ["host: a", "x-request-id: made"]);
        let kept = passed(said, &client(), true);
        assert_eq!(kept[..2], ["host: a", "x-request-id: made"]);
    }
}
