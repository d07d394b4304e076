//! A plugin that does on request what the SDK's tests want to see handled.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::sync::watch;
use toru_plugin_api::{
    HttpRequest, HttpResponse, KvRequest, KvResponse, Options, PluginContext, PluginError, PluginMetadata,
    PluginResult, ToruPlugin, async_trait, run_with,
};

pub struct Probe {
    /// Whose turn it is to answer, for `/turn/N`.
    turn: watch::Sender<usize>,
    /// Handlers of `/hold` that were dropped.
    dropped: watch::Sender<usize>,
    /// Handlers that block their thread, until it is 0.
    blocked: AtomicUsize,
    is_initialized: AtomicBool,
    inits: AtomicUsize,
}

impl Probe {
    pub fn new() -> Self {
        Self {
            turn: watch::Sender::new(usize::MAX),
            dropped: watch::Sender::new(0),
            blocked: AtomicUsize::new(0),
            is_initialized: AtomicBool::new(false),
            inits: AtomicUsize::new(0),
        }
    }

    /// Holds up its thread until `/unblock`, as a call that knows no `await` does.
    fn block(&self) -> HttpResponse {
        self.blocked.fetch_add(1, Ordering::SeqCst);
        while self.blocked.load(Ordering::SeqCst) > 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        HttpResponse::text("unblocked")
    }
}

#[async_trait]
impl ToruPlugin for Probe {
    fn metadata(&self) -> PluginMetadata {
        PluginMetadata::new("probe", "Probe", "1.0.0").author("the tests")
    }

    async fn init(&self, ctx: &PluginContext) -> PluginResult<()> {
        self.inits.fetch_add(1, Ordering::Relaxed);
        let config: Value = ctx.config()?;
        match config["init"].as_str() {
            Some("fail") => return Err(PluginError::internal("no licence")),
            Some("panic") => panic!("as configured"),
            // Waits, so that what comes meanwhile has to wait too.
            Some("ask") => {
                let value = ctx.kv.get("at-init").await?;
                ctx.log.with(json!({ "value": value })).info("initialized");
            }
            _ => tokio::task::yield_now().await,
        }
        self.is_initialized.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn handle_http(&self, request: HttpRequest, ctx: &PluginContext) -> PluginResult<HttpResponse> {
        let segments: Vec<&str> = request.path[1..].split('/').collect();
        let number = || segments[1].parse::<usize>();
        match segments[0] {
            "" => Ok(HttpResponse::json(&json!({ "ok": true }))),
            "echo" => Ok(HttpResponse::bytes("application/octet-stream", request.body)
                .header("x-method", request.method)
                .header("x-query", request.query)),
            "turn" => {
                let mine = number()?;
                let mut turn = self.turn.subscribe();
                turn.wait_for(|turn| *turn == mine).await?;
                self.turn.send_replace(mine.wrapping_sub(1));
                Ok(HttpResponse::text(request.text()?))
            }
            "start-turns" => {
                self.turn.send_replace(number()?);
                Ok(HttpResponse::status(204))
            }
            "hold" => {
                struct Dropped(watch::Sender<usize>);
                impl Drop for Dropped {
                    fn drop(&mut self) {
                        self.0.send_modify(|dropped| *dropped += 1);
                    }
                }
                let _dropped = Dropped(self.dropped.clone());
                std::future::pending().await
            }
            "dropped" => {
                let count = number()?;
                self.dropped.subscribe().wait_for(|dropped| *dropped >= count).await?;
                Ok(HttpResponse::status(204))
            }
            "block" => Ok(self.block()),
            "block-later" => {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                Ok(self.block())
            }
            "yield" => {
                for _ in 0..number()? {
                    tokio::task::yield_now().await;
                }
                Ok(if segments.len() > 2 { self.block() } else { HttpResponse::text("yielded") })
            }
            "blocked" => Ok(HttpResponse::json(&self.blocked.load(Ordering::SeqCst))),
            "unblock" => {
                self.blocked.store(0, Ordering::SeqCst);
                Ok(HttpResponse::status(204))
            }
            "panic" => panic!("before any await"),
            "panic-later" => {
                tokio::task::yield_now().await;
                panic!("after an await");
            }
            "fail" => Err(PluginError::from(std::io::Error::other("the secret cause"))),
            "refuse" => Err(PluginError::status(403, "not for you")),
            "bytes" => Ok(HttpResponse::bytes("text/plain", vec![b'x'; number()?])),
            "bytes-later" => {
                // All wait before the first goes on.
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                Ok(HttpResponse::bytes("text/plain", vec![b'x'; number()?]))
            }
            "bad-header" => Ok(HttpResponse::text("").header("x-a", "1\r\nx-b: 2")),
            "bad-status" => Ok(HttpResponse::status(199)),
            "cookies" => {
                Ok(HttpResponse::status(204).header("Set-Cookie", "a=1").header("set-cookie", "b=2"))
            }
            "slow" => {
                // Longer than the SDK lets a handler hold up the others without giving tasks to them.
                let began = std::time::Instant::now();
                while began.elapsed() < std::time::Duration::from_millis(2) {}
                Ok(HttpResponse::text(request.text()?))
            }
            "context" => Ok(HttpResponse::json(&json!({
                "plugin_id": ctx.plugin_id(),
                "instance_id": ctx.instance_id(),
                "data_dir": ctx.data_dir(),
                "config": ctx.config::<Value>()?,
                "initialized": self.is_initialized.load(Ordering::Relaxed),
                "inits": self.inits.load(Ordering::Relaxed),
            }))),
            "kv" => {
                let answer = match segments[1] {
                    "get" => ctx.kv.get("k").await.map(|value| json!(value)),
                    "set" => ctx.kv.set("k", "v").await.map(|()| Value::Null),
                    "delete" => ctx.kv.delete("k").await.map(|()| Value::Null),
                    "list" => ctx.kv.list("p/", Some(2)).await.map(|keys| json!(keys)),
                    _ => ctx.kv.set("k", &"x".repeat(2 << 20)).await.map(|()| Value::Null),
                };
                Ok(HttpResponse::json(&match answer {
                    Ok(value) => json!({ "value": value }),
                    Err(error) => json!({ "code": error.code(), "text": error.to_string() }),
                }))
            }
            "log-flood" => {
                for _ in 0..number()? {
                    ctx.log.info("x".repeat(1000));
                }
                Ok(HttpResponse::status(204))
            }
            "log" => {
                ctx.log.with(json!({ "n": 1 })).warn("as asked");
                Ok(HttpResponse::status(204))
            }
            _ => Err(PluginError::status(404, "no such path")),
        }
    }

    async fn handle_kv(&self, request: KvRequest, ctx: &PluginContext) -> PluginResult<KvResponse> {
        // Half of them answer at once, the others in a later turn.
        if matches!(request, KvRequest::Get { .. } | KvRequest::Delete { .. }) {
            tokio::task::yield_now().await;
        }
        match request {
            KvRequest::Get { key } => match &*key {
                "none" => Ok(None.into()),
                "panic" => panic!("in the kv handler"),
                "fail" => Err(PluginError::internal("the secret cause")),
                "refuse" => Err(PluginError::status(403, "not for you")),
                "large" => Ok(Some("x".repeat(2 << 20)).into()),
                "hold" => std::future::pending().await,
                "core" => Ok(ctx.kv.get("from-kv").await?.into()),
                key => Ok(Some(format!("{key}={}", self.is_initialized.load(Ordering::Relaxed))).into()),
            },
            KvRequest::List { prefix, limit } => Ok(vec![format!("{prefix}{limit:?}")].into()),
            KvRequest::Set { key, value } if key != value => Err(PluginError::status(400, "differ")),
            _ => Ok(KvResponse::Value(None)),
        }
    }

    async fn shutdown(&self, ctx: &PluginContext) {
        // Succeeds only while the connection to the core is still there.
        let stored = ctx.kv.set("goodbye", "1").await;
        eprintln!("shutdown: {stored:?}");
    }
}

/// Has only what a plugin must have.
struct Plain;

#[async_trait]
impl ToruPlugin for Plain {
    fn metadata(&self) -> PluginMetadata {
        PluginMetadata::new("plain", "Plain", "1.0.0")
    }

