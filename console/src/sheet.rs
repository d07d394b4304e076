//! What the screen of one plugin holds, for any size: what has room at once, and what comes below it when it is
//! scrolled. Rows and words alone, so that `update.rs` knows where the end is; `view/detail.rs` draws it. Pure.

use std::ops::Range;

use toru_plugin_api::status::PluginOnWorker;

use crate::columns::moment;
use crate::model::{Condition, Model, Plugin};
use crate::text;

/// Below this the charts stand over each other.
const SIDE_BY_SIDE_MIN: u16 = 75;
/// From this size on everything that is known of a plugin has room.
const FACTS_WIDE: u16 = 60;
const FACTS_HIGH: u16 = 20;
/// Of many workers the rest is in their own view; charts and events need the room.
const WORKER_ROWS_MAX: usize = 2;
/// Rows of a chart where they stand over each other: title, three of plot, axis.
const NARROW_CHART: u16 = 5;
const CHARTS: usize = 3;
/// A core tells less; one that tells more than this gets no more of the screen.
const LINES_MAX: usize = 100;
const ROWS_MAX: usize = 1000;
/// Earlier events that are told below; all of them have a screen of their own.
const EARLIER_EVENTS: usize = 20;

/// What a piece of text is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Title,
    Dim,
    Warn,
    Bad,
    /// A sign and the word of it.
    Condition(Condition),
}

/// A piece of a row; the sign of a condition is not part of the text.
pub type Part = (Tone, String);

/// Some rows of one kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    Facts(Vec<Vec<Part>>),
    /// These of requests, latencies and memory, side by side.
    Charts(Range<usize>),
    /// A title, and the plugin's events from this one on, counted from the newest.
    Events {
        title: &'static str,
        from: usize,
    },
    /// A title and lines.
    Lines {
        title: &'static str,
        lines: Vec<String>,
    },
}

/// The blocks from above, each with its rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Sheet {
    pub blocks: Vec<(Block, u16)>,
}

impl Sheet {
    /// `None` for a plugin that there is no more.
    ///
    /// Shape: `height` rows that are worth the most, and after them all that had no room there.
    pub fn of(model: &Model, id: &str, width: u16, height: u16) -> Option<Self> {
        let plugin = model.plugins.get(id)?;
        let events = model.events.iter().filter(|event| event.plugin == id).count();
        let [name, state, load, limits, workers] = facts(model, plugin, width.into());
        let (mut facts, mut more_facts) = match width >= FACTS_WIDE && height >= FACTS_HIGH {
            true => ([name, state, load, limits, workers].concat(), vec![]),
            // The header names the plugin; what it may and who carries it comes below.
            false => ([state, load].concat(), [name, limits, workers].concat()),
        };
        let no_room = facts.split_off(facts.len().min(height.into()));
        more_facts.splice(0..0, no_room);
        let mut left = height - facts.len() as u16;
        let mut blocks = vec![(facts.len() as u16, Block::Facts(facts))];

        // What it says now, else what it said at its last death.
        let (stderr, title) = match plugin.stderr.is_empty() {
            true => (&plugin.last_words, "Last words on stderr"),
            false if plugin.status.pid.is_none() => (&plugin.stderr, "Last words on stderr"),
            false => (&plugin.stderr, "Stderr (l: the log)"),
        };
        let stderr = &stderr[stderr.len().saturating_sub(LINES_MAX)..];
        let mut drawn = 0;
        if width >= SIDE_BY_SIDE_MIN {
            // What is told below gets what it needs, up to half.
            let told = (events.max(1) + 1 + stderr.len() + usize::from(!stderr.is_empty())) as u16;
            let rows = left.saturating_sub(told).max(left / 2).clamp(NARROW_CHART, 14);
            if rows <= left {
                blocks.push((rows, Block::Charts(0..CHARTS)));
                left -= rows;
                drawn = CHARTS;
            }
        } else {
            // Where it is tight the last lines matter more than the memory.
            let told = (events.max(1) + 1 + stderr.len()).min(5) as u16;
            while drawn < CHARTS && left >= NARROW_CHART + told {
                blocks.push((NARROW_CHART, Block::Charts(drawn..drawn + 1)));
                left -= NARROW_CHART;
                drawn += 1;
            }
        }

        // Titles take a row each; the rest is shared, and what one does not need the other gets.
        let events_need = (events.max(1) + 1).min(left.into()) as u16;
        let stderr_most = (left / 2).max(left - events_need);
        let mut stderr_rows = (stderr.len() as u16 + 1).min(stderr_most);
        if stderr.is_empty() || stderr_rows < 2 {
            stderr_rows = 0;
        }
        let event_rows = left - stderr_rows;
        blocks.push((event_rows, Block::Events { title: "Events (e: more)", from: 0 }));
        let told_events = events.min(usize::from(event_rows.saturating_sub(1)));
        let told_lines = stderr.len().min(usize::from(stderr_rows.saturating_sub(1)));
        let lines = stderr[stderr.len() - told_lines..].to_vec();
        let whole =
            told_lines == stderr.len() && lines.iter().all(|line| text::columns(line) <= usize::from(width));
        blocks.push((stderr_rows, Block::Lines { title, lines }));

        // Below.
        if !whole {
            let mut lines: Vec<String> =
                stderr.iter().flat_map(|line| text::wrapped(line, usize::from(width).max(1))).collect();
            lines.drain(..lines.len().saturating_sub(ROWS_MAX));
            let title = if plugin.status.pid.is_none() || plugin.stderr.is_empty() {
                "Last words on stderr, whole"
            } else {
                "Stderr, whole (l: the log)"
            };
            blocks.push((lines.len() as u16 + 1, Block::Lines { title, lines }));
        }
        match width >= SIDE_BY_SIDE_MIN {
            true if drawn == 0 => blocks.push((NARROW_CHART + 2, Block::Charts(0..CHARTS))),
            _ => blocks.extend((drawn..CHARTS).map(|chart| (NARROW_CHART, Block::Charts(chart..chart + 1)))),
        }
        blocks.push((more_facts.len() as u16, Block::Facts(more_facts)));
        let earlier = (events - told_events).min(EARLIER_EVENTS) as u16;
        if earlier > 0 {
            let title = if told_events > 0 { "Earlier events (e: all)" } else { "Events (e: all)" };
            blocks.push((earlier + 1, Block::Events { title, from: told_events }));
        }
        let blocks = blocks.into_iter().filter(|(rows, _)| *rows > 0).map(|(rows, block)| (block, rows));
        Some(Self { blocks: blocks.collect() })
    }

