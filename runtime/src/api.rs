//! What the core answers itself: whether it serves, what its plugins do, what an operator orders, values for 1.0 plugins.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use toru_http::{RequestHead, percent_decode};
use toru_plugin_api::status::{History, Snapshot};
use toru_plugin_api::time::unix_ms_of;
use toru_supervisor::{
    Command, EVENT_KINDS, KvAnswer, KvQuestion, Level, Order, OrderError, PluginStatus, Skipped,
};

use crate::answer::{AnswerHead, Failure, LocalAnswer, add_field};
use crate::kv::portable::{Entry, Export};
use crate::kv::{EventQuery, EventRow, EventsError};
use crate::logs::{self, Follower};
use crate::metrics;
use crate::route::Endpoint;
use crate::status;
use crate::timers;
use crate::worker::Worker;

/// How long the store may be silent. It answers within [`crate::kv::PATIENCE`] unless the disk hangs in mid write: past
/// this, nobody knows whether the value will be there.
const KV_TIMEOUT: Duration = Duration::from_secs(10);
/// Values in one request that takes in many: a fraction of what may wait for the store.
const IMPORT_LINES_MAX: usize = 512;
/// How often a followed log is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

/// What the server takes as a whole, as the `Allow` field wants it; a plugin may take others.
pub const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// What all of this is for other programs: an OpenAPI 3.1 document.
pub const OPENAPI: &str = include_str!("../openapi.json");

/// A request to the core, free of its request's bytes.
#[derive(Debug)]
pub enum Call {
    Server,
    Health,
    Ready,
    OpenApi,
    Plugins,
    Plugin(String),
    Order(String, Order),
    Kv(String),
    Export(String),
    Import(String),
    /// Of a plugin, or of the core itself.
    Logs {
        id: Option<String>,
        page: usize,
        page_size: usize,
        level: Option<Level>,
        follow: bool,
    },
    History(String),
    /// `history` is a plugin's id, or `*` for all: their samples come first.
    Stream {
        interval: Duration,
        history: Option<String>,
    },
    Events {
        query: EventQuery,
        follow: bool,
    },
    Skipped,
    Metrics,
}

/// What a call gives.
pub enum Answer {
    Whole(LocalAnswer),
    Stream(AnswerHead, Stream),
}

/// An answer without an end: a line whenever there is something to say.
///
/// A client that does not read is held up, and in the end cut, by its own connection; nobody else notices.
pub enum Stream {
    Snapshots {
        interval: Duration,
        /// Whose samples are to be told before the first snapshot.
        history: Option<String>,
        first: bool,
        /// What was told of plugins' standard error, by their indexes.
        told: HashMap<usize, Arc<VecDeque<String>>>,
    },
    /// Shared with the thread that reads it; what that found late comes with the next look.
    Log(Arc<Mutex<Follower>>),
    /// `None` while a piece is being read, and after one could not be.
    Values(Option<Box<Export>>),
    /// `query.after_id` is the last event that was told.
    Events { query: EventQuery, first: bool },
}

