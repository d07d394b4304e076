//! The columns of the plugin list: title, width, order, and which go first when the terminal narrows. Pure.

use std::cmp::Ordering;

use crate::model::{Plugin, Spark};
use crate::text;

/// Columns in front of the first, for the cursor and the mark.
pub const GUTTER: u16 = 2;

/// A column, in the order of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Column {
    State,
    Id,
    Uptime,
    Restarts,
    LastRestart,
    Requests,
    Errors,
    InFlight,
    P50,
    P95,
    P99,
    Cpu,
    Memory,
    Trend,
    Version,
    Pid,
    LastExit,
}

impl Column {
    pub const ALL: [Self; 17] = [
        Self::State,
        Self::Id,
        Self::Uptime,
        Self::Restarts,
        Self::LastRestart,
        Self::Requests,
        Self::Errors,
        Self::InFlight,
        Self::P50,
        Self::P95,
        Self::P99,
        Self::Cpu,
        Self::Memory,
        Self::Trend,
        Self::Version,
        Self::Pid,
        Self::LastExit,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Self::State => "STATE",
            Self::Id => "PLUGIN",
            Self::Uptime => "UP",
            Self::Restarts => "RST",
            Self::LastRestart => "LAST RST",
            Self::Requests => "REQ/S",
            Self::Errors => "ERR/S",
            Self::InFlight => "INFL",
            Self::P50 => "P50",
            Self::P95 => "P95",
            Self::P99 => "P99",
            Self::Cpu => "CPU%",
            Self::Memory => "MEM",
            Self::Trend => "TREND",
            Self::Version => "VERSION",
            Self::Pid => "PID",
            Self::LastExit => "LAST EXIT",
        }
    }

    /// The key that sorts by it.
    pub fn key(self) -> char {
        match self {
            Self::State => 'S',
            Self::Id => 'N',
            Self::Uptime => 'U',
            Self::Restarts => 'T',
            Self::LastRestart => 'A',
            Self::Requests => 'R',
            Self::Errors => 'E',
            Self::InFlight => 'I',
            Self::P50 => 'J',
            Self::P95 => 'K',
            Self::P99 => 'L',
            Self::Cpu => 'C',
            Self::Memory => 'M',
            Self::Trend => 'D',
            Self::Version => 'V',
            Self::Pid => 'P',
            Self::LastExit => 'X',
        }
    }

    /// Columns on the screen, at least; [`Self::Id`] and [`Self::LastExit`] take what is over.
    pub fn width(self) -> u16 {
        match self {
            Self::State => 12,
            Self::Id => 12,
            Self::Uptime => 6,
            Self::Restarts => 4,
            Self::LastRestart => 9,
            Self::Requests | Self::Errors => 6,
            Self::InFlight => 5,
            Self::P50 | Self::P95 | Self::P99 => 6,
            Self::Cpu => 5,
            Self::Memory => 5,
            Self::Trend => 12,
            Self::Version => 8,
            Self::Pid => 7,
            Self::LastExit => 18,
        }
    }

    /// Lowest stays longest.
    fn priority(self) -> u8 {
        match self {
            Self::State => 0,
            Self::Id => 1,
            Self::Restarts => 2,
            Self::Requests => 3,
            Self::P99 => 4,
            Self::Errors => 5,
            Self::Uptime => 6,
            Self::Memory => 7,
            Self::Cpu => 8,
            Self::Trend => 9,
            Self::LastExit => 10,
            Self::LastRestart => 11,
            Self::InFlight => 12,
            Self::P50 => 13,
            Self::P95 => 14,
            Self::Pid => 15,
            Self::Version => 16,
        }
    }

    pub fn is_right_aligned(self) -> bool {
        !matches!(self, Self::State | Self::Id | Self::Trend | Self::Version | Self::LastExit)
    }

    /// Whether the first look at it wants the large values on top.
    pub fn begins_descending(self) -> bool {
        !matches!(self, Self::Id | Self::Version | Self::LastExit | Self::Pid)
    }

    /// The cell in words; the view draws [`Self::State`] and [`Self::Trend`] itself.
    pub fn text(self, plugin: &Plugin) -> String {
        let status = &plugin.status;
        let sample = plugin.latest();
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        match self {
            Self::State => plugin.state_words(),
            Self::Id => status.id.clone(),
            Self::Uptime => or_dash(status.uptime_ms.map(text::span)),
            Self::Restarts => text::count(status.restarts),
            Self::LastRestart => or_dash(plugin.last_restart().map(|at| moment(at, sample.unix_ms))),
            Self::Requests => text::rate(sample.requests_per_s),
            Self::Errors => text::rate(sample.errors_per_s),
            Self::InFlight => text::count(status.in_flight),
            Self::P50 => or_dash(status.p50_us.map(text::latency)),
            Self::P95 => or_dash(status.p95_us.map(text::latency)),
            Self::P99 => or_dash(status.p99_us.map(text::latency)),
            Self::Cpu => or_dash(status.cpu_percent.map(|percent| format!("{percent:.1}"))),
            Self::Memory => or_dash(status.rss_bytes.map(text::bytes)),
            Self::Trend => String::new(),
            Self::Version => status.version.clone(),
            Self::Pid => or_dash(status.pid.map(|pid| pid.to_string())),
            Self::LastExit => {
                let next = if sample.unix_ms > 0 { next_start(plugin, sample.unix_ms) } else { None };
                // What changes comes first: where it is tight the end is cut.
                let words = [next, plugin.last_end()];
                words.into_iter().flatten().collect::<Vec<_>>().join(", ")
            }
        }
    }

    /// The name on the command line: `last-exit`.
    pub fn word(self) -> String {
        self.title().to_lowercase().replace(' ', "-")
    }

    /// Ascending.
    pub fn compare(self, a: &Plugin, b: &Plugin) -> Ordering {
        let (left, right) = (&a.status, &b.status);
        match self {
            // Turned around when descending, so that equal states stay in the order of ids.
            Self::State => a.condition().cmp(&b.condition()),
            Self::Id => left.id.cmp(&right.id),
            Self::Uptime => left.uptime_ms.cmp(&right.uptime_ms),
            Self::Restarts => left.restarts.cmp(&right.restarts),
            Self::LastRestart => a.last_restart().cmp(&b.last_restart()),
            Self::Requests => a.latest().requests_per_s.total_cmp(&b.latest().requests_per_s),
            Self::Errors => a.latest().errors_per_s.total_cmp(&b.latest().errors_per_s),
            Self::InFlight => left.in_flight.cmp(&right.in_flight),
            Self::P50 => left.p50_us.cmp(&right.p50_us),
            Self::P95 => left.p95_us.cmp(&right.p95_us),
            Self::P99 => left.p99_us.cmp(&right.p99_us),
            Self::Cpu => left.cpu_percent.unwrap_or(-1.0).total_cmp(&right.cpu_percent.unwrap_or(-1.0)),
            Self::Memory => left.rss_bytes.cmp(&right.rss_bytes),
            Self::Trend => left.requests.cmp(&right.requests),
            Self::Version => left.version.cmp(&right.version),
            Self::Pid => left.pid.cmp(&right.pid),
            Self::LastExit => left.last_exit.cmp(&right.last_exit),
        }
    }
}

