//! An axum `Router` as a plugin: its process is this test binary, spoken to over its socket.
#![cfg(feature = "tower")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Path as Segment, Query};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde_json::{Value, json};
use toru_plugin_api::{Options, PluginContext, PluginError, PluginMetadata, tower};

/// Nothing here takes long; this only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(20);

fn router(word: String) -> Router {
    Router::new()
        .route("/", get(|| async { Json(json!({ "hello": "world" })) }))
        .route("/word", get(move || async { word }))
        .route(
            "/items/{item}",
            get(|Segment(item): Segment<String>, Query(query): Query<Vec<(String, String)>>| async move {
                Json(json!({ "item": item, "query": query }))
            }),
        )
        .route("/echo", post(|content: Bytes| async move { (StatusCode::CREATED, content) }))
        .route(
            "/cookies",
            get(|| async {
                let mut headers = HeaderMap::new();
                headers.append(header::SET_COOKIE, "a=1".parse().unwrap());
                headers.append(header::SET_COOKIE, "b=2".parse().unwrap());
                headers
            }),
        )
        .route(
            "/who",
            get(|Extension(ctx): Extension<PluginContext>, Extension(client): Extension<SocketAddr>| async move {
                format!("{} {client}", ctx.plugin_id())
            }),
        )
        .route("/panic", get(panics))
}

async fn panics() -> &'static str {
    panic!("the reason")
}

#[test]
fn plugin_process() {
    let Ok(how) = std::env::var("TOWER_PLUGIN") else { return };
    let metadata = PluginMetadata::new("axum-app", "Axum", "1.0.0");
    let code = match how.as_str() {
        "service" => tower::run(metadata, router("at once".to_owned())),
        _ => tower::run_with_init(metadata, Options::default(), async |ctx: PluginContext| {
            let config: Value = ctx.config()?;
            match config["word"].as_str() {
                Some(word) => Ok(router(word.to_owned())),
                None => Err(PluginError::internal("no word")),
            }
        }),
    };
    assert_eq!(code, std::process::ExitCode::SUCCESS);
}

struct Plugin {
    child: Child,
    folder: tempfile::TempDir,
}

impl Plugin {
    fn start(how: &str) -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let child = Command::new(std::env::current_exe().expect("/proc is mounted"))
            .args(["--exact", "plugin_process"])
            .env("TOWER_PLUGIN", how)
            .env("TORU_PLUGIN_SOCKET", folder.path().join("s"))
            .stdout(Stdio::null())
            .spawn()
            .expect("it runs");
        Self { child, folder }
    }

    fn connect(&self) -> Core {
        Core(BufReader::new(connect(&self.folder.path().join("s"))))
    }
}

fn connect(path: &Path) -> UnixStream {
    let began = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
                return stream;
            }
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A core in line framing.
struct Core(BufReader<UnixStream>);

impl Core {
    fn say(&mut self, message: &Value) {
        writeln!(self.0.get_mut(), "{message}").expect("the plugin reads");
    }

    /// The next message that is no log line.
    fn hear(&mut self) -> Value {
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("the plugin answers");
            let message: Value =
                serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
            if message["type"] != "log" {
                return message;
            }
        }
    }

    fn init(&mut self, config: &Value) -> Value {
        self.say(&json!({ "type": "lifecycle", "payload": { "action": "init", "protocol": "1.1", "config": config } }));
        self.hear()["payload"].take()
    }

    fn ask(&mut self, request: &Value) -> Value {
        self.say(&json!({ "type": "http", "request_id": "r1", "payload": request }));
        self.hear()["payload"].take()
    }

    fn get(&mut self, path: &str) -> Value {
        self.ask(&json!({ "method": "GET", "path": path, "remote_addr": "127.0.0.1:7" }))
    }
}

#[test]
fn a_router_is_a_plugin() {
    let plugin = Plugin::start("service");
    let mut core = plugin.connect();
    assert_eq!(core.init(&json!({}))["action"], "ready");
    let answer = core.get("/");
    assert_eq!((&answer["status"], &answer["body"]), (&json!(200), &json!(r#"{"hello":"world"}"#)));
    assert_eq!(answer["headers"]["content-type"], "application/json");
    assert_eq!(core.get("/word")["body"], "at once");
    let answer = core.get("/items/%C3%A9?q=a%20b&q=c");
    assert_eq!(answer["body"], r#"{"item":"é","query":[["q","a b"],["q","c"]]}"#);
    let answer = core.ask(
        &json!({ "method": "POST", "path": "/echo", "body": "AP8=", "body_encoding": "base64", "headers": {"x": ["1", "2"]} }),
    );
    assert_eq!((&answer["status"], &answer["body"]), (&json!(201), &json!("AP8=")));
    assert_eq!(core.get("/cookies")["headers"]["set-cookie"], json!(["a=1", "b=2"]));
    assert_eq!(core.get("/who")["body"], "axum-app 127.0.0.1:7");
    assert_eq!(core.get("/nowhere")["status"], 404);
    assert_eq!(core.ask(&json!({ "method": "DELETE", "path": "/" }))["status"], 405);
    assert_eq!(core.ask(&json!({ "method": "G T", "path": "/" }))["status"], 400);
    assert_eq!(core.get("/panic")["status"], 500);
    assert_eq!(core.get("/word")["status"], 200);
}

#[test]
fn a_router_made_in_init() {
    let plugin = Plugin::start("init");
    let mut core = plugin.connect();
    assert_eq!(core.init(&json!({ "word": "configured" }))["action"], "ready");
    assert_eq!(core.get("/word")["body"], "configured");
    let plugin = Plugin::start("init");
    let mut core = plugin.connect();
    let failed = core.init(&json!({}));
    assert_eq!((&failed["action"], &failed["error"]), (&json!("failed"), &json!("no word")));
    assert_eq!(core.get("/word")["status"], 503);
}