impl Call {
    /// Errors: the query has a value that cannot be used.
    pub fn new(endpoint: Endpoint<'_>, method: &str, query: Option<&str>) -> Result<Self, Failure> {
        let query = Query(query.unwrap_or_default());
        Ok(match endpoint {
            Endpoint::Server => Call::Server,
            Endpoint::Health => Call::Health,
            Endpoint::Ready => Call::Ready,
            Endpoint::OpenApi => Call::OpenApi,
            Endpoint::Plugins => Call::Plugins,
            Endpoint::Plugin(id) => Call::Plugin(id.into_owned()),
            Endpoint::Order(id, order) => Call::Order(id.into_owned(), order),
            Endpoint::Kv(id) => Call::Kv(id.into_owned()),
            Endpoint::Values(id) if method == "POST" => Call::Import(id.into_owned()),
            Endpoint::Values(id) => Call::Export(id.into_owned()),
            endpoint @ (Endpoint::Logs(_) | Endpoint::CoreLogs) => Call::Logs {
                id: match endpoint {
                    Endpoint::Logs(id) => Some(id.into_owned()),
                    _ => None,
                },
                page: query.number("page", 1, 1..=1_000_000)?,
                page_size: query.number("page_size", 100, 1..=1000)?,
                level: query.level()?,
                follow: query.flag("follow")?,
            },
            Endpoint::History(id) => Call::History(id.into_owned()),
            Endpoint::Stream => {
                let interval = query.number("interval_ms", 1000, 50..=3_600_000)?;
                let history = query.get("history").map(Cow::into_owned);
                Call::Stream { interval: Duration::from_millis(interval as u64), history }
            }
            Endpoint::Skipped => Call::Skipped,
            Endpoint::Metrics => Call::Metrics,
            Endpoint::Events => Call::Events {
                query: EventQuery {
                    plugin_id: query.get("plugin").map(Cow::into_owned),
                    event_type: query.event_kind()?,
                    after_id: query.event_id("after")?,
                    since_unix_ms: query.moment("since")?,
                    until_unix_ms: query.moment("until")?,
                    limit: query.number("limit", 100, 1..=1000)?,
                },
                follow: query.flag("follow")?,
            },
        })
    }
}

/// A query string of plain names and values.
struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    /// The value, decoded once; one with a bad encoding stays as it is.
    fn get(&self, name: &str) -> Option<Cow<'a, str>> {
        let value = self
            .0
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)?;
        Some(match percent_decode(value) {
            Ok(Cow::Owned(decoded)) => String::from_utf8_lossy(&decoded).into_owned().into(),
            Ok(Cow::Borrowed(_)) | Err(_) => value.into(),
        })
    }

    fn flag(&self, name: &str) -> Result<bool, Failure> {
        match self.get(name).as_deref() {
            None | Some("0" | "false") => Ok(false),
            Some("1" | "true") => Ok(true),
            Some(_) => Err(Failure::Malformed {
                status: 400,
                detail: format!("`{name}` must be 1 or true, 0 or false"),
            }),
        }
    }

    fn event_id(&self, name: &str) -> Result<Option<i64>, Failure> {
        let Some(text) = self.get(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Failure::Malformed {
            status: 400,
            detail: format!("`{name}` must be the id of an event, a number"),
        })
    }

    fn level(&self) -> Result<Option<Level>, Failure> {
        let Some(word) = self.get("level") else { return Ok(None) };
        Level::known_word(&word).map(Some).ok_or_else(|| Failure::Malformed {
            status: 400,
            detail: "`level` must be debug, info, warn or error".into(),
        })
    }

    fn event_kind(&self) -> Result<Option<String>, Failure> {
        let Some(kind) = self.get("type") else { return Ok(None) };
        if EVENT_KINDS.contains(&&*kind) {
            return Ok(Some(kind.into_owned()));
        }
        let detail = format!("`type` must be one of {}", EVENT_KINDS.join(", "));
        Err(Failure::Malformed { status: 400, detail })
    }

    /// A moment in milliseconds since 1970, or as [`unix_ms_of`] takes it.
    fn moment(&self, name: &str) -> Result<Option<u64>, Failure> {
        let Some(text) = self.get(name) else { return Ok(None) };
        text.parse().ok().or_else(|| unix_ms_of(&text)).map(Some).ok_or_else(|| Failure::Malformed {
            status: 400,
            detail: format!(
                "`{name}` must be like 2026-01-31, 2026-01-31T12:00:00Z, or in milliseconds since 1970"
            ),
        })
    }

    fn number(&self, name: &str, default: usize, bounds: RangeInclusive<usize>) -> Result<usize, Failure> {
        let Some(text) = self.get(name) else { return Ok(default) };
        text.parse().ok().filter(|number| bounds.contains(number)).ok_or_else(|| Failure::Malformed {
            status: 400,
            detail: format!("`{name}` must be a number from {} to {}", bounds.start(), bounds.end()),
        })
    }
}