    pub fn rows(&self) -> usize {
        self.blocks.iter().map(|(_, rows)| usize::from(*rows)).sum()
    }
}

fn plain(text: impl Into<String>) -> Part {
    (Tone::Plain, text.into())
}

fn columns((tone, words): &Part) -> usize {
    text::columns(words) + if matches!(tone, Tone::Condition(_)) { 2 } else { 0 }
}

/// `1 error`, `1.2k errors`.
fn counted(count: u64, what: &str) -> String {
    format!("{} {what}{}", text::count(count), if count == 1 { "" } else { "s" })
}

/// What is known of the plugin: who it is, how it is, its load, its limits, its workers; rows of each.
fn facts(model: &Model, plugin: &Plugin, width: usize) -> [Vec<Vec<Part>>; 5] {
    let status = &plugin.status;
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let mut name = vec![(Tone::Title, status.name.clone()), plain(format!("version {}", status.version))];
    name.extend(status.author.as_ref().map(|author| plain(format!("by {author}"))));
    name.push(plain(format!("route {}", status.route)));
    name.push(plain(format!("protocol {}", status.protocol)));
    name.push(plain(status.socket_path.as_str()));

    let condition = plugin.condition();
    let mut state = vec![(Tone::Condition(condition), condition.word().to_owned())];
    state.extend(model.countdown(plugin).map(|next| (Tone::Warn, next)));
    state.extend(status.uptime_ms.map(|uptime| plain(format!("up {}", text::span(uptime)))));
    state.extend(status.pid.map(|pid| plain(format!("pid {pid}"))));
    state.extend(status.ping_us.map(|ping| plain(format!("ping {}", text::latency(ping)))));
    let last = plugin.last_restart().map(|at| format!(", last {}", moment(at, model.now.unix_ms)));
    state.push(plain(counted(status.restarts, "restart") + &last.unwrap_or_default()));
    if !status.enabled {
        state.push((Tone::Warn, "disabled".into()));
    }
    state.push(plain(format!("last exit: {}", plugin.last_end().as_deref().unwrap_or("none"))));

    let warn_if = |is: bool| if is { Tone::Warn } else { Tone::Plain };
    let mut load = vec![
        plain(counted(status.requests, "request")),
        (if status.errors > 0 { Tone::Bad } else { Tone::Plain }, counted(status.errors, "error")),
        plain(format!("{} in flight", text::count(status.in_flight))),
        (warn_if(status.queued > 0), format!("{} queued", text::count(status.queued))),
        plain(format!("cpu {}", or_dash(status.cpu_percent.map(|cpu| format!("{cpu:.1}%"))))),
        plain(format!("memory {}", or_dash(status.rss_bytes.map(text::bytes)))),
    ];
    if status.abandoned > 0 {
        load.push((Tone::Warn, format!("{} abandoned", text::count(status.abandoned))));
    }
    if status.stray_answers > 0 {
        load.push((Tone::Warn, format!("{} stray", text::count(status.stray_answers))));
    }
    if status.dropped_log_lines > 0 {
        load.push((Tone::Warn, format!("{} log lines dropped", text::count(status.dropped_log_lines))));
    }

    [name, state, load, limits(plugin), workers(plugin, width)].map(|parts| flowed(parts, width))
}

