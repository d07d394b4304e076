//! The model as a frame. Reads `&Model`, decides nothing, keeps nothing.
//!
//! Colour repeats what a word or a sign says already, so that mono loses nothing.
//! Everything is drawn with its proper signs; [`draw`] replaces them at the end where only ASCII may be used.

mod chart;
mod detail;
mod lists;
mod overlay;
mod plugins;
#[cfg(test)]
mod tests;
mod theme;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Widget};

use crate::model::{Condition, Link, Logs, Model, Prompt, SIZE_MIN, Screen};
use crate::text;
use crate::update::completions;

pub use theme::{Look, Theme};
use theme::{Role, sign, to_ascii_cells};

/// Below this the header keeps to the states of the plugins.
const NARROW: u16 = 60;

pub fn draw(model: &Model, look: Look, frame: &mut Frame<'_>) {
    let area = frame.area();
    if area.is_empty() {
        return;
    }
    let buffer = frame.buffer_mut();
    if area.width < SIZE_MIN.0 || area.height < SIZE_MIN.1 {
        buffer.set_stringn(0, 0, "too small", area.width.into(), look.style(Role::Bad));
        return;
    }
    let (header, rest) = cut_top(area, 2);
    let (body, footer) = cut_bottom(rest, 1);
    draw_header(model, look, buffer, header);
    match model.screen() {
        Screen::Plugins => plugins::draw(model, look, buffer, body),
        Screen::Detail(id) => detail::draw(model, look, buffer, body, id),
        Screen::Logs => lists::draw_logs(model, look, buffer, body),
        Screen::Events(_) => lists::draw_events(model, look, buffer, body),
        Screen::Event(id) => lists::draw_event(model, look, buffer, body, *id),
        Screen::Workers => lists::draw_workers(model, look, buffer, body),
    }
    if model.link != Link::Live {
        // The last picture, but nobody shall take it for the present.
        for position in body.positions() {
            buffer[position].set_style(look.stale());
        }
    }
    let cursor = draw_footer(model, look, buffer, footer);
    if let Some(from) = model.help {
        overlay::draw_help(model, look, buffer, area, from);
    } else if let Some(confirm) = &model.confirm {
        overlay::draw_confirm(model, look, buffer, area, confirm);
    }
    if look.ascii {
        to_ascii_cells(buffer);
    }
    if let Some(cursor) = cursor {
        frame.set_cursor_position(cursor);
    }
}

fn cut_top(area: Rect, rows: u16) -> (Rect, Rect) {
    let rows = rows.min(area.height);
    (Rect { height: rows, ..area }, Rect { y: area.y + rows, height: area.height - rows, ..area })
}

fn cut_bottom(area: Rect, rows: u16) -> (Rect, Rect) {
    let rows = rows.min(area.height);
    (
        Rect { height: area.height - rows, ..area },
        Rect { y: area.y + area.height - rows, height: rows, ..area },
    )
}

/// One row: `right` at the right edge in full, `left` in what remains.
fn bar(buffer: &mut Buffer, area: Rect, left: &Line<'_>, right: &Line<'_>) {
    if area.height == 0 {
        return;
    }
    let right_width = (right.width() as u16).min(area.width);
    let left_width = area.width - right_width;
    put(buffer, Rect { width: left_width.saturating_sub(u16::from(right_width > 0)), ..area }, left);
    buffer.set_line(area.x + left_width, area.y, right, right_width);
}

/// One row of text; `…` where it was cut.
fn put(buffer: &mut Buffer, area: Rect, line: &Line<'_>) {
    if area.width == 0 || area.height == 0 {
        return;
    }
    buffer.set_line(area.x, area.y, line, area.width);
    if line.width() > usize::from(area.width) {
        let last = area.x + area.width - 1;
        // A sign of two columns would cover the mark.
        if last > area.x && text::columns(buffer[(last - 1, area.y)].symbol()) > 1 {
            buffer[(last - 1, area.y)].set_symbol(" ");
        }
        buffer[(last, area.y)].set_symbol("…");
    }
}

