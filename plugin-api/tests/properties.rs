//! What must hold for any input: cutting changes nothing, nothing panics, what is written reads back,
//! and simd-json's reading is serde_json's.
#![cfg(feature = "core")]

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use toru_plugin_api::frame::{Decoder, Framing, begin_frame, end_frame, fuzz_decoder};
use toru_plugin_api::from_core::{
    CoreMessage, EncodeError, HttpRequestFrame, KvReply, RequestStart, encode_http_request, encode_kv_reply,
    fuzz_core_message,
};
use toru_plugin_api::from_plugin::{
    KvRequest, PluginMessage, PluginMessageReader, ResponseStart, encode_http_response, encode_kv_request,
    encode_log, fuzz_plugin_message,
};
use toru_plugin_api::message::MessageError;
use toru_plugin_api::metadata::{Protocol, fuzz_metadata};

const TIMESTAMP: &str = "2026-01-01T00:00:00.000Z";
const LIMIT: usize = 1 << 20;

fn framing() -> impl Strategy<Value = Framing> {
    prop_oneof![Just(Framing::Length), Just(Framing::Lines)]
}

/// Text with what escapers get wrong: controls, quotes, backslashes, and characters of several bytes.
fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9/ ]{0,20}", "[\\x00-\\x7f]{0,40}", "\\PC{0,20}", "[\"\\\\\\x00-\\x1fé€🐍]{0,30}",]
}

fn header_fields() -> impl Strategy<Value = Vec<(String, String)>> {
    let name = prop_oneof!["[a-cA-C]{1,2}", "[Cc]ookie", "[!#$%&'*+.^_`|~a-zA-Z0-9-]{1,12}"];
    let value = "[ -~é€\\t]{0,20}";
    prop_oneof![vec((name.clone(), value), 0..12), vec((name, value), 30..60)]
}

/// The one frame in `bytes`, without its framing.
fn unframe(framing: Framing, bytes: &[u8]) -> Vec<u8> {
    let mut decoder = Decoder::new(framing, LIMIT);
    decoder.feed(bytes);
    let frame = decoder.next_frame().expect("ours").expect("whole").to_vec();
    assert_eq!(decoder.next_frame(), Ok(None));
    assert!(!decoder.is_mid_frame());
    frame
}

/// The values of each name in lower case, in order.
fn by_name<'f>(fields: impl IntoIterator<Item = (&'f str, &'f str)>) -> BTreeMap<String, Vec<String>> {
    let mut map: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in fields {
        map.entry(name.to_ascii_lowercase()).or_default().push(value.to_owned());
    }
    map
}

fn pairs(fields: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> + Clone {
    fields.iter().map(|(name, value)| (name.as_str(), value.as_str()))
}

fn byte_pairs(fields: &[(String, String)]) -> impl Iterator<Item = (&str, &[u8])> + Clone {
    fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes()))
}

/// Any JSON, with keys and words that mean something in a message more often than chance would have it.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        // Exact in binary: serde_json as configured here rounds the last bit of others its own way.
        any::<i32>().prop_map(|eighths| Value::from(f64::from(eighths) / 8.0)),
        (0_u64..700).prop_map(Value::from),
        text().prop_map(Value::from),
        message_word().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            vec((message_key(), inner.clone()), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            // A response as text, for the nested shape.
            inner.prop_map(|value| Value::from(value.to_string())),
        ]
    })
}

fn message_key() -> impl Strategy<Value = String> {
    let known = proptest::sample::select(vec![
        "type",
        "request_id",
        "payload",
        "status",
        "headers",
        "body",
        "body_encoding",
        "action",
        "key",
        "value",
        "prefix",
        "limit",
        "seq",
        "error",
        "level",
        "message",
        "fields",
    ]);
    prop_oneof![8 => known.prop_map(str::to_owned), 1 => text()]
}

fn message_word() -> impl Strategy<Value = String> {
    proptest::sample::select(vec![
        "http",
        "kv",
        "lifecycle",
        "log",
        "ready",
        "failed",
        "pong",
        "get",
        "Set",
        "DELETE",
        "list",
        "base64",
        "AP8=",
        "r1",
    ])
    .prop_map(str::to_owned)
}

