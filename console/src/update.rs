//! What happened becomes what is known: `Msg` in, changed [`Model`] and perhaps a [`Command`] out.
//!
//! Pure: no clock, no socket, no terminal. The time of a message is an argument.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use toru_plugin_api::status::{History, PluginStatus, Sample, Snapshot, WorkerStatus};
use tui_input::{Input, InputRequest};

use crate::columns::{Column, GUTTER};
use crate::model::{
    CORE, Confirm, EVENTS_MAX, Event, HISTORY_MAX, LOOP_WINDOW_MS, Level, Link, LogLine, Model, Now, Plugin,
    Prompt, Screen, Spark, TOAST, Toast, Verb,
};
use crate::text::{self, clean, parse_time};

/// Nobody has to undo more steps down than there are rows.
const HELP_ROWS_MAX: u16 = 24;
/// A run so long, which is `supervisor.stable_after_ms` unless it was set, makes the core forget crashes by itself.
const FORGIVEN_BY_ITSELF_MS: u64 = 60_000;
const HEADER_ROWS: u16 = 2;
/// A sample so much older than the last tells that the wall clock was set back.
const CLOCK_JUMP_MS: u64 = 3000;

/// Something happened.
#[derive(Clone, Debug)]
pub enum Msg {
    /// A second passed: what counts down or up is shown anew.
    Tick,
    Key(Key),
    Wheel {
        down: bool,
    },
    /// A click on a cell of the screen, the first being 0 and 0.
    Click {
        column: u16,
        row: u16,
    },
    Resize(u16, u16),
    News(News),
    /// What comes is no longer recorded, and why.
    Unrecorded(String),
}

/// A key, without the terminal library's detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Char(char),
    Ctrl(char),
    Enter,
    Esc,
    Tab,
    Backspace,
    Delete,
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
}

/// From the core, as it came: also what a recording holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    Lost {
        reason: String,
    },
    /// Nothing more comes of a recording, and why.
    Ended {
        reason: String,
    },
    /// The last ten minutes of a plugin; comes before the first snapshot.
    History(Box<History>),
    Snapshot(Box<Snapshot>),
    /// A line of `/v1/events`.
    Event(String),
    EventsUnavailable {
        reason: String,
    },
    Log {
        generation: u64,
        plugin: String,
        line: String,
    },
    /// A log that had broken off is followed again.
    LogResumed {
        generation: u64,
        plugin: String,
    },
    LogUnavailable {
        generation: u64,
        plugin: String,
        reason: String,
    },
    /// What became of an order.
    Outcome {
        verb: String,
        plugin: String,
        after_ms: u64,
        error: Option<String>,
    },
}

/// Something to do outside.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Quit,
    Suspend,
    /// Draw everything anew: something else wrote to the terminal.
    Repaint,
    Order {
        verb: Verb,
        plugin: String,
    },
    FollowLogs {
        generation: u64,
        plugins: Vec<String>,
    },
    StopLogs,
    /// The newest events of one plugin.
    AskEvents {
        plugin: String,
    },
}

pub fn update(model: &mut Model, now: Now, msg: Msg) -> Option<Command> {
    model.now = now;
    if model.toast.as_ref().is_some_and(|toast| toast.until <= now.elapsed) {
        model.toast = None;
    }
    // A second asks for nothing.
    let may_ask = !matches!(msg, Msg::Tick);
    let command = match msg {
        Msg::Tick => None,
        Msg::Key(key) => on_key(model, key),
        Msg::Wheel { down } => {
            scroll(model, if down { 3 } else { -3 });
            None
        }
        Msg::Click { column, row } => {
            on_click(model, column, row);
            None
        }
        Msg::Resize(columns, rows) => {
            model.size = (columns, rows);
            // What cannot be read cannot be answered.
            if model.is_too_small() && model.confirm.is_some() {
                withdraw(model);
            }
            None
        }
        Msg::News(news) => {
            on_news(model, news);
            None
        }
        Msg::Unrecorded(why) => {
            model.unrecorded = Some(clean(&why));
            None
        }
    };
    forget_old_deaths(model);
    keep_selection_in_sight(model);
    if matches!(model.screen(), Screen::Events(_)) {
        keep_event_in_sight(model);
    }
    if matches!(model.screen(), Screen::Detail(_)) {
        model.detail_down = model.detail_down.min(scrolled_most(model));
    }
    match command {
        None if may_ask => missing_events(model),
        command => command,
    }
}

/// Asks, once for each time that a plugin is looked at, for its events when the trail so far has none.
fn missing_events(model: &mut Model) -> Option<Command> {
    let (Screen::Detail(id) | Screen::Events(Some(id))) = model.screen() else {
        model.events_asked = None;
        return None;
    };
    let id = id.clone();
    let known = model.events.iter().any(|event| event.plugin == id);
    if known || model.replay || model.link != Link::Live || model.events_asked.as_ref() == Some(&id) {
        return None;
    }
    model.events_asked = Some(id.clone());
    Some(Command::AskEvents { plugin: id })
}

