//! What a plugin can ask of the core: stored values, log lines, its configuration.

use std::borrow::Cow;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::PluginResult;
use super::serve::{Connection, Shared};
use crate::from_plugin::{KvRequest, encode_kv_request, encode_log};
use crate::json::write_string;
use crate::metadata::Metadata;

/// How long a kv request waits for its answer.
const KV_TIMEOUT: Duration = Duration::from_secs(5);

/// The core, as a plugin sees it. Clone it to keep it, for example in a task of the plugin's own.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PluginContext {
    /// Values that the core keeps for this plugin.
    pub kv: Kv,
    /// Lines for the plugin's log.
    pub log: Log,
    link: Link,
}

impl PluginContext {
    pub(super) fn new(shared: Arc<Shared>, connection: Weak<Connection>) -> Self {
        let link = Link { shared, connection };
        Self { kv: Kv(link.clone()), log: Log(link.clone()), link }
    }

    /// A context without a core, for testing handlers: nothing is stored, log lines go to stderr,
    /// the configuration is empty.
    pub fn detached(metadata: &Metadata) -> Self {
        Self::new(Arc::new(Shared::new(metadata)), Weak::new())
    }

    /// The id by which the core knows the plugin.
    pub fn plugin_id(&self) -> &str {
        &self.link.shared.start().plugin_id
    }

    /// This installation's id, stable over restarts; empty if the core did not say.
    pub fn instance_id(&self) -> &str {
        &self.link.shared.start().instance_id
    }

    /// A directory for the plugin's files; `None` with a 1.0 core and by hand.
    pub fn data_dir(&self) -> Option<&Path> {
        self.link.shared.start().data_dir.as_deref()
    }

    /// The plugin's table in the core's configuration, `[plugins.ID]`; an empty one if there is none.
    ///
    /// Errors: say which field is not as `T` wants it. Call it in `init`, so that the core reports it.
    pub fn config<T: DeserializeOwned>(&self) -> PluginResult<T> {
        serde_json::from_str(&self.link.shared.start().config)
            .map_err(|error| super::PluginError::internal(format!("configuration: {error}")))
    }
}

/// The way to the core: the connection that a request came on, or else the one that carried `init`.
#[derive(Clone, Debug)]
pub(super) struct Link {
    shared: Arc<Shared>,
    connection: Weak<Connection>,
}

impl Link {
    /// A connection that the core reads 1.1 messages from.
    fn connection(&self) -> Option<Arc<Connection>> {
        if !self.shared.start().core_is_1_1 {
            return None;
        }
        let own = self.connection.upgrade().filter(|own| own.is_open());
        own.or_else(|| self.shared.control_connection())
    }
}

/// Values that outlive the plugin, stored by the core for this plugin alone.
///
/// Each call waits up to 5 s. A key has 1 to 512 bytes, with its value it fits into a message (1 MiB, or what the core
/// says), and all of a plugin's fit into its quota.
/// Errors: [`KvError`].
#[derive(Clone, Debug)]
pub struct Kv(Link);

/// Why a kv request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KvError {
    /// No core that stores values: run by hand, or the core speaks 1.0, or the connection was lost.
    /// What was asked for may still have been done.
    #[error("the core's storage is out of reach")]
    Unavailable,
    /// No answer in 5 s. What was asked for may still have been done.
    #[error("the core's storage did not answer in time")]
    Timeout,
    /// Key and value do not fit in a message.
    #[error("larger than a message can be")]
    TooLarge,
    /// The core said no.
    #[error("the core's storage refused ({code}): {message}")]
    Refused {
        /// The core's own word, such as `quota` or `disk_full`.
        code: String,
        /// For people.
        message: String,
    },
    /// The stored text is not the JSON that was asked for.
    #[error("the stored value is not as expected: {0}")]
    BadJson(String),
}

impl KvError {
    /// A fixed word: the core's own, or `unavailable`, `timeout`, `too_large`, `bad_json`.
    pub fn code(&self) -> &str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::TooLarge => "too_large",
            Self::Refused { code, .. } => code,
            Self::BadJson(_) => "bad_json",
        }
    }
}

impl Kv {
    /// The value of `key`, or `None` where there is none.
    pub async fn get(&self, key: &str) -> Result<Option<String>, KvError> {
        Ok(self.ask(KvRequest::Get { key }).await?.value)
    }

    /// Stores `value` under `key`; it is on disk when this returns.
    pub async fn set(&self, key: &str, value: &str) -> Result<(), KvError> {
        self.ask(KvRequest::Set { key, value }).await.map(drop)
    }

    /// Removes `key`; that it was not there is no error.
    pub async fn delete(&self, key: &str) -> Result<(), KvError> {
        self.ask(KvRequest::Delete { key }).await.map(drop)
    }

    /// Keys that start with `prefix`, in order, at most `limit` of them. The core gives at most 1000, which is what `None` asks for.
    pub async fn list(&self, prefix: &str, limit: Option<u64>) -> Result<Vec<String>, KvError> {
        Ok(self.ask(KvRequest::List { prefix, limit }).await?.keys)
    }

    /// [`get`](Self::get), read as JSON. Errors: also [`KvError::BadJson`], where it is none or not of that shape.
    pub async fn get_json<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, KvError> {
        match self.get(key).await? {
            None => Ok(None),
            Some(text) => {
                serde_json::from_str(&text).map(Some).map_err(|error| KvError::BadJson(error.to_string()))
            }
        }
    }

