//! One plugin: its facts, ten minutes of charts, what happened lately, its last words.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::chart::{self, Chart, Series, binary_ceiling, decimal_ceiling};
use super::lists::event_line;
use super::plugins::countdown;
use super::theme::{Look, Role};
use super::{badge, counted, cut_top, flowed, put};
use crate::columns::moment;
use toru_plugin_api::status::{PluginOnWorker, Sample};

use crate::model::{Model, Plugin};
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

pub fn draw(model: &Model, look: Look, buffer: &mut Buffer, area: Rect, id: &str) {
    let Some(plugin) = model.plugins.get(id) else {
        put(
            buffer,
            area,
            &Line::styled(format!("{id} is gone: its file was taken away."), look.style(Role::Warn)),
        );
        return;
    };
    let facts = facts(model, look, plugin, area);
    let (top, mut rest) = cut_top(area, facts.len() as u16);
    for (row, line) in (0..top.height).zip(&facts) {
        put(buffer, Rect { y: top.y + row, height: 1, ..top }, line);
    }

    let events: Vec<_> = model.events.iter().rev().filter(|event| event.plugin == id).collect();
    // What it says now, else what it said at its last death.
    let (stderr, title) = match plugin.stderr.is_empty() {
        true => (&plugin.last_words, "Last words on stderr"),
        false if plugin.status.pid.is_none() => (&plugin.stderr, "Last words on stderr"),
        false => (&plugin.stderr, "Stderr (l: the log)"),
    };
    let charts = charts(plugin);
    if area.width >= SIDE_BY_SIDE_MIN {
        // What is told below gets what it needs, up to half.
        let told = (events.len().max(1) + 1 + stderr.len() + usize::from(!stderr.is_empty())) as u16;
        let height = rest.height.saturating_sub(told).max(rest.height / 2).clamp(5, 14).min(rest.height);
        let (row, below) = cut_top(rest, height);
        // The three numbers of the latency need the most room.
        let latency = row.width * 2 / 5;
        let memory = row.width * 27 / 100;
        let mut x = row.x;
        for (chart, width) in charts.iter().zip([row.width - latency - memory - 2, latency, memory]) {
            chart::draw(chart, look, buffer, Rect { x, width, ..row });
            x += width + 1;
        }
        rest = below;
    } else {
        for chart in &charts {
            // Where it is tight the last lines matter more than the memory.
            let told = (events.len().max(1) + 1 + stderr.len()).min(5) as u16;
            if rest.height < NARROW_CHART + told {
                break;
            }
            let (row, below) = cut_top(rest, NARROW_CHART);
            chart::draw(chart, look, buffer, row);
            rest = below;
        }
    }

    // Titles take a row each; the rest is shared, and what one does not need the other gets.
    let events_need = (events.len().max(1) + 1).min(rest.height.into()) as u16;
    let stderr_most = (rest.height / 2).max(rest.height - events_need);
    let stderr_rows = if stderr.is_empty() { 0 } else { (stderr.len() as u16 + 1).min(stderr_most) };
    let (above, below) = cut_top(rest, rest.height - stderr_rows);
    put(buffer, above, &Line::styled("Events (e: more)", look.style(Role::Title)));
    if events.is_empty() {
        let why = model.why_no_events();
        let (_, row) = cut_top(above, 1);
        put(buffer, row, &Line::styled(why, look.style(Role::Dim)));
    }
    for (row, event) in (1..above.height).zip(events) {
        put(buffer, Rect { y: above.y + row, height: 1, ..above }, &event_line(model, look, event, None));
    }
    if below.height > 0 {
        put(buffer, below, &Line::styled(title, look.style(Role::Title)));
        let skip = stderr.len().saturating_sub(usize::from(below.height) - 1);
        for (row, line) in (1..below.height).zip(&stderr[skip..]) {
            put(buffer, Rect { y: below.y + row, height: 1, ..below }, &Line::raw(line.as_str()));
        }
    }
}