/// Whether the request bears the management token. Takes the same time however much of it is right.
pub fn authorized(worker: &Worker, head: &RequestHead<'_>) -> bool {
    let Some(value) = head.fields.get("authorization") else { return false };
    let Some((scheme, token)) = value.split_first_chunk::<7>() else { return false };
    let expected = worker.shared.token.as_bytes();
    // Any number of spaces may stand before it (RFC 9110 section 11.4).
    let token = token.trim_ascii_start();
    scheme.eq_ignore_ascii_case(b"bearer ")
        && token.len() == expected.len()
        && token.iter().zip(expected).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}

/// Whether the content is said to be of this type, such as `application/json`. A web page cannot send that to another
/// site without being asked first.
fn content_is(head: &RequestHead<'_>, media_type: &str) -> bool {
    let Some(value) = head.fields.get("content-type") else { return false };
    let said = value.split(|&byte| byte == b';').next().unwrap_or_default();
    said.trim_ascii().eq_ignore_ascii_case(media_type.as_bytes())
}

/// Checks what can be checked of a request to the core itself before its content is there.
///
/// Errors: the method, the name that the client has of this server, the token or the kind of content.
pub fn admit(
    worker: &Worker,
    head: &RequestHead<'_>,
    trusted: bool,
    endpoint: Endpoint<'_>,
) -> Result<Call, Failure> {
    if !endpoint.takes(head.method) {
        return Err(Failure::MethodNotAllowed(endpoint.allow()));
    }
    if endpoint.needs_token() && !trusted {
        worker.config().site.admits_management(head)?;
        if !authorized(worker, head) {
            return Err(Failure::Unauthorized);
        }
    }
    let json = content_is(head, "application/json");
    match endpoint {
        // Old plugins ask as their library does. No web page has the token.
        Endpoint::Kv(_) => Ok(()),
        Endpoint::Order(..) if head.has_content() && !json => {
            Err(Failure::UnsupportedMediaType("this resource takes application/json, or nothing"))
        }
        // A single line is JSON, too.
        Endpoint::Values(_) if head.method == "POST" && !json && !content_is(head, NDJSON) => {
            Err(Failure::UnsupportedMediaType("this resource takes application/x-ndjson"))
        }
        _ => Ok(()),
    }?;
    Call::new(endpoint, head.method, head.target.query())
}