fn on_news(model: &mut Model, news: News) {
    let window = model.window();
    match news {
        News::Lost { reason } => {
            let reason = clean(&reason);
            model.link = match std::mem::replace(&mut model.link, Link::Live) {
                Link::Connecting { since, .. } => Link::Connecting { since, reason: Some(reason) },
                // What is shown is as old as the last snapshot, whenever the loss was noticed.
                Link::Live => Link::Lost { since: model.snapshot_at, reason },
                Link::Lost { since, .. } => Link::Lost { since, reason },
            };
        }
        News::Ended { reason } => {
            let reason = clean(&reason);
            model.link = Link::Lost { since: model.snapshot_at, reason: reason.clone() };
            model.ended = Some(reason);
        }
        News::History(history) => {
            model.past.insert(clean(&history.plugin), *history);
        }
        News::Snapshot(snapshot) => on_snapshot(model, *snapshot),
        News::Event(line) => {
            model.events_complaint = None;
            if let Some(event) = Event::parse(&line) {
                on_event(model, event);
            }
        }
        News::EventsUnavailable { reason } => model.events_complaint = Some(clean(&reason)),
        News::Log { generation, plugin, line } => {
            let logs = &mut model.logs;
            if generation == logs.generation {
                logs.complaints.remove(&plugin);
                logs.add(LogLine::parse(&plugin, &line));
                logs.trim(window);
            }
        }
        News::LogResumed { generation, plugin } => {
            let logs = &mut model.logs;
            if generation == logs.generation {
                logs.complaints.remove(&plugin);
                // With the time of what came last: a merged log would put it behind what the core said since.
                if let Some(last) = logs.lines.iter().rev().find(|line| line.plugin == plugin) {
                    let mark = LogLine::mark(&plugin, last.unix_ms, "the core was away");
                    logs.add(mark);
                    logs.trim(window);
                }
            }
        }
        News::LogUnavailable { generation, plugin, reason } => {
            if generation == model.logs.generation {
                model.logs.complaints.insert(plugin, clean(&reason));
            }
        }
        News::Outcome { verb, plugin, after_ms, error } => {
            model.pending.retain(|(pending, id)| pending.word() != verb || *id != plugin);
            let (good, end) = match error {
                None => {
                    let mended = [Verb::Start, Verb::Restart, Verb::Enable, Verb::ResetFailed];
                    if mended.iter().any(|order| order.word() == verb)
                        && let Some(plugin) = model.plugins.get_mut(&plugin)
                    {
                        // What was before is no part of a loop; the next snapshot says the same of the count.
                        plugin.deaths_unix_ms.clear();
                        plugin.status.failures = 0;
                    }
                    (true, format!("done in {}", text::span(after_ms)))
                }
                Some(error) => (false, clean(&error)),
            };
            let text = format!("{verb} {plugin}: {end}");
            say_of(model, good, plugin, text);
        }
    }
}

fn say(model: &mut Model, good: bool, text: String) {
    say_of(model, good, String::new(), text);
}

/// What became of an order to this plugin, which the text names.
fn say_of(model: &mut Model, good: bool, id: String, text: String) {
    model.toast = Some(Toast { text, id, good, until: model.now.elapsed + TOAST });
}

/// The core knows its own past best; what the console has seen before that, of an earlier core, stays.
fn absorb(plugin: &mut Plugin, history: &History) {
    let first = history.unix_ms.first().copied().unwrap_or(u64::MAX);
    plugin.history.retain(|sample| sample.unix_ms < first);
    for sample in history.samples() {
        push_bounded(&mut plugin.history, sample);
    }
}

fn on_snapshot(model: &mut Model, mut snapshot: Snapshot) {
    let unix_ms = parse_time(&snapshot.timestamp).unwrap_or(model.now.unix_ms);
    // Counters start at nothing in a new core; differences to the old one's would be nonsense.
    let before =
        model.core.take().filter(|core| core.pid == snapshot.pid && core.uptime_ms < snapshot.uptime_ms);
    let passed_s = before.as_ref().map(|core| (snapshot.uptime_ms - core.uptime_ms) as f64 / 1000.0);
    let per_second = |now: u64, then: u64| match passed_s {
        Some(seconds) if seconds > 0.0 => now.saturating_sub(then) as f64 / seconds,
        _ => 0.0,
    };
    let mut former = std::mem::take(&mut model.plugins);
    for status in std::mem::take(&mut snapshot.plugins) {
        let status = clean_plugin(status);
        let known = former.remove(&status.id);
        let is_known = known.is_some();
        let mut plugin = known.unwrap_or_default();
        if !is_known {
            // The trail may have been told before the first snapshot was.
            for event in model.events.iter().filter(|event| event.plugin == status.id) {
                learn(&mut plugin, event, model.now);
            }
        }
        if let Some(history) = model.past.remove(&status.id) {
            absorb(&mut plugin, &history);
        }
        let old = std::mem::replace(&mut plugin.status, status);
        let status = &plugin.status;
        plugin.worker_rates = status
            .by_worker
            .iter()
            .enumerate()
            .map(|(number, now)| {
                old.by_worker.get(number).map_or(0.0, |then| per_second(now.requests, then.requests))
            })
            .collect();
        if let Some(sample) = &status.sample {
            push_sample(&mut plugin.history, sample.clone());
        } else if is_known || passed_s.is_none() {
            // A core that takes no samples.
            push_bounded(
                &mut plugin.history,
                Sample {
                    unix_ms,
                    requests_per_s: if is_known { per_second(status.requests, old.requests) } else { 0.0 },
                    errors_per_s: if is_known { per_second(status.errors, old.errors) } else { 0.0 },
                    p50_us: status.p50_us,
                    p95_us: status.p95_us,
                    p99_us: status.p99_us,
                    in_flight: status.in_flight,
                    cpu_percent: status.cpu_percent,
                    rss_bytes: status.rss_bytes,
                },
            );
        }
        // The event of the same restart has a time of its own, a moment apart.
        if let Some(at) = status.last_restart
            && plugin.last_restart_unix_ms.is_none_or(|known| at > known + 1000)
        {
            plugin.last_restart_unix_ms = Some(at);
        }
        // Only an order leads out of these, whoever gave it.
        let was_down = old.state == "failed" || old.state == "stopped";
        let ordered = was_down && status.state != old.state && status.state != "crashed";
        // And only an order makes a core forget so early; a new one knows nothing of them.
        let forgiven = passed_s.is_some()
            && old.failures > 0
            && status.failures == 0
            && status.state != "failed"
            && status.uptime_ms.is_none_or(|uptime| uptime < FORGIVEN_BY_ITSELF_MS);
        if ordered || forgiven {
            plugin.deaths_unix_ms.clear();
        }
        if let Some(lines) = plugin.status.stderr.take() {
            plugin.stderr = lines.iter().map(|line| clean(line)).collect();
        }
        model.plugins.insert(plugin.status.id.clone(), plugin);
    }

    let mut former = std::mem::take(&mut model.workers).into_iter();
    for status in std::mem::take(&mut snapshot.workers) {
        let mut worker = former.next().unwrap_or_default();
        let old =
            std::mem::replace(&mut worker.status, WorkerStatus { driver: clean(&status.driver), ..status });
        worker.requests_per_s = per_second(worker.status.requests, old.requests);
        let past = std::mem::take(&mut worker.status.past_requests_per_s);
        if past.is_empty() {
            push_bounded(&mut worker.history, worker.requests_per_s);
        } else {
            // The core knows it better, also what was while the line was lost.
            worker.history = past[past.len().saturating_sub(HISTORY_MAX)..].to_vec().into();
        }
        model.workers.push(worker);
    }
    snapshot.version = clean(&snapshot.version);
    model.core = Some(snapshot);
    model.past.clear();
    model.snapshot_at = model.now;
    model.link = Link::Live;
}

