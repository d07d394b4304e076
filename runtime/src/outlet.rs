//! What the supervisor says, on its way to workers, logs and store.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde_json::{Map, Value, json};
use toru_plugin_api::metadata::Protocol;
use toru_supervisor::{EVENT_KINDS, Kept, KvAnswer, KvQuestion, Level, Phase, PluginView, Stream};

use crate::gate::Gate;
use crate::kv::Store;
use crate::log::{LineBudget, Logger, PluginLog};
use crate::room::Descriptors;
use crate::said;
use crate::worker::{Mailbox, Message, PluginShared, Stats};

/// The supervisor's only way to the rest of the daemon. Lives on its thread.
pub struct Outlet {
    pub workers: Vec<Mailbox>,
    pub logger: Logger,
    pub store: Store,
    pub legacy_connections: u32,
    pub plugins: RefCell<HashMap<usize, Arc<PluginShared>>>,
    pub descriptors: Arc<Descriptors>,
    /// Descriptors by the index of the plugin that they are kept for.
    pub reserved: RefCell<HashMap<usize, usize>>,
    /// So many were too few, which has been told.
    pub short_of: Cell<Option<usize>>,
    /// By the id of the plugin: of those of one id the last to come prints.
    pub output: RefCell<HashMap<String, Printing>>,
    /// Beside the workers, the first thread wants to know.
    pub on_scanned: Box<dyn Fn() + Send>,
}

/// What a plugin prints.
pub struct Printing {
    plugin: Arc<PluginShared>,
    /// How much it may still print in this second.
    budget: LineBudget,
    /// How serious the line is of which parts come, by [`Stream`].
    begun: [Cell<Level>; 2],
}

impl toru_supervisor::Outlet for Outlet {
    fn publish(&self, view: Arc<PluginView>) {
        self.make_room(&view);
        let mut plugins = self.plugins.borrow_mut();
        let shared = plugins.entry(view.index).or_insert_with(|| {
            let capacity = match view.metadata.protocol {
                Protocol::V1_0 => self.legacy_connections,
                Protocol::V1_1 => view.metadata.max_in_flight,
            };
            let shared = Arc::new(PluginShared {
                log: PluginLog::new(&view.metadata.id),
                gate: Gate::new(capacity as usize),
                stats: self.workers.iter().map(|_| Stats::default()).collect(),
                strays: AtomicU64::new(0),
                suspect: AtomicU64::new(0),
            });
            let printing = Printing {
                plugin: shared.clone(),
                budget: LineBudget::default(),
                begun: [Stream::Stdout, Stream::Stderr].map(|stream| Cell::new(usual_level(stream))),
            };
            self.output.borrow_mut().insert(view.metadata.id.clone(), printing);
            shared
        });
        for worker in &self.workers {
            // A worker that has drained has no use for news.
            let _ = worker.unbounded_send(Message::Plugin { view: view.clone(), shared: shared.clone() });
        }
    }

    fn record(&self, plugin_id: &str, kind: &'static str, details: Value) {
        debug_assert!(EVENT_KINDS.contains(&kind), "nobody can ask for {kind}");
        self.store.record(plugin_id, kind, details);
    }

    fn log(&self, level: Level, plugin_id: Option<&str>, message: &str, fields: Map<String, Value>) {
        self.logger.core(level, "plugin_supervisor", message, plugin_id, &fields);
    }

