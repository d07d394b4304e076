//! Sparklines and charts of text cells, so that they also work in ASCII and without colour.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Color;
use ratatui::text::{Line, Span};

use super::put;
use super::theme::{Look, Role, Theme};

const EIGHTHS: [&str; 9] = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
/// Columns of the labels at the left of a chart, the axis among them.
const LABEL_WIDTH: u16 = 7;
/// Between samples.
const SAMPLE_MS: u64 = 1000;
/// A value that holds does so as long as this: the core looks at a plugin at rest every 15 s.
const HOLD_MS: u64 = 20_000;

/// One cell a value, the largest one full; a value above nothing is never shown as nothing.
pub fn spark(values: &[f64]) -> String {
    let most = values.iter().copied().fold(0.0, f64::max);
    values.iter().map(|value| EIGHTHS[eighths(*value, most, 8)]).collect()
}

/// How many of `of` parts `value` fills.
fn eighths(value: f64, most: f64, of: usize) -> usize {
    if value <= 0.0 || most <= 0.0 {
        return 0;
    }
    ((value / most * of as f64).round() as usize).clamp(1, of)
}

/// A curve of a chart; several are layered, the first in front.
pub struct Series<'a> {
    pub name: &'a str,
    /// Time in ms since 1970 and value, oldest first; `None` where nothing is known, which is not nothing.
    pub points: Vec<(u64, Option<f64>)>,
}

pub struct Chart<'a> {
    pub title: &'a str,
    pub series: Vec<Series<'a>>,
    /// A value in words, with its unit.
    pub label: fn(f64) -> String,
    /// Rounds the top of the axis up.
    pub ceiling: fn(f64) -> f64,
    /// Between two samples: what the first said, instead of nothing.
    pub holds: bool,
}

/// The next of 1, 2, 5, 10, 20, 50 …
pub fn decimal_ceiling(value: f64) -> f64 {
    let mut step = 1.0;
    while step < value {
        for factor in [2.0, 5.0, 10.0] {
            if step * factor >= value {
                return step * factor;
            }
        }
        step *= 10.0;
    }
    step
}

/// The next power of two.
pub fn binary_ceiling(value: f64) -> f64 {
    let mut step = 1024.0;
    while step < value {
        step *= 2.0;
    }
    step
}

/// Seconds that a chart spans: the least of one, two, five and ten minutes that holds everything.
fn span_s(first_ms: u64, last_ms: u64) -> u64 {
    match last_ms.saturating_sub(first_ms) / 1000 {
        0..=60 => 60,
        61..=120 => 120,
        121..=300 => 300,
        _ => 600,
    }
}

