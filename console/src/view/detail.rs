//! One plugin: its facts, ten minutes of charts, what happened lately, its last words.
//!
//! What stands where is decided by [`Sheet`]; here it gets its colours.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use toru_plugin_api::status::Sample;

use super::chart::{self, Chart, Series, binary_ceiling, decimal_ceiling};
use super::lists::event_line;
use super::theme::{Look, Role};
use super::{badge, joined, put};
use crate::model::{Model, Plugin};
use crate::sheet::{Block, Part, Sheet, Tone};
use crate::text;

pub fn draw(model: &Model, look: Look, buffer: &mut Buffer, area: Rect, id: &str) {
    let (Some(plugin), Some(sheet)) = (model.plugins.get(id), Sheet::of(model, id, area.width, area.height))
    else {
        put(
            buffer,
            area,
            &Line::styled(format!("{id} is gone: its file was taken away."), look.style(Role::Warn)),
        );
        return;
    };
    // All of it, and from that the rows in sight: a chart may be cut anywhere.
    let rows = sheet.rows();
    let down = model.detail_down.min(rows.saturating_sub(area.height.into())) as u16;
    let whole = Rect { x: 0, y: 0, width: area.width, height: (rows as u16).max(area.height) };
    let mut paper = Buffer::empty(whole);
    let mut y = 0;
    for (block, rows) in &sheet.blocks {
        let place = Rect { y, height: *rows, ..whole };
        y += rows;
        // What is out of sight need not be drawn.
        if y > down && place.y < down + area.height {
            draw_block(model, look, &mut paper, place, plugin, block);
        }
    }
    for row in 0..area.height {
        for column in 0..area.width {
            buffer[(area.x + column, area.y + row)] = paper[(column, down + row)].clone();
        }
    }
}

fn draw_block(model: &Model, look: Look, buffer: &mut Buffer, area: Rect, plugin: &Plugin, block: &Block) {
    let row = |number: u16| Rect { y: area.y + number, height: 1, ..area };
    let title = |text: &'static str| Line::styled(text, look.style(Role::Title));
    match block {
        Block::Facts(rows) => {
            for (number, parts) in (0..area.height).zip(rows) {
                put(
                    buffer,
                    row(number),
                    &joined(look, parts.iter().map(|part| styled(look, part)).collect()),
                );
            }
        }
        Block::Charts(which) => {
            let all = charts(plugin);
            let charts = &all[which.clone()];
            // The three numbers of the latency need the most room.
            let (latency, memory) = (area.width * 2 / 5, area.width * 27 / 100);
            let widths = match charts.len() {
                1 => vec![area.width],
                _ => vec![(area.width - latency - memory).saturating_sub(2), latency, memory],
            };
            let mut x = area.x;
            for (chart, width) in charts.iter().zip(widths) {
                chart::draw(chart, look, buffer, Rect { x, width, ..area });
                x += width + 1;
            }
        }
        Block::Events { title: words, from } => {
            put(buffer, area, &title(words));
            let mut events = model
                .events
                .iter()
                .rev()
                .filter(|event| event.plugin == plugin.status.id)
                .skip(*from)
                .peekable();
            if events.peek().is_none() && area.height > 1 {
                put(buffer, row(1), &Line::styled(model.why_no_events(), look.style(Role::Dim)));
            }
            for (number, event) in (1..area.height).zip(events) {
                put(buffer, row(number), &event_line(model, look, event, None));
            }
        }
        Block::Lines { title: words, lines } => {
            put(buffer, area, &title(words));
            for (number, line) in (1..area.height).zip(lines) {
                put(buffer, row(number), &Line::raw(line.as_str()));
            }
        }
    }
}

fn styled<'a>(look: Look, (tone, words): &'a Part) -> Span<'a> {
    let role = match tone {
        Tone::Condition(condition) => return badge(*condition, look),
        Tone::Plain => Role::Plain,
        Tone::Title => Role::Title,
        Tone::Dim => Role::Dim,
        Tone::Warn => Role::Warn,
        Tone::Bad => Role::Bad,
    };
    Span::styled(words.as_str(), look.style(role))
}

fn charts(plugin: &Plugin) -> [Chart<'static>; 3] {
    let points = |value: fn(&Sample) -> Option<f64>| {
        plugin.history.iter().map(|sample| (sample.unix_ms, value(sample))).collect::<Vec<_>>()
    };
    [
        Chart {
            title: "requests/s",
            series: vec![Series { name: " ", points: points(|sample| Some(sample.requests_per_s)) }],
            label: text::rate,
            ceiling: decimal_ceiling,
            holds: false,
        },
        Chart {
            title: "",
            series: vec![
                Series { name: "p50 ", points: points(|sample| sample.p50_us.map(|us| us as f64)) },
                Series { name: " p95 ", points: points(|sample| sample.p95_us.map(|us| us as f64)) },
                Series { name: " p99 ", points: points(|sample| sample.p99_us.map(|us| us as f64)) },
            ],
            label: |us| text::latency(us as u64),
            ceiling: decimal_ceiling,
            holds: false,
        },
        Chart {
            title: "memory",
            series: vec![Series {
                name: " ",
                points: points(|sample| sample.rss_bytes.map(|bytes| bytes as f64)),
            }],
            label: |bytes| text::bytes(bytes as u64),
            ceiling: binary_ceiling,
            holds: true,
        },
    ]
}