/// Parts on as many rows as they need, and one that is wider than a row on several.
fn flowed(parts: Vec<Part>, width: usize) -> Vec<Vec<Part>> {
    let whole = |part: Part| match columns(&part) > width.max(1) {
        true => text::wrapped(&part.1, width.max(1)).into_iter().map(|row| (part.0, row)).collect(),
        false => vec![part],
    };
    let mut rows = text::flowed(parts.into_iter().flat_map(whole).collect(), width, columns);
    rows.retain(|row| !row.is_empty());
    rows.truncate(LINES_MAX);
    rows
}

fn limits(plugin: &Plugin) -> Vec<Part> {
    let Some(limits) = &plugin.status.limits else { return vec![] };
    let own = [
        limits.memory_bytes_max.map(|bytes| format!("{} of memory", text::bytes(bytes))),
        limits.open_files_max.map(|files| format!("{files} files")),
        limits.nice.map(|nice| format!("nice {nice}")),
    ];
    let mut parts = vec![
        (Tone::Dim, "limits".to_owned()),
        plain(format!("{} in flight", text::count(limits.in_flight_max))),
        plain(format!("{} an answer", text::span(limits.timeout_ms))),
        plain(format!("{} a message", text::bytes(limits.message_bytes_max))),
        plain(format!("{} of values", text::bytes(limits.kv_bytes_max))),
    ];
    parts.extend(own.into_iter().flatten().map(plain));
    parts
}

/// Connections and load by worker, the busiest first, those that do nothing left out; on [`WORKER_ROWS_MAX`] rows at
/// most.
fn workers(plugin: &Plugin, width: usize) -> Vec<Part> {
    if plugin.status.by_worker.is_empty() {
        return vec![];
    }
    let mut parts = vec![(Tone::Dim, "workers".to_owned())];
    let rate = |number: usize| plugin.worker_rates.get(number).copied().unwrap_or(0.0);
    let mut shares: Vec<_> = plugin.status.by_worker.iter().enumerate().collect();
    shares.retain(|(_, share)| share.connections > 0 || share.in_flight > 0 || share.queued > 0);
    // Stable: equal ones keep to their numbers.
    shares.sort_by(|(a, left), (b, right)| {
        let load = |share: &PluginOnWorker| share.in_flight + share.queued;
        rate(*b).total_cmp(&rate(*a)).then(load(right).cmp(&load(left)))
    });
    for (number, share) in shares {
        let queued =
            if share.queued > 0 { format!(" {} queued", text::count(share.queued)) } else { String::new() };
        parts.push(plain(format!(
            "{number}: {}, {}/s, {} in flight{queued}",
            counted(share.connections, "connection"),
            text::rate(rate(number)),
            text::count(share.in_flight),
        )));
    }
    if parts.len() == 1 {
        parts.push(plain("none is connected"));
    }
    let (all, mut kept) = (parts.len(), parts.len());
    loop {
        let mut shown = parts[..kept].to_vec();
        if kept < all {
            shown.push((Tone::Dim, format!("+{} more (w)", all - kept)));
        }
        if kept <= 2 || flowed(shown.clone(), width).len() <= WORKER_ROWS_MAX {
            return shown;
        }
        kept -= 1;
    }
}
