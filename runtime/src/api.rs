//! What the core answers itself: whether it serves, what its plugins do, what an operator orders, values for 1.0 plugins.

use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_channel::oneshot;
use serde_json::{Value, json};
use toru_http::RequestHead;
use toru_supervisor::{Command, KvAnswer, KvQuestion, Order, OrderError, PluginStatus};

use crate::answer::{Failure, LocalAnswer};
use crate::histogram::Counts;
use crate::route::Endpoint;
use crate::worker::Worker;

/// How long a 1.0 plugin's question may take.
const KV_TIMEOUT: Duration = Duration::from_secs(5);

/// A request to the core, free of its request's bytes.
#[derive(Debug)]
pub enum Call {
    Health,
    Ready,
    Plugins,
    Plugin(String),
    Order(String, Order),
    Kv(String),
}

impl From<Endpoint<'_>> for Call {
    fn from(endpoint: Endpoint<'_>) -> Self {
        match endpoint {
            Endpoint::Health => Call::Health,
            Endpoint::Ready => Call::Ready,
            Endpoint::Plugins => Call::Plugins,
            Endpoint::Plugin(id) => Call::Plugin(id.into_owned()),
            Endpoint::Order(id, order) => Call::Order(id.into_owned(), order),
            Endpoint::Kv(id) => Call::Kv(id.into_owned()),
        }
    }
}

/// Whether the request bears the management token. Takes the same time however much of it is right.
pub fn authorized(worker: &Worker, head: &RequestHead<'_>) -> bool {
    let Some(value) = head.fields.get("authorization") else { return false };
    let Some((scheme, token)) = value.split_first_chunk::<7>() else { return false };
    let expected = worker.shared.token.as_bytes();
    scheme.eq_ignore_ascii_case(b"bearer ")
        && token.len() == expected.len()
        && token.iter().zip(expected).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}

