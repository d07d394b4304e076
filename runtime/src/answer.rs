//! What a client is answered: a plugin's answer in pieces, something of the core's own, or a failure with its cause.

use std::time::Duration;

use toru_http::encode_field;
use toru_plugin_api::json::write_string;

/// Status and fields of a plugin's answer; its content follows in pieces.
#[derive(Debug, PartialEq, Eq)]
pub struct AnswerHead {
    pub status: u16,
    /// Encoded field lines, hop-by-hop fields and the connection's own already left out.
    pub fields: Vec<u8>,
}

/// What has come of a plugin's answer since the last look. An answer in one frame comes as one of these.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pieces {
    /// Once, before any content.
    pub head: Option<AnswerHead>,
    pub content: Vec<u8>,
    /// Nothing follows.
    pub complete: bool,
}

/// Fixed words for programs, in a problem's `code`.
pub const STILL_READING: &str = "still_reading";
pub const STOPPING: &str = "stopping";
pub const CROWDED: &str = "crowded";

/// An answer of the core itself.
#[derive(Debug, PartialEq, Eq)]
pub struct LocalAnswer {
    pub status: u16,
    pub fields: Vec<u8>,
    pub body: Vec<u8>,
}

impl LocalAnswer {
    pub fn json(status: u16, value: &serde_json::Value) -> Self {
        let mut fields = Vec::new();
        add_field(&mut fields, "content-type", "application/json");
        add_field(&mut fields, "cache-control", "no-store");
        Self { status, fields, body: value.to_string().into_bytes() }
    }
}