/// Adds a sample unless it is there already.
fn push_sample(history: &mut VecDeque<Sample>, sample: Sample) {
    if let Some(last) = history.back().map(|last| last.unix_ms) {
        if sample.unix_ms <= last && last - sample.unix_ms < CLOCK_JUMP_MS {
            return;
        }
        // The wall clock was set back; what was before stays before.
        let back = (last + 1000).saturating_sub(sample.unix_ms);
        if sample.unix_ms <= last {
            history.iter_mut().for_each(|old| old.unix_ms = old.unix_ms.saturating_sub(back));
        }
    }
    push_bounded(history, sample);
}

fn push_bounded<T>(history: &mut VecDeque<T>, value: T) {
    if history.len() == HISTORY_MAX {
        history.pop_front();
    }
    history.push_back(value);
}

fn clean_plugin(mut status: PluginStatus) -> PluginStatus {
    for text in [
        &mut status.id,
        &mut status.name,
        &mut status.version,
        &mut status.icon,
        &mut status.route,
        &mut status.health,
        &mut status.socket_path,
        &mut status.state,
        &mut status.protocol,
    ] {
        *text = clean(text);
    }
    for text in [&mut status.author, &mut status.last_exit].into_iter().flatten() {
        *text = clean(text);
    }
    status
}

fn on_event(model: &mut Model, event: Event) {
    // After a reconnect the trail is told from its backlog on.
    if model.events.iter().rev().any(|known| known.id == event.id && known.unix_ms == event.unix_ms) {
        return;
    }
    // What was asked for later may be older than what is known.
    let newer = model.events.iter().rev().take_while(|known| known.unix_ms > event.unix_ms).count();
    let is_latest = !model.events.iter().rev().take(newer).any(|known| known.plugin == event.plugin);
    if is_latest && let Some(plugin) = model.plugins.get_mut(&event.plugin) {
        learn(plugin, &event, model.now);
    }
    // The cursor stays on its event, and what is read where it is; at the end it follows.
    let below = model.events.iter().rev().take(newer).filter(|known| model.shows(known)).count();
    if model.shows(&event) {
        let follows = model.event_at == 0 && matches!(model.screen(), Screen::Events(_));
        if !follows && below <= model.event_at {
            model.event_at += 1;
            model.events_up += usize::from(model.events_up > 0);
        }
    }
    model.events.insert(model.events.len() - newer, event);
    if model.events.len() > EVENTS_MAX {
        model.events.pop_front();
    }
}

/// What the audit trail tells of a plugin beyond its status.
fn learn(plugin: &mut Plugin, event: &Event, now: Now) {
    let detail = |key: &str| event.details.get(key).and_then(|words| words.as_str()).map(clean);
    let (reason, exit) = (|| detail("reason"), || detail("exit"));
    match event.kind.as_str() {
        "crashed" => {
            plugin.fault = reason();
            plugin.trail_exit = exit().or(plugin.trail_exit.take());
            if event.unix_ms + LOOP_WINDOW_MS > now.unix_ms {
                plugin.deaths_unix_ms.push_back(event.unix_ms);
            }
            plugin.last_words = match event.details.get("stderr") {
                Some(serde_json::Value::Array(lines)) => {
                    lines.iter().filter_map(|line| line.as_str()).map(clean).collect()
                }
                Some(serde_json::Value::String(text)) => text.lines().map(clean).collect(),
                _ => Vec::new(),
            };
        }
        "restarting" => {
            plugin.last_restart_unix_ms = plugin.last_restart_unix_ms.max(Some(event.unix_ms));
        }
        "start_deferred" => plugin.fault = reason(),
        "disabled_after_crashes" => {
            plugin.fault = reason();
            plugin.trail_exit = exit().or(plugin.trail_exit.take());
            plugin.deaths_unix_ms.clear();
        }
        "unresponsive" => plugin.hang = reason(),
        // Its exit was ordered, and is the last one now.
        "stopped" => plugin.fault = None,
        // Ordered: whatever comes next begins a new row.
        "enabled" | "disabled" => plugin.deaths_unix_ms.clear(),
        _ => {}
    }
}

