//! The SDK: what a plugin's author writes against.
//!
//! ```no_run
//! use toru_plugin_api::*;
//!
//! struct Hello;
//!
//! #[async_trait]
//! impl ToruPlugin for Hello {
//!     fn metadata(&self) -> PluginMetadata {
//!         PluginMetadata::new("hello", "Hello", env!("CARGO_PKG_VERSION"))
//!     }
//!
//!     async fn handle_http(
//!         &self,
//!         request: HttpRequest,
//!         _ctx: &PluginContext,
//!     ) -> PluginResult<HttpResponse> {
//!         Ok(HttpResponse::text(format!("hello, {}", request.path)))
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     run(Hello)
//! }
//! ```
//!
//! One with everything: configuration, stored values, errors for the client, log lines, a start and an end.
//!
//! ```no_run
//! use std::collections::BTreeMap;
//! use std::sync::OnceLock;
//!
//! use toru_plugin_api::*;
//!
//! #[derive(Default)]
//! struct Notes {
//!     owner: OnceLock<String>,
//! }
//!
//! #[async_trait]
//! impl ToruPlugin for Notes {
//!     fn metadata(&self) -> PluginMetadata {
//!         PluginMetadata::new("notes", "Notes", env!("CARGO_PKG_VERSION")).icon("📝").author("you")
//!     }
//!
//!     async fn init(&self, ctx: &PluginContext) -> PluginResult<()> {
//!         let mut config: BTreeMap<String, String> = ctx.config()?;
//!         let owner = config.remove("owner").unwrap_or_else(|| "nobody".to_owned());
//!         ctx.log.info(format!("notes of {owner}"));
//!         self.owner.get_or_init(|| owner);
//!         Ok(())
//!     }
//!
//!     async fn handle_http(
//!         &self,
//!         request: HttpRequest,
//!         ctx: &PluginContext,
//!     ) -> PluginResult<HttpResponse> {
//!         match (request.method.as_str(), request.path.strip_prefix("/notes/")) {
//!             ("GET", None) => Ok(HttpResponse::json(&self.owner.get())),
//!             ("GET", Some(name)) => match ctx.kv.get(name).await? {
//!                 Some(note) => Ok(HttpResponse::text(note)),
//!                 None => Err(PluginError::status(404, "no such note")),
//!             },
//!             ("PUT", Some(name)) => {
//!                 ctx.kv.set(name, request.text()?).await?;
//!                 Ok(HttpResponse::status(204))
//!             }
//!             _ => Err(PluginError::status(405, "notes are read and written")),
//!         }
//!     }
//!
//!     async fn handle_kv(&self, request: KvRequest, ctx: &PluginContext) -> PluginResult<KvResponse> {
//!         match request {
//!             KvRequest::Get { key } => Ok(ctx.kv.get(&key).await?.into()),
//!             KvRequest::List { prefix, limit } => Ok(ctx.kv.list(&prefix, limit).await?.into()),
//!             _ => Err(PluginError::status(403, "notes are written over HTTP")),
//!         }
//!     }
//!
//!     async fn shutdown(&self, ctx: &PluginContext) {
//!         ctx.log.info("done");
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     run_with(Notes::default(), Options::default().threads(4))
//! }
//! ```
//!
//! A handler is tested without a core, with [`PluginContext::detached`]:
//!
//! ```
//! # use toru_plugin_api::*;
//! # struct Hello;
//! # #[async_trait]
//! # impl ToruPlugin for Hello {
//! #     fn metadata(&self) -> PluginMetadata { PluginMetadata::new("hello", "Hello", "1") }
//! #     async fn handle_http(&self, request: HttpRequest, ctx: &PluginContext) -> PluginResult<HttpResponse> {
//! #         ctx.log.info("a request");
//! #         Ok(HttpResponse::text(format!("hello, {}, {}", request.path, ctx.kv.get("x").await.is_err())))
//! #     }
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let ctx = PluginContext::detached(&Hello.metadata());
//! let mut request = HttpRequest::default();
//! request.path = "/you".to_owned();
//! let response = Hello.handle_http(request, &ctx).await.unwrap();
//! assert_eq!(response.body, b"hello, /you, true");
//! # }
//! ```
//!
//! The SDK speaks 1.1, and 1.0 with a core that does; it answers in the framing that it is spoken to in,
//! so `socat` works too. All I/O of this crate is in this module and below.

use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::metadata::Metadata;

mod context;
mod http;
mod lead;
mod outbox;
#[cfg_attr(not(feature = "tokio-uring"), path = "sdk/no_ring.rs")]
mod ring;
mod serve;
mod socket;
mod spare;
#[cfg(feature = "tower")]
pub mod tower;

pub use context::{Kv, KvError, Log, LogWith, PluginContext};
pub use http::{Headers, HttpRequest, HttpResponse, KvRequest, KvResponse, PluginError, PluginResult};

