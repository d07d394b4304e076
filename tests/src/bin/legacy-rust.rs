//! A plugin as version 1.0 of the Rust SDK made them, faults and all.
//!
//! One connection at a time from a backlog of five; a new buffered reader for each message, so that
//! whatever arrived behind the first message is lost; a connection is dropped over an unknown `type`
//! or a payload without its doubled `type` and `request_id`; answers in the nested shape; no reply
//! to lifecycle messages. Nobody will rebuild these plugins, so nobody may improve this file.

#![forbid(unsafe_code)]

use std::{
    env, fs,
    io::{BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    process::exit,
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
use serde_json::{Value, json};

const BACKLOG: i32 = 5;

fn main() {
    let exe = env::current_exe().expect("/proc is mounted");
    let id = exe.file_stem().expect("a binary has a name").to_string_lossy().into_owned();
    if env::args().nth(1).as_deref() == Some("--metadata") {
        let metadata = json!({
            "id": id,
            "name": "Legacy Rust",
            "version": "0.9.0",
            "author": "Somebody",
            "icon": "🦀",
            "route": format!("/{id}"),
        });
        println!("{metadata}");
        return;
    }
    let path = env::var("TORU_PLUGIN_SOCKET").expect("TORU_PLUGIN_SOCKET is set");
    let _ = fs::remove_file(&path);
    let fd = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
    bind(&fd, &SocketAddrUnix::new(&path).expect("a short path")).expect("bind");
    listen(&fd, BACKLOG).expect("listen");
    for stream in UnixListener::from(fd).incoming() {
        // A failed exchange ends its connection, and that is all: as the SDK did.
        let _ = connection(stream.expect("accept"));
    }
}

fn connection(stream: UnixStream) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    loop {
        // Per message, not per connection: what this reader holds behind the message goes with it.
        let mut reader = BufReader::new(&stream);
        let mut length = [0; 4];
        reader.read_exact(&mut length).ok()?;
        let length = u32::from_be_bytes(length) as usize;
        if length > 1_048_576 {
            return None;
        }
        let mut text = vec![0; length];
        reader.read_exact(&mut text).ok()?;
        drop(reader);
        let message: Value = serde_json::from_slice(&text).ok()?;
        if let Some(answer) = handle(&message)? {
            let text = answer.to_string();
            writer.write_all(&u32::try_from(text.len()).ok()?.to_be_bytes()).ok()?;
            writer.write_all(text.as_bytes()).ok()?;
        }
    }
}

/// The answer if there is one; `None` for a message that the SDK's types did not know.
fn handle(message: &Value) -> Option<Option<Value>> {
    let kind = message["type"].as_str()?;
    let payload = message["payload"].as_object()?;
    message["timestamp"].as_str()?;
    if payload.get("type")?.as_str()? != kind {
        return None;
    }
    match kind {
        "lifecycle" => match payload.get("action")?.as_str()? {
            "init" => {
                payload.get("instance_id")?.as_str()?;
                payload.get("plugin_socket")?.as_str()?;
                payload.get("log_path")?.as_str()?;
                Some(None)
            }
            "ping" => Some(None),
            "shutdown" => exit(0),
            _ => None,
        },
        "http" => {
            let id = payload.get("request_id")?.as_str()?;
            let request = payload.get("payload")?;
            let (method, path) = (request["method"].as_str()?, request["path"].as_str()?);
            let headers = request["headers"].as_object()?;
            // The map of headers had strings for values.
            if !headers.values().all(Value::is_string) {
                return None;
            }
            let body = match request.get("body") {
                None | Some(Value::Null) => None,
                Some(Value::String(text)) => Some(text.as_str()),
                Some(_) => return None,
            };
            let said = json!({"method": method, "path": path, "headers": headers, "body": body});
            let response = json!({
                "status": if path == "/missing" { 404 } else { 200 },
                "headers": {"content-type": "application/json", "x-sdk": "rust-1.0"},
                "body": said.to_string(),
            });
            Some(Some(json!({
                "type": "http",
                "timestamp": "2025-12-30T12:00:00Z",
                "request_id": id,
                "payload": {
                    "type": "http",
                    "request_id": id,
                    "payload": {
                        "method": "RESPONSE",
                        "path": "",
                        "headers": {},
                        "body": response.to_string(),
                    },
                },
            })))
        }
        // `kv` was a type of theirs that nobody asks over the socket.
        "kv" => Some(None),
        _ => None,
    }
}
