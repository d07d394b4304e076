//! The golden vectors, each fed whole, byte by byte and with trailing bytes.
//!
//! The Python SDK reads the same files; their format is described in `vectors/README.md`.
#![cfg(feature = "core")]

use serde_json::{Value, json};
use toru_plugin_api::frame::{Decoder, FrameError, Framing, begin_frame, end_frame};
use toru_plugin_api::from_core::{
    CoreMessage, Init, KvReply, KvRequestMessage, RequestStart, encode_cancel, encode_http_request,
    encode_init, encode_kv_reply, encode_ping, encode_shutdown,
};
use toru_plugin_api::from_plugin::{
    BadKvRequest, BadResponse, KvRequest, PluginMessage, PluginMessageReader, encode_kv_request,
};
use toru_plugin_api::message::MessageError;
use toru_plugin_api::metadata::{Metadata, MetadataError, Protocol};

const TIMESTAMP: &str = "2026-01-01T00:00:00.000Z";

fn cases(file: &str) -> Vec<Value> {
    let path = format!("{}/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect("the vectors are beside this crate");
    let cases: Vec<Value> = serde_json::from_str(&text).expect("vectors are JSON");
    assert!(cases.len() > 10, "{path} is nearly empty");
    cases
}

fn unhex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().map(|digit| digit.to_digit(16).expect("hexadecimal") as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(value: &Value) -> Vec<u8> {
    let Some(parts) = value.as_array() else {
        return value.as_str().expect("text or parts").as_bytes().to_vec();
    };
    let mut bytes = Vec::new();
    for part in parts {
        let piece = match part["hex"].as_str() {
            Some(hex) => unhex(hex),
            None => part["text"].as_str().expect("hex or text").as_bytes().to_vec(),
        };
        for _ in 0..part["repeat"].as_u64().unwrap_or(1) {
            bytes.extend_from_slice(&piece);
        }
    }
    bytes
}

/// Frames and the error behind them, fed in pieces and drained after each.
fn feed(decoder: &mut Decoder, pieces: &[&[u8]]) -> (Vec<Vec<u8>>, Option<FrameError>) {
    let mut frames = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        if index % 2 == 0 {
            decoder.feed(piece);
        } else {
            let mut buffer = decoder.take_buffer(piece.len());
            buffer.extend_from_slice(piece);
            decoder.restore_buffer(buffer);
        }
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame.to_vec()),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// The pieces of the second way.
fn pieces(input: &[u8]) -> Vec<&[u8]> {
    input.chunks(if input.len() > 65_536 { 4093 } else { 1 }).collect()
}

fn start_of_another(framing: Framing) -> &'static [u8] {
    match framing {
        Framing::Length => b"\0\0\0\x09{",
        Framing::Lines => b"{\"more",
    }
}

fn frame_error_word(error: FrameError) -> &'static str {
    match error {
        FrameError::Empty | FrameError::EmptyLine => "zero_length",
        FrameError::TooLong { .. } | FrameError::LineTooLong { .. } => "too_long",
        FrameError::NotAnObject { .. } => "not_object",
        other => panic!("a fault that the vectors have no word for: {other}"),
    }
}

#[test]
fn frames() {
    for case in cases("frames.json") {
        let name = &case["name"];
        let limit = case["limit"].as_u64().expect("a number") as usize;
        let make = || match case["framing"].as_str().expect("a word") {
            "length" => Decoder::new(Framing::Length, limit),
            "lines" => Decoder::new(Framing::Lines, limit),
            _ => Decoder::detecting(limit),
        };
        let input = bytes(&case["input"]);
        let expect: Vec<Vec<u8>> = case["frames"].as_array().expect("a list").iter().map(bytes).collect();
        let check = |decoder: &Decoder, got: (Vec<Vec<u8>>, Option<FrameError>), mid_frame| {
            assert_eq!(got.0, expect, "{name}");
            assert_eq!(got.1.map(frame_error_word), case["error"].as_str(), "{name}");
            if got.1.is_none() {
                assert_eq!(decoder.is_mid_frame(), mid_frame, "{name}");
            }
            if let Some(detected) = case["detected"].as_str() {
                let framing = match decoder.framing().expect("detected") {
                    Framing::Length => "length",
                    Framing::Lines => "lines",
                };
                assert_eq!(framing, detected, "{name}");
            }
        };
        let ends_mid_frame = case["mid_frame"].as_bool() == Some(true);
        let mut whole = make();
        let got = feed(&mut whole, &[&input]);
        check(&whole, got, ends_mid_frame);
        let mut byte_by_byte = make();
        let got = feed(&mut byte_by_byte, &pieces(&input));
        check(&byte_by_byte, got, ends_mid_frame);
        if let Some(framing) = whole.framing()
            && !ends_mid_frame
        {
            let mut trailing = make();
            let input = [&input, start_of_another(framing)].concat();
            let got = feed(&mut trailing, &[&input]);
            check(&trailing, got, true);
        }
    }
}