/// Mostly messages, with anything in any field.
fn plugin_message() -> impl Strategy<Value = Value> {
    let kind = proptest::sample::select(vec!["http", "http", "kv", "lifecycle", "log", "other"]);
    let response = (
        prop_oneof![6 => (190_u64..620).prop_map(Value::from), 1 => any_json()],
        prop_oneof![
            6 => vec(("[a-z]{1,3}", prop_oneof![3 => "[ -~\\n]{0,9}".prop_map(Value::from), 1 => any_json()]), 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            1 => any_json(),
        ],
        any_json(),
        prop_oneof![4 => Just(Value::Null), 1 => Just(json!("base64")), 1 => any_json()],
    )
        .prop_map(|(status, headers, body, encoding)| {
            json!({"status": status, "headers": headers, "body": body, "body_encoding": encoding})
        })
        .boxed();
    let payload = prop_oneof![
        3 => response.clone(),
        2 => response.clone().prop_map(|inner| {
            json!({"type": "http", "request_id": "r2", "payload": {"body": inner.to_string()}})
        }),
        1 => response.prop_map(|inner| json!({"payload": {"body": inner}})),
        3 => any_json(),
    ];
    prop_oneof![
        8 => (kind, payload, prop_oneof![Just(json!("r1")), any_json()]).prop_map(
            |(kind, payload, id)| json!({"type": kind, "request_id": id, "payload": payload})
        ),
        1 => any_json(),
    ]
}

/// What a message means, by the rules of the protocol, read with serde_json and no thought of speed.
fn reference(message: &Value) -> Result<Value, &'static str> {
    message.as_object().ok_or("not_object")?;
    let kind = message["type"].as_str().ok_or("no_type")?;
    let null = Value::Null;
    let payload = &message["payload"];
    let id = message["request_id"].as_str().or(payload["request_id"].as_str());
    let text = |key: &str| payload[key].as_str();
    Ok(match kind {
        "http" => {
            let id = id.ok_or("no_request_id")?;
            match reference_response(payload) {
                Some(response) => json!({"id": id, "response": response}),
                None => json!({"id": id, "bad": true}),
            }
        }
        "kv" => {
            let id = id.ok_or("no_request_id")?;
            let inner = if payload["payload"].is_object() { &payload["payload"] } else { payload };
            let text = |key: &str| inner[key].as_str();
            let action = text("action").unwrap_or("").to_ascii_lowercase();
            let request = match (&*action, text("key"), text("value")) {
                ("get" | "delete", Some(key), _) => json!([action, key]),
                ("set", Some(key), Some(value)) => json!([action, key, value]),
                ("list", _, _)
                    if (inner["prefix"].is_null() || inner["prefix"].is_string())
                        && (inner["limit"].is_null() || inner["limit"].is_u64()) =>
                {
                    json!([action, text("prefix").unwrap_or(""), inner["limit"]])
                }
                _ => Value::Null,
            };
            json!({"id": id, "kv": request})
        }
        "log" => json!({
            "level": text("level").unwrap_or("info"),
            "message": text("message").unwrap_or(""),
            "fields": if payload["fields"].is_object() { &payload["fields"] } else { &null },
        }),
        "lifecycle" => match text("action") {
            Some("ready") => json!("ready"),
            Some("failed") => json!({"failed": text("error").unwrap_or("")}),
            Some("pong") if payload["seq"].is_u64() => json!({"pong": payload["seq"]}),
            _ => json!("unknown"),
        },
        _ => json!("unknown"),
    })
}

fn reference_response(payload: &Value) -> Option<Value> {
    let parsed;
    let mut fields = payload.as_object()?;
    if let Some(inner) = fields.get("payload").and_then(Value::as_object) {
        fields = match inner.get("body")? {
            Value::String(json) => {
                parsed = serde_json::from_str::<Map<String, Value>>(json).ok()?;
                &parsed
            }
            body => body.as_object()?,
        };
    }
    let status = fields.get("status")?.as_u64().filter(|status| (200..600).contains(status))?;
    let mut headers = Vec::new();
    match fields.get("headers").unwrap_or(&Value::Null) {
        Value::Null => {}
        Value::Object(map) => {
            for (name, value) in map {
                let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
                if name.is_empty() || !name.bytes().all(is_token) {
                    return None;
                }
                let one = std::slice::from_ref(value);
                for value in value.as_array().map_or(one, Vec::as_slice) {
                    let value = match value {
                        Value::Null => continue,
                        Value::String(text) => text.clone(),
                        Value::Array(_) | Value::Object(_) => return None,
                        scalar => scalar.to_string(),
                    };
                    if value.contains(|char: char| char.is_ascii_control() && char != '\t') {
                        return None;
                    }
                    headers.push(json!([name, value]));
                }
            }
        }
        _ => return None,
    }
    let body = fields.get("body").unwrap_or(&Value::Null);
    let body = match fields.get("body_encoding").unwrap_or(&Value::Null) {
        Value::Null => match body {
            Value::Null => Vec::new(),
            Value::String(text) => text.clone().into_bytes(),
            other => other.to_string().into_bytes(),
        },
        Value::String(encoding) if encoding == "base64" => {
            use base64::Engine as _;
            let text = if body.is_null() { "" } else { body.as_str()? };
            base64::engine::general_purpose::STANDARD.decode(text).ok()?
        }
        _ => return None,
    };
    Some(json!({"status": status, "headers": headers, "body": body}))
}

