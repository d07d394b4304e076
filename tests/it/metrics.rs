//! What Prometheus reads, judged by rules of our own and by Prometheus' `promtool` where there is one.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    time::Duration,
};

use rustix::net::sockopt::set_socket_linger;
use serde_json::json;
use toru_tests::{Daemon, Stage, has_program, output_with, request_bytes, wait_for};

/// One exposition, checked: samples by family, each with its whole name, labels and value.
struct Exposition {
    kinds: BTreeMap<String, String>,
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Exposition {
    /// Fails on whatever the text format 0.0.4 does not allow, and on names that break Prometheus' customs.
    #[track_caller]
    fn read(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has no end");
        let (mut kinds, mut samples) = (BTreeMap::new(), Vec::new());
        let (mut helped, mut series) = (String::new(), BTreeSet::new());
        let mut family = String::new();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, words) = help.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                assert!(words.ends_with('.') && !words.contains('\\'), "{line}");
                helped = name.to_owned();
                continue;
            }
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                assert_eq!(name, helped, "help and type belong together");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
                family = name.to_owned();
                continue;
            }
            let (whole, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            let value: f64 = value.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
            assert!(value.is_finite() && value >= 0.0, "{line}");
            let (name, labels) = match whole.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}"))),
                None => (whole, ""),
            };
            let legal = |name: &str| {
                name.starts_with(|first: char| first.is_ascii_lowercase())
                    && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            };
            assert!(legal(name) && name.starts_with("toru_"), "{line}");
            let labels: BTreeMap<String, String> = labels
                .split(',')
                .filter(|label| !label.is_empty())
                .map(|label| {
                    let (name, value) = label.split_once('=').unwrap_or_else(|| panic!("{line}"));
                    let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
                    let value = value.unwrap_or_else(|| panic!("{line}"));
                    assert!(legal(name) && !value.contains(['"', '\\']), "{line}");
                    (name.to_owned(), value.to_owned())
                })
                .collect();
            let belongs = match kinds.get(&family).map(String::as_str) {
                Some("histogram") => {
                    ["_bucket", "_sum", "_count"].iter().any(|end| name == format!("{family}{end}"))
                }
                _ => name == family,
            };
            assert!(belongs, "{line} stands under {family}");
            assert_eq!(labels.contains_key("le"), name.ends_with("_bucket"), "{line}");
            assert!(series.insert(whole.to_owned()), "{whole} twice");
            samples.push((name.to_owned(), labels, value));
        }
        let found = Self { kinds, samples };
        found.check_histograms();
        found
    }

    /// Buckets grow with their bound, the last has no bound, and is the count.
    #[track_caller]
    fn check_histograms(&self) {
        for name in self.kinds.iter().filter(|(_, kind)| *kind == "histogram").map(|(name, _)| name) {
            let mut last: BTreeMap<BTreeMap<String, String>, (f64, f64)> = BTreeMap::new();
            for (sample, labels, value) in &self.samples {
                if *sample != format!("{name}_bucket") {
                    continue;
                }
                let mut of = labels.clone();
                let bound = of.remove("le").unwrap();
                let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
                if let Some((smaller, count)) = last.insert(of, (bound, *value)) {
                    assert!(smaller < bound && count <= *value, "{labels:?}");
                }
            }
            for (of, (bound, count)) in last {
                let with: Vec<(&str, &str)> = of.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                assert_eq!(bound, f64::INFINITY, "{of:?}");
                assert_eq!(self.value(&format!("{name}_count"), &with), count);
                assert!(self.value(&format!("{name}_sum"), &with) >= 0.0);
            }
        }
    }

    #[track_caller]
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: BTreeMap<String, String> =
            labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let found = self.samples.iter().find(|(found, with, _)| found == name && *with == wanted);
        found.unwrap_or_else(|| panic!("no {name} with {labels:?}")).2
    }
}