impl Call {
    pub async fn answer(self, worker: &Rc<Worker>, body: &[u8]) -> Result<Answer, Failure> {
        let whole = match self {
            Call::Server => {
                let mut fields = Vec::new();
                add_field(&mut fields, "allow", METHODS);
                LocalAnswer { status: 204, fields, body: Vec::new() }
            }
            Call::Health => LocalAnswer::json(200, &json!({ "status": "ok" })),
            Call::Ready => {
                let plugins = supervised(worker).await?;
                if !worker.scanned.get() {
                    return Err(Failure::StillReading);
                }
                let waiting: Vec<String> = plugins
                    .into_iter()
                    .filter(|plugin| plugin.enabled && plugin.state != "running")
                    .map(|plugin| plugin.metadata.id.clone())
                    .collect();
                let (status, word) = if waiting.is_empty() { (200, "ready") } else { (503, "waiting") };
                LocalAnswer::json(status, &json!({ "status": word, "not_running": waiting }))
            }
            Call::OpenApi => {
                let mut fields = Vec::new();
                add_field(&mut fields, "content-type", "application/json");
                add_field(&mut fields, "cache-control", "no-cache");
                LocalAnswer { status: 200, fields, body: OPENAPI.into() }
            }
            Call::Plugins => {
                let plugins = status::snapshot(worker, &supervised(worker).await?).plugins;
                LocalAnswer::json(200, &json!(plugins))
            }
            Call::Plugin(id) => {
                let plugins = supervised(worker).await?;
                let plugin = plugins
                    .iter()
                    .find(|plugin| plugin.metadata.id == id)
                    .ok_or_else(|| worker.unknown_to_operator(UNKNOWN))?;
                LocalAnswer::json(200, &json!(status::describe(worker, plugin)))
            }
            Call::Order(id, order) => {
                // It says nothing that an order needs, but what is no JSON was not meant for here.
                if !body.is_empty() {
                    serde_json::from_slice::<IgnoredAny>(body).map_err(|error| Failure::Malformed {
                        status: 400,
                        detail: format!("the content is no JSON: {error}"),
                    })?;
                }
                let (tell, told) = oneshot::channel();
                let done = Box::new(move |outcome| {
                    let _ = tell.send(outcome);
                });
                worker.shared.supervisor.send(Command::Order { id, order, done });
                match told.await {
                    Ok(Ok(())) => LocalAnswer::json(200, &json!({ "success": true })),
                    Ok(Err(OrderError::Unknown(_))) => return Err(worker.unknown_to_operator(UNKNOWN)),
                    Ok(Err(OrderError::Stopping)) => return Err(Failure::Stopping),
                    Ok(Err(error)) => return Err(Failure::Conflict(error.to_string())),
                    Err(oneshot::Canceled) => return Err(Failure::Stopping),
                }
            }
            Call::Kv(id) => kv(worker, &id, body).await?,
            Call::Export(id) => {
                check_known(worker, &id).await?;
                let export = Box::new(worker.shared.store.export(&id));
                return Ok(Answer::Stream(ndjson(), Stream::Values(Some(export))));
            }
            Call::Import(id) => import(worker, &id, body).await?,
            Call::Logs { id, page, page_size, level, follow } => {
                let folder = &worker.config().log_dir;
                let path = match id {
                    Some(id) => {
                        check_known(worker, &id).await?;
                        crate::log::plugin_log_path(folder, &id)
                    }
                    None => crate::log::core_log_path(folder),
                };
                if follow {
                    let follower = Follower::new(path, level, page_size);
                    let stream = Stream::Log(Arc::new(Mutex::new(follower)));
                    return Ok(Answer::Stream(ndjson(), stream));
                }
                let shared = &worker.shared;
                let read = move || logs::read_page(&path, page, page_size, level);
                let lines = shared.records.run(worker.config().http.request_timeout, read).await?;
                let mut answer = LocalAnswer::json(200, &json!({ "page": page, "page_size": page_size }));
                answer.body = logs::page_body(&lines, page, page_size);
                answer
            }
            Call::History(id) => {
                let plugins = supervised(worker).await?;
                let plugin = plugins
                    .iter()
                    .find(|plugin| plugin.metadata.id == id)
                    .ok_or_else(|| worker.unknown_to_operator(UNKNOWN))?;
                worker.history.refresh(worker, true);
                LocalAnswer::json(200, &json!(worker.history.of(worker, plugin.index, &id)))
            }
            Call::Stream { interval, history } => {
                if let Some(id) = history.as_deref().filter(|id| *id != "*") {
                    check_known(worker, id).await?;
                }
                let stream = Stream::Snapshots { interval, history, first: true, told: HashMap::new() };
                return Ok(Answer::Stream(ndjson(), stream));
            }
            Call::Events { query, follow: true } => {
                check_told_of(worker, &query).await?;
                return Ok(Answer::Stream(ndjson(), Stream::Events { query, first: true }));
            }
            Call::Events { query, follow: false } => {
                let found = events(worker, query.clone()).await?;
                if found.is_empty() {
                    check_told_of(worker, &query).await?;
                }
                LocalAnswer::json(200, &json!({ "events": found }))
            }
            Call::Skipped => {
                let (tell, told) = oneshot::channel();
                let take = Box::new(move |skipped| {
                    let _ = tell.send(skipped);
                });
                worker.shared.supervisor.send(Command::Skipped(take));
                let skipped: Vec<Skipped> = told.await.map_err(|oneshot::Canceled| Failure::Stopping)?;
                let one =
                    |Skipped { file, reason }| json!({ "file": file.to_string_lossy(), "reason": reason });
                LocalAnswer::json(
                    200,
                    &json!({ "skipped": skipped.into_iter().map(one).collect::<Vec<_>>() }),
                )
            }
            Call::Metrics => {
                let plugins = supervised(worker).await?;
                let snapshot = status::snapshot(worker, &plugins);
                let latencies = plugins
                    .iter()
                    .map(|plugin| (plugin.metadata.id.clone(), status::latencies(worker, plugin.index)))
                    .collect();
                let mut fields = Vec::new();
                add_field(&mut fields, "content-type", "text/plain; version=0.0.4; charset=utf-8");
                LocalAnswer { status: 200, fields, body: metrics::text(&snapshot, &latencies).into_bytes() }
            }
        };
        Ok(Answer::Whole(whole))
    }
}

