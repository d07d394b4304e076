//! What must hold for any bytes in any pieces.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use toru_http::{Limits, fuzz_chunked, fuzz_connection, fuzz_target};

use crate::events;

/// Pieces of requests, right and nearly right: random bytes alone never get past the request line.
const FRAGMENTS: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\n",
    b"GET /early HTTP/1.1\r\nhost: a\r\n",
    b"POST /streamed HTTP/1.1\r\nHost: a:1\r\n",
    b"HEAD http://a/b?c HTTP/1.0\r\n",
    b"OPTIONS * HTTP/1.1\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 30\r\n\r\n",
    b"POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nabc",
    b"POST /streamed HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
    b"host: a\r\n",
    b"content-length: 3\r\n",
    b"content-length: 1001\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"transfer-encoding: gzip\r\n",
    b"expect: 100-continue\r\n",
    b"connection: close\r\n",
    b"connection: keep-alive, x\r\n",
    b"x: \xff y\t\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b":",
    b"abc",
    b"3\r\nabc\r\n",
    b"3;a=\"b\\\"\"\r\nabc\r\n",
    b"3e8\r\n",
    b"ffffffffffffffff",
    b"0\r\n",
    b"0\r\n\r\n",
    b"0\r\na: b\r\n\r\n",
    b"/../%2e%2E/./a//",
    b"%00%",
];

fn input() -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop_oneof![
        8 => proptest::sample::select(FRAGMENTS).prop_map(<[u8]>::to_vec),
        1 => vec(any::<u8>(), 0..8),
    ];
    vec(fragment, 0..16).prop_map(|fragments| fragments.concat())
}

/// A request that must be taken, and what must be told of it.
fn request() -> impl Strategy<Value = (Vec<u8>, String)> {
    let method = proptest::sample::select(&["GET", "POST", "DELETE", "x"][..]);
    let content = vec(vec(b'a'..=b'z', 1..20), 0..4);
    (method, "[a-z/?=]{0,20}", any::<bool>(), content).prop_map(|(method, target, chunked, pieces)| {
        let text: String = pieces.iter().map(|piece| std::str::from_utf8(piece).unwrap()).collect();
        let mut wire = format!("{method} /{target} HTTP/1.1\r\nhost: a\r\n");
        let mut told = format!("{method} /{target} 1.1");
        if chunked {
            wire.push_str("transfer-encoding: chunked\r\n\r\n");
            told.push_str(" chunked; ");
            for piece in &pieces {
                wire.push_str(&format!("{:x}\r\n{}\r\n", piece.len(), std::str::from_utf8(piece).unwrap()));
            }
            wire.push_str("0\r\n\r\n");
        } else {
            wire.push_str(&format!("content-length: {}\r\n\r\n{text}", text.len()));
            told.push_str(&format!(" length={}; ", text.len()));
        }
        if !text.is_empty() {
            told.push_str(&format!("body {text}; "));
        }
        told.push_str("end; ");
        (wire.into_bytes(), told)
    })
}

/// More cases than usual since each costs some microseconds; `PROPTEST_CASES` overrides the number.
///
/// Shrinking is bounded: with backtraces on, each failing try costs tens of milliseconds.
fn config() -> ProptestConfig {
    ProptestConfig { max_shrink_iters: 1000, ..ProptestConfig::with_cases(2000) }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn pieces_do_not_matter(input in input(), sizes in vec(1usize..12, 0..60)) {
        let limits = Arc::new(Limits::default());
        let whole = events(&limits, &input, []);
        prop_assert_eq!(&whole, &events(&limits, &input, sizes));
        prop_assert_eq!(&whole, &events(&limits, &input, std::iter::repeat(1)));
    }

    #[test]
    fn valid_requests_are_taken(requests in vec(request(), 1..6), sizes in vec(1usize..40, 0..40)) {
        let (wire, told): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        let limits = Arc::new(Limits::default());
        prop_assert_eq!(events(&limits, &wire.concat(), sizes), told.concat() + "idle");
    }

    #[test]
    fn connections_hold(input in input()) {
        fuzz_connection(&input);
    }

    #[test]
    fn random_bytes_hold(input in vec(any::<u8>(), 0..300)) {
        fuzz_connection(&input);
        fuzz_chunked(&input);
        fuzz_target(&input);
    }

    #[test]
    fn chunks_hold(input in input()) {
        fuzz_chunked(&input);
    }

    #[test]
    fn targets_hold(path in "(/|\\.|%2[eEfF]|%00|%|a|é|\\?|\\*|http://|@|:|\\[::1\\]|[ -~]){0,20}") {
        fuzz_target(path.as_bytes());
        fuzz_target(format!("/{path}").as_bytes());
        fuzz_target(format!("http://{path}").as_bytes());
    }
}