/// A plugin: what it is, and what it does with a request.
///
/// Methods take `&self`, because requests are handled at the same time: up to `max_in_flight` of the metadata.
#[async_trait]
pub trait ToruPlugin: Send + Sync + 'static {
    /// Who the plugin is. Called before any socket exists; touch nothing here.
    fn metadata(&self) -> Metadata;

    /// Prepares the plugin; requests come after it has returned.
    ///
    /// Errors: reported to the core as `failed`; requests get 503.
    async fn init(&self, _ctx: &PluginContext) -> PluginResult<()> {
        Ok(())
    }

    /// Answers one request.
    ///
    /// It is dropped at an `await` when the client has gone or the time is up.
    /// Errors: become a response, see [`PluginError`]; a panic becomes a 500 and ends nothing else.
    async fn handle_http(&self, request: HttpRequest, ctx: &PluginContext) -> PluginResult<HttpResponse>;

    /// Answers one kv request to the plugin itself: cores of 1.0 may send them, and people who try a plugin by hand.
    ///
    /// It is not the way to the core's storage, which is [`PluginContext::kv`]. A 1.1 core sends none.
    /// Without a method of its own a plugin answers with the error `unsupported`, so that nobody waits.
    /// Errors: become an error answer with a code, see [`PluginError`].
    async fn handle_kv(&self, _request: KvRequest, _ctx: &PluginContext) -> PluginResult<KvResponse> {
        Err(PluginError::status(501, "the plugin takes no kv requests"))
    }

    /// Puts things away; called once, after the last answer, within the core's deadline.
    async fn shutdown(&self, _ctx: &PluginContext) {}
}

/// How the plugin's process runs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Threads that serve connections, at least 1, and as many for what handlers spawn on tokio; default 2.
    ///
    /// One of them serves all connections and polls handlers on the spot. Where a handler holds it up for more than
    /// some 100 ms, the next goes on with the other connections, so with two of them a handler that blocks delays
    /// `ping` no longer than that. Requests behind it on its own connection wait; for a while after it, each gets
    /// a task.
    /// A handler that computes for long belongs in `tokio::task::spawn_blocking`, or wants more threads.
    pub threads: usize,
    /// Whether what the core sends is read through io_uring, by tokio-uring; default `false`.
    ///
    /// It costs 1.2 to 1.7 times the plugin's CPU a message, by `cargo bench -p toru-benches --bench sdk`, which measures
    /// both side by side on your machine.
    /// A thread of its own reads all connections and wakes those that serve them; all else is as without.
    /// Where the kernel has no io_uring or refuses it (a container's filter, `io_uring_disabled`, too little memory that
    /// may be locked), the plugin says so on stderr and runs as without this.
    #[cfg(feature = "tokio-uring")]
    pub io_uring: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: 2,
            #[cfg(feature = "tokio-uring")]
            io_uring: false,
        }
    }
}

impl Options {
    /// Sets the number of threads.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Sets whether to read through io_uring.
    #[cfg(feature = "tokio-uring")]
    #[must_use]
    pub fn io_uring(mut self, io_uring: bool) -> Self {
        self.io_uring = io_uring;
        self
    }
}

/// Runs the plugin: the whole of `main`.
///
/// With `--metadata` it prints the metadata and returns. Otherwise it serves on `TORU_PLUGIN_SOCKET`,
/// or by hand on `/tmp/toru-plugins/<id>.sock`, until the core says `shutdown` or SIGTERM or SIGINT comes.
/// Exit codes: 0 stopped as asked, 1 failure with the reason on stderr.
pub fn run(plugin: impl ToruPlugin) -> ExitCode {
    run_with(plugin, Options::default())
}

/// [`run`] with [`Options`].
pub fn run_with(plugin: impl ToruPlugin, options: Options) -> ExitCode {
    match try_run(Arc::new(plugin), &options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

fn try_run(plugin: Arc<dyn ToruPlugin>, options: &Options) -> Result<(), String> {
    let metadata = plugin.metadata();
    metadata.check().map_err(|error| format!("bad metadata: {error}"))?;
    if std::env::args_os().skip(1).any(|arg| arg == "--metadata") {
        use std::io::Write as _;
        // The reader may be gone already, which is its business.
        let _ = writeln!(std::io::stdout(), "{}", metadata.to_json());
        return Ok(());
    }
    let path = socket::path(&metadata.id)?;
    let (listener, bound) = socket::bind(&path)?;
    let threads = options.threads.max(1);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(|error| format!("failed to start the runtime: {error}"))?;
    let server = serve::Server::new(plugin, metadata, threads);
    #[cfg(feature = "tokio-uring")]
    let server = match options.io_uring.then(ring::Readers::start) {
        None => server,
        Some(Ok(readers)) => server.with_readers(readers),
        Some(Err(error)) => {
            eprintln!("io_uring cannot be used, so the plugin reads without it: {error}");
            server
        }
    };
    let result = runtime.block_on(serve_until_stopped(server, listener));
    drop(bound);
    // A handler that blocks must not hold up the exit past the deadline.
    runtime.shutdown_timeout(Duration::ZERO);
    result
}

async fn serve_until_stopped(server: serve::Server, listener: UnixListener) -> Result<(), String> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |error: std::io::Error| format!("failed to watch for signals: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut next_signal = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let stop = server.stopper();
    let serving = server.serve(listener);
    tokio::pin!(serving);
    tokio::select! {
        result = &mut serving => return result,
        () = next_signal() => stop.stop(None),
    }
    tokio::select! {
        result = &mut serving => result,
        // The second signal means at once.
        () = next_signal() => Ok(()),
    }
}