/// One id of 64 characters shall not take the room of what the others have to tell.
const ID_MOST: u16 = 32;
/// What the trend may take beyond its width: a minute in all.
const TREND_MORE_MAX: u16 = 48;
/// What the last exit gets before the trend gets anything: "3 pings in a row were not answered, killed by SIGKILL"
/// is whole then.
const EXIT_MORE: u16 = 36;

/// When the core means to start a plugin that waits for it: `starts in 4s`.
pub fn next_start(plugin: &Plugin, now_unix_ms: u64) -> Option<String> {
    let next =
        plugin.status.next_start.filter(|_| matches!(&*plugin.status.state, "crashed" | "deferred"))?;
    Some(match next.checked_sub(now_unix_ms) {
        Some(ms) if ms > 0 => format!("starts in {}", text::span(ms.div_ceil(1000) * 1000)),
        _ => "about to start".into(),
    })
}

/// A time of day, or how long ago when that was another day.
pub fn moment(unix_ms: u64, now_unix_ms: u64) -> String {
    match now_unix_ms.saturating_sub(unix_ms) {
        ago @ 86_400_000.. => format!("-{}", text::span(ago)),
        _ => text::clock(unix_ms),
    }
}

/// The columns that fit into `width`, with their widths, in the order of the screen; one space between them.
///
/// What is over goes to the ids, up to `id_width` and [`ID_MOST`], then to the trend up to a minute, then to the last exit.
pub fn fit(width: u16, id_width: u16) -> Vec<(Column, u16)> {
    let mut wanted = Column::ALL;
    wanted.sort_by_key(|column| column.priority());
    let mut chosen: Vec<Column> = Vec::new();
    let mut used = 0;
    for column in wanted {
        let more = column.width() + u16::from(!chosen.is_empty());
        // A gap for a later, smaller column would make columns come and go in a strange order.
        if used + more > width {
            break;
        }
        used += more;
        chosen.push(column);
    }
    chosen.sort();
    let mut left = width - used;
    let mut columns: Vec<(Column, u16)> = chosen.into_iter().map(|column| (column, column.width())).collect();
    let has_exit = columns.iter().any(|(column, _)| *column == Column::LastExit);
    for (column, width) in &mut columns {
        let more = match column {
            Column::Id => id_width.min(ID_MOST).saturating_sub(*width).min(left),
            Column::Trend if has_exit => left.saturating_sub(EXIT_MORE).min(TREND_MORE_MAX),
            Column::Trend => left.min(TREND_MORE_MAX),
            Column::LastExit => left,
            _ => 0,
        };
        *width += more;
        left -= more;
    }
    columns
}