fn forget_old_deaths(model: &mut Model) {
    for plugin in model.plugins.values_mut() {
        while plugin.deaths_unix_ms.front().is_some_and(|at| at + LOOP_WINDOW_MS <= model.now.unix_ms) {
            plugin.deaths_unix_ms.pop_front();
        }
    }
}

fn keep_selection_in_sight(model: &mut Model) {
    let rows = model.rows();
    let (count, height) = (rows.len(), model.list_height());
    let at = model.selected.as_ref().and_then(|id| rows.iter().position(|plugin| plugin.status.id == *id));
    let first = rows.first().map(|plugin| plugin.status.id.clone());
    if at.is_none() {
        model.selected = first;
    }
    let at = at.unwrap_or(0);
    model.scroll =
        model.scroll.min(at).max((at + 1).saturating_sub(height)).min(count.saturating_sub(height));
}

// ---- the mouse ----

fn on_click(model: &mut Model, column: u16, row: u16) {
    let covered =
        model.is_too_small() || model.confirm.is_some() || model.help.is_some() || model.prompt.is_some();
    // The last row is the footer's.
    if covered || row + 1 >= model.size.1 {
        return;
    }
    match model.screen().clone() {
        Screen::Plugins => {
            let top = model.list_top();
            if row + 1 == top {
                let mut x = GUTTER;
                for (title, width) in model.list_columns(model.size.0) {
                    if (x..=x + width).contains(&column) {
                        return sort_by(model, title);
                    }
                    x += width + 1;
                }
            }
            let Some(down) = row.checked_sub(top) else { return };
            let at = model.scroll + usize::from(down);
            let Some(id) = model.rows().get(at).map(|plugin| plugin.status.id.clone()) else { return };
            match model.selected.as_ref() == Some(&id) {
                true => open(model, Screen::Detail(id)),
                false => model.selected = Some(id),
            }
        }
        Screen::Events(_) => {
            let Some(down) = row.checked_sub(HEADER_ROWS) else { return };
            let (above, _) = model.hidden();
            let shown = model.events_shown();
            let at = above + usize::from(down);
            let Some(id) = shown.get(at).map(|event| event.id) else { return };
            let from_newest = shown.len() - 1 - at;
            match model.event_at == from_newest {
                true => open(model, Screen::Event(id)),
                false => model.event_at = from_newest,
            }
        }
        // What is clicked at shall not run away.
        Screen::Logs if row >= HEADER_ROWS && model.logs.bottom.is_none() => {
            model.logs.bottom = all_numbers(model).last().copied();
        }
        Screen::Logs | Screen::Detail(_) | Screen::Event(_) | Screen::Workers => {}
    }
}

// ---- keys ----

fn on_key(model: &mut Model, key: Key) -> Option<Command> {
    match key {
        Key::Ctrl('c') => return Some(Command::Quit),
        Key::Ctrl('z') => return Some(Command::Suspend),
        Key::Ctrl('l') => return Some(Command::Repaint),
        _ => {}
    }
    if model.is_too_small() {
        // Nobody sees what a key does; a line that is being typed takes no letter either.
        return (key == Key::Char('q') && model.prompt.is_none()).then_some(Command::Quit);
    }
    if let Some(from) = model.help {
        model.help = match key {
            Key::Char('j') | Key::Down => Some((from + 1).min(HELP_ROWS_MAX)),
            Key::Char('k') | Key::Up => Some(from.saturating_sub(1)),
            _ => None,
        };
        return None;
    }
    if let Some(confirm) = model.confirm.take() {
        return on_answer(model, confirm, key);
    }
    if let Some(prompt) = model.prompt.take() {
        return on_prompt(model, prompt, key);
    }
    match key {
        Key::Char('q') => return Some(Command::Quit),
        Key::Char('?') => model.help = Some(0),
        Key::Char(':') => model.prompt = Some(Prompt::Command(Input::default())),
        Key::Esc => return back(model),
        Key::Char('e') => {
            let only = match model.screen() {
                Screen::Detail(id) => Some(id.clone()),
                _ => None,
            };
            open(model, Screen::Events(only));
        }
        Key::Char('/') if *model.screen() == Screen::Logs => {
            model.prompt = Some(Prompt::Search(Input::new(String::new())));
        }
        Key::Char('/') => {
            let filter = model.filter_of_screen().cloned();
            model.prompt = filter.map(|words| Prompt::Filter(Input::new(words)));
        }
        Key::Char('!') if *model.screen() != Screen::Logs => {
            let filter =
                model.filter_of_screen().map(|words| words.trim_start_matches('!').trim().to_owned());
            model.prompt = filter.map(|words| Prompt::Filter(Input::new(format!("!{words}"))));
        }
        Key::Char('k') | Key::Up => scroll(model, -1),
        Key::Char('j') | Key::Down => scroll(model, 1),
        Key::Ctrl('u') | Key::Ctrl('b') | Key::PageUp => scroll(model, -page(model, false)),
        Key::Ctrl('d') | Key::Ctrl('f') | Key::PageDown => scroll(model, page(model, true)),
        Key::Char('g') | Key::Home => scroll(model, isize::MIN / 2),
        Key::Char('G') | Key::End => scroll(model, isize::MAX / 2),
        Key::Char('c') if *model.screen() == Screen::Logs => return merge_core(model),
        _ if *model.screen() == Screen::Logs => on_log_key(model, key),
        Key::Char('w') => open(model, Screen::Workers),
        Key::Char('l') => return open_logs(model),
        Key::Char('v') => {
            model.spark = match model.spark {
                Spark::Requests => Spark::P99,
                Spark::P99 => Spark::Requests,
            }
        }
        Key::Char(letter) => on_letter(model, letter),
        Key::Enter if *model.screen() == Screen::Plugins => {
            if let Some(id) = model.selected.clone() {
                open(model, Screen::Detail(id));
            }
        }
        Key::Enter if matches!(model.screen(), Screen::Events(_)) => {
            let id = model.events_shown().iter().rev().nth(model.event_at).map(|event| event.id);
            if let Some(id) = id {
                open(model, Screen::Event(id));
            }
        }
        _ => {}
    }
    None
}