/// What is known of the plugin, as many rows as it takes; of a small screen the first three matter most.
fn facts<'a>(model: &'a Model, look: Look, plugin: &'a Plugin, area: Rect) -> Vec<Line<'a>> {
    let status = &plugin.status;
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let mut name = vec![Span::styled(status.name.as_str(), look.style(Role::Title))];
    name.push(Span::raw(format!("version {}", status.version)));
    if let Some(author) = &status.author {
        name.push(Span::raw(format!("by {author}")));
    }
    name.push(Span::raw(format!("route {}", status.route)));
    name.push(Span::raw(format!("protocol {}", status.protocol)));
    name.push(Span::raw(status.socket_path.as_str()));

    let mut state = vec![badge(plugin.condition(), look)];
    if let Some(next) = countdown(model, plugin) {
        state.push(Span::styled(next, look.style(Role::Warn)));
    }
    if let Some(uptime) = status.uptime_ms {
        state.push(Span::raw(format!("up {}", text::span(uptime))));
    }
    if let Some(pid) = status.pid {
        state.push(Span::raw(format!("pid {pid}")));
    }
    if let Some(ping) = status.ping_us {
        state.push(Span::raw(format!("ping {}", text::latency(ping))));
    }
    let last = plugin
        .last_restart()
        .map(|at| format!(", last {}", moment(at, model.now.unix_ms)))
        .unwrap_or_default();
    state.push(Span::raw(format!("{}{last}", counted(status.restarts as usize, "restart"))));
    if !status.enabled {
        state.push(Span::styled("disabled", look.style(Role::Warn)));
    }
    state.push(Span::raw(format!("last exit: {}", plugin.last_end().as_deref().unwrap_or("none"))));

    let errors = Span::styled(
        counted_long(status.errors, "error"),
        look.style(if status.errors > 0 { Role::Bad } else { Role::Plain }),
    );
    let mut load = vec![
        Span::raw(counted_long(status.requests, "request")),
        errors,
        Span::raw(format!("{} in flight", text::count(status.in_flight))),
        Span::styled(
            format!("{} queued", text::count(status.queued)),
            look.style(if status.queued > 0 { Role::Warn } else { Role::Plain }),
        ),
        Span::raw(format!("cpu {}", or_dash(status.cpu_percent.map(|cpu| format!("{cpu:.1}%"))))),
        Span::raw(format!("memory {}", or_dash(status.rss_bytes.map(text::bytes)))),
    ];
    if status.stray_answers > 0 {
        load.push(Span::styled(
            format!("{} stray", text::count(status.stray_answers)),
            look.style(Role::Warn),
        ));
    }

    let workers = workers(look, plugin, area.width.into());
    let mut groups = vec![name, state, load, limits(look, plugin), workers];
    if area.width < FACTS_WIDE || area.height < FACTS_HIGH {
        // The header names the plugin; what it may and who carries it waits for a larger screen.
        groups = groups.drain(1..3).collect();
    }
    groups
        .into_iter()
        .filter(|group| !group.is_empty())
        .flat_map(|group| flowed(look, group, area.width.into()))
        .collect()
}

/// `1 error`, `1.2k errors`.
fn counted_long(count: u64, what: &str) -> String {
    format!("{} {what}{}", text::count(count), if count == 1 { "" } else { "s" })
}

fn limits<'a>(look: Look, plugin: &Plugin) -> Vec<Span<'a>> {
    let Some(limits) = &plugin.status.limits else { return vec![] };
    let mut parts = vec![
        Span::styled("limits", look.style(Role::Dim)),
        Span::raw(format!("{} in flight", text::count(limits.in_flight_max))),
        Span::raw(format!("{} an answer", text::span(limits.timeout_ms))),
        Span::raw(format!("{} a message", text::bytes(limits.message_bytes_max))),
        Span::raw(format!("{} of values", text::bytes(limits.kv_bytes_max))),
    ];
    let own = [
        limits.memory_bytes_max.map(|bytes| format!("{} of memory", text::bytes(bytes))),
        limits.open_files_max.map(|files| format!("{files} files")),
        limits.nice.map(|nice| format!("nice {nice}")),
    ];
    parts.extend(own.into_iter().flatten().map(Span::raw));
    parts
}

/// Connections and load by worker, the busiest first, those that do nothing left out; on [`WORKER_ROWS_MAX`] rows at most.
fn workers<'a>(look: Look, plugin: &Plugin, width: usize) -> Vec<Span<'a>> {
    if plugin.status.by_worker.is_empty() {
        return vec![];
    }
    let mut parts = vec![Span::styled("workers", look.style(Role::Dim))];
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
        parts.push(Span::raw(format!(
            "{number}: {}, {}/s, {} in flight{queued}",
            counted(share.connections as usize, "connection"),
            text::rate(rate(number)),
            text::count(share.in_flight),
        )));
    }
    if parts.len() == 1 {
        parts.push(Span::raw("none is connected"));
    }
    let (all, mut kept) = (parts.len(), parts.len());
    loop {
        let mut shown = parts[..kept].to_vec();
        if kept < all {
            shown.push(Span::styled(format!("+{} more (w)", all - kept), look.style(Role::Dim)));
        }
        if kept <= 2 || flowed(look, shown.clone(), width).len() <= WORKER_ROWS_MAX {
            return shown;
        }
        kept -= 1;
    }
}

fn micros(us: Option<u64>) -> f64 {
    us.unwrap_or(0) as f64
}

fn charts(plugin: &Plugin) -> [Chart<'static>; 3] {
    let points = |value: fn(&Sample) -> f64| {
        plugin.history.iter().map(|sample| (sample.unix_ms, value(sample))).collect::<Vec<_>>()
    };
    [
        Chart {
            title: "requests/s",
            series: vec![Series { name: " ", points: points(|sample| sample.requests_per_s) }],
            label: text::rate,
            ceiling: decimal_ceiling,
            holds: false,
        },
        Chart {
            title: "",
            series: vec![
                Series { name: "p50 ", points: points(|sample| micros(sample.p50_us)) },
                Series { name: " p95 ", points: points(|sample| micros(sample.p95_us)) },
                Series { name: " p99 ", points: points(|sample| micros(sample.p99_us)) },
            ],
            label: |us| if us < 1.0 { "-".into() } else { text::latency(us as u64) },
            ceiling: decimal_ceiling,
            holds: false,
        },
        Chart {
            title: "memory",
            series: vec![Series { name: " ", points: points(|sample| sample.rss_bytes.unwrap_or(0) as f64) }],
            label: |bytes| text::bytes(bytes as u64),
            ceiling: binary_ceiling,
            holds: true,
        },
    ]
}
