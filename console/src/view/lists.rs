//! Logs, events and workers: a line each.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use toru_plugin_api::status::StoreStatus;

use super::chart::spark;
use super::theme::{Look, Role};
use super::{NARROW, cut_top, flowed, put};
use crate::columns::moment;
use crate::model::{EVENT_LABEL, Event, Level, LogLine, Model, Worker};
use crate::text;

pub fn draw_logs(model: &Model, look: Look, buffer: &mut Buffer, area: Rect) {
    let logs = &model.logs;
    let mut area = area;
    for (plugin, complaint) in &logs.complaints {
        let (row, rest) = cut_top(area, 1);
        put(buffer, row, &Line::styled(format!("{plugin}: {complaint}"), look.style(Role::Warn)));
        area = rest;
    }
    // From the bottom up, until the screen is full.
    let several = logs.sources.len() > 1;
    let mut rows: Vec<Line<'_>> = Vec::new();
    for (_, line) in logs.shown().rev() {
        let mut pieces = if logs.wrap {
            wrapped(log_line(model, look, line, several, None), area.width.into(), INDENT)
        } else {
            vec![log_line(model, look, line, several, Some(area.width.into()))]
        };
        if rows.is_empty() && pieces.len() > area.height.into() {
            // Of one that is higher than the screen the begin says more than the end.
            pieces.truncate(area.height.into());
            if let Some(last) = pieces.last_mut() {
                last.push_span(Span::styled("…", look.style(Role::Dim)));
            }
        }
        pieces.reverse();
        rows.extend(pieces);
        if rows.len() >= area.height.into() {
            break;
        }
    }
    rows.truncate(area.height.into());
    if rows.is_empty() {
        let say = if logs.lines.is_empty() { "No lines yet." } else { "No lines of this level." };
        put(buffer, area, &Line::styled(say, look.style(Role::Dim)));
    }
    for (row, line) in (0..area.height).zip(rows.iter().rev()) {
        put(buffer, Rect { y: area.y + row, height: 1, ..area }, line);
    }
}

/// In front of the later rows of a line that is wrapped, [`crate::model::LOG_INDENT`] columns.
const INDENT: &str = "    ";

/// Time, level, plugin where there are several, words. Of a line that is cut at `width` the begin of the words is left
/// out instead where else what was searched for would be.
fn log_line<'a>(
    model: &Model,
    look: Look,
    line: &'a LogLine,
    several: bool,
    width: Option<usize>,
) -> Line<'a> {
    let role = match line.level {
        Level::Debug => Role::Dim,
        Level::Info => Role::Plain,
        Level::Warn => Role::Warn,
        Level::Error => Role::Bad,
    };
    let mut spans = vec![
        Span::styled(format!("{:<8} ", moment(line.unix_ms, model.now.unix_ms)), look.style(Role::Dim)),
        Span::styled(format!("{:<5} ", line.level.word()), look.style(role)),
    ];
    if several {
        spans.push(Span::styled(format!("{} ", line.plugin), look.style(Role::Key)));
    }
    let style = look.style(if line.level == Level::Info { Role::Plain } else { role });
    if !model.logs.matches(line) {
        spans.push(Span::styled(line.text.as_str(), style));
        return Line::from(spans);
    }
    // Lower case may have another length in bytes; then the whole line is marked instead of the words.
    let (lower, words) = (line.text.to_lowercase(), model.logs.search.to_lowercase());
    if lower.len() != line.text.len() {
        spans.push(Span::styled(line.text.as_str(), look.style(Role::Selected)));
        return Line::from(spans);
    }
    let mut at = 0;
    if let (Some(width), Some(found)) = (width, lower.find(&words)) {
        let room = width.saturating_sub(spans.iter().map(Span::width).sum());
        at = begin_shown(&line.text, found, found + words.len(), room);
        if at > 0 {
            spans.push(Span::styled("…", look.style(Role::Dim)));
        }
    }
    for (found, _) in lower.match_indices(&words).filter(|(found, _)| *found >= at).collect::<Vec<_>>() {
        let (Some(before), Some(hit)) = (line.text.get(at..found), line.text.get(found..found + words.len()))
        else {
            break;
        };
        spans.push(Span::styled(before, style));
        spans.push(Span::styled(hit, look.style(Role::Selected)));
        at = found + words.len();
    }
    spans.push(Span::styled(line.text.get(at..).unwrap_or_default(), style));
    Line::from(spans)
}

/// Where in `text` what is shown begins, so that the part from `from` to `to` is within `room` columns: a third before
/// it.
fn begin_shown(text: &str, from: usize, to: usize, room: usize) -> usize {
    let columns = |part: Option<&str>| part.map_or(0, text::columns);
    // One column is that of the sign for what is cut off behind.
    if columns(text.get(..to)) < room {
        return 0;
    }
    let before = text.get(..from).unwrap_or_default();
    let far = |at: &usize| columns(before.get(*at..)) <= room / 3;
    before.char_indices().map(|(at, _)| at).find(far).unwrap_or(from)
}

