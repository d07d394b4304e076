//! A console without a core and without a terminal: messages in, the model and its picture out.

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use toru_plugin_api::status::{Limits, PluginOnWorker, PluginStatus, Snapshot, StoreStatus, WorkerStatus};

use crate::model::{Model, Now};
use crate::update::{Command, Key, Msg, News, update};
use crate::view::{self, Look};

/// 03:12:00 UTC on some day.
const BEGIN_UNIX_MS: u64 = 1_767_237_120_000;

pub struct Rig {
    pub model: Model,
    pub look: Look,
    pub seconds: u64,
    /// What the next snapshot tells of the worker's past.
    pub worker_past: Vec<f64>,
    /// What the last message asked for.
    pub command: Option<Command>,
}

/// A plugin that runs and does nothing.
pub fn plugin(id: &str) -> PluginStatus {
    PluginStatus {
        id: id.into(),
        name: format!("The {id} plugin"),
        version: "1.2.0".into(),
        author: Some("ToruAI".into()),
        icon: "x".into(),
        route: format!("/{id}"),
        enabled: true,
        running: true,
        health: "healthy".into(),
        pid: Some(4000),
        socket_path: format!("/tmp/toru-plugins/{id}.sock"),
        state: "running".into(),
        uptime_ms: Some(3_600_000),
        ping_us: Some(120),
        p50_us: Some(240),
        p95_us: Some(1300),
        p99_us: Some(4800),
        cpu_percent: Some(1.5),
        rss_bytes: Some(12_300_000),
        protocol: "1.1".into(),
        limits: Some(Limits {
            in_flight_max: 1024,
            timeout_ms: 30_000,
            message_bytes_max: 1 << 20,
            kv_bytes_max: 64 << 20,
            open_files_max: Some(256),
            ..Limits::default()
        }),
        by_worker: vec![
            PluginOnWorker { connections: 1, ..PluginOnWorker::default() },
            PluginOnWorker::default(),
        ],
        ..PluginStatus::default()
    }
}

/// One that died and waits for its next start.
pub fn crashed(id: &str, restarts: u64) -> PluginStatus {
    PluginStatus {
        running: false,
        health: "crashed".into(),
        state: "crashed".into(),
        pid: None,
        uptime_ms: None,
        ping_us: None,
        cpu_percent: None,
        rss_bytes: None,
        restarts,
        last_restart: Some(BEGIN_UNIX_MS),
        last_exit: Some("killed by SIGKILL".into()),
        ..plugin(id)
    }
}

impl Rig {
    pub fn new(columns: u16, rows: u16) -> Self {
        let now = Now { elapsed: Duration::ZERO, unix_ms: BEGIN_UNIX_MS };
        let model = Model::new(now, (columns, rows), false, false);
        Self { model, look: Look::default(), seconds: 0, worker_past: vec![], command: None }
    }

    pub fn unix_ms(&self) -> u64 {
        BEGIN_UNIX_MS + self.seconds * 1000
    }

    pub fn send(&mut self, msg: Msg) -> &mut Self {
        let now = Now { elapsed: Duration::from_secs(self.seconds), unix_ms: self.unix_ms() };
        self.command = update(&mut self.model, now, msg);
        self
    }

    pub fn news(&mut self, news: News) -> &mut Self {
        self.send(Msg::News(news))
    }

    pub fn key(&mut self, key: Key) -> &mut Self {
        self.send(Msg::Key(key))
    }

    pub fn typed(&mut self, text: &str) -> &mut Self {
        for letter in text.chars() {
            self.key(if letter == '\n' { Key::Enter } else { Key::Char(letter) });
        }
        self
    }

    /// A second later the core says this.
    pub fn snapshot(&mut self, plugins: Vec<PluginStatus>) -> &mut Self {
        self.seconds += 1;
        let time = self.seconds;
        let requests = plugins.iter().map(|plugin| plugin.requests).sum();
        let snapshot = Snapshot {
            timestamp: format!("2026-01-01T03:{:02}:{:02}.000Z", 12 + time / 60, time % 60),
            version: "0.1.0".into(),
            pid: 777,
            uptime_ms: 90_000_000 + time * 1000,
            dropped_log_lines: 0,
            plugins,
            workers: vec![WorkerStatus {
                number: 0,
                driver: "io_uring".into(),
                connections: 12,
                requests,
                past_requests_per_s: std::mem::take(&mut self.worker_past),
                ..WorkerStatus::default()
            }],
            store: StoreStatus {
                writable: true,
                commits: 45,
                last_commit_us: Some(1500),
                p50_commit_us: Some(1200),
                p99_commit_us: Some(13_000),
                ..StoreStatus::default()
            },
            window_ms: Some(10_000),
        };
        self.news(News::Snapshot(Box::new(snapshot)))
    }

    pub fn event(&mut self, id: u64, plugin: &str, kind: &str, details: &str) -> &mut Self {
        let time = format!("2026-01-01T03:{:02}:{:02}.000Z", 12 + self.seconds / 60, self.seconds % 60);
        self.news(News::Event(format!(
            r#"{{"id":{id},"plugin_id":"{plugin}","event_type":"{kind}","timestamp":"{time}","details":{details}}}"#
        )))
    }

    pub fn log(&mut self, plugin: &str, level: &str, message: &str) -> &mut Self {
        let line = serde_json::json!({
            "timestamp": "2026-01-01T03:12:00.000Z", "level": level, "plugin_id": plugin, "message": message,
        });
        let generation = self.model.logs.generation;
        self.news(News::Log { generation, plugin: plugin.into(), line: line.to_string() })
    }

    pub fn buffer(&self) -> Buffer {
        let (columns, rows) = self.model.size;
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).expect("a test backend");
        terminal.draw(|frame| view::draw(&self.model, self.look, frame)).expect("a test backend");
        terminal.backend().buffer().clone()
    }

    /// The picture as text, without what trails.
    pub fn picture(&self) -> String {
        let buffer = self.buffer();
        let mut out = String::new();
        for row in 0..buffer.area.height {
            let line: String = (0..buffer.area.width).map(|column| buffer[(column, row)].symbol()).collect();
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}