/// The values of a sparkline, a second each, oldest first, at most `width` of them; seconds without a sample are empty.
pub fn trend(plugin: &Plugin, spark: Spark, width: usize) -> Vec<f64> {
    let (Some(first), Some(last)) = (plugin.history.front(), plugin.history.back()) else { return vec![] };
    let ago = |unix_ms: u64| ((last.unix_ms.saturating_sub(unix_ms) + 500) / 1000) as usize;
    let mut values = vec![0.0f64; (ago(first.unix_ms) + 1).min(width)];
    let count = values.len();
    for sample in plugin.history.iter().rev() {
        let Some(index) = count.checked_sub(1 + ago(sample.unix_ms)) else { break };
        let value = match spark {
            Spark::Requests => sample.requests_per_s,
            Spark::P99 => sample.p99_us.unwrap_or(0) as f64,
        };
        values[index] = values[index].max(value);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fill_the_width_and_go_by_priority() {
        let names = |width| fit(width, 20).into_iter().map(|(column, _)| column.title()).collect::<Vec<_>>();
        assert_eq!(names(38), ["STATE", "PLUGIN", "RST", "REQ/S"]);
        assert_eq!(names(78), ["STATE", "PLUGIN", "UP", "RST", "REQ/S", "ERR/S", "P99", "CPU%", "MEM"]);
        assert_eq!(names(200).len(), Column::ALL.len());
        let mut before = 0;
        for width in 0..300 {
            let columns = fit(width, 20);
            let used: u16 = columns.iter().map(|(_, width)| width + 1).sum();
            assert!(used <= width + 1, "{width}: {columns:?}");
            assert!(columns.len() >= before, "{width}: a wider terminal shows no less");
            before = columns.len();
        }
        assert!(fit(200, 64).contains(&(Column::Id, ID_MOST)), "{:?}", fit(200, 64));
    }

    #[test]
    fn every_column_has_a_key_of_its_own() {
        let keys: std::collections::BTreeSet<char> = Column::ALL.iter().map(|column| column.key()).collect();
        assert_eq!(keys.len(), Column::ALL.len());
        assert!(keys.iter().all(char::is_ascii_uppercase), "small letters are for other things");
    }
}