fn scrape(daemon: &Daemon) -> (Exposition, String) {
    let answer = daemon.control().get("/metrics");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.field("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = answer.text().to_owned();
    (Exposition::read(&text), text)
}

#[test]
fn what_is_refused_because_the_plugin_does_not_run_is_counted_and_has_no_latency() {
    let daemon = Stage::new().faulty("p", &json!({"do": "never-ready"})).start();
    wait_for("p to be known", || (daemon.get("/api/plugins/p/x").status == 503).then_some(()));
    wait_for("all plugins to be read", || (daemon.get("/api/plugins/nobody/x").status == 404).then_some(()));
    let (before, _) = scrape(&daemon);
    for _ in 0..5 {
        assert_eq!(daemon.get("/api/plugins/p/x").status, 503);
        // There is none in its folder, and nobody to ask.
        assert_eq!(daemon.get("/api/plugins/p/bundle.js").status, 503);
    }
    let (after, _) = scrape(&daemon);
    for name in ["toru_plugin_requests_total", "toru_plugin_errors_total"] {
        let counted = |of: &Exposition| of.value(name, &[("plugin", "p")]);
        assert_eq!(counted(&after), counted(&before) + 10.0, "{name}");
    }
    assert_eq!(after.value("toru_plugin_request_duration_seconds_count", &[("plugin", "p")]), 0.0);
}

#[test]
fn a_request_whose_client_goes_is_counted_as_a_request_and_as_no_error() {
    let daemon = Stage::new()
        .set("log.access", "\"all\"")
        .faulty("p", &json!({}))
        .faulty("old", &json!({"metadata": {"protocol": "1.0"}}))
        .start();
    for id in ["p", "old"] {
        daemon.wait_ready(id);
        let (before, _) = scrape(&daemon);
        for _ in 0..3 {
            let mut client = daemon.client();
            client.send(&request_bytes("GET", &format!("/api/plugins/{id}/never?n=1"), &[], b"")).unwrap();
            daemon.wait_status(id, "one in flight", |status| status["in_flight"] == 1);
            set_socket_linger(client.stream(), Some(Duration::ZERO)).unwrap();
            drop(client);
            daemon.wait_status(id, "none in flight", |status| status["in_flight"] == 0);
        }
        daemon.wait_status(id, "three abandoned", |status| status["abandoned"] == 3);
        let (after, _) = scrape(&daemon);
        for (name, value) in [
            ("toru_plugin_requests_total", 3.0),
            ("toru_plugin_abandoned_requests_total", 3.0),
            ("toru_plugin_errors_total", 0.0),
            // Nobody knows how long it would have taken.
            ("toru_plugin_request_duration_seconds_count", 0.0),
        ] {
            let counted = |of: &Exposition| of.value(name, &[("plugin", id)]);
            assert_eq!(counted(&after) - counted(&before), value, "{id}: {name}");
        }
        let lines = wait_for("a line for each", || {
            let lines: Vec<_> =
                daemon.plugin_log(id).into_iter().filter(|line| line["status"] == 499).collect();
            (lines.len() == 3).then_some(lines)
        });
        for line in lines {
            assert_eq!(line["path"], "/never?n=1", "{line}");
        }
    }
}

#[test]
fn the_metrics_are_what_prometheus_takes_and_what_happened() {
    let daemon = Stage::new()
        .set("http.request_timeout_ms", 1000)
        .faulty("p", &json!({}))
        .faulty("off", &json!({}))
        .start();
    daemon.wait_ready("p");
    daemon.wait_ready("off");
    assert_eq!(daemon.manage("POST", "/api/plugins/off/disable", b"").status, 200);
    let (before, _) = scrape(&daemon);
    let p = [("plugin", "p")];
    let durations = "toru_plugin_request_duration_seconds";
    let count = |of: &Exposition, name: &str| of.value(name, &p);
    let counted = count(&before, &format!("{durations}_count"));
    assert_eq!(counted, count(&before, "toru_plugin_requests_total"));
    for _ in 0..20 {
        assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
    }
    assert_eq!(daemon.get("/api/plugins/p/never").status, 504);
    daemon.get("/api/plugins/p/exit/1");
    daemon.wait_status("p", "restarted", |status| status["running"] == true && status["restarts"] == 1);

    let (after, text) = scrape(&daemon);
    assert_eq!(count(&after, &format!("{durations}_count")), counted + 22.0);
    assert_eq!(count(&after, "toru_plugin_requests_total"), counted + 22.0);
    assert_eq!(count(&after, "toru_plugin_errors_total"), count(&before, "toru_plugin_errors_total") + 2.0);
    assert_eq!(count(&after, "toru_plugin_restarts_total"), 1.0);
    assert_eq!(count(&after, "toru_plugin_in_flight"), 0.0);
    assert_eq!(count(&after, "toru_plugin_queued"), 0.0);
    assert_eq!(count(&after, "toru_plugin_enabled"), 1.0);
    assert!(count(&after, "toru_plugin_resident_memory_bytes") > 0.0);
    let sum = count(&after, &format!("{durations}_sum")) - count(&before, &format!("{durations}_sum"));
    assert!(sum >= 1.0, "{sum} s: one of them took a second");
    let within =
        |of: &Exposition| of.value(&format!("{durations}_bucket"), &[("plugin", "p"), ("le", "0.524288")]);
    let (all, quick) = (count(&after, &format!("{durations}_count")), within(&after));
    assert!(quick < all, "the one that took a second is in no bucket below");
    assert_eq!(after.value("toru_plugin_state", &[("plugin", "p"), ("state", "running")]), 1.0);
    assert_eq!(after.value("toru_plugin_state", &[("plugin", "p"), ("state", "crashed")]), 0.0);
    assert_eq!(after.value("toru_plugin_state", &[("plugin", "off"), ("state", "stopped")]), 1.0);
    assert_eq!(after.value("toru_plugin_enabled", &[("plugin", "off")]), 0.0);
    assert_eq!(after.value("toru_log_lines_dropped_total", &[]), 0.0);
    assert_eq!(after.value("toru_store_writable", &[]), 1.0);
    let drivers = after.samples.iter().filter(|(name, ..)| name == "toru_worker_driver_info");
    assert_eq!(drivers.count(), 2, "one for each worker");
    assert!(after.kinds.contains_key("toru_build_info"));

    if !has_program("promtool") {
        println!("skipped in part: no promtool here");
        return;
    }
    let judged = output_with(Command::new("promtool").args(["check", "metrics"]), text.as_bytes());
    assert!(
        judged.status.success() && judged.stdout.is_empty() && judged.stderr.is_empty(),
        "{judged:?}\n{text}"
    );
}
