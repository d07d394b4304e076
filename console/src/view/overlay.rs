//! What lies over a screen for a moment: the question before an action, and help.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Widget};

use super::theme::{Look, Role};
use super::{badge, joined, put};
use crate::columns::Column;
use crate::model::{Confirm, Model, Screen, Verb};
use crate::text;

/// A bordered box in the middle with these lines, broken where they are too long, from row `from` on.
fn boxed(
    look: Look,
    buffer: &mut Buffer,
    area: Rect,
    title: &str,
    lines: Vec<Line<'_>>,
    indent: usize,
    from: u16,
) {
    let room = usize::from(area.width.saturating_sub(4));
    let lines: Vec<Line<'_>> = lines.into_iter().flat_map(|line| worded(line, room, indent)).collect();
    let width = lines.iter().map(Line::width).max().unwrap_or(0).max(title.chars().count() + 2) as u16 + 4;
    let (width, height) = (width.min(area.width), (lines.len() as u16 + 2).min(area.height));
    let place =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    Clear.render(place, buffer);
    let block = Block::bordered().title(Span::styled(format!(" {title} "), look.style(Role::Title)));
    let inner = block.inner(place);
    block.render(place, buffer);
    let hidden = (lines.len() as u16).saturating_sub(inner.height);
    for (row, line) in (0..inner.height).zip(lines.iter().skip(from.min(hidden).into())) {
        let row = Rect { x: inner.x + 1, y: inner.y + row, width: inner.width.saturating_sub(2), height: 1 };
        put(buffer, row, line);
    }
    if hidden > from {
        let more = Line::styled(" j: more ", look.style(Role::Key));
        put(
            buffer,
            Rect { x: place.x + 2, y: place.bottom() - 1, width: 9.min(width - 2), height: 1 },
            &more,
        );
    }
}

