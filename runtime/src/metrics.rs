//! A snapshot as Prometheus text (exposition format 0.0.4).

use std::fmt::Write as _;

use toru_plugin_api::status::{PluginStatus, Snapshot};

/// Name, kind, help, and how to read it from a plugin.
type Family = (&'static str, &'static str, &'static str, fn(&PluginStatus) -> Option<f64>);

const STATES: [&str; 6] = ["stopped", "starting", "running", "crashed", "stopping", "failed"];

/// Every metric of the daemon. Plugin ids need no escaping: they are letters, digits and hyphens.
pub fn text(snapshot: &Snapshot) -> String {
    let mut out = String::with_capacity(4096);
    family(&mut out, "toru_uptime_seconds", "gauge", "Time since the daemon started.");
    let _ = writeln!(out, "toru_uptime_seconds {}", snapshot.uptime_ms as f64 / 1000.0);
    family(&mut out, "toru_log_lines_dropped_total", "counter", "Log lines lost to a slow or full disk.");
    let _ = writeln!(out, "toru_log_lines_dropped_total {}", snapshot.dropped_log_lines);
    family(&mut out, "toru_worker_connections", "gauge", "Open client connections, by worker.");
    for worker in &snapshot.workers {
        let _ = writeln!(
            out,
            "toru_worker_connections{{worker=\"{}\",driver=\"{}\"}} {}",
            worker.number, worker.driver, worker.connections
        );
    }
    family(&mut out, "toru_plugin_state", "gauge", "1 for the state that the plugin is in.");
    for plugin in &snapshot.plugins {
        for state in STATES {
            let here = u8::from(plugin.state == state);
            let _ = writeln!(out, "toru_plugin_state{{plugin=\"{}\",state=\"{state}\"}} {here}", plugin.id);
        }
    }
    let families: [Family; 7] = [
        ("toru_plugin_requests_total", "counter", "Answered requests.", |p| Some(p.requests as f64)),
        ("toru_plugin_errors_total", "counter", "Answers with status 500 and above.", |p| {
            Some(p.errors as f64)
        }),
        ("toru_plugin_stray_answers_total", "counter", "Answers that nobody waited for.", |p| {
            Some(p.stray_answers as f64)
        }),
        ("toru_plugin_restarts_total", "counter", "Processes after the first.", |p| Some(p.restarts as f64)),
        ("toru_plugin_in_flight", "gauge", "Requests that the plugin has.", |p| Some(p.in_flight as f64)),
        ("toru_plugin_queued", "gauge", "Requests that wait for a place.", |p| Some(p.queued as f64)),
        ("toru_plugin_resident_memory_bytes", "gauge", "Memory of the plugin's process.", |p| {
            p.rss_bytes.map(|bytes| bytes as f64)
        }),
    ];
    for (name, kind, help, value) in families {
        family(&mut out, name, kind, help);
        for plugin in &snapshot.plugins {
            if let Some(value) = value(plugin) {
                let _ = writeln!(out, "{name}{{plugin=\"{}\"}} {value}", plugin.id);
            }
        }
    }
    family(&mut out, "toru_plugin_latency_seconds", "summary", "From a request's end to its answer.");
    for plugin in &snapshot.plugins {
        for (quantile, micros) in [("0.5", plugin.p50_us), ("0.95", plugin.p95_us), ("0.99", plugin.p99_us)] {
            if let Some(micros) = micros {
                let seconds = micros as f64 / 1e6;
                let _ = writeln!(
                    out,
                    "toru_plugin_latency_seconds{{plugin=\"{}\",quantile=\"{quantile}\"}} {seconds}",
                    plugin.id
                );
            }
        }
        let _ = writeln!(
            out,
            "toru_plugin_latency_seconds_count{{plugin=\"{}\"}} {}",
            plugin.id, plugin.requests
        );
    }
    out
}

fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_belongs_to_a_family_that_was_announced() {
        let plugin = PluginStatus {
            id: "acme".into(),
            state: "running".into(),
            requests: 7,
            p50_us: Some(250),
            rss_bytes: Some(4096),
            ..PluginStatus::default()
        };
        let snapshot = Snapshot { plugins: vec![plugin], ..Snapshot::default() };
        let text = text(&snapshot);
        assert!(text.contains("toru_plugin_state{plugin=\"acme\",state=\"running\"} 1\n"), "{text}");
        assert!(
            text.contains("toru_plugin_latency_seconds{plugin=\"acme\",quantile=\"0.5\"} 0.00025\n"),
            "{text}"
        );
        let mut announced = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                announced = rest.split(' ').next().expect("a name");
            } else if !line.starts_with('#') {
                assert!(line.starts_with(announced), "{line} follows {announced}");
                let value = line.rsplit(' ').next().expect("a value");
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
    }
}