/// Why a request got no answer from whom it was meant for. The status says who failed: 4xx the client, 502 and 504 the
/// plugin, 500 and 503 Toru.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The client broke HTTP.
    Malformed {
        status: u16,
        detail: String,
    },
    NotFound(&'static str),
    MethodNotAllowed(&'static str),
    /// The core knows no such method.
    UnknownMethod,
    Unauthorized,
    UnsupportedMediaType(&'static str),
    NotText,
    TooLarge {
        bytes_max: usize,
    },
    /// The plugin is starting, in back-off or stopping.
    Waiting(Duration),
    /// Nobody has this id yet, and not every plugin has said what it is.
    StillReading,
    /// Too many requests are with the plugin or wait for it.
    Busy,
    /// Too many clients are connected.
    Crowded,
    /// A request did not come in time.
    ClientTooSlow,
    /// The time was up before the plugin was asked.
    QueuedTooLong,
    /// The plugin runs, and nothing listens at its socket.
    Unreachable,
    /// The connection to the plugin was ended with the request on it, for what the plugin did or did not do.
    PluginGone(&'static str),
    /// The plugin, or its process, ended the connection with the request on it; `told` if the supervisor hears of that
    /// anyway.
    Severed {
        detail: &'static str,
        told: bool,
    },
    /// The plugin's answer was no answer.
    BadAnswer,
    /// The plugin's answer has more of a head than a setting allows, or one that contradicts itself.
    BadAnswerHead(&'static str),
    TimedOut,
    /// The store refused or failed; `code` is a fixed word for programs.
    Store {
        code: &'static str,
        message: String,
    },
    /// The daemon is stopping.
    Stopping,
    /// A management request that could not be done.
    Internal(String),
    Conflict(String),
    /// Refused whoever asks; the words say what to change.
    Forbidden(String),
    /// What the client supposed of a file is not so (RFC 9110 section 13).
    PreconditionFailed,
    /// No byte of the asked range exists; the content's size in bytes.
    Unsatisfiable {
        size: u64,
    },
    /// A file cannot be read at the moment.
    FileBusy(&'static str),
}

impl Failure {
    pub fn status(&self) -> u16 {
        match self {
            Failure::Malformed { status, .. } => *status,
            Failure::Store { code, .. } => match *code {
                "too_large" => 413,
                "quota" | "disk_full" => 507,
                "busy" | "unavailable" => 503,
                _ => 400,
            },
            Failure::NotFound(_) => 404,
            Failure::MethodNotAllowed(_) => 405,
            Failure::UnknownMethod => 501,
            Failure::Unauthorized => 401,
            Failure::UnsupportedMediaType(_) | Failure::NotText => 415,
            Failure::TooLarge { .. } => 413,
            Failure::ClientTooSlow => 408,
            Failure::Waiting(_)
            | Failure::StillReading
            | Failure::Busy
            | Failure::Crowded
            | Failure::QueuedTooLong
            | Failure::FileBusy(_)
            | Failure::Stopping => 503,
            Failure::Unreachable
            | Failure::PluginGone(_)
            | Failure::Severed { .. }
            | Failure::BadAnswer
            | Failure::BadAnswerHead(_) => 502,
            Failure::TimedOut => 504,
            Failure::Internal(_) => 500,
            Failure::Conflict(_) => 409,
            Failure::Forbidden(_) => 403,
            Failure::PreconditionFailed => 412,
            Failure::Unsatisfiable { .. } => 416,
        }
    }

    /// Fixed words for the client; the log gets the cause.
    fn detail(&self) -> String {
        match self {
            Failure::Malformed { detail, .. }
            | Failure::Internal(detail)
            | Failure::Conflict(detail)
            | Failure::Forbidden(detail) => detail.clone(),
            Failure::NotFound(detail)
            | Failure::UnsupportedMediaType(detail)
            | Failure::FileBusy(detail)
            | Failure::PluginGone(detail)
            | Failure::Severed { detail, .. }
            | Failure::BadAnswerHead(detail) => (*detail).to_owned(),
            Failure::Store { message, .. } => message.clone(),
            Failure::MethodNotAllowed(allow) => format!("this resource takes {allow}"),
            Failure::UnknownMethod => "the server knows no such method".into(),
            Failure::Unauthorized => {
                "a bearer token is needed; the first start wrote it to the token file".into()
            }
            Failure::NotText => {
                "this plugin speaks protocol 1.0, which carries text only, and the content is not UTF-8"
                    .into()
            }
            Failure::TooLarge { bytes_max } => {
                format!("the request does not fit into a message of {bytes_max} bytes")
            }
            Failure::Waiting(_) => "the plugin is not running at the moment".into(),
            Failure::StillReading => {
                "no plugin has this id or route so far, and plugins are still being read".into()
            }
            Failure::Busy => "the plugin has as many requests as it takes".into(),
            Failure::Crowded => "the server has as many connections as it takes".into(),
            Failure::ClientTooSlow => "the request did not come in time".into(),
            Failure::QueuedTooLong => "the plugin had no room for the request in time".into(),
            Failure::Unreachable => "the plugin cannot be reached".into(),
            Failure::BadAnswer => "the plugin gave an answer that cannot be passed on".into(),
            Failure::TimedOut => "the plugin did not answer in time".into(),
            Failure::Stopping => "the server is stopping".into(),
            Failure::PreconditionFailed => "the file is not what the request supposes".into(),
            Failure::Unsatisfiable { size } => format!("the file has {size} bytes"),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Failure::Waiting(wait) => Some(*wait),
            Failure::StillReading
            | Failure::Busy
            | Failure::Crowded
            | Failure::QueuedTooLong
            | Failure::FileBusy(_)
            | Failure::Stopping => Some(Duration::from_secs(1)),
            Failure::Store { code: "busy" | "unavailable", .. } => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// The failure as `application/problem+json` (RFC 9457).
    pub fn to_answer(&self, request_id: &str) -> LocalAnswer {
        let status = self.status();
        let title = toru_http::reason_phrase(status);
        let mut body = Vec::with_capacity(192);
        body.extend_from_slice(b"{\"type\":\"about:blank\",\"title\":");
        write_string(&mut body, title);
        body.extend_from_slice(format!(",\"status\":{status},\"detail\":").as_bytes());
        write_string(&mut body, &self.detail());
        let code = match self {
            Failure::Store { code, .. } => Some(*code),
            Failure::StillReading => Some(STILL_READING),
            Failure::Stopping => Some(STOPPING),
            Failure::Crowded => Some(CROWDED),
            _ => None,
        };
        if let Some(code) = code {
            body.extend_from_slice(b",\"code\":");
            write_string(&mut body, code);
        }
        if !request_id.is_empty() {
            body.extend_from_slice(b",\"request_id\":");
            write_string(&mut body, request_id);
        }
        body.extend_from_slice(b"}");
        let mut fields = Vec::with_capacity(96);
        add_field(&mut fields, "content-type", "application/problem+json");
        if let Some(wait) = self.retry_after() {
            // Whole seconds, rounded up: coming back a moment too early is a request for nothing.
            add_field(&mut fields, "retry-after", &wait.as_millis().div_ceil(1000).to_string());
        }
        match self {
            Failure::MethodNotAllowed(allow) => add_field(&mut fields, "allow", allow),
            Failure::Unauthorized => add_field(&mut fields, "www-authenticate", "Bearer realm=\"toru\""),
            Failure::Unsatisfiable { size } => {
                add_field(&mut fields, "content-range", &format!("bytes */{size}"));
            }
            _ => {}
        }
        LocalAnswer { status, fields, body }
    }
}

/// Appends a field of the core's own, whose name and value are known to be valid.
pub fn add_field(fields: &mut Vec<u8>, name: &str, value: &str) {
    let encoded = encode_field(fields, name, value);
    debug_assert!(encoded.is_ok(), "{name}: {value:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_a_problem_document() {
        let answer = Failure::Waiting(Duration::from_millis(1500)).to_answer("r-1");
        assert_eq!(answer.status, 503);
        let fields = String::from_utf8(answer.fields).expect("ASCII");
        assert!(fields.contains("retry-after: 2\r\n"), "{fields}");
        let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(body["status"], 503);
        assert_eq!(body["title"], "Service Unavailable");
        assert_eq!(body["request_id"], "r-1");
        for key in ["type", "detail"] {
            assert!(body[key].is_string(), "{key}");
        }
    }
}