/// Rows, or lines of a log, that a page has.
fn page(model: &Model, down: bool) -> isize {
    let logs = &model.logs;
    if *model.screen() == Screen::Logs && logs.wrap {
        // As many as are read or come next: none is skipped.
        let room = (model.size.0, model.window());
        let bottom = logs.bottom.unwrap_or(u64::MAX);
        let below =
            (logs.forgotten..).zip(&logs.lines).filter(|(at, line)| *at > bottom && line.level >= logs.level);
        let count = match down {
            true => logs.fitting(below.map(|(_, line)| line), room),
            false => logs.fitting(logs.shown().rev().map(|(_, line)| line), room),
        };
        return count as isize;
    }
    (isize::from(model.size.1 as i16) - 6).max(1)
}

fn on_letter(model: &mut Model, letter: char) {
    if matches!(model.screen(), Screen::Plugins | Screen::Detail(_))
        && let Some(verb) = Verb::ALL.into_iter().find(|verb| verb.key() == letter)
    {
        if let Some(id) = model.target().map(str::to_owned) {
            ask(model, verb, &id);
        }
        return;
    }
    if *model.screen() != Screen::Plugins {
        return;
    }
    if let Some(column) = Column::ALL.into_iter().find(|column| column.key() == letter) {
        sort_by(model, column);
        return;
    }
    match letter {
        'o' => model.sort.descending = !model.sort.descending,
        '<' | '>' => {
            let count = Column::ALL.len();
            let at = Column::ALL.iter().position(|column| *column == model.sort.column).unwrap_or(0);
            let next = if letter == '>' { at + 1 } else { at + count - 1 };
            sort_by(model, Column::ALL[next % count]);
        }
        ' ' => {
            if let Some(id) = model.selected.clone() {
                if !model.marked.remove(&id) {
                    model.marked.insert(id);
                }
                scroll(model, 1);
            }
        }
        _ => {}
    }
}

fn sort_by(model: &mut Model, column: Column) {
    if model.sort.column == column {
        model.sort.descending = !model.sort.descending;
    } else {
        model.sort.column = column;
        model.sort.descending = column.begins_descending();
    }
}

fn ask(model: &mut Model, verb: Verb, id: &str) {
    if model.replay {
        say(model, false, "this is a recording: nothing can be ordered".into());
    } else if model.readonly {
        say(model, false, format!("read-only: {} is off", verb.word()));
    } else if model.link != Link::Live {
        say(model, false, "no line to the core: nothing can be ordered".into());
    } else if model.plugins.contains_key(id) {
        model.confirm = Some(Confirm { verb, plugin: id.to_owned() });
    } else {
        say(model, false, format!("no plugin {id}"));
    }
}

/// Takes the open question back.
fn withdraw(model: &mut Model) {
    if let Some(Confirm { verb, plugin }) = model.confirm.take() {
        let text = format!("{} {plugin}: left alone", verb.word());
        say_of(model, true, plugin, text);
    }
}

fn on_answer(model: &mut Model, confirm: Confirm, key: Key) -> Option<Command> {
    match key {
        Key::Char('y' | 'Y') => {
            model.pending.push((confirm.verb, confirm.plugin.clone()));
            Some(Command::Order { verb: confirm.verb, plugin: confirm.plugin })
        }
        Key::Char('n' | 'N' | 'q') | Key::Esc => {
            model.confirm = Some(confirm);
            withdraw(model);
            None
        }
        // A stray key neither confirms nor hides the question.
        _ => {
            model.confirm = Some(confirm);
            None
        }
    }
}

fn open(model: &mut Model, screen: Screen) {
    if *model.screen() != screen {
        model.screens.retain(|open| *open != screen);
        if matches!(screen, Screen::Events(_)) {
            (model.event_at, model.events_up) = (0, 0);
        }
        model.screens.push(screen);
        (model.detail_down, model.event_down, model.workers_down) = (0, 0, 0);
    }
}