/// A line as rows of at most `width` columns; later rows are indented.
fn wrapped<'a>(line: Line<'a>, width: usize, indent: &'static str) -> Vec<Line<'a>> {
    if width <= indent.len() * 2 {
        return vec![line];
    }
    let mut rows: Vec<Line<'_>> = vec![Line::default()];
    let mut used = 0;
    for span in line.spans {
        let mut piece = String::new();
        for grapheme in span.styled_graphemes(ratatui::style::Style::new()) {
            let columns = Span::raw(grapheme.symbol).width();
            if used + columns > width {
                let full = std::mem::take(&mut piece);
                rows.last_mut().expect("never empty").push_span(Span::styled(full, span.style));
                rows.push(Line::raw(indent));
                used = indent.len();
            }
            piece.push_str(grapheme.symbol);
            used += columns;
        }
        rows.last_mut().expect("never empty").push_span(Span::styled(piece, span.style));
    }
    rows
}

pub fn draw_events(model: &Model, look: Look, buffer: &mut Buffer, area: Rect) {
    let events = model.events_shown();
    if events.is_empty() {
        let why = model.why_no_events();
        put(buffer, area, &Line::styled(why, look.style(Role::Dim)));
        return;
    }
    let width = events.iter().map(|event| event.plugin.chars().count()).max().unwrap_or(0).min(24);
    let end = events.len() - model.events_up.min(events.len() - 1);
    let begin = end.saturating_sub(area.height.into());
    let cursor = events.len().checked_sub(1 + model.event_at);
    for (row, (index, event)) in (0..area.height).zip(events.iter().enumerate().take(end).skip(begin)) {
        let area = Rect { y: area.y + row, height: 1, ..area };
        let mut line = event_line(model, look, event, Some(width));
        let at_cursor = Some(index) == cursor;
        if at_cursor {
            line.spans[0] = line.spans[0].clone().style(look.style(Role::Selected));
        }
        line.spans.insert(0, Span::styled(if at_cursor { ">" } else { " " }, look.style(Role::Key)));
        put(buffer, area, &line);
    }
}

/// One event, whole.
pub fn draw_event(model: &Model, look: Look, buffer: &mut Buffer, area: Rect, id: u64) {
    let Some(event) = model.event(id) else {
        put(buffer, area, &Line::styled("Newer events took its place here.", look.style(Role::Dim)));
        return;
    };
    let rows = event.rows(area.width.into());
    let from = model.event_down.min(rows.len().saturating_sub(area.height.into()));
    for (row, (label, words)) in (0..area.height).zip(rows.into_iter().skip(from)) {
        let line = Line::from(vec![
            Span::styled(format!("{label:<EVENT_LABEL$} "), look.style(Role::Dim)),
            Span::raw(words),
        ]);
        put(buffer, Rect { y: area.y + row, height: 1, ..area }, &line);
    }
}

/// Time, plugin where wanted, what, details.
pub fn event_line<'a>(model: &Model, look: Look, event: &'a Event, id_width: Option<usize>) -> Line<'a> {
    let role = match event.kind.as_str() {
        "crashed" | "disabled_after_crashes" | "protocol_error" => Role::Bad,
        "unresponsive" | "request_timeout" | "restarting" => Role::Warn,
        "ready" => Role::Good,
        _ => Role::Plain,
    };
    let time = format!("{:<8}", moment(event.unix_ms, model.now.unix_ms));
    let mut spans = vec![Span::styled(time, look.style(Role::Dim)), Span::raw(" ")];
    if let Some(width) = id_width {
        spans.push(Span::styled(
            format!("{:<width$} ", text::shortened_id(&event.plugin, width)),
            look.style(Role::Key),
        ));
    }
    // Where it is tight the words need the room more than a column of their own.
    let kind = if model.size.0 < NARROW { 0 } else { 12 };
    spans.push(Span::styled(format!("{:<kind$} ", event.kind), look.style(role)));
    spans.push(Span::raw(event.text()));
    Line::from(spans)
}