/// A line as rows of at most `width` columns, broken between words; later rows are indented.
fn worded(line: Line<'_>, width: usize, indent: usize) -> Vec<Line<'static>> {
    let mut rows: Vec<Line<'static>> = vec![Line::default()];
    let mut used = 0;
    for span in line.spans {
        for word in span.content.split_inclusive(' ') {
            if used > indent && used + Span::raw(word.trim_end()).width() > width {
                if let Some(last) = rows.last_mut().and_then(|row| row.spans.last_mut()) {
                    last.content = last.content.trim_end().to_owned().into();
                }
                rows.push(Line::raw(" ".repeat(indent)));
                used = indent;
            }
            used += Span::raw(word).width();
            rows.last_mut().expect("never empty").push_span(Span::styled(word.to_owned(), span.style));
        }
    }
    rows
}

/// The question. The plugin's whole id and the two answers have room whatever the size; what else is known goes first.
pub fn draw_confirm(model: &Model, look: Look, buffer: &mut Buffer, area: Rect, confirm: &Confirm) {
    let Confirm { verb, plugin: id } = confirm;
    let (room, height) =
        (usize::from(area.width.saturating_sub(4)), usize::from(area.height.saturating_sub(2)));
    let mut word = verb.word().to_owned();
    word[..1].make_ascii_uppercase();
    let answers = |what: String| {
        Line::from(vec![
            Span::styled("y", look.style(Role::Key)),
            Span::raw(format!(" {what}    ")),
            Span::styled("n", look.style(Role::Key)),
            Span::raw(" leave it alone"),
        ])
    };
    let named = answers(format!("{} {id}", verb.word()));
    let (title, mut lines, answers) = match named.width() <= room {
        true => (format!("{word} {id}?"), vec![], named),
        // Too long for a row with anything beside it.
        false => {
            let answers = answers(verb.word().to_owned());
            let below = worded(answers.clone(), room, 0).len();
            let mut rows = text::wrapped(id, room);
            if rows.len() + below > height {
                let letters = room * height.saturating_sub(below).max(1);
                rows = text::wrapped(&text::shortened_id(id, letters), room);
            }
            let rows = rows.into_iter().map(|row| Line::styled(row, look.style(Role::Title)));
            (format!("{word}?"), rows.collect(), answers)
        }
    };
    let needed = lines.len() + worded(answers.clone(), room, 0).len();
    let mut left = height.saturating_sub(needed);
    let mut beside = Vec::new();
    if let Some(plugin) = model.plugins.get(id) {
        let mut state = vec![badge(plugin.condition(), look)];
        if plugin.runs_disabled() {
            state.push(Span::styled("disabled", look.style(Role::Warn)));
        }
        if let Some(uptime) = plugin.status.uptime_ms {
            state.push(Span::raw(format!("up {}", text::span(uptime))));
        }
        state.push(Span::raw(format!("{} in flight", plugin.status.in_flight)));
        beside.push(Line::raw(verb.meaning(plugin)));
        beside.push(joined(look, state));
    }
    let mut told = Vec::new();
    for line in beside {
        let rows = worded(line, room, 0);
        if rows.len() <= left {
            left -= rows.len();
            told.splice(0..0, rows);
        }
    }
    lines.extend(told);
    if left > 0 {
        lines.push(Line::default());
    }
    lines.push(answers);
    boxed(look, buffer, area, &title, lines, 0, 0);
}

pub fn draw_help(model: &Model, look: Look, buffer: &mut Buffer, area: Rect, from: u16) {
    let key_width = if area.width < 60 { 7 } else { 11 };
    let row = |keys: &str, what: &str| {
        Line::from(vec![
            Span::styled(format!("{keys:<key_width$} "), look.style(Role::Key)),
            Span::raw(what.to_owned()),
        ])
    };
    let (title, mut lines) = match model.screen() {
        Screen::Plugins => {
            let sorts: Vec<String> = Column::ALL
                .iter()
                .map(|column| format!("{} {}", column.key(), column.title().to_lowercase()))
                .collect();
            let mut lines = vec![
                row("j k g G", "down, up, first, last; also arrows, PgUp PgDn"),
                row("enter", "detail: charts, events, last words"),
                row("l e w", "logs, events, workers"),
                row("space", "mark; l then merges the logs of the marked"),
                row("/ !", "filter by letters of the id, words of name or state; the rest"),
                row("v", "trend of requests or of p99"),
                row("< > o", "sort by column left, right; other way round"),
            ];
            for (number, some) in sorts.chunks(6).enumerate() {
                lines.push(row(if number == 0 { "sort" } else { "" }, &some.join(", ")));
            }
            lines.push(row("running –", "it runs although it is disabled"));
            ("Plugins", lines)
        }
        Screen::Detail(_) => (
            "Detail",
            vec![
                row("j k g G", "down, up, first, last, where there is more than has room"),
                row("l e w", "its log, its events, the workers"),
                row("esc", "back"),
            ],
        ),
        Screen::Logs => (
            "Logs",
            vec![
                row("j k g G", "down, up, oldest, newest; also arrows, PgUp PgDn"),
                row("space p f", "pause, follow"),
                row("1 2 3 4", "debug, info, warn, error and above"),
                row("/", "search upwards; a line is shown from where it matches"),
                row("n N", "next match below, above"),
                row("w", "wrap"),
                row("c", "the core's lines between the plugin's; :logs ID ID merges more"),
            ],
        ),
        Screen::Events(_) => (
            "Events",
            vec![
                row("j k g G", "newer, older, oldest, newest"),
                row("enter", "the whole of one: all of its words, its last lines on stderr"),
                row("/ !", "filter by words, by what they leave over"),
            ],
        ),
        Screen::Event(_) => (
            "Event",
            vec![row("j k g G", "down, up, first, last"), row("l", "its plugin's log"), row("esc", "back")],
        ),
        Screen::Workers => (
            "Workers",
            vec![
                row("j k g G", "down, up, first, last"),
                row("l", "the core's own log"),
                row("CLIENTS", "connections now"),
                row("INFL QUEUE", "requests that plugins have; that wait for a place with one"),
                row("LAG", "how late the event loop came to its timer, worst of a second"),
            ],
        ),
    };
    if matches!(model.screen(), Screen::Plugins | Screen::Detail(_)) {
        let verbs: Vec<String> =
            Verb::ALL.iter().map(|verb| format!("{} {}", verb.key(), verb.word())).collect();
        let off = if model.readonly { " (off: read-only)" } else { "" };
        lines.push(row("actions", &format!("{}{off}", verbs.join(", "))));
    }
    let click = match model.screen() {
        Screen::Plugins => "click on a row: choose it, again: open it; on a title: sort",
        Screen::Events(_) => "click on a row: choose it, again: open it",
        Screen::Logs => "click: pause; wheel: scroll",
        Screen::Detail(_) | Screen::Event(_) | Screen::Workers => "wheel: scroll",
    };
    if model.mouse {
        lines.push(row("mouse", click));
    }
    lines.push(row(":", "command line, Tab completes: restart ID, logs ID ID, sort COLUMN"));
    lines.push(row("esc q", "back, quit; ^Z suspends, ^L repaints"));
    lines.push(Line::styled("any other key than j and k closes this", look.style(Role::Dim)));
    boxed(look, buffer, area, title, lines, key_width + 1, from);
}