#[derive(Serialize)]
struct HistoryLine<'a> {
    history: &'a History,
}

impl Stream {
    /// The next lines; `None` at the end.
    pub async fn next(&mut self, worker: &Rc<Worker>) -> Option<Vec<u8>> {
        if worker.draining.get() {
            return None;
        }
        match self {
            Stream::Snapshots { interval, history, first, told } => {
                if !std::mem::replace(first, false) {
                    wait(worker, *interval).await;
                }
                let plugins = supervised(worker).await.ok()?;
                let mut snapshot = status::watched(worker, &plugins);
                tell_stderr(&mut snapshot, &plugins, told);
                let mut lines = vec![];
                if let Some(wanted) = history.take() {
                    if wanted == "*" {
                        for status in &mut snapshot.workers {
                            status.past_requests_per_s =
                                worker.history.of_worker(worker, status.number as usize);
                        }
                    }
                    for plugin in plugins.iter().filter(|p| wanted == "*" || p.metadata.id == wanted) {
                        let samples = worker.history.of(worker, plugin.index, &plugin.metadata.id);
                        lines.extend(serde_json::to_vec(&HistoryLine { history: &samples }).ok()?);
                        lines.push(b'\n');
                    }
                }
                lines.extend(serde_json::to_vec(&snapshot).ok()?);
                lines.push(b'\n');
                Some(lines)
            }
            Stream::Events { query, first } => loop {
                if !std::mem::replace(first, false) {
                    wait(worker, FOLLOW_INTERVAL).await;
                }
                if worker.draining.get() {
                    return None;
                }
                // A store that is busy or down for a moment has the same events afterwards.
                let Ok(news) = events(worker, query.clone()).await else { continue };
                let last = news.last().map(|event| event.id);
                // From now on whatever is new; an empty trail begins before its first event.
                query.after_id = last.or(query.after_id).or(Some(0));
                let mut lines = vec![];
                for event in &news {
                    lines.extend(serde_json::to_vec(event).ok()?);
                    lines.push(b'\n');
                }
                if !lines.is_empty() {
                    return Some(lines);
                }
            },
            Stream::Values(export) => {
                let mut reading = export.take()?;
                let shared = &worker.shared;
                let patience = worker.config().http.request_timeout;
                let read = shared.records.run(patience, move || (reading.read(), reading)).await;
                match read {
                    Ok((Ok(lines), reading)) => {
                        *export = Some(reading);
                        lines
                    }
                    // The client misses the last line.
                    Ok((Err(error), reading)) => {
                        worker.log(Level::Warn, &format!("{reading:?} ended: {error}"));
                        None
                    }
                    Err(_) => None,
                }
            }
            Stream::Log(follower) => loop {
                let looking = follower.clone();
                // While an earlier look still waits for its disk, another would only take a second thread.
                let look = move || {
                    if let Ok(mut follower) = looking.try_lock() {
                        follower.look();
                    }
                };
                let shared = &worker.shared;
                let mut look = pin!(shared.records.run(worker.config().http.request_timeout, look));
                while timers::timeout(FOLLOW_INTERVAL, look.as_mut()).await.is_err() {
                    if worker.draining.get() {
                        return None;
                    }
                }
                let lines = follower.try_lock().map(|mut follower| follower.take()).unwrap_or_default();
                if !lines.is_empty() {
                    return Some(lines);
                }
                if worker.draining.get() {
                    return None;
                }
                timers::sleep(FOLLOW_INTERVAL).await;
            },
        }
    }
}