/// One fact about each worker: its title, how wide it is, and below how many columns of screen it goes.
type WorkerColumn = (&'static str, usize, u16, fn(&Worker) -> String);

const WORKER_COLUMNS: [WorkerColumn; 8] = [
    ("WORKER", 6, 0, |worker| worker.status.number.to_string()),
    ("DRIVER", 8, 0, |worker| worker.status.driver.clone()),
    ("CLIENTS", 7, 0, |worker| text::count(worker.status.connections)),
    ("REQ/S", 6, 0, |worker| text::rate(worker.requests_per_s)),
    ("INFL", 5, 44, |worker| text::count(worker.status.in_flight)),
    ("QUEUE", 5, 52, |worker| text::count(worker.status.queued)),
    ("LAG", 6, 60, |worker| text::latency(worker.status.lag_us)),
    ("REQUESTS", 8, 68, |worker| text::count(worker.status.requests)),
];
/// A loop so late is worth a look: every connection of that core waits as long.
const LAG_WARN_US: u64 = 50_000;
const LAG_BAD_US: u64 = 500_000;
/// So slow a disk is felt by every plugin that stores something.
const COMMIT_WARN_US: u64 = 100_000;

pub fn draw_workers(model: &Model, look: Look, buffer: &mut Buffer, area: Rect) {
    let columns: Vec<&WorkerColumn> =
        WORKER_COLUMNS.iter().filter(|(_, _, from, _)| area.width >= *from).collect();
    let mut titles = String::from("  ");
    for (title, width, ..) in &columns {
        match *title {
            "DRIVER" => titles.push_str(&format!("{title:<width$}  ")),
            _ => titles.push_str(&format!("{title:>width$}  ")),
        }
    }
    titles.push_str("TREND REQ/S");
    let (title_row, mut rest) = cut_top(area, 1);
    put(buffer, title_row, &Line::styled(titles, look.style(Role::Dim)));
    // Of more workers than there is room for some rows show, and what stands below them stays.
    let below = about_the_core(model, look, rest.width);
    let room = usize::from(rest.height).saturating_sub(below.len()).max(2);
    let from = if model.workers.len() > room { model.workers_down } else { 0 };
    let left = model.workers.len().saturating_sub(from);
    let shown = if from + room < model.workers.len() { room - 1 } else { left };
    for worker in model.workers.iter().skip(from).take(shown) {
        let (row, others) = cut_top(rest, 1);
        rest = others;
        let mut spans = vec![Span::raw("  ")];
        for (title, width, _, value) in &columns {
            let status = &worker.status;
            let role = match *title {
                "QUEUE" if status.queued > 0 => Role::Warn,
                "LAG" if status.lag_us >= LAG_BAD_US => Role::Bad,
                "LAG" if status.lag_us >= LAG_WARN_US => Role::Warn,
                _ => Role::Plain,
            };
            let text = match *title {
                "DRIVER" => format!("{:<width$}  ", value(worker)),
                _ => format!("{:>width$}  ", value(worker)),
            };
            spans.push(Span::styled(text, look.style(role)));
        }
        let used: usize = spans.iter().map(Span::width).sum();
        let width = usize::from(row.width).saturating_sub(used).min(60);
        let skip = worker.history.len().saturating_sub(width);
        let trend: Vec<f64> = worker.history.iter().skip(skip).copied().collect();
        spans.push(Span::styled(spark(&trend), look.style(Role::Series(0))));
        put(buffer, row, &Line::from(spans));
    }
    if left > shown {
        let (row, others) = cut_top(rest, 1);
        put(buffer, row, &Line::styled(format!("  +{} more (j k)", left - shown), look.style(Role::Dim)));
        rest = others;
    }
    for line in below {
        let (row, others) = cut_top(rest, 1);
        put(buffer, Rect { x: row.x + 2, width: row.width.saturating_sub(2), ..row }, &line);
        rest = others;
    }
}

/// What the workers share: the store and the log, an empty row in front of each.
fn about_the_core<'a>(model: &Model, look: Look, width: u16) -> Vec<Line<'a>> {
    let Some(core) = &model.core else { return vec![] };
    let mut groups = Vec::new();
    // A core of before does not tell of its store.
    if core.window_ms.is_some() {
        groups.push(store(look, &core.store));
    }
    let dropped = core.dropped_log_lines;
    groups.push(vec![
        Span::styled("Log", look.style(Role::Title)),
        Span::styled(
            format!("{} lines dropped", text::count(dropped)),
            look.style(if dropped > 0 { Role::Warn } else { Role::Plain }),
        ),
    ]);
    let width = usize::from(width).saturating_sub(2);
    let rows = groups.into_iter().flat_map(|group| [vec![Line::default()], flowed(look, group, width)]);
    rows.flatten().collect()
}

/// The database: what waits for it, and how long its disk takes.
fn store<'a>(look: Look, store: &StoreStatus) -> Vec<Span<'a>> {
    let writable = match store.writable {
        true => Span::styled("written", look.style(Role::Good)),
        false => Span::styled("CLOSED after a failed write", look.style(Role::Alarm)),
    };
    let commit = |us: Option<u64>| us.map_or("-".into(), text::latency);
    let slow = store.last_commit_us.is_some_and(|us| us >= COMMIT_WARN_US);
    let mut parts = vec![
        Span::styled("SQLite", look.style(Role::Title)),
        writable,
        Span::raw(format!(
            "queue {} writes ({}), {} reads, {} events",
            text::count(store.queued_writes),
            text::bytes(store.queued_bytes),
            text::count(store.queued_reads),
            text::count(store.queued_events),
        )),
        Span::styled(
            format!("last commit {}", commit(store.last_commit_us)),
            look.style(if slow { Role::Warn } else { Role::Plain }),
        ),
        Span::raw(format!("p50 {}", commit(store.p50_commit_us))),
        Span::raw(format!("p99 {}", commit(store.p99_commit_us))),
        Span::raw(format!("{} commits", text::count(store.commits))),
    ];
    if store.dropped_events > 0 {
        parts.push(Span::styled(
            format!("{} events dropped", text::count(store.dropped_events)),
            look.style(Role::Warn),
        ));
    }
    parts
}