/// Esc: the nearest thing that can be undone.
fn back(model: &mut Model) -> Option<Command> {
    let leaving = model.screens.len() > 1;
    if *model.screen() == Screen::Logs && !model.logs.search.is_empty() {
        model.logs.search.clear();
    } else if leaving && model.filter_of_screen().is_some_and(|words| !words.is_empty()) {
        model.set_filter(String::new());
    } else if leaving {
        let left = model.screens.pop();
        if left == Some(Screen::Logs) {
            return Some(Command::StopLogs);
        }
    } else if !model.filter.is_empty() {
        model.filter.clear();
    } else {
        model.marked.clear();
    }
    None
}

/// Logs of the marked plugins, else of the one under the cursor.
fn open_logs(model: &mut Model) -> Option<Command> {
    let marked = *model.screen() == Screen::Plugins && !model.marked.is_empty();
    let plugins = match (marked, model.screen()) {
        (true, _) => model.marked.iter().cloned().collect(),
        // About the core as a whole, or about nobody in particular: its own log.
        (_, Screen::Workers | Screen::Events(None)) => vec![CORE.to_owned()],
        (false, _) => model.target().map(|id| vec![id.to_owned()]).unwrap_or_default(),
    };
    follow(model, plugins)
}

/// The core's lines between those of the plugins, or no longer.
fn merge_core(model: &mut Model) -> Option<Command> {
    let mut sources = model.logs.sources.clone();
    match sources.iter().position(|source| source == CORE) {
        Some(_) if sources.len() == 1 => {
            say(model, false, "this is the core's log alone: :logs ID CORE merges".replace("CORE", CORE));
            return None;
        }
        Some(at) => drop(sources.remove(at)),
        None => sources.push(CORE.to_owned()),
    }
    follow(model, sources)
}

fn follow(model: &mut Model, plugins: Vec<String>) -> Option<Command> {
    if plugins.is_empty() {
        say(model, false, "no plugin is selected".into());
        return None;
    }
    if model.replay {
        say(model, false, "a recording holds no logs".into());
        return None;
    }
    let logs = &mut model.logs;
    logs.generation += 1;
    logs.sources = plugins.clone();
    logs.lines.clear();
    logs.complaints.clear();
    logs.forgotten = 0;
    logs.bottom = None;
    logs.search.clear();
    let generation = logs.generation;
    open(model, Screen::Logs);
    Some(Command::FollowLogs { generation, plugins })
}

/// Moves the cursor or the window by so many rows; far more than there are is the end.
fn scroll(model: &mut Model, by: isize) {
    match model.screen().clone() {
        Screen::Plugins => {
            let rows = model.rows();
            let at = model.selected.as_ref().and_then(|id| rows.iter().position(|row| row.status.id == *id));
            let to = at.unwrap_or(0).saturating_add_signed(by).min(rows.len().saturating_sub(1));
            model.selected = rows.get(to).map(|plugin| plugin.status.id.clone());
        }
        Screen::Logs => {
            let numbers: Vec<u64> = all_numbers(model);
            let Some(last) = numbers.len().checked_sub(1) else { return };
            let at = match model.logs.bottom {
                Some(bottom) => numbers.partition_point(|number| *number <= bottom).saturating_sub(1),
                None => last,
            };
            let logs = &model.logs;
            let oldest = logs.lines.iter().filter(|line| line.level >= logs.level);
            let full = logs.fitting(oldest, (model.size.0, model.window())).saturating_sub(1).min(last);
            let to = at.saturating_add_signed(by).clamp(full, last);
            // The end, reached by going down, follows again; the key for the end does so by name.
            model.logs.bottom = if to == last && by > 0 { None } else { Some(numbers[to]) };
        }
        Screen::Events(_) => {
            model.event_at = model.event_at.saturating_add_signed(by.saturating_neg());
        }
        Screen::Event(_) => {
            model.event_down = model.event_down.saturating_add_signed(by).min(scrolled_most(model));
        }
        Screen::Workers => {
            let most = model.workers.len().saturating_sub(1);
            model.workers_down = model.workers_down.saturating_add_signed(by).min(most);
        }
        Screen::Detail(_) => {
            model.detail_down = model.detail_down.saturating_add_signed(by).min(scrolled_most(model));
        }
    }
}

/// How many rows may be off the top, so that the last one is at the bottom.
fn scrolled_most(model: &Model) -> usize {
    let (above, below) = model.hidden();
    above + below
}

fn keep_event_in_sight(model: &mut Model) {
    let (count, window) = (model.events_shown().len(), model.window());
    model.event_at = model.event_at.min(count.saturating_sub(1));
    model.events_up = model
        .events_up
        .min(model.event_at)
        .max((model.event_at + 1).saturating_sub(window))
        .min(count.saturating_sub(window));
}

/// Numbers of the log lines of the level, also below the bottom.
fn all_numbers(model: &Model) -> Vec<u64> {
    let logs = &model.logs;
    (logs.forgotten..)
        .zip(&logs.lines)
        .filter(|(_, line)| line.level >= logs.level)
        .map(|(number, _)| number)
        .collect()
}

fn on_log_key(model: &mut Model, key: Key) {
    match key {
        Key::Char('p' | ' ' | 'f') => {
            model.logs.bottom = match model.logs.bottom {
                Some(_) => None,
                None => all_numbers(model).last().copied(),
            }
        }
        Key::Char('w') => model.logs.wrap = !model.logs.wrap,
        Key::Char('1') => model.logs.level = Level::Debug,
        Key::Char('2') => model.logs.level = Level::Info,
        Key::Char('3') => model.logs.level = Level::Warn,
        Key::Char('4') => model.logs.level = Level::Error,
        Key::Char('n') => find(model, true),
        Key::Char('N') => find(model, false),
        _ => {}
    }
}

