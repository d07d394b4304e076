//! `--once`: the plugin list as plain text, for pipes and for terminals that can do nothing.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::columns::Column;
use crate::feed;
use crate::model::Model;
use crate::text::{self, rate, span};
use crate::update::{Msg, News, update};

/// Between the two snapshots that rates need, of a core that tells none.
const INTERVAL: Duration = Duration::from_millis(500);

/// Fills the model with as many snapshots as rates need.
pub fn look(socket: &Path, model: &mut Model) -> io::Result<()> {
    let mut wanted = 2;
    feed::stream(socket, INTERVAL, false, |news| {
        if let News::Snapshot(snapshot) = &news {
            wanted -= if snapshot.window_ms.is_some() { wanted } else { 1 };
        }
        let now = model.now;
        // A snapshot asks for nothing.
        let _ = update(model, now, Msg::News(news));
        wanted > 0
    })?;
    if wanted > 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // When plugins were last restarted; without a trail the table has a gap, and is worth printing nevertheless.
    for event in feed::recent_events(socket).unwrap_or_default() {
        let now = model.now;
        let _ = update(model, now, Msg::News(News::Event(event)));
    }
    Ok(())
}

/// A line about the core, a line of titles, a line for each plugin.
pub fn table(model: &Model) -> String {
    let Some(core) = &model.core else { return String::new() };
    let requests: f64 = model.plugins.values().map(|plugin| plugin.latest().requests_per_s).sum();
    let mut out = format!(
        "toru {} up {} pid {}, {} plugins, {} workers, {} req/s\n",
        core.version,
        span(core.uptime_ms),
        core.pid,
        model.plugins.len(),
        model.workers.len(),
        rate(requests),
    );
    let columns: Vec<Column> = Column::ALL.into_iter().filter(|column| *column != Column::Trend).collect();
    let mut rows = vec![columns.iter().map(|column| column.title().to_owned()).collect::<Vec<_>>()];
    rows.extend(
        model.rows().into_iter().map(|plugin| columns.iter().map(|column| column.text(plugin)).collect()),
    );
    let widths: Vec<usize> = (0..columns.len())
        .map(|index| rows.iter().map(|row| text::columns(&row[index])).max().unwrap_or(0))
        .collect();
    for row in rows {
        let mut line = String::new();
        for ((column, cell), width) in columns.iter().zip(row).zip(&widths) {
            let space = " ".repeat(width.saturating_sub(text::columns(&cell)));
            match column.is_right_aligned() {
                true => line.push_str(&format!("{space}{cell}  ")),
                false => line.push_str(&format!("{cell}{space}  ")),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