/// Parts with a dot between them.
fn joined<'a>(look: Look, parts: Vec<Span<'a>>) -> Line<'a> {
    let mut spans = Vec::with_capacity(parts.len() * 2);
    for part in parts {
        if !spans.is_empty() {
            spans.push(Span::styled(" · ", look.style(Role::Dim)));
        }
        spans.push(part);
    }
    Line::from(spans)
}

/// Parts with a dot between them, on as many rows as they need.
fn flowed<'a>(look: Look, parts: Vec<Span<'a>>, width: usize) -> Vec<Line<'a>> {
    text::flowed(parts, width, Span::width).into_iter().map(|row| joined(look, row)).collect()
}

/// The first parts, as many as have room whole; the very first also in part.
fn fitting(mut parts: Vec<Span<'_>>, width: usize) -> Vec<Span<'_>> {
    let mut used = 0;
    let fits = parts.iter().take_while(|part| {
        used += part.width() + if used > 0 { 3 } else { 0 };
        used <= width
    });
    let count = fits.count().max(1);
    parts.truncate(count);
    parts
}

fn draw_header(model: &Model, look: Look, buffer: &mut Buffer, area: Rect) {
    let (first, second) = cut_top(area, 1);
    let link = match &model.link {
        _ if model.ended.is_some() => {
            Span::styled(model.ended.as_deref().unwrap_or_default(), look.style(Role::Warn))
        }
        Link::Connecting { .. } | Link::Live if model.replay => Span::styled(
            format!("recording of {} UTC", text::clock(model.now.unix_ms)),
            look.style(Role::Warn),
        ),
        Link::Connecting { .. } => Span::styled("○ connecting", look.style(Role::Busy)),
        Link::Live if model.is_stale() => {
            let since = text::clock(model.snapshot_at.unix_ms);
            let words = if area.width < NARROW { "stale" } else { "○ stale since" };
            Span::styled(format!("{words} {since}"), look.style(Role::Warn))
        }
        Link::Live if area.width < NARROW => Span::styled("● live", look.style(Role::Good)),
        Link::Live => {
            Span::styled(format!("● live {} UTC", text::clock(model.now.unix_ms)), look.style(Role::Good))
        }
        Link::Lost { since, .. } if area.width < NARROW => {
            Span::styled(format!("LOST {}", text::clock(since.unix_ms)), look.style(Role::Alarm))
        }
        Link::Lost { since, .. } => {
            let ago = model.now.elapsed.saturating_sub(since.elapsed).as_millis() as u64 / 1000 * 1000;
            Span::styled(
                format!(" LOST since {} ({}) ", text::clock(since.unix_ms), text::span(ago)),
                look.style(Role::Alarm),
            )
        }
    };
    let link = Line::from(link);
    let room = usize::from(first.width).saturating_sub(link.width() + 1);
    let mut parts = vec![Span::styled("toru", look.style(Role::Title))];
    if let Some(core) = &model.core {
        parts.extend(census(model, look));
        if core.dropped_log_lines > 0 {
            let lost = format!("{} log lines dropped", text::count(core.dropped_log_lines));
            parts.push(Span::styled(lost, look.style(Role::Warn)));
        }
        let counts = parts.len();
        if fitting(parts.clone(), room).len() < counts {
            // The title says least, and how the others are is not left out without a sign.
            parts.remove(0);
            if fitting(parts.clone(), room).len() + 1 < counts {
                parts = fitting(parts, room.saturating_sub(4));
                parts.push(Span::styled("…", look.style(Role::Warn)));
            }
        } else {
            parts.push(Span::raw(format!("up {}", text::span(core.uptime_ms))));
            parts.push(Span::raw(format!("pid {}", core.pid)));
            let titled = Span::styled(format!("toru {}", core.version), look.style(Role::Title));
            let named = [&[titled][..], &parts[1..]].concat();
            if area.width >= NARROW && fitting(named.clone(), room).len() >= counts {
                parts = named;
            }
        }
    }
    bar(buffer, first, &joined(look, fitting(parts, room)), &link);
    let more = more(model, look, second.width);
    let room = usize::from(second.width).saturating_sub(more.width() + usize::from(more.width() > 0));
    let mut parts = situation(model, look);
    if matches!(model.link, Link::Live) || model.ended.is_some() {
        parts = fitting(parts, room);
    }
    // Why there is no line is cut rather than left out.
    bar(buffer, second, &joined(look, parts), &more);
}

/// How many rows are above and below what the screen shows.
fn more<'a>(model: &Model, look: Look, width: u16) -> Line<'a> {
    let mut words = match model.hidden() {
        (0, 0) => return Line::default(),
        (above, 0) => format!("▲{above}"),
        (0, below) => format!("▼{below}"),
        (above, below) => format!("▲{above} ▼{below}"),
    };
    if width >= NARROW {
        words.push_str(" more (j k)");
    }
    Line::styled(words, look.style(Role::Key))
}

/// `1 worker`, `2 workers`.
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// How many plugins are how, worst first.
fn census<'a>(model: &Model, look: Look) -> Vec<Span<'a>> {
    let mut counts = std::collections::BTreeMap::<Condition, usize>::new();
    for plugin in model.plugins.values() {
        *counts.entry(plugin.condition()).or_default() += 1;
    }
    let parts = counts.into_iter().rev();
    parts
        .map(|(condition, count)| {
            // Of a core that is lost nobody knows; a colour would say that it is so.
            let style =
                if model.link == Link::Live { look.condition(condition) } else { look.style(Role::Dim) };
            Span::styled(format!("{count} {}", condition.word()), style)
        })
        .collect()
}

/// The second row: where one is, and the numbers over everything.
fn situation<'a>(model: &'a Model, look: Look) -> Vec<Span<'a>> {
    let title = |text: String| Span::styled(text, look.style(Role::Title));
    let mut parts = Vec::new();
    match model.screen() {
        Screen::Plugins => {
            parts.push(title("Plugins".into()));
            let sort = plugins::hidden_sort(model, model.size.0);
            parts.extend(sort.map(|sort| Span::styled(sort, look.style(Role::Key))));
        }
        Screen::Detail(id) => parts.push(title(format!("Plugin {id}"))),
        Screen::Logs => {
            let Logs { sources, bottom, level, wrap, search, .. } = &model.logs;
            parts.push(title(format!("Logs of {}", sources.join(", "))));
            parts.push(match bottom {
                // Nothing comes at the moment, from some of them at least.
                None if !model.logs.complaints.is_empty() || model.link != Link::Live || model.is_stale() => {
                    Span::styled("waiting", look.style(Role::Warn))
                }
                None => Span::styled("following", look.style(Role::Good)),
                Some(bottom) => {
                    let newer = model.logs.forgotten + model.logs.lines.len() as u64;
                    let text = format!("paused, {} below", newer.saturating_sub(bottom + 1));
                    Span::styled(text, look.style(Role::Warn))
                }
            });
            parts.push(Span::raw(format!("{} and above", level.word())));
            if *wrap {
                parts.push(Span::raw("wrapped"));
            }
            if !search.is_empty() {
                parts.push(Span::styled(format!("/{search}"), look.style(Role::Key)));
            }
        }
        Screen::Events(None) => parts.push(title("Events".into())),
        Screen::Events(Some(id)) => parts.push(title(format!("Events of {id}"))),
        Screen::Event(_) => parts.push(title("Event".into())),
        Screen::Workers => parts.push(title("Workers".into())),
    }
    if let Some(why) = &model.unrecorded {
        parts.insert(0, Span::styled(format!("NOT RECORDED: {why}"), look.style(Role::Alarm)));
    }
    let reason = match &model.link {
        Link::Connecting { reason, .. } => reason.as_deref(),
        // In the corner.
        Link::Lost { .. } if model.ended.is_some() => None,
        Link::Lost { reason, .. } => Some(reason.as_str()),
        Link::Live => None,
    };
    if let Some(reason) = reason {
        // Of a recording this was so then.
        let end = if model.replay { "" } else { "; trying again" };
        parts.push(Span::styled(format!("{reason}{end}"), look.style(Role::Bad)));
        return parts;
    }
    if let Some(words) = model.filter_of_screen().filter(|words| !words.is_empty()) {
        let (shown, all) = match model.screen() {
            Screen::Plugins => (model.rows().len(), model.plugins.len()),
            _ => (model.events_shown().len(), model.events.len()),
        };
        let shown = format!("/{words} {shown} of {all}");
        parts.push(Span::styled(shown, look.style(Role::Key)));
    }
    if matches!(model.screen(), Screen::Plugins | Screen::Workers) && model.core.is_some() {
        let requests: f64 = model.plugins.values().map(|plugin| plugin.latest().requests_per_s).sum();
        let errors: f64 = model.plugins.values().map(|plugin| plugin.latest().errors_per_s).sum();
        parts.push(Span::raw(format!("{} req/s", text::rate(requests))));
        let role = if errors > 0.0 { Role::Bad } else { Role::Plain };
        parts.push(Span::styled(format!("{} err/s", text::rate(errors)), look.style(role)));
        let connections: u64 = model.workers.iter().map(|worker| worker.status.connections).sum();
        let driver = model.workers.first().map_or("", |worker| worker.status.driver.as_str());
        parts.push(Span::raw(format!(
            "{} client{}",
            text::count(connections),
            if connections == 1 { "" } else { "s" }
        )));
        parts.push(Span::raw(format!("{} on {driver}", counted(model.workers.len(), "worker"))));
    }
    if model.readonly {
        parts.push(Span::styled("read-only", look.style(Role::Warn)));
    }
    parts
}