/// Brings the next match below (`newer`) or above the bottom line to the bottom.
fn find(model: &mut Model, newer: bool) {
    if model.logs.search.is_empty() {
        say(model, false, "nothing to search for: / begins a search".into());
        return;
    }
    let logs = &model.logs;
    let bottom = logs.bottom.unwrap_or(u64::MAX);
    let mut matches = (logs.forgotten..)
        .zip(&logs.lines)
        .filter(|(_, line)| line.level >= logs.level && logs.matches(line))
        .map(|(number, _)| number);
    let hit = match newer {
        true => matches.find(|number| *number > bottom),
        false => matches.take_while(|number| *number < bottom).last(),
    };
    match hit {
        Some(number) => model.logs.bottom = Some(number),
        None => {
            let side = if newer { "below" } else { "above" };
            let text = format!("no {:?} {side}", model.logs.search);
            say(model, false, text);
        }
    }
}

fn on_prompt(model: &mut Model, mut prompt: Prompt, key: Key) -> Option<Command> {
    let request = match key {
        Key::Esc => {
            if matches!(prompt, Prompt::Filter(_)) {
                model.set_filter(String::new());
            }
            return None;
        }
        Key::Enter => return on_entered(model, prompt),
        Key::Tab => {
            if let Prompt::Command(input) = &mut prompt {
                let longest = common_prefix(&completions(model, input.value()));
                if longest.len() > input.value().len() {
                    *input = Input::new(longest);
                }
            }
            model.prompt = Some(prompt);
            return None;
        }
        Key::Char(letter) => InputRequest::InsertChar(letter),
        // As in vim, erasing an empty line leaves it.
        Key::Backspace if prompt.input().value().is_empty() => return None,
        Key::Backspace | Key::Ctrl('h') => InputRequest::DeletePrevChar,
        Key::Delete | Key::Ctrl('d') => InputRequest::DeleteNextChar,
        Key::Ctrl('w') => InputRequest::DeletePrevWord,
        Key::Ctrl('u') => InputRequest::DeleteLine,
        Key::Ctrl('k') => InputRequest::DeleteTillEnd,
        Key::Left | Key::Ctrl('b') => InputRequest::GoToPrevChar,
        Key::Right | Key::Ctrl('f') => InputRequest::GoToNextChar,
        Key::Home | Key::Ctrl('a') => InputRequest::GoToStart,
        Key::End | Key::Ctrl('e') => InputRequest::GoToEnd,
        _ => {
            model.prompt = Some(prompt);
            return None;
        }
    };
    match &mut prompt {
        Prompt::Filter(input) | Prompt::Search(input) | Prompt::Command(input) => {
            input.handle(request);
        }
    }
    if let Prompt::Filter(input) = &prompt {
        // The list narrows while the words are typed.
        model.set_filter(input.value().to_owned());
    }
    model.prompt = Some(prompt);
    None
}

fn on_entered(model: &mut Model, prompt: Prompt) -> Option<Command> {
    match prompt {
        Prompt::Filter(input) => {
            model.set_filter(input.value().trim().to_owned());
            None
        }
        Prompt::Search(input) => {
            model.logs.search = input.value().to_owned();
            if !model.logs.search.is_empty() {
                // From the end upwards: what just happened is what is looked for.
                model.logs.bottom = model.logs.bottom.map(|bottom| bottom + 1);
                find(model, false);
            }
            None
        }
        Prompt::Command(input) => run(model, input.value()),
    }
}

/// Words of the command line, beside the verbs.
const COMMANDS: [&str; 10] =
    ["detail", "events", "filter", "help", "level", "logs", "plugins", "quit", "sort", "workers"];
const LEVELS: [Level; 4] = [Level::Debug, Level::Info, Level::Warn, Level::Error];

fn commands() -> Vec<String> {
    COMMANDS.into_iter().chain(Verb::ALL.map(Verb::word)).map(str::to_owned).collect()
}

/// Whole lines that begin with what has been typed.
pub fn completions(model: &Model, line: &str) -> Vec<String> {
    let (head, last) = match line.rsplit_once(' ') {
        Some((head, last)) => (format!("{head} "), last),
        None => (String::new(), line),
    };
    let typed: Vec<&str> = head.split_whitespace().collect();
    let ids = || model.plugins.keys().cloned();
    let mut words: Vec<String> = match typed.split_first() {
        None => commands(),
        Some((&("logs" | "l"), told)) => {
            let mut ids: Vec<String> = ids().chain([CORE.to_owned()]).collect();
            ids.retain(|id| !told.contains(&id.as_str()));
            ids
        }
        // The others take one word.
        Some((_, [_, ..])) => vec![],
        Some((&"sort", [])) => Column::ALL.map(Column::word).to_vec(),
        Some((&"level", [])) => LEVELS.map(|level| level.word().to_owned()).to_vec(),
        Some((&("filter" | "f"), [])) => {
            let states: BTreeSet<String> =
                model.plugins.values().map(|plugin| plugin.condition().word().to_lowercase()).collect();
            ids().chain(states).collect()
        }
        Some((&("detail" | "d" | "events" | "e"), [])) => ids().collect(),
        Some((first, [])) if Verb::ALL.iter().any(|verb| verb.word() == *first) => ids().collect(),
        Some((_, [])) => vec![],
    };
    words.sort();
    words.into_iter().filter(|word| word.starts_with(last)).map(|word| format!("{head}{word}")).collect()
}