/// Adds the ends of standard error that the reader does not have yet.
fn tell_stderr(
    snapshot: &mut Snapshot,
    plugins: &[PluginStatus],
    told: &mut HashMap<usize, Arc<VecDeque<String>>>,
) {
    told.retain(|index, _| plugins.iter().any(|plugin| plugin.index == *index));
    let by_id: HashMap<&str, &PluginStatus> =
        plugins.iter().map(|plugin| (plugin.metadata.id.as_str(), plugin)).collect();
    for status in &mut snapshot.plugins {
        let Some(plugin) = by_id.get(status.id.as_str()) else { continue };
        // While it is held here, a line more makes another tail of it.
        let before = told.insert(plugin.index, plugin.stderr.clone());
        let known = match before {
            Some(before) => Arc::ptr_eq(&before, &plugin.stderr),
            None => plugin.stderr.is_empty(),
        };
        status.stderr = (!known).then(|| plugin.stderr.iter().cloned().collect());
    }
}

/// Sleeps, but not over the beginning of the daemon's end.
async fn wait(worker: &Worker, interval: Duration) {
    let until = Instant::now() + interval;
    while !worker.draining.get() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        timers::sleep(left.min(FOLLOW_INTERVAL)).await;
    }
}

async fn events(worker: &Worker, query: EventQuery) -> Result<Vec<EventRow>, Failure> {
    let (tell, told) = oneshot::channel();
    let reply = Box::new(move |rows| {
        let _ = tell.send(rows);
    });
    worker.shared.store.events(query, reply);
    match told.await {
        Ok(Ok(rows)) => Ok(rows),
        Ok(Err(EventsError::Busy)) => {
            Err(Failure::Store { code: "busy", message: EventsError::Busy.to_string() })
        }
        Ok(Err(error)) => Err(Failure::Store { code: "unavailable", message: error.to_string() }),
        Err(oneshot::Canceled) => Err(Failure::Stopping),
    }
}

/// Values, events and log lines, an object a line.
const NDJSON: &str = "application/x-ndjson";

fn ndjson() -> AnswerHead {
    let mut fields = Vec::new();
    add_field(&mut fields, "content-type", NDJSON);
    add_field(&mut fields, "cache-control", "no-store");
    AnswerHead { status: 200, fields }
}

const UNKNOWN: &str = "no plugin has this id";

/// Errors: there is no such plugin. A worker may not have heard of a new one yet; the supervisor has the last word.
async fn check_known(worker: &Worker, id: &str) -> Result<(), Failure> {
    let known =
        worker.by_id(id).is_some() || supervised(worker).await?.iter().any(|plugin| plugin.metadata.id == id);
    if known { Ok(()) } else { Err(worker.unknown_to_operator(UNKNOWN)) }
}

/// Errors: events of a plugin are asked for that is not there, and of which the trail has never heard.
async fn check_told_of(worker: &Worker, query: &EventQuery) -> Result<(), Failure> {
    let Some(id) = &query.plugin_id else { return Ok(()) };
    if worker.by_id(id).is_some() {
        return Ok(());
    }
    let any = EventQuery { plugin_id: Some(id.clone()), limit: 1, ..EventQuery::default() };
    if events(worker, any).await?.is_empty() { check_known(worker, id).await } else { Ok(()) }
}

/// What the supervisor says of all plugins.
pub async fn supervised(worker: &Worker) -> Result<Vec<PluginStatus>, Failure> {
    let (tell, told) = oneshot::channel();
    let take = Box::new(move |plugins| {
        let _ = tell.send(plugins);
    });
    worker.shared.supervisor.send(Command::Snapshot(take));
    told.await.map_err(|oneshot::Canceled| Failure::Stopping)
}