/// The same for what our reader read.
fn meaning(message: PluginMessage<'_>) -> Value {
    match message {
        PluginMessage::HttpResponse { request_id, response: Ok(response) } => {
            let body: Vec<u8> = response.body.into_owned();
            let headers: Vec<(&str, &str)> = response.headers.collect();
            json!({"id": request_id, "response": {
                "status": response.status, "headers": headers, "body": body,
            }})
        }
        PluginMessage::HttpResponse { request_id, .. } => json!({"id": request_id, "bad": true}),
        PluginMessage::Kv { request_id, request } => {
            let request = match request {
                Ok(KvRequest::Get { key }) => json!(["get", key]),
                Ok(KvRequest::Set { key, value }) => json!(["set", key, value]),
                Ok(KvRequest::Delete { key }) => json!(["delete", key]),
                Ok(KvRequest::List { prefix, limit }) => json!(["list", prefix, limit]),
                _ => Value::Null,
            };
            json!({"id": request_id, "kv": request})
        }
        PluginMessage::Log { level, message, fields_json } => json!({
            "level": level,
            "message": message,
            "fields": fields_json.map(|json| serde_json::from_str::<Value>(&json).expect("JSON")),
        }),
        PluginMessage::Ready => json!("ready"),
        PluginMessage::Failed { error } => json!({"failed": error}),
        PluginMessage::Pong { seq } => json!({"pong": seq}),
        _ => json!("unknown"),
    }
}