fn common_prefix(lines: &[String]) -> String {
    let Some(first) = lines.first() else { return String::new() };
    let mut length = first.len();
    for line in lines {
        length = first
            .char_indices()
            .zip(line.chars())
            .take_while(|((_, a), b)| a == b)
            .last()
            .map_or(0, |((at, a), _)| at + a.len_utf8())
            .min(length);
    }
    let done = if lines.len() == 1 && !first.ends_with(' ') { " " } else { "" };
    format!("{}{done}", &first[..length])
}

fn run(model: &mut Model, line: &str) -> Option<Command> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (first, rest) = words.split_first()?;
    obey(model, first, rest).unwrap_or_else(|complaint| {
        say(model, false, clean(&complaint));
        None
    })
}

/// Does what a command says. Errors: in words, with what would have been understood.
fn obey(model: &mut Model, first: &str, rest: &[&str]) -> Result<Option<Command>, String> {
    if let Some(verb) = Verb::ALL.into_iter().find(|verb| verb.word() == first) {
        let id = plugin_meant(model, first, rest)?;
        ask(model, verb, &id);
        return Ok(None);
    }
    let screen = model.screen().clone();
    match (first, rest) {
        ("q" | "q!" | "quit" | "exit", []) => return Ok(Some(Command::Quit)),
        ("help" | "h", []) => model.help = Some(0),
        ("plugins" | "pl", []) => {
            let left_logs = model.screens.contains(&Screen::Logs);
            model.screens.truncate(1);
            return Ok(left_logs.then_some(Command::StopLogs));
        }
        ("workers" | "w", []) => open(model, Screen::Workers),
        ("q" | "q!" | "quit" | "exit" | "help" | "h" | "plugins" | "pl" | "workers" | "w", _) => {
            return Err(format!("{first} stands alone: nothing may follow it"));
        }
        ("events" | "e", []) => open(model, Screen::Events(None)),
        // Of one that is gone there may be events still.
        ("events" | "e", [id]) if model.events.iter().any(|event| event.plugin == **id) => {
            open(model, Screen::Events(Some((*id).to_owned())));
        }
        ("events" | "e", _) => {
            let id = plugin_meant(model, first, rest)?;
            open(model, Screen::Events(Some(id)));
        }
        ("detail" | "d", _) => {
            let id = plugin_meant(model, first, rest)?;
            open(model, Screen::Detail(id));
        }
        ("logs" | "l", []) => return Ok(open_logs(model)),
        ("logs" | "l", ids) => {
            if let Some(id) = ids.iter().find(|id| **id != CORE && !model.plugins.contains_key(**id)) {
                return Err(format!("{}, {CORE}", unknown(model, id)));
            }
            return Ok(follow(model, ids.iter().map(|id| (*id).to_owned()).collect()));
        }
        ("filter" | "f", words) => match screen {
            Screen::Plugins | Screen::Events(_) => model.set_filter(words.join(" ")),
            _ => return Err("filter is for :plugins and :events; in a log / searches".into()),
        },
        ("level", [word]) if screen == Screen::Logs && LEVELS.iter().any(|level| level.word() == *word) => {
            model.logs.level = LEVELS.into_iter().find(|level| level.word() == *word).unwrap_or_default();
        }
        ("level", _) if screen == Screen::Logs => {
            return Err(format!("level takes one of {}", LEVELS.map(Level::word).join(", ")));
        }
        ("level", _) => return Err("level is for a log: :logs ID opens one".into()),
        ("sort", _) if screen != Screen::Plugins => return Err("sort is for :plugins".into()),
        ("sort", [name]) if Column::ALL.iter().any(|column| column.word() == name.to_lowercase()) => {
            let column = Column::ALL.into_iter().find(|column| column.word() == name.to_lowercase());
            column.into_iter().for_each(|column| sort_by(model, column));
        }
        ("sort", _) => return Err(format!("sort takes one of {}", Column::ALL.map(Column::word).join(", "))),
        _ => return Err(format!("no command {first:?}; there are {}", commands().join(", "))),
    }
    Ok(None)
}

/// The plugin that a command names, else the one that keys act on.
fn plugin_meant(model: &Model, command: &str, rest: &[&str]) -> Result<String, String> {
    match rest {
        [] => {
            let meant = model.target().filter(|id| *id != CORE);
            meant.map(str::to_owned).ok_or_else(|| format!("{command} takes a plugin: {}", some_ids(model)))
        }
        [id] if model.plugins.contains_key(*id) => Ok((*id).to_owned()),
        [id] => Err(unknown(model, id)),
        _ => Err(format!("{command} takes one plugin at a time")),
    }
}

fn unknown(model: &Model, id: &str) -> String {
    format!("no plugin {id:?}; there are {}", some_ids(model))
}

/// The first few ids, and how many more there are.
fn some_ids(model: &Model) -> String {
    const MOST: usize = 6;
    let mut ids: Vec<String> = model.plugins.keys().take(MOST).cloned().collect();
    match model.plugins.len() {
        0 => return "none".into(),
        count if count > MOST => ids.push(format!("{} more", count - MOST)),
        _ => {}
    }
    ids.join(", ")
}