/// Puts `input` in frames of both framings, feeds them in the three ways, and gives out each frame.
fn for_each_frame(input: &[u8], mut check: impl FnMut(&mut [u8])) {
    for framing in [Framing::Length, Framing::Lines] {
        if framing == Framing::Lines && (input.contains(&b'\n') || !starts_like_a_line(input)) {
            continue;
        }
        let mut framed = Vec::new();
        let mark = begin_frame(&mut framed, framing);
        framed.extend_from_slice(input);
        end_frame(&mut framed, mark, usize::MAX).expect("vectors fit");
        let trailing = [&framed, start_of_another(framing)].concat();
        for pieces in [vec![&framed[..]], pieces(&framed), vec![&trailing[..]]] {
            let (mut frames, error) = feed(&mut Decoder::new(framing, 1 << 24), &pieces);
            assert_eq!((frames.len(), error), (1, None));
            check(&mut frames[0]);
        }
    }
}

/// What doesn't is refused by the frame decoder already, before any message reader.
fn starts_like_a_line(input: &[u8]) -> bool {
    input.trim_ascii_start().starts_with(b"{")
}

fn message_error_words(error: &MessageError) -> &'static str {
    match error {
        MessageError::BadUtf8 => "bad_utf8",
        MessageError::BadJson { .. } => "bad_json",
        MessageError::TooDeep { .. } => "too_deep",
        MessageError::NotAnObject => "not_object",
        MessageError::NoType => "no_type",
        MessageError::NoRequestId => "no_request_id",
        _ => "bad_field",
    }
}

/// The body in the way that `expect` has it.
fn body_member(expect: &Value, body: &[u8]) -> (&'static str, String) {
    match std::str::from_utf8(body) {
        Ok(text) if expect["body_hex"].is_null() => ("body_text", text.to_owned()),
        _ => ("body_hex", hex(body)),
    }
}

fn core_meaning(expect: &Value, message: CoreMessage<'_>) -> Value {
    match message {
        CoreMessage::Init(init) => json!({
            "kind": "init",
            "protocol": init.protocol.as_deref().unwrap_or("1.0"),
            "instance_id": init.instance_id,
            "plugin_socket": init.plugin_socket,
            "log_path": init.log_path,
            "plugin_id": init.plugin_id,
            "max_message_bytes": init.max_message_bytes,
            "data_dir": init.data_dir,
            "config": init.config.map(|json| -> Value {
                serde_json::from_str(json).expect("raw JSON")
            }),
        }),
        CoreMessage::Shutdown { deadline_ms } => {
            json!({"kind": "shutdown", "deadline_ms": deadline_ms})
        }
        CoreMessage::Ping { seq } => json!({"kind": "ping", "seq": seq}),
        CoreMessage::Http { request_id, request } => {
            let (body_key, body) = body_member(expect, &request.body);
            json!({
                "kind": "http",
                "request_id": request_id,
                "method": request.method,
                "path": request.path,
                "headers": request.headers,
                body_key: body,
                "remote_addr": request.remote_addr,
                "timeout_ms": request.timeout_ms,
            })
        }
        CoreMessage::Cancel { request_id } => json!({"kind": "cancel", "request_id": request_id}),
        CoreMessage::KvRequest { request_id, request } => {
            let request = request.as_ref().map_err(|bad| *bad).map(|request| match request {
                KvRequestMessage::Get { key } => KvRequest::Get { key },
                KvRequestMessage::Set { key, value } => KvRequest::Set { key, value },
                KvRequestMessage::Delete { key } => KvRequest::Delete { key },
                KvRequestMessage::List { prefix, limit } => KvRequest::List { prefix, limit: *limit },
                _ => panic!("{request:?} is new here"),
            });
            kv_meaning("kv_request", &request_id, request)
        }
        CoreMessage::KvReply { request_id, reply } => json!({
            "kind": "kv_reply",
            "request_id": request_id,
            "value": reply.value,
            "keys": reply.keys,
            "error": reply.error.map(|(code, message)| json!({"code": code, "message": message})),
        }),
        _ => json!({"kind": "unknown"}),
    }
}