    /// [`set`](Self::set), written as JSON. Errors: also [`KvError::BadJson`], where JSON cannot express it.
    pub async fn set_json(&self, key: &str, value: &impl Serialize) -> Result<(), KvError> {
        let text = serde_json::to_string(value).map_err(|error| KvError::BadJson(error.to_string()))?;
        self.set(key, &text).await
    }

    async fn ask(&self, request: KvRequest<'_>) -> Result<KvAnswer, KvError> {
        let connection = self.0.connection().ok_or(KvError::Unavailable)?;
        let mut waiting = self.0.shared.await_kv(connection.id());
        let frame_bytes_max = self.0.shared.frame_bytes_max();
        connection
            .send(|out, framing, timestamp| {
                let id = waiting.request_id();
                encode_kv_request(out, framing, timestamp, id, &request, frame_bytes_max)
            })
            .map_err(|_| KvError::TooLarge)?;
        match tokio::time::timeout(KV_TIMEOUT, waiting.answer()).await {
            Ok(answer) => answer,
            Err(_) => Err(KvError::Timeout),
        }
    }
}

/// What the core answered, whatever was asked.
#[derive(Debug, Default)]
pub(super) struct KvAnswer {
    pub value: Option<String>,
    pub keys: Vec<String>,
}

/// Lines for the plugin's log.
///
/// They never wait: with a core that does not read fast enough, lines are lost and the loss is logged.
/// Without a 1.1 core they go to stderr, one JSON object a line.
#[derive(Clone, Debug)]
pub struct Log(Link);

impl Log {
    /// For whoever looks for a mistake.
    pub fn debug(&self, message: impl AsRef<str>) {
        self.write("debug", message.as_ref(), "");
    }

    /// What happens as it should.
    pub fn info(&self, message: impl AsRef<str>) {
        self.write("info", message.as_ref(), "");
    }

    /// What somebody should look at some day.
    pub fn warn(&self, message: impl AsRef<str>) {
        self.write("warn", message.as_ref(), "");
    }

    /// What went wrong.
    pub fn error(&self, message: impl AsRef<str>) {
        self.write("error", message.as_ref(), "");
    }

    /// Fields for the line that follows: `log.with(json!({"ms": 12})).warn("disk is slow")`.
    ///
    /// Shape: something that becomes a JSON object; anything else is put in a field `value`.
    pub fn with(&self, fields: impl Serialize) -> LogWith<'_> {
        let fields = match serde_json::to_string(&fields) {
            Ok(json) if json.starts_with('{') => json,
            Ok(json) => format!("{{\"value\":{json}}}"),
            Err(_) => String::new(),
        };
        LogWith { log: self, fields }
    }

    fn write(&self, level: &str, message: &str, fields: &str) {
        let Some(connection) = self.0.connection() else {
            write_to_stderr(level, message, fields);
            return;
        };
        let frame_bytes_max = self.0.shared.frame_bytes_max();
        connection.send_log(|out, framing, timestamp| {
            // A line longer than a frame is cut rather than lost: the start says most.
            encode_log(out, framing, timestamp, level, message, fields, frame_bytes_max).or_else(|_| {
                let kept = message.floor_char_boundary(4096.min(frame_bytes_max / 8));
                let cut = &message[..kept];
                encode_log(out, framing, timestamp, level, cut, "", frame_bytes_max)
            })
        });
    }
}

/// A log line with fields; see [`Log::with`].
#[derive(Debug)]
pub struct LogWith<'l> {
    log: &'l Log,
    fields: String,
}

impl LogWith<'_> {
    /// [`Log::debug`] with the fields.
    pub fn debug(&self, message: impl AsRef<str>) {
        self.log.write("debug", message.as_ref(), &self.fields);
    }

    /// [`Log::info`] with the fields.
    pub fn info(&self, message: impl AsRef<str>) {
        self.log.write("info", message.as_ref(), &self.fields);
    }

    /// [`Log::warn`] with the fields.
    pub fn warn(&self, message: impl AsRef<str>) {
        self.log.write("warn", message.as_ref(), &self.fields);
    }

    /// [`Log::error`] with the fields.
    pub fn error(&self, message: impl AsRef<str>) {
        self.log.write("error", message.as_ref(), &self.fields);
    }
}

/// The core takes a line of stderr that is JSON as it takes a `log` message.
fn write_to_stderr(level: &str, message: &str, fields: &str) {
    let mut line = b"{\"level\":".to_vec();
    write_string(&mut line, level);
    line.extend_from_slice(b",\"message\":");
    write_string(&mut line, message);
    if let Some(inner) = fields.strip_prefix('{').filter(|inner| *inner != "}") {
        line.push(b',');
        line.extend_from_slice(inner.as_bytes());
    } else {
        line.push(b'}');
    }
    line.push(b'\n');
    // There is no further place to complain.
    let _ = std::io::stderr().write_all(&line);
}

/// What `init` said, or what holds without it.
#[derive(Clone, Debug)]
pub(super) struct Start {
    pub plugin_id: Cow<'static, str>,
    pub instance_id: String,
    pub data_dir: Option<std::path::PathBuf>,
    /// JSON text.
    pub config: String,
    pub core_is_1_1: bool,
}