    fn plugin_output(&self, plugin_id: &str, stream: Stream, line: &[u8], part: Option<u64>) {
        let output = self.output.borrow();
        let Some(Printing { plugin, budget, begun }) = output.get(plugin_id) else { return };
        let begun = &begun[stream as usize];
        if part.is_none_or(|part| part == 1) {
            begun.set(usual_level(stream));
        }
        if !budget.take(&self.logger, &plugin.log) {
            return;
        }
        let id = &plugin.log.id;
        let line = String::from_utf8_lossy(line);
        let mut text = &*line;
        // Of the parts of a line only the first can be read; whatever another looks like, it is from the middle.
        let mended = part.filter(|part| *part == 1).and_then(|_| said::mend(text));
        let said = match &mended {
            Some((object, _)) => said::read_part(object),
            None if part.is_none() => said::read(text),
            None => None,
        };
        if let Some(said) = said {
            let unsaid = if part.is_none() { Level::Info } else { usual_level(stream) };
            begun.set(said.level.unwrap_or(unsaid));
            self.logger.plugin_json(id, begun.get(), &said.message, &said.fields);
            let Some((_, rest)) = mended.filter(|(_, rest)| !rest.is_empty()) else { return };
            text = rest;
        }
        let stream = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let fields = json!({ "stream": stream, "line_part": part });
        self.logger.plugin(id, begun.get(), text, fields.as_object());
    }

    fn plugin_log(&self, plugin_id: &str, level: Level, message: &str, fields: Option<&str>) {
        let output = self.output.borrow();
        let Some(Printing { plugin, budget, .. }) = output.get(plugin_id) else { return };
        if budget.take(&self.logger, &plugin.log) {
            let fields = fields.and_then(said::fields).unwrap_or_default();
            self.logger.plugin_json(&plugin.log.id, level, message, &fields);
        }
    }

    fn account_output(&self, plugin_id: &str, ended: bool) {
        if let Some(Printing { plugin, budget, .. }) = self.output.borrow().get(plugin_id) {
            budget.account(&self.logger, &plugin.log, ended);
        }
    }

    fn strays(&self, index: usize, count: u64) {
        if let Some(plugin) = self.plugins.borrow().get(&index) {
            plugin.strays.fetch_add(count, Relaxed);
        }
    }

    fn kv(&self, plugin_id: &str, question: KvQuestion, reply: Box<dyn FnOnce(KvAnswer) + Send>) {
        self.store.ask(plugin_id, question, reply);
    }

    fn keep(&self, plugin_id: &str, kept: &Kept) {
        self.store.keep(plugin_id, kept.clone());
    }

    fn scanned(&self) {
        self.descriptors.expect_no_more();
        self.reserve();
        for worker in &self.workers {
            let _ = worker.unbounded_send(Message::Scanned);
        }
        (self.on_scanned)();
    }

    fn rescanning(&self, begun: bool) {
        for worker in &self.workers {
            let _ = worker.unbounded_send(Message::Rescanning(begun));
        }
    }

    fn unanswered(&self, index: usize) -> u64 {
        let plugins = self.plugins.borrow();
        plugins
            .get(&index)
            .map_or(0, |shared| shared.stats.iter().map(|stats| stats.unanswered.load(Relaxed)).sum())
    }
}

impl Outlet {
    /// Keeps descriptors for a plugin that runs or may at any time.
    fn make_room(&self, view: &PluginView) {
        let gone = view.phase == Phase::Absent && view.generation.is_none();
        let needed =
            if gone { 0 } else { self.descriptors.of_plugin(view.metadata.protocol == Protocol::V1_0) };
        if self.reserved.borrow_mut().insert(view.index, needed) != Some(needed) {
            self.reserve();
        }
    }

    fn reserve(&self) {
        let needed = self.reserved.borrow().values().sum();
        let short_of = self.descriptors.reserve(needed);
        if let (Some(limit), None) = (short_of, self.short_of.replace(short_of)) {
            let fields = json!({
                "open_files": limit, "plugins_need": needed, "clients_max": self.descriptors.clients_max(),
                "remedy": "raise the daemon's hard limit of open files (LimitNOFILE=, ulimit -Hn)",
            });
            let message = "Plugins leave hardly any open files for clients";
            self.logger.core(Level::Warn, "toru", message, None, fields.as_object().unwrap_or(&Map::new()));
        }
    }
}

/// How serious a line is that does not say it.
fn usual_level(stream: Stream) -> Level {
    match stream {
        Stream::Stdout => Level::Info,
        Stream::Stderr => Level::Warn,
    }
}