/// A title with the latest values, a plot with both axes.
pub fn draw(chart: &Chart<'_>, look: Look, buffer: &mut Buffer, area: Rect) {
    if area.height < 3 || area.width < LABEL_WIDTH + 8 {
        return;
    }
    let mut title = vec![Span::styled(chart.title.to_owned(), look.style(Role::Title))];
    for (number, series) in chart.series.iter().enumerate() {
        let latest = series.points.last().and_then(|point| point.1);
        let words = format!("{}{}", series.name, latest.map_or_else(|| "-".into(), chart.label));
        title.push(Span::styled(words, look.style(Role::Series(number as u8))));
    }
    put(buffer, Rect { height: 1, ..area }, &Line::from(title));

    let plot = Rect {
        x: area.x + LABEL_WIDTH,
        y: area.y + 1,
        width: area.width - LABEL_WIDTH,
        height: area.height - 2,
    };
    let points = || chart.series.iter().flat_map(|series| &series.points);
    let most = points().filter_map(|point| point.1).reduce(f64::max);
    let top = (chart.ceiling)(most.unwrap_or(0.0));
    let (first, last) = match (points().map(|p| p.0).min(), points().map(|p| p.0).max()) {
        (Some(first), Some(last)) => (first, last),
        _ => (0, 0),
    };
    let span_s = span_s(first, last);

    for row in 0..plot.height {
        let label = match row {
            // An axis of nothing has no unit.
            0 => most.map_or_else(|| "-".into(), |_| (chart.label)(top)),
            _ if row + 1 == plot.height => "0".into(),
            _ => String::new(),
        };
        let label = format!("{label:>width$}", width = usize::from(LABEL_WIDTH) - 1);
        buffer.set_stringn(area.x, plot.y + row, label, LABEL_WIDTH.into(), look.style(Role::Dim));
        buffer.set_string(plot.x - 1, plot.y + row, "│", look.style(Role::Dim));
    }
    draw_time_axis(
        look,
        buffer,
        Rect { x: plot.x - 1, y: plot.y + plot.height, width: plot.width + 1, height: 1 },
        span_s,
    );

    // From the back: what is in front covers what is behind, which is higher.
    // Without colours, shades tell them apart.
    let shaded = look.ascii || look.theme == Theme::Mono;
    for (number, series) in chart.series.iter().enumerate().rev() {
        let mut columns = vec![0.0f64; plot.width.into()];
        let mut before: Option<(usize, u64, f64)> = None;
        for &(at, value) in &series.points {
            let from_right = (last - at) * u64::from(plot.width) / (span_s * 1000);
            let Some(index) = columns.len().checked_sub(1 + from_right as usize) else { continue };
            // Of several seconds in one column the worst: a spike must not drown.
            columns[index] = columns[index].max(value.unwrap_or(0.0));
            // A second as wide as several columns fills them; a time without samples stays empty.
            let held = if chart.holds { HOLD_MS } else { 3 * SAMPLE_MS };
            if let Some((from, _, value)) = before.filter(|(_, then, _)| at.saturating_sub(*then) < held) {
                for column in &mut columns[(from + 1).min(index)..index] {
                    *column = column.max(value);
                }
            }
            before = value.map(|value| (index, at, value));
        }
        let style = look.style(Role::Series(number as u8));
        for (column, value) in columns.iter().enumerate() {
            let mut left = eighths(*value, top, usize::from(plot.height) * 8);
            for row in (0..plot.height).rev() {
                if left == 0 {
                    break;
                }
                let symbol = match (number, left) {
                    (1, 4..) if shaded => "▒",
                    (2.., 4..) if shaded => "░",
                    _ => EIGHTHS[left.min(8)],
                };
                let cell = &mut buffer[(plot.x + column as u16, plot.y + row)];
                // The rest of a cell that is filled in part is the series behind, not a gap in it.
                let behind = if cell.symbol() == " " || shaded || left >= 8 { Color::Reset } else { cell.fg };
                cell.set_symbol(symbol).set_style(style.bg(behind));
                left = left.saturating_sub(8);
            }
        }
    }
}

fn draw_time_axis(look: Look, buffer: &mut Buffer, area: Rect, span_s: u64) {
    let style = look.style(Role::Dim);
    for x in area.x + 1..area.x + area.width {
        buffer.set_string(x, area.y, "─", style);
    }
    buffer.set_string(area.x, area.y, "└", style);
    let minutes = span_s / 60;
    let (begin, middle) = match minutes {
        1 => ("-1m", "-30s"),
        2 => ("-2m", "-1m"),
        5 => ("-5m", "-2m30s"),
        _ => ("-10m", "-5m"),
    };
    buffer.set_stringn(area.x + 1, area.y, begin, area.width.saturating_sub(1).into(), style);
    if area.width > 28 {
        let x = area.x + 1 + (area.width - 1) / 2 - middle.len() as u16 / 2;
        buffer.set_string(x, area.y, middle, style);
    }
    buffer.set_string(area.x + area.width - 3, area.y, "now", style);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_little_is_never_nothing() {
        assert_eq!(spark(&[0.0, 0.001, 4.0, 8.0]), " ▁▄█");
        assert_eq!(spark(&[0.0, 0.0]), "  ");
        assert_eq!(spark(&[]), "");
    }

    #[test]
    fn axes_end_on_round_numbers() {
        for (value, expected) in
            [(0.0, 1.0), (1.0, 1.0), (1.1, 2.0), (3.0, 5.0), (11.0, 20.0), (4999.0, 5000.0)]
        {
            assert_eq!(decimal_ceiling(value), expected, "{value}");
        }
        assert_eq!(binary_ceiling(3e6), 4_194_304.0);
    }
}
