//! A snapshot as Prometheus text (exposition format 0.0.4).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use toru_plugin_api::status::{PluginStatus, Snapshot, StoreStatus, WorkerStatus};

use crate::histogram::Counts;

/// What a family's samples are.
#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Name, kind, help, and how to read it from a plugin, a worker or the store.
type Family<T> = (&'static str, Kind, &'static str, fn(&T) -> Option<f64>);

const STATES: [&str; 7] = ["stopped", "starting", "running", "crashed", "deferred", "stopping", "failed"];

/// Upper bounds of the latency buckets: powers of two, in µs, from 64 µs to 33.6 s. There the daemon's own, finer buckets
/// have an edge, so that no count is guessed.
const BOUNDS: std::ops::RangeInclusive<u32> = 6..=25;

/// Latencies of one plugin since the daemon started.
#[derive(Default)]
pub struct Latencies {
    pub counts: Counts,
    /// Of all of them.
    pub sum: Duration,
}

/// Every metric of the daemon; `latencies` by plugin id. Labels need no escaping: ids are letters, digits and hyphens.
pub fn text(snapshot: &Snapshot, latencies: &HashMap<String, Latencies>) -> String {
    let mut out = String::with_capacity(8192);
    head(&mut out, "toru_build_info", Kind::Gauge, "1, with the version of the daemon.");
    let _ = writeln!(out, "toru_build_info{{version=\"{}\"}} 1", snapshot.version);
    head(&mut out, "toru_uptime_seconds", Kind::Gauge, "Time since the daemon started.");
    let _ = writeln!(out, "toru_uptime_seconds {}", snapshot.uptime_ms as f64 / 1000.0);
    head(&mut out, "toru_log_lines_dropped_total", Kind::Counter, "Log lines lost to a slow or full disk.");
    let _ = writeln!(out, "toru_log_lines_dropped_total {}", snapshot.dropped_log_lines);
    head(&mut out, "toru_worker_driver_info", Kind::Gauge, "1, with the driver that the worker uses.");
    for worker in &snapshot.workers {
        let (number, driver) = (worker.number, &worker.driver);
        let _ = writeln!(out, "toru_worker_driver_info{{worker=\"{number}\",driver=\"{driver}\"}} 1");
    }
    let workers: [Family<WorkerStatus>; 5] = [
        ("toru_worker_connections", Kind::Gauge, "Open client connections.", |w| Some(w.connections as f64)),
        ("toru_worker_requests_total", Kind::Counter, "Requests of plugins that are over.", |w| {
            Some(w.requests as f64)
        }),
        ("toru_worker_in_flight", Kind::Gauge, "Requests that are with plugins.", |w| {
            Some(w.in_flight as f64)
        }),
        ("toru_worker_queued", Kind::Gauge, "Requests that wait for a place with a plugin.", |w| {
            Some(w.queued as f64)
        }),
        ("toru_worker_loop_lag_seconds", Kind::Gauge, "How late the event loop came to its timer.", |w| {
            Some(w.lag_us as f64 / 1e6)
        }),
    ];
    for family in workers {
        let labelled = snapshot.workers.iter().map(|worker| (worker.number.to_string(), worker));
        samples(&mut out, family, "worker", labelled);
    }
    head(&mut out, "toru_plugin_state", Kind::Gauge, "1 for the state that the plugin is in.");
    for plugin in &snapshot.plugins {
        for state in STATES {
            let here = u8::from(plugin.state == state);
            let _ = writeln!(out, "toru_plugin_state{{plugin=\"{}\",state=\"{state}\"}} {here}", plugin.id);
        }
    }
    let plugins: [Family<PluginStatus>; 11] = [
        ("toru_plugin_enabled", Kind::Gauge, "1 if the operator wants it to run.", |p| {
            Some(f64::from(u8::from(p.enabled)))
        }),
        ("toru_plugin_uptime_seconds", Kind::Gauge, "Time since the process was spawned.", |p| {
            p.uptime_ms.map(|ms| ms as f64 / 1000.0)
        }),
        (
            "toru_plugin_requests_total",
            Kind::Counter,
            "Requests that were answered, also with 503 because it does not run, or whose client went.",
            |p| Some(p.requests as f64),
        ),
        ("toru_plugin_errors_total", Kind::Counter, "Answers with status 500 and above.", |p| {
            Some(p.errors as f64)
        }),
        (
            "toru_plugin_abandoned_requests_total",
            Kind::Counter,
            "Requests whose client went before the answer.",
            |p| Some(p.abandoned as f64),
        ),
        ("toru_plugin_stray_answers_total", Kind::Counter, "Answers that nobody waited for.", |p| {
            Some(p.stray_answers as f64)
        }),
        (
            "toru_plugin_log_lines_dropped_total",
            Kind::Counter,
            "Lines of the plugin beyond what is logged of it in a second.",
            |p| Some(p.dropped_log_lines as f64),
        ),
        ("toru_plugin_restarts_total", Kind::Counter, "Processes after the first.", |p| {
            Some(p.restarts as f64)
        }),
        ("toru_plugin_in_flight", Kind::Gauge, "Requests that the plugin has.", |p| Some(p.in_flight as f64)),
        ("toru_plugin_queued", Kind::Gauge, "Requests that wait for a place.", |p| Some(p.queued as f64)),
        ("toru_plugin_resident_memory_bytes", Kind::Gauge, "Memory of the plugin's process.", |p| {
            p.rss_bytes.map(|bytes| bytes as f64)
        }),
    ];
    for family in plugins {
        let labelled = snapshot.plugins.iter().map(|plugin| (plugin.id.clone(), plugin));
        samples(&mut out, family, "plugin", labelled);
    }
    let name = "toru_plugin_request_duration_seconds";
    head(&mut out, name, Kind::Histogram, "From a request's head to its answer.");
    for plugin in &snapshot.plugins {
        if let Some(latencies) = latencies.get(&plugin.id) {
            histogram(&mut out, name, &plugin.id, latencies);
        }
    }
    let store: [Family<StoreStatus>; 5] = [
        ("toru_store_writable", Kind::Gauge, "1 if values and events are written.", |s| {
            Some(f64::from(u8::from(s.writable)))
        }),
        ("toru_store_queued_writes", Kind::Gauge, "Writes that wait for a transaction.", |s| {
            Some(s.queued_writes as f64)
        }),
        ("toru_store_queued_reads", Kind::Gauge, "Reads that wait.", |s| Some(s.queued_reads as f64)),
        ("toru_store_commits_total", Kind::Counter, "Transactions on the disk.", |s| Some(s.commits as f64)),
        ("toru_store_events_dropped_total", Kind::Counter, "Events that the audit trail lost.", |s| {
            Some(s.dropped_events as f64)
        }),
    ];
    for (name, kind, help, value) in store {
        head(&mut out, name, kind, help);
        if let Some(value) = value(&snapshot.store) {
            let _ = writeln!(out, "{name} {value}");
        }
    }
    out
}