/// The last row: what is typed, else what has happened, else what can be done. Gives the cursor's place.
fn draw_footer(model: &Model, look: Look, buffer: &mut Buffer, area: Rect) -> Option<Position> {
    if let Some(prompt) = &model.prompt {
        let sign = match prompt {
            Prompt::Filter(_) => "filter /",
            Prompt::Search(_) => "search /",
            Prompt::Command(_) => ":",
        };
        let input = prompt.input();
        let width = usize::from(area.width).saturating_sub(sign.len() + 1);
        let skipped = input.visual_scroll(width);
        let mut shown: String = input.value().to_owned();
        let mut hidden = 0;
        while hidden < skipped && !shown.is_empty() {
            let first = shown.remove(0);
            hidden += Span::raw(first.to_string()).width().max(1);
        }
        let mut spans =
            vec![Span::styled(sign, look.style(Role::Key)), Span::raw(crate::text::clean(&shown))];
        if matches!(prompt, Prompt::Command(_)) {
            let offers: Vec<String> = completions(model, input.value())
                .into_iter()
                .filter(|offer| offer != input.value())
                .map(|offer| offer.rsplit(' ').next().unwrap_or_default().to_owned())
                .collect();
            if !offers.is_empty() {
                spans.push(Span::styled(format!("   Tab: {}", offers.join(" ")), look.style(Role::Dim)));
            }
        }
        put(buffer, area, &Line::from(spans));
        let column = sign.len() + input.visual_cursor().saturating_sub(hidden);
        return Some(Position::new(area.x + (column as u16).min(area.width - 1), area.y));
    }
    if let Some((verb, id)) = model.pending.last() {
        let text = format!("{} {id}: on its way…", verb.word());
        draw_told(buffer, area, " ", &text, id, look.style(Role::Busy));
    } else if let Some(toast) = &model.toast {
        let (mark, role) = if toast.good { ("●", Role::Good) } else { ("✖", Role::Alarm) };
        draw_told(buffer, area, mark, &toast.text, &toast.id, look.style(role));
    } else {
        put(buffer, area, &hints(model, look, area.width.into()));
    }
    None
}

