//! The plugin of benches and tests: each path does one thing.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /` | about 30 bytes of JSON |
//! | `POST /echo` | the content as it came, with its `content-type` |
//! | `GET /bytes/N` | N bytes of `x` |
//! | `GET /delay/MS` | after so many milliseconds |
//! | `GET /status/N` | that status |
//! | `GET /request` | the request as JSON |
//! | `GET /cookies` | two `set-cookie` |
//!
//! The id is `echo`, or what the binary is called once it is copied: `echo-17.binary` is `echo-17`.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use toru_plugin_api::*;

/// More does not fit in the largest message that can be configured.
const BYTES_MAX: usize = 16 * 1024 * 1024;

struct Echo {
    id: String,
}

#[async_trait]
impl ToruPlugin for Echo {
    fn metadata(&self) -> PluginMetadata {
        PluginMetadata::new(&self.id, "Echo", env!("CARGO_PKG_VERSION")).icon("🪞")
    }

    async fn handle_http(&self, request: HttpRequest, _ctx: &PluginContext) -> PluginResult<HttpResponse> {
        let (path, argument) = match request.path[1..].split_once('/') {
            Some((path, argument)) => (path, Some(argument)),
            None => (&request.path[1..], None),
        };
        match (path, argument) {
            ("", None) => Ok(HttpResponse::bytes("application/json", br#"{"message":"hello","ok":true}"#)),
            ("echo", None) => {
                let content_type = request.headers.get("content-type").map(str::to_owned);
                let content_type = content_type.unwrap_or_else(|| "application/octet-stream".to_owned());
                Ok(HttpResponse::bytes(content_type, request.body))
            }
            ("bytes", Some(count)) => {
                let count = number(count, BYTES_MAX)?;
                Ok(HttpResponse::bytes("application/octet-stream", vec![b'x'; count]))
            }
            ("delay", Some(millis)) => {
                let millis = number(millis, 600_000)? as u64;
                tokio::time::sleep(Duration::from_millis(millis)).await;
                Ok(HttpResponse::json(&json!({ "delay_ms": millis })))
            }
            ("status", Some(status)) => {
                Ok(HttpResponse::text("as asked").with_status(number(status, 599)? as u16))
            }
            ("request", _) => Ok(HttpResponse::json(&json!({
                "request_id": request.request_id,
                "method": request.method,
                "path": request.path,
                "query": request.query,
                "headers": request.headers.iter().collect::<Vec<_>>(),
                "body": String::from_utf8_lossy(&request.body),
                "remote_addr": request.remote_addr,
                "timeout_ms": request.timeout.map(|timeout| timeout.as_millis()),
            }))),
            ("cookies", None) => Ok(HttpResponse::text("two cookies")
                .header("set-cookie", "a=1; Path=/")
                .header("set-cookie", "b=2; Path=/")),
            _ => Err(PluginError::status(404, "no such path here")),
        }
    }
}

fn number(text: &str, max: usize) -> PluginResult<usize> {
    text.parse()
        .ok()
        .filter(|number| *number <= max)
        .ok_or_else(|| PluginError::status(400, format!("not a number up to {max}: {text}")))
}

/// The id for a binary of this name: load tests copy it a hundred times.
fn id_of(binary: Option<&str>) -> String {
    let is_id = |stem: &&str| {
        (1..=64).contains(&stem.len())
            && !stem.starts_with('-')
            && stem.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    binary
        .map(|name| name.strip_suffix(".binary").unwrap_or(name))
        .filter(|stem| *stem != env!("CARGO_PKG_NAME"))
        .filter(is_id)
        .unwrap_or("echo")
        .to_owned()
}

fn main() -> std::process::ExitCode {
    let binary = std::env::args_os().next();
    let name = binary.as_deref().map(Path::new).and_then(Path::file_name);
    run(Echo { id: id_of(name.and_then(|name| name.to_str())) })
}