proptest! {
    #[test]
    fn cutting_changes_nothing(
        framing in framing(),
        frames in vec("[ -~é]{0,30}", 0..6),
        cuts in vec(1_usize..40, 0..60),
    ) {
        let mut bytes = Vec::new();
        let frames: Vec<Vec<u8>> = frames.iter().map(|text| format!("{{{text}").into()).collect();
        for frame in &frames {
            let mark = begin_frame(&mut bytes, framing);
            bytes.extend_from_slice(frame);
            end_frame(&mut bytes, mark, LIMIT).expect("fits");
        }
        let mut decoder = Decoder::detecting(LIMIT);
        let mut got = Vec::new();
        let mut rest = &bytes[..];
        let mut cuts = cuts.into_iter().chain(std::iter::repeat(usize::MAX));
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(cuts.next().expect("endless").min(rest.len()));
            rest = behind;
            decoder.feed(piece);
            while let Some(frame) = decoder.next_frame().expect("well framed") {
                got.push(frame.to_vec());
            }
        }
        prop_assert_eq!(got, frames);
        prop_assert!(!decoder.is_mid_frame());
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        fuzz_decoder(&bytes);
        fuzz_core_message(&bytes);
        fuzz_plugin_message(&bytes);
        fuzz_metadata(&bytes);
    }

    #[test]
    fn requests_read_back(
        framing in framing(),
        is_1_1: bool,
        id in text(),
        method in text(),
        path in text(),
        fields in header_fields(),
        remote_addr in proptest::option::of(text()),
        timeout_ms: Option<u64>,
        body in prop_oneof![
            text().prop_map(String::into_bytes),
            vec(any::<u8>(), 0..40),
        ],
    ) {
        let protocol = if is_1_1 { Protocol::V1_1 } else { Protocol::V1_0 };
        let start = RequestStart {
            request_id: &id,
            timestamp: TIMESTAMP,
            method: &method,
            path: &path,
            remote_addr: remote_addr.as_deref(),
            timeout_ms,
        };
        let in_steps = HttpRequestFrame::start(framing, protocol, &start, byte_pairs(&fields))
            .finish(&body, LIMIT);
        let mut out = b"before".to_vec();
        let at_once = encode_http_request(
            &mut out, framing, protocol, &start, byte_pairs(&fields), &body, LIMIT,
        );
        if !is_1_1 && std::str::from_utf8(&body).is_err() {
            prop_assert_eq!(in_steps, Err(EncodeError::NotText));
            prop_assert_eq!(at_once, Err(EncodeError::NotText));
            prop_assert_eq!(out, b"before");
            return Ok(());
        }
        let bytes = in_steps.expect("fits");
        prop_assert_eq!(&out[6..], &bytes[..]);
        let frame = unframe(framing, &bytes);
        let Ok(CoreMessage::Http { request_id, request }) = CoreMessage::read(&frame) else {
            return Err(TestCaseError::fail(String::from_utf8_lossy(&frame).into_owned()));
        };
        prop_assert_eq!(request_id, &*id);
        prop_assert_eq!(request.method, &*method);
        prop_assert_eq!(request.path, &*path);
        prop_assert_eq!(&*request.body, &*body);
        let got = by_name(request.headers.iter().map(|(name, value)| (&**name, &**value)));
        let mut expect = by_name(pairs(&fields));
        if is_1_1 {
            prop_assert_eq!(request.remote_addr.as_deref(), remote_addr.as_deref());
            prop_assert_eq!(request.timeout_ms, timeout_ms);
        } else {
            prop_assert_eq!((request.remote_addr, request.timeout_ms), (None, None));
            for (name, values) in &mut expect {
                let separator = if name == "cookie" { "; " } else { ", " };
                *values = vec![values.join(separator)];
            }
        }
        prop_assert_eq!(got, expect);
        // The limit is exact, and refusing leaves nothing behind.
        let mut out = Vec::new();
        let mut encode = |limit| encode_http_request(
            &mut out, framing, protocol, &start, byte_pairs(&fields), &body, limit,
        );
        prop_assert_eq!(encode(frame.len()), Ok(()));
        let is_too_large = matches!(encode(frame.len() - 1), Err(EncodeError::TooLarge { .. }));
        prop_assert!(is_too_large);
        prop_assert_eq!(out, bytes);
    }

    #[test]
    fn responses_read_back(
        framing in framing(),
        id in text(),
        status in 200_u16..600,
        fields in header_fields(),
        body in prop_oneof![text().prop_map(String::into_bytes), vec(any::<u8>(), 0..40)],
    ) {
        let start = ResponseStart { request_id: &id, timestamp: TIMESTAMP, status };
        let mut out = Vec::new();
        encode_http_response(&mut out, framing, &start, pairs(&fields), &body, LIMIT)
            .expect("fits");
        let mut frame = unframe(framing, &out);
        let limit = frame.len();
        PluginMessageReader::new().read(&mut frame, |message| {
            let PluginMessage::HttpResponse { request_id, response: Ok(response) } = message else {
                panic!("{message:?}");
            };
            assert_eq!(request_id, id);
            assert_eq!(response.status, status);
            assert_eq!(by_name(response.headers), by_name(pairs(&fields)));
            assert_eq!(&*response.body, &*body);
        }).expect("ours");
        let mut again = Vec::new();
        let mut encode =
            |limit| encode_http_response(&mut again, framing, &start, pairs(&fields), &body, limit);
        prop_assert!(encode(limit).is_ok());
        prop_assert!(encode(limit - 1).is_err());
        prop_assert_eq!(again, out);
    }

    #[test]
    fn kv_and_logs_read_back(
        framing in framing(),
        id in text(),
        key in text(),
        value in text(),
        limit: Option<u64>,
        keys in vec(text(), 0..5),
    ) {
        let mut reader = PluginMessageReader::new();
        for request in [
            KvRequest::Get { key: &key },
            KvRequest::Set { key: &key, value: &value },
            KvRequest::Delete { key: &key },
            KvRequest::List { prefix: &key, limit },
        ] {
            let mut out = Vec::new();
            encode_kv_request(&mut out, framing, TIMESTAMP, &id, &request, LIMIT).expect("fits");
            reader.read(&mut unframe(framing, &out), |message| {
                let PluginMessage::Kv { request_id, request: got } = message else {
                    panic!("{message:?}");
                };
                assert_eq!((request_id, got), (&*id, Ok(request)));
            }).expect("ours");
        }
        let mut out = Vec::new();
        let fields = json!({ "k": value }).to_string();
        encode_log(&mut out, framing, TIMESTAMP, "warn", &key, &fields, LIMIT).expect("fits");
        reader.read(&mut unframe(framing, &out), |message| {
            let PluginMessage::Log { level, message, fields_json } = message else {
                panic!("{message:?}");
            };
            assert_eq!((level, message, fields_json.as_deref()), ("warn", &*key, Some(&*fields)));
        }).expect("ours");

        for reply in [
            KvReply::Value(None),
            KvReply::Value(Some(&value)),
            KvReply::Keys(&keys),
            KvReply::Error { code: "full", message: &value },
        ] {
            let mut out = Vec::new();
            encode_kv_reply(&mut out, framing, TIMESTAMP, &id, &reply, LIMIT).expect("fits");
            let frame = unframe(framing, &out);
            let Ok(CoreMessage::KvReply { request_id, reply: got }) = CoreMessage::read(&frame) else {
                return Err(TestCaseError::fail("no kv reply"));
            };
            prop_assert_eq!(request_id, &*id);
            match reply {
                KvReply::Value(expect) => prop_assert_eq!(got.value.as_deref(), expect),
                KvReply::Keys(expect) => prop_assert_eq!(got.keys.expect("keys"), expect),
                KvReply::Error { code, message } => {
                    prop_assert_eq!(got.error.expect("error"), (code.into(), message.into()));
                }
            }
        }
    }

    #[test]
    fn plugin_messages_mean_what_serde_json_says(message in plugin_message()) {
        let json = message.to_string();
        let got = PluginMessageReader::new().read(&mut json.clone().into_bytes(), meaning);
        let expect = reference(&message);
        match (got, expect) {
            (Ok(got), Ok(expect)) => prop_assert_eq!(sorted(got), sorted(expect)),
            (Err(MessageError::NotAnObject), Err("not_object"))
            | (Err(MessageError::NoType), Err("no_type"))
            | (Err(MessageError::NoRequestId), Err("no_request_id")) => {}
            (got, expect) => prop_assert!(false, "{got:?} and {expect:?}"),
        }
    }

    #[test]
    fn what_is_json_to_one_is_json_to_the_other(
        message in plugin_message(),
        edits in vec((any::<proptest::sample::Index>(), json_byte()), 1..4),
    ) {
        let mut json = message.to_string().into_bytes();
        for (at, byte) in edits {
            let at = at.index(json.len());
            json[at] = byte;
        }
        let by_serde = serde_json::from_slice::<Value>(&json);
        let by_simd = PluginMessageReader::new().read(&mut json.clone(), |_| ());
        let is_json = !matches!(
            by_simd,
            Err(MessageError::BadJson { .. } | MessageError::BadUtf8 | MessageError::TooDeep { .. })
        );
        // By grammar alone: numbers beyond a double and half a surrogate pair are no reason to end a connection.
        let by_grammar = std::str::from_utf8(&json)
            .is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok());
        prop_assert_eq!(is_json, by_grammar, "{}", String::from_utf8_lossy(&json));
        // The plugin's side reads with serde_json, so the two sides agree as well.
        let by_plugin = CoreMessage::read(&json);
        let is_json = !matches!(
            by_plugin,
            Err(MessageError::BadJson { .. } | MessageError::BadUtf8 | MessageError::TooDeep { .. })
        );
        prop_assert_eq!(is_json, by_serde.is_ok(), "{}", String::from_utf8_lossy(&json));
    }
}

/// Bytes that make or break JSON.
fn json_byte() -> impl Strategy<Value = u8> {
    prop_oneof![proptest::sample::select(b"{}[]\",:\\ utf0123-.eE\n\0\x7f\xc3\xa9\xff".to_vec()), any::<u8>(),]
}

/// serde_json's map sorts its keys and the wire's order is kept, so order is taken out before comparing;
/// that order is kept is tested with the vectors.
fn sorted(mut value: Value) -> Value {
    if let Some(body) = value.pointer_mut("/response/body") {
        let bytes: Vec<u8> = serde_json::from_value(body.clone()).expect("bytes");
        if let Ok(json) = serde_json::from_slice::<Value>(&bytes) {
            *body = json;
        }
    }
    if let Some(headers) = value.pointer_mut("/response/headers").and_then(Value::as_array_mut) {
        headers.sort_by_key(ToString::to_string);
    }
    value
}