/// Columns of an id below which it says too little.
const ID_MIN: usize = 12;

/// What became of something, at the bottom: the id gives way to the outcome, and what is still too long takes rows of
/// the picture above, half of it at most.
fn draw_told(buffer: &mut Buffer, area: Rect, mark: &str, text: &str, id: &str, style: Style) {
    let mark_width = if mark.trim().is_empty() { 1 } else { 2 };
    let width = usize::from(area.width).saturating_sub(mark_width).max(1);
    let beside = text::columns(text).saturating_sub(text::columns(id));
    let rows = match width.checked_sub(beside) {
        Some(room) if !id.is_empty() && room >= ID_MIN => {
            vec![text.replacen(id, &text::shortened_id(id, room), 1)]
        }
        _ => text::wrapped(text, width),
    };
    let most = usize::from(area.y.div_ceil(2)).max(1);
    let count = rows.len().min(most);
    let top = area.y + 1 - count as u16;
    for (at, row) in rows.iter().take(count).enumerate() {
        let place = Rect { y: top + at as u16, height: 1, ..area };
        Clear.render(place, buffer);
        let mark = if at == 0 { mark } else { "" };
        // What is left out would not have had room in the last row either.
        let cut = if at + 1 == count && rows.len() > count { "…" } else { "" };
        put(buffer, place, &Line::styled(format!("{mark:<mark_width$}{row}{cut}"), style));
    }
}