/// A question, whichever side asks.
fn kv_meaning(kind: &str, request_id: &str, request: Result<KvRequest<'_>, BadKvRequest>) -> Value {
    let request = match request {
        Ok(KvRequest::Get { key }) => json!({"action": "get", "key": key}),
        Ok(KvRequest::Set { key, value }) => json!({"action": "set", "key": key, "value": value}),
        Ok(KvRequest::Delete { key }) => json!({"action": "delete", "key": key}),
        Ok(KvRequest::List { prefix, limit }) => {
            json!({"action": "list", "prefix": prefix, "limit": limit})
        }
        Ok(_) => Value::Null,
        Err(reason) => {
            let reason = match reason {
                BadKvRequest::BadAction => "bad_action",
                BadKvRequest::BadKey => "bad_key",
                BadKvRequest::BadValue => "bad_value",
                BadKvRequest::BadPrefix => "bad_prefix",
                BadKvRequest::BadLimit => "bad_limit",
                BadKvRequest::BadText => "bad_text",
                _ => "?",
            };
            return json!({"kind": "bad_kv", "request_id": request_id, "reason": reason});
        }
    };
    json!({"kind": kind, "request_id": request_id, "request": request})
}

#[test]
fn core_messages_are_understood() {
    for case in cases("core_messages.json") {
        for_each_frame(&bytes(&case["input"]), |frame| {
            match CoreMessage::read(frame) {
                Ok(message) => {
                    let means = &case["means"];
                    assert_eq!(core_meaning(means, message), *means, "{}", case["name"]);
                }
                Err(error) => {
                    assert_eq!(message_error_words(&error), case["error"], "{}", case["name"]);
                }
            };
        });
    }
}

/// Writes what the case means with the core's encoders.
fn encode_core(means: &Value, protocol: Protocol) -> Vec<u8> {
    let text = |key: &str| means[key].as_str().unwrap_or("");
    let mut out = Vec::new();
    let framing = Framing::Lines;
    match text("kind") {
        "init" => {
            let config = means["config"].to_string();
            let init = Init {
                instance_id: text("instance_id"),
                plugin_socket: text("plugin_socket"),
                log_path: text("log_path"),
                plugin_id: text("plugin_id"),
                max_message_bytes: means["max_message_bytes"].as_u64().unwrap_or(4096) as usize,
                data_dir: text("data_dir"),
                config: Some(&config),
            };
            encode_init(&mut out, framing, protocol, TIMESTAMP, &init).expect("fits");
        }
        "shutdown" => {
            let deadline_ms = means["deadline_ms"].as_u64().unwrap_or(9);
            encode_shutdown(&mut out, framing, protocol, TIMESTAMP, deadline_ms);
        }
        "ping" => {
            let seq = means["seq"].as_u64().unwrap_or(9);
            encode_ping(&mut out, framing, protocol, TIMESTAMP, seq);
        }
        "http" => {
            let start = RequestStart {
                request_id: text("request_id"),
                timestamp: TIMESTAMP,
                method: text("method"),
                path: text("path"),
                remote_addr: means["remote_addr"].as_str(),
                timeout_ms: means["timeout_ms"].as_u64(),
            };
            let headers: Vec<(&str, &[u8])> = means["headers"]
                .as_array()
                .expect("a list")
                .iter()
                .map(|pair| {
                    let text = |index: usize| pair[index].as_str().expect("text");
                    (text(0), text(1).as_bytes())
                })
                .collect();
            let body = match means["body_hex"].as_str() {
                Some(hex) => unhex(hex),
                None => text("body_text").as_bytes().to_vec(),
            };
            let headers = headers.iter().copied();
            encode_http_request(&mut out, framing, protocol, &start, headers, &body, 1 << 20).expect("fits");
        }
        "cancel" => encode_cancel(&mut out, framing, TIMESTAMP, text("request_id")),
        "kv_request" => {
            let request = &means["request"];
            let text = |key: &str| request[key].as_str().expect("text");
            let request = match text("action") {
                "get" => KvRequest::Get { key: text("key") },
                "set" => KvRequest::Set { key: text("key"), value: text("value") },
                "delete" => KvRequest::Delete { key: text("key") },
                _ => KvRequest::List { prefix: text("prefix"), limit: request["limit"].as_u64() },
            };
            let id = means["request_id"].as_str().expect("text");
            encode_kv_request(&mut out, framing, TIMESTAMP, id, &request, 1 << 20).expect("fits");
        }
        "kv_reply" => {
            let keys: Option<Vec<String>> =
                serde_json::from_value(means["keys"].clone()).expect("a list or null");
            let reply = match (&keys, &means["error"]) {
                (Some(keys), _) => KvReply::Keys(keys),
                (None, Value::Null) => KvReply::Value(means["value"].as_str()),
                (None, error) => KvReply::Error {
                    code: error["code"].as_str().expect("text"),
                    message: error["message"].as_str().expect("text"),
                },
            };
            let id = text("request_id");
            encode_kv_reply(&mut out, framing, TIMESTAMP, id, &reply, 1 << 20).expect("fits");
        }
        other => panic!("no encoder for {other}"),
    }
    out
}