    async fn handle_http(&self, _request: HttpRequest, _ctx: &PluginContext) -> PluginResult<HttpResponse> {
        Ok(HttpResponse::status(204))
    }
}

/// Lets the kernel refuse the system calls of these numbers to this process, as containers do.
fn refuse(numbers: &str) {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    const EPERM: u32 = 1;
    let numbers = numbers.split(',').map(|number| (number.parse().expect("a number"), vec![])).collect();
    let architecture = std::env::consts::ARCH.try_into().expect("seccompiler knows it");
    let filter = SeccompFilter::new(numbers, SeccompAction::Allow, SeccompAction::Errno(EPERM), architecture);
    let program: BpfProgram =
        filter.expect("no conditions that could contradict").try_into().expect("it fits");
    seccompiler::apply_filter(&program).expect("the kernel takes filters");
}

/// Runs the probe as a plugin's process does, if this process is meant to be one.
pub fn run_if_asked() {
    let Ok(threads) = std::env::var("PROBE_THREADS") else {
        return;
    };
    let options = Options::default().threads(threads.parse().expect("a number"));
    let options = options.io_uring(std::env::var_os("PROBE_IO_URING").is_some());
    if let Ok(numbers) = std::env::var("PROBE_REFUSED") {
        refuse(&numbers);
    }
    let code = match std::env::var_os("PROBE_PLAIN") {
        None => run_with(Probe::new(), options),
        Some(_) => run_with(Plain, options),
    };
    std::process::exit(i32::from(code != ExitCode::SUCCESS));
}
