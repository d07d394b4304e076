//! Logs, events and workers: a line each.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::chart::spark;
use super::theme::{Look, Role};
use super::{cut_top, put};
use crate::model::{Event, Level, LogLine, Model};
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
        let whole = log_line(model, look, line, several);
        let mut pieces = if logs.wrap { wrapped(whole, area.width.into()) } else { vec![whole] };
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

fn log_line<'a>(model: &Model, look: Look, line: &'a LogLine, several: bool) -> Line<'a> {
    let role = match line.level {
        Level::Debug => Role::Dim,
        Level::Info => Role::Plain,
        Level::Warn => Role::Warn,
        Level::Error => Role::Bad,
    };
    let mut spans = vec![
        Span::styled(format!("{} ", text::clock(line.unix_ms)), look.style(Role::Dim)),
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
    for (found, _) in lower.match_indices(&words) {
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

/// A line as rows of at most `width` columns; later rows are indented.
fn wrapped(line: Line<'_>, width: usize) -> Vec<Line<'_>> {
    const INDENT: &str = "    ";
    if width <= INDENT.len() * 2 {
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
                rows.push(Line::raw(INDENT));
                used = INDENT.len();
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
        let why = model.events_complaint.as_deref().unwrap_or("No events yet.");
        put(buffer, area, &Line::styled(why.to_owned(), look.style(Role::Dim)));
        return;
    }
    let width = events.iter().map(|event| event.plugin.chars().count()).max().unwrap_or(0).min(24);
    let end = events.len() - model.events_up.min(events.len() - 1);
    let begin = end.saturating_sub(area.height.into());
    for (row, event) in (0..area.height).zip(&events[begin..end]) {
        put(buffer, Rect { y: area.y + row, height: 1, ..area }, &event_line(look, event, Some(width)));
    }
}

/// Time, plugin where wanted, what, details.
pub fn event_line<'a>(look: Look, event: &'a Event, id_width: Option<usize>) -> Line<'a> {
    let role = match event.kind.as_str() {
        "crashed" | "disabled_after_crashes" | "protocol_error" => Role::Bad,
        "unresponsive" | "request_timeout" | "restarting" => Role::Warn,
        "ready" => Role::Good,
        _ => Role::Plain,
    };
    let mut spans = vec![Span::styled(format!("{} ", text::clock(event.unix_ms)), look.style(Role::Dim))];
    if let Some(width) = id_width {
        spans.push(Span::styled(format!("{:<width$} ", event.plugin), look.style(Role::Key)));
    }
    spans.push(Span::styled(format!("{:<12} ", event.kind), look.style(role)));
    spans.push(Span::raw(event.text()));
    Line::from(spans)
}

pub fn draw_workers(model: &Model, look: Look, buffer: &mut Buffer, area: Rect) {
    let (titles, list) = cut_top(area, 1);
    let titles_text = "  WORKER  DRIVER     CLIENTS   REQ/S  REQUESTS  TREND REQ/S";
    put(buffer, titles, &Line::styled(titles_text, look.style(Role::Dim)));
    for (row, worker) in (0..list.height).zip(&model.workers) {
        let status = &worker.status;
        let text = format!(
            "  {:>6}  {:<8}  {:>8}  {:>6}  {:>8}  ",
            status.number,
            status.driver,
            text::count(status.connections),
            text::rate(worker.requests_per_s),
            text::count(status.requests),
        );
        let width = usize::from(list.width).saturating_sub(text.len()).min(60);
        let skip = worker.history.len().saturating_sub(width);
        let trend: Vec<f64> = worker.history.iter().skip(skip).copied().collect();
        let line =
            Line::from(vec![Span::raw(text), Span::styled(spark(&trend), look.style(Role::Series(0)))]);
        put(buffer, Rect { y: list.y + row, height: 1, ..list }, &line);
    }
}