#[test]
fn core_messages_are_written_so() {
    let mut written = 0;
    for case in cases("core_messages.json") {
        let name = case["name"].as_str().expect("a name");
        if ["by hand", "bad", "unknown"].iter().any(|word| name.contains(word)) {
            continue;
        }
        let protocol = match case["protocol"].as_str() {
            Some("1.0") => Protocol::V1_0,
            _ => Protocol::V1_1,
        };
        let mut expect: Value = serde_json::from_slice(&bytes(&case["input"])).expect("JSON");
        // Three ways to say the same, where ours is one of them.
        if let Some(inner) = expect.pointer_mut("/payload/payload") {
            if inner["body"] == "" {
                inner["body"] = Value::Null;
            }
            let inner = inner.as_object_mut().expect("an http request");
            inner.entry("body").or_insert(Value::Null);
            if inner.get("body_encoding") == Some(&Value::Null) {
                inner.remove("body_encoding");
            }
        }
        let got: Value = serde_json::from_slice(&encode_core(&case["means"], protocol)).expect("JSON");
        assert_eq!(got, expect, "{name}");
        written += 1;
    }
    assert!(written > 20, "only {written} cases were written");
}

fn plugin_meaning(expect: &Value, message: PluginMessage<'_>) -> Value {
    match message {
        PluginMessage::HttpResponse { request_id, response: Ok(response) } => {
            let (body_key, body) = body_member(expect, &response.body);
            json!({
                "kind": "http_response",
                "request_id": request_id,
                "status": response.status,
                "headers": response.headers.collect::<Vec<_>>(),
                body_key: body,
            })
        }
        PluginMessage::HttpResponse { request_id, response: Err(reason) } => {
            let reason = match reason {
                BadResponse::BadPayload => "bad_payload",
                BadResponse::BadNested => "bad_nested",
                BadResponse::BadStatus => "bad_status",
                BadResponse::BadHeaders => "bad_headers",
                BadResponse::BadHeaderName => "bad_header_name",
                BadResponse::BadHeaderValue => "bad_header_value",
                BadResponse::BadEncoding => "bad_encoding",
                BadResponse::BadBase64 => "bad_base64",
                BadResponse::BadText => "bad_text",
                _ => "?",
            };
            json!({"kind": "bad_response", "request_id": request_id, "reason": reason})
        }
        PluginMessage::Ready => json!({"kind": "ready"}),
        PluginMessage::Failed { error } => json!({"kind": "failed", "error": error}),
        PluginMessage::Pong { seq } => json!({"kind": "pong", "seq": seq}),
        PluginMessage::Log { level, message, fields_json } => json!({
            "kind": "log",
            "level": level,
            "message": message,
            "fields": fields_json.map(|json| -> Value {
                serde_json::from_str(&json).expect("JSON text")
            }),
        }),
        PluginMessage::Kv { request_id, request } => kv_meaning("kv", request_id, request),
        _ => json!({"kind": "unknown"}),
    }
}

#[test]
fn plugin_messages_are_understood() {
    // One reader for all, as a worker has.
    let mut reader = PluginMessageReader::new();
    for case in cases("plugin_messages.json") {
        for_each_frame(&bytes(&case["input"]), |frame| {
            match reader.read(frame, |message| plugin_meaning(&case["means"], message)) {
                Ok(means) => assert_eq!(means, case["means"], "{}", case["name"]),
                Err(error) => {
                    assert_eq!(message_error_words(&error), case["error"], "{}", case["name"]);
                }
            }
        });
    }
}

#[test]
fn metadata() {
    for case in cases("metadata.json") {
        let name = &case["name"];
        match Metadata::parse(&bytes(&case["input"])) {
            Ok(metadata) => {
                let framing = match metadata.framing {
                    Framing::Length => "length",
                    Framing::Lines => "lines",
                };
                let got = json!({
                    "id": metadata.id,
                    "name": metadata.name,
                    "version": metadata.version,
                    "author": metadata.author,
                    "icon": metadata.icon,
                    "route": metadata.route,
                    "protocol": metadata.protocol.as_str(),
                    "framing": framing,
                    "max_in_flight": metadata.max_in_flight,
                    "timeout_ms": metadata.timeout_ms,
                });
                assert_eq!(got, case["means"], "{name}");
            }
            Err(MetadataError::Field { field, reason }) => {
                assert_eq!(field, case["error"]["field"], "{name}: {reason}");
            }
            Err(reason) => assert_eq!("", case["error"]["field"], "{name}: {reason}"),
        }
    }
}
