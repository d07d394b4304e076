//! The first screen: every plugin on a row, the troubled ones on top.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier};
use ratatui::text::{Line, Span};

use super::chart::spark;
use super::theme::{Look, Role};
use super::{badge, cut_top, put};
use crate::columns::{Column, GUTTER, fit, trend};
use crate::model::{Condition, Link, Model, Plugin, Sort, Spark};
use crate::text;

pub fn draw(model: &Model, look: Look, buffer: &mut Buffer, area: Rect) {
    let mut area = area;
    for alarm in model.alarms() {
        let (row, rest) = cut_top(area, 1);
        buffer.set_style(row, look.style(Role::Alarm));
        put(buffer, row, &Line::styled(alarm, look.style(Role::Alarm)));
        area = rest;
    }
    let (titles, list) = cut_top(area, 1);
    let rows = model.rows();
    let columns = model.list_columns(area.width);

    let mut x = titles.x + GUTTER;
    for &(column, width) in &columns {
        draw_title(model, look, buffer, Rect { x, width, ..titles }, column);
        x += width + 1;
    }
    if rows.is_empty() {
        let (first, second) = cut_top(Rect { x: list.x + GUTTER, width: list.width - GUTTER, ..list }, 1);
        let (say, hint) = nothing(model);
        put(buffer, first, &Line::styled(say, look.style(Role::Title)));
        put(buffer, second, &Line::styled(hint, look.style(Role::Dim)));
        return;
    }
    for (row, plugin) in (0..list.height).zip(rows.into_iter().skip(model.scroll)) {
        let area = Rect { y: list.y + row, height: 1, ..list };
        draw_row(model, look, buffer, area, &columns, plugin);
    }
}

fn nothing(model: &Model) -> (&'static str, &'static str) {
    match (&model.link, model.core.is_some()) {
        (_, true) if !model.plugins.is_empty() => ("No plugin passes the filter.", "Esc clears it."),
        (_, true) => ("No plugins.", "Put an executable into the plugins folder: plugins/<name>.binary"),
        (_, false) if model.ended.is_some() => ("The recording holds no snapshot.", "q quits."),
        (Link::Connecting { .. }, false) if model.replay => ("Waiting for the first snapshot.", ""),
        (Link::Connecting { .. }, false) => {
            ("Waiting for the core.", "toru serve starts it; --control-socket PATH names its socket.")
        }
        _ => ("Waiting for the first snapshot.", ""),
    }
}

/// The sort, where the header cannot mark it because its column has no room.
pub fn hidden_sort(model: &Model, width: u16) -> Option<String> {
    let Sort { column, descending } = model.sort;
    let shown = fit(width.saturating_sub(GUTTER), 0);
    let hidden = shown.iter().all(|(shown, _)| *shown != column);
    hidden.then(|| format!("by {}{}", column.title(), if descending { "▼" } else { "▲" }))
}

fn draw_title(model: &Model, look: Look, buffer: &mut Buffer, area: Rect, column: Column) {
    let sorted = model.sort.column == column;
    let style = look.style(if sorted { Role::Key } else { Role::Dim });
    let title = match (column, model.spark) {
        (Column::Trend, Spark::Requests) => "TREND REQ/S",
        (Column::Trend, Spark::P99) => "TREND P99",
        _ => column.title(),
    };
    let mut spans = Vec::new();
    // The letter that sorts by it is underlined where the title has it.
    let key = title.find(column.key());
    for (at, letter) in title.char_indices() {
        let style = if key == Some(at) { style.add_modifier(Modifier::UNDERLINED) } else { style };
        spans.push(Span::styled(letter.to_string(), style));
    }
    if sorted {
        spans.push(Span::styled(if model.sort.descending { "▼" } else { "▲" }, style));
    }
    let line = Line::from(spans);
    let space = area.width.saturating_sub(line.width() as u16);
    let indent = if column.is_right_aligned() { space } else { 0 };
    put(buffer, Rect { x: area.x + indent, width: area.width - indent, ..area }, &line);
}

fn draw_row(
    model: &Model,
    look: Look,
    buffer: &mut Buffer,
    area: Rect,
    columns: &[(Column, u16)],
    plugin: &Plugin,
) {
    let condition = plugin.condition();
    let id = &plugin.status.id;
    let selected = model.selected.as_ref() == Some(id);
    let marked = model.marked.contains(id);
    let base = match condition {
        Condition::Disabled | Condition::Stopped => look.style(Role::Dim),
        condition if condition.is_trouble() => look.style(Role::Bad),
        _ => look.style(Role::Plain),
    };
    let gutter = format!("{}{}", if selected { ">" } else { " " }, if marked { "+" } else { " " });
    buffer.set_stringn(area.x, area.y, gutter, GUTTER.into(), look.style(Role::Key));
    let mut x = area.x + GUTTER;
    for &(column, width) in columns {
        let cell = Rect { x, width, height: 1, y: area.y };
        x += width + 1;
        let line = match column {
            Column::State => {
                let mut badge = badge(condition, look);
                // The sign of a disabled one; the word has no room beside the state's.
                if plugin.runs_disabled() && badge.width() + 2 <= width.into() {
                    badge.content.to_mut().push_str(" –");
                }
                Line::from(badge)
            }
            Column::Trend => {
                Line::styled(spark(&trend(plugin, model.spark, width.into())), look.style(Role::Series(0)))
            }
            Column::Id => Line::styled(text::shortened_id(id, width.into()), base),
            _ => {
                let hot = column == Column::Errors && plugin.latest().errors_per_s > 0.0;
                let style = if hot { look.style(Role::Bad) } else { base };
                let mut words = column.text(plugin);
                // When it starts, and as much as there is room for of how it ended.
                if column == Column::LastExit && text::columns(&words) > width.into() {
                    words = words.strip_prefix("starts ").map_or(words.clone(), str::to_owned);
                }
                Line::styled(words, style)
            }
        };
        let space = width.saturating_sub(line.width() as u16);
        let indent = if column.is_right_aligned() { space } else { 0 };
        put(buffer, Rect { x: cell.x + indent, width: width - indent, ..cell }, &line);
    }
    if selected {
        // The badge and the trend keep their colours, which say more than the cursor; the rest is one bar without them.
        let bar = look.style(Role::Selected).fg(Color::Reset).bg(Color::Reset);
        let mut x = area.x + GUTTER;
        for (column, width) in columns {
            if !matches!(column, Column::State | Column::Trend) {
                let right = (x + width + 1).min(area.x + area.width);
                buffer.set_style(Rect { x, width: right - x, ..area }, bar);
            }
            x += width + 1;
        }
    }
}