fn head(out: &mut String, name: &str, kind: Kind, help: &str) {
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn samples<'a, T: 'a>(
    out: &mut String,
    (name, kind, help, value): Family<T>,
    label: &str,
    of: impl Iterator<Item = (String, &'a T)>,
) {
    head(out, name, kind, help);
    for (label_value, thing) in of {
        if let Some(value) = value(thing) {
            let _ = writeln!(out, "{name}{{{label}=\"{label_value}\"}} {value}");
        }
    }
}

fn histogram(out: &mut String, name: &str, plugin: &str, latencies: &Latencies) {
    for power in BOUNDS {
        let micros = 1u64 << power;
        let count = latencies.counts.below(micros);
        let bound = micros as f64 / 1e6;
        let _ = writeln!(out, "{name}_bucket{{plugin=\"{plugin}\",le=\"{bound}\"}} {count}");
    }
    let total = latencies.counts.total();
    let _ = writeln!(out, "{name}_bucket{{plugin=\"{plugin}\",le=\"+Inf\"}} {total}");
    let _ = writeln!(out, "{name}_sum{{plugin=\"{plugin}\"}} {}", latencies.sum.as_secs_f64());
    let _ = writeln!(out, "{name}_count{{plugin=\"{plugin}\"}} {total}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::Histogram;

    #[test]
    fn latencies_fall_into_the_bucket_that_bounds_them() {
        let plugin = PluginStatus { id: "acme".into(), state: "running".into(), ..PluginStatus::default() };
        let snapshot = Snapshot { plugins: vec![plugin], ..Snapshot::default() };
        let recorded = Histogram::default();
        // On both sides of an edge, below the first bound and above the last.
        for micros in [3, 255, 256, 1000, 1_000_000, 60_000_000] {
            recorded.record(Duration::from_micros(micros));
        }
        let mut latencies = Latencies { sum: recorded.sum(), ..Latencies::default() };
        recorded.add_to(&mut latencies.counts);
        let text = text(&snapshot, &HashMap::from([("acme".to_owned(), latencies)]));
        assert!(text.contains("toru_plugin_state{plugin=\"acme\",state=\"running\"} 1\n"), "{text}");
        let name = "toru_plugin_request_duration_seconds";
        for (bound, count) in [
            ("0.000064", 1),
            ("0.000128", 1),
            ("0.000256", 2),
            ("0.000512", 3),
            ("0.001024", 4),
            ("0.524288", 4),
            ("1.048576", 5),
            ("33.554432", 5),
            ("+Inf", 6),
        ] {
            let line = format!("{name}_bucket{{plugin=\"acme\",le=\"{bound}\"}} {count}\n");
            assert!(text.contains(&line), "{line} in {text}");
        }
        assert!(text.contains(&format!("{name}_sum{{plugin=\"acme\"}} 61.001514\n")), "{text}");
        assert!(text.contains(&format!("{name}_count{{plugin=\"acme\"}} 6\n")), "{text}");
    }
}