/// Values over HTTP: what 1.0 plugins use, and an operator with `curl`.
async fn kv(worker: &Worker, id: &str, body: &[u8]) -> Result<LocalAnswer, Failure> {
    check_known(worker, id).await?;
    let question = kv_question(body).map_err(|detail| Failure::Malformed { status: 400, detail })?;
    match kv_answer(ask(worker, id, question)).await {
        KvAnswer::Value(value) => Ok(LocalAnswer::json(200, &json!({ "value": value }))),
        KvAnswer::Keys(keys) => Ok(LocalAnswer::json(200, &json!({ "keys": keys }))),
        KvAnswer::Error { code, message } => Err(Failure::Store { code, message }),
    }
}

fn ask(worker: &Worker, id: &str, question: KvQuestion) -> oneshot::Receiver<KvAnswer> {
    let (tell, told) = oneshot::channel();
    let reply = Box::new(move |answer| {
        let _ = tell.send(answer);
    });
    worker.shared.store.ask(id, question, reply);
    told
}

async fn kv_answer(told: oneshot::Receiver<KvAnswer>) -> KvAnswer {
    match timers::timeout(KV_TIMEOUT, told).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(oneshot::Canceled)) | Err(_) => {
            let message = "the disk did not answer in time; a value may still be stored or removed".into();
            KvAnswer::Error { code: "unavailable", message }
        }
    }
}

/// Takes in values, a line each, in their order: those of one request share transactions. Answers how many were stored
/// or removed, and which lines were not and why.
async fn import(worker: &Worker, id: &str, body: &[u8]) -> Result<LocalAnswer, Failure> {
    check_known(worker, id).await?;
    let refuse = |detail| Failure::Malformed { status: 400, detail };
    // All of them are read before the first is stored.
    let mut entries = Vec::new();
    for (number, line) in (1..).zip(body.split(|&byte| byte == b'\n')) {
        if number > IMPORT_LINES_MAX + 1 {
            return Err(refuse(format!("one request takes {IMPORT_LINES_MAX} lines")));
        }
        match Entry::parse(line) {
            Ok(None) => {}
            Ok(Some(entry)) => entries.push((number, entry)),
            Err(error) => return Err(refuse(format!("line {number}: {error}"))),
        }
    }
    let asked: Vec<_> =
        entries.into_iter().map(|(number, entry)| (number, ask(worker, id, entry.into_question()))).collect();
    let mut done = 0;
    let mut refused = vec![];
    for (number, told) in asked {
        match kv_answer(told).await {
            KvAnswer::Error { code, message } => {
                refused.push(json!({ "line": number, "code": code, "message": message }));
            }
            KvAnswer::Value(_) | KvAnswer::Keys(_) => done += 1,
        }
    }
    Ok(LocalAnswer::json(200, &json!({ "done": done, "refused": refused })))
}

/// An integer from 0, however it is written: in JSON 5.0 is one, too.
fn whole_number(value: &Value) -> Option<u64> {
    let integral = |number: &f64| *number >= 0.0 && number.fract() == 0.0;
    value.as_u64().or_else(|| value.as_f64().filter(integral).map(|number| number as u64))
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
            let limit = asked.get("limit").filter(|limit| !limit.is_null());
            let limit =
                limit.map(|limit| whole_number(limit).ok_or("`limit` must be a number of keys".to_owned()));
            Ok(KvQuestion::List { prefix, limit: limit.transpose()? })
        }
        other => Err(format!("`action` is {other:?}, but must be get, set, delete or list")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_names_every_type_of_event() {
        let document: Value = serde_json::from_str(OPENAPI).expect("JSON");
        let parameters = document.pointer("/paths/~1v1~1events/get/parameters").and_then(Value::as_array);
        let of_type = parameters.and_then(|all| all.iter().find(|one| one["name"] == "type"));
        assert_eq!(of_type.expect("it is there")["schema"]["enum"], json!(EVENT_KINDS));
    }
}