/// Whether the content is said to be JSON. A web page cannot send that to another site without being asked first.
pub fn says_json(head: &RequestHead<'_>) -> bool {
    let Some(value) = head.fields.get("content-type") else { return false };
    let media_type = value.split(|&byte| byte == b';').next().unwrap_or_default();
    media_type.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

impl Call {
    pub async fn answer(self, worker: &Rc<Worker>, body: &[u8]) -> Result<LocalAnswer, Failure> {
        match self {
            Call::Health => Ok(LocalAnswer::json(200, &json!({ "status": "ok" }))),
            Call::Ready => {
                let waiting: Vec<String> = snapshot(worker)
                    .await?
                    .into_iter()
                    .filter(|plugin| plugin.enabled && plugin.state != "running")
                    .map(|plugin| plugin.metadata.id.clone())
                    .collect();
                let status = if waiting.is_empty() { 200 } else { 503 };
                let word = if waiting.is_empty() { "ready" } else { "waiting" };
                Ok(LocalAnswer::json(status, &json!({ "status": word, "not_running": waiting })))
            }
            Call::Plugins => {
                let mut plugins = snapshot(worker).await?;
                plugins.sort_by(|a, b| a.metadata.id.cmp(&b.metadata.id));
                let plugins: Vec<Value> = plugins.iter().map(|plugin| describe(worker, plugin)).collect();
                Ok(LocalAnswer::json(200, &Value::Array(plugins)))
            }
            Call::Plugin(id) => {
                let plugins = snapshot(worker).await?;
                let plugin = plugins.iter().find(|plugin| plugin.metadata.id == id).ok_or(UNKNOWN)?;
                Ok(LocalAnswer::json(200, &describe(worker, plugin)))
            }
            Call::Order(id, order) => {
                let (tell, told) = oneshot::channel();
                let done = Box::new(move |outcome| {
                    let _ = tell.send(outcome);
                });
                worker.shared.supervisor.send(Command::Order { id, order, done });
                match told.await {
                    Ok(Ok(())) => Ok(LocalAnswer::json(200, &json!({ "success": true }))),
                    Ok(Err(OrderError::Unknown(_))) => Err(UNKNOWN),
                    Ok(Err(error @ OrderError::Failed(_))) => Err(Failure::Conflict(error.to_string())),
                    Err(oneshot::Canceled) => Err(Failure::Stopping),
                }
            }
            Call::Kv(id) => kv(worker, &id, body).await,
        }
    }
}

const UNKNOWN: Failure = Failure::NotFound("no plugin has this id");

async fn snapshot(worker: &Worker) -> Result<Vec<PluginStatus>, Failure> {
    let (tell, told) = oneshot::channel();
    let take = Box::new(move |plugins| {
        let _ = tell.send(plugins);
    });
    worker.shared.supervisor.send(Command::Snapshot(take));
    told.await.map_err(|oneshot::Canceled| Failure::Stopping)
}

fn describe(worker: &Worker, plugin: &PluginStatus) -> Value {
    let metadata = &plugin.metadata;
    let (mut requests, mut errors, mut strays, mut counts) = (0, 0, 0, Counts::default());
    let (mut in_flight, mut queued) = (0, 0);
    if let Some(target) = worker.by_index(plugin.index) {
        in_flight = target.shared.gate.in_use();
        queued = target.shared.gate.queued();
        for stats in &target.shared.stats {
            requests += stats.requests.load(Relaxed);
            errors += stats.errors.load(Relaxed);
            strays += stats.strays.load(Relaxed);
            stats.latency.add_to(&mut counts);
        }
    }
    let running = plugin.state == "running";
    let health = match (running, plugin.unanswered_pings) {
        (true, 0 | 1) => "healthy",
        (true, _) => "unresponsive",
        (false, _) => plugin.state,
    };
    json!({
        "id": metadata.id,
        "name": metadata.name,
        "version": metadata.version,
        "author": metadata.author,
        "icon": metadata.icon,
        "route": metadata.route,
        "enabled": plugin.enabled,
        "running": running,
        "health": health,
        "pid": plugin.pid,
        "socket_path": plugin.socket.display().to_string(),
        "state": plugin.state,
        "restarts": plugin.restarts,
        "last_exit": plugin.last_exit,
        "uptime_ms": plugin.uptime.map(|uptime| uptime.as_millis() as u64),
        "ping_us": plugin.ping.map(|ping| ping.as_micros() as u64),
        "requests": requests,
        "errors": errors,
        "stray_answers": strays,
        "in_flight": in_flight,
        "queued": queued,
        "p50_us": counts.quantile_us(0.5),
        "p95_us": counts.quantile_us(0.95),
        "p99_us": counts.quantile_us(0.99),
        "protocol": metadata.protocol.as_str(),
    })
}

/// Values over HTTP: what 1.0 plugins use, and an operator with `curl`.
async fn kv(worker: &Worker, id: &str, body: &[u8]) -> Result<LocalAnswer, Failure> {
    if worker.by_id(id).is_none() {
        return Err(UNKNOWN);
    }
    let question = kv_question(body).map_err(|detail| Failure::Malformed { status: 400, detail })?;
    let (tell, told) = oneshot::channel();
    let reply = Box::new(move |answer| {
        let _ = tell.send(answer);
    });
    worker.shared.store.ask(id, question, reply);
    let answer = match monoio::time::timeout(KV_TIMEOUT, told).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(oneshot::Canceled)) | Err(_) => {
            KvAnswer::Error { code: "unavailable", message: "the store did not answer in time".into() }
        }
    };
    Ok(match answer {
        KvAnswer::Value(value) => LocalAnswer::json(200, &json!({ "value": value })),
        KvAnswer::Keys(keys) => LocalAnswer::json(200, &json!({ "keys": keys })),
        KvAnswer::Error { code, message } => {
            let status = match code {
                "too_large" => 413,
                "quota" | "disk_full" => 507,
                "busy" | "unavailable" => 503,
                _ => 400,
            };
            LocalAnswer::json(status, &json!({ "error": { "code": code, "message": message } }))
        }
    })
}

fn kv_question(body: &[u8]) -> Result<KvQuestion, String> {
    let asked: Value =
        serde_json::from_slice(body).map_err(|error| format!("the content is no JSON: {error}"))?;
    let text = |name: &str| {
        asked.get(name).and_then(Value::as_str).map(str::to_owned).ok_or(format!("`{name}` must be a string"))
    };
    match text("action")?.to_ascii_lowercase().as_str() {
        "get" => Ok(KvQuestion::Get { key: text("key")? }),
        "set" => Ok(KvQuestion::Set { key: text("key")?, value: text("value")? }),
        "delete" => Ok(KvQuestion::Delete { key: text("key")? }),
        "list" => {
            let prefix =
                if asked.get("prefix").is_none_or(Value::is_null) { String::new() } else { text("prefix")? };
            Ok(KvQuestion::List { prefix, limit: asked.get("limit").and_then(Value::as_u64) })
        }
        other => Err(format!("`action` is {other:?}, but must be get, set, delete or list")),
    }
}