/// The keys that matter most, as many as there is room for.
fn hints<'a>(model: &Model, look: Look, width: usize) -> Line<'a> {
    let mut keys: Vec<(&str, &str)> = vec![("?", "help"), ("q", "quit")];
    match model.screen() {
        Screen::Plugins => {
            keys.extend([
                ("enter", "detail"),
                ("l", "logs"),
                ("e", "events"),
                ("w", "workers"),
                ("/", "filter"),
            ]);
            if !model.readonly {
                keys.push(("r", "restart"));
            }
        }
        Screen::Detail(_) => {
            keys.push(("esc", "back"));
            if model.hidden() != (0, 0) {
                keys.push(("j k", "scroll"));
            }
            keys.extend([("l", "logs"), ("e", "events")]);
            if !model.readonly {
                keys.extend([("r", "restart"), ("s", "start"), ("x", "stop")]);
            }
        }
        Screen::Logs => keys.extend([
            ("esc", "back"),
            ("space", "pause"),
            ("1-4", "level"),
            ("/", "search"),
            ("n N", "next"),
            ("w", "wrap"),
            ("c", "core"),
        ]),
        Screen::Events(_) => {
            keys.extend([("esc", "back"), ("j k", "choose"), ("enter", "whole"), ("/", "filter")]);
        }
        Screen::Event(_) => keys.extend([("esc", "back"), ("j k", "scroll"), ("l", "logs")]),
        Screen::Workers => keys.extend([("esc", "back"), ("j k", "scroll"), ("l", "the core's log")]),
    }
    keys.push((":", "command"));
    let mut spans = Vec::new();
    let mut used = 0;
    for (key, what) in keys {
        let columns = key.chars().count() + 1 + what.chars().count();
        if used + columns > width {
            break;
        }
        used += columns + 2;
        spans.push(Span::styled(key.to_owned(), look.style(Role::Key)));
        spans.push(Span::styled(format!(" {what}  "), look.style(Role::Dim)));
    }
    Line::from(spans)
}

/// The sign and the word of a condition.
fn badge<'a>(condition: Condition, look: Look) -> Span<'a> {
    Span::styled(format!("{} {}", sign(condition), condition.word()), look.condition(condition))
}
