//! A line for each plugin now and then: what a log watcher makes its metrics of.

use std::collections::HashMap;
use std::rc::Rc;

use serde_json::json;

use crate::api::supervised;
use crate::histogram::Counts;
use crate::memory;
use crate::status;
use crate::timers;
use crate::worker::Worker;

/// What a plugin had counted at its last line.
#[derive(Default)]
struct Before {
    requests: u64,
    errors: u64,
    latency: Counts,
}

/// Logs for ever, on the control thread, which has the time.
pub async fn run(worker: Rc<Worker>) {
    monoio::spawn(async {
        for wait in memory::SETTLED {
            timers::sleep(wait).await;
            memory::give_back();
        }
    });
    let mut before: HashMap<usize, Before> = HashMap::new();
    let mut worked = false;
    let resident = || status::usage(std::process::id()).map(|usage| usage.rss_bytes);
    let mut left = resident();
    loop {
        worker.sleep_as_set(|config| config.log.summary_interval).await;
        let Ok(plugins) = supervised(&worker).await else { return };
        let mut works = false;
        for plugin in &plugins {
            let now = status::describe(&worker, plugin);
            let latency = status::latency(&worker, plugin.index);
            let before = before.entry(plugin.index).or_default();
            let (requests, errors) = (now.requests - before.requests, now.errors - before.errors);
            works |= requests > 0;
            let recent = latency.since(&before.latency);
            let ms = |share| recent.quantile_us(share).map(|us| us as f64 / 1000.0);
            let rate = if requests == 0 { 0.0 } else { errors as f64 / requests as f64 };
            let fields = json!({
                "state": now.state,
                "requests": requests,
                "errors": errors,
                "error_rate": (rate * 10_000.0).round() / 10_000.0,
                "p50_ms": ms(0.5),
                "p95_ms": ms(0.95),
                "p99_ms": ms(0.99),
                "uptime_ms": now.uptime_ms,
                "restarts": now.restarts,
                "cpu_percent": now.cpu_percent,
                "rss_bytes": now.rss_bytes,
                "requests_total": now.requests,
                "errors_total": now.errors,
            });
            if let Some(fields) = fields.as_object() {
                worker.shared.logger.summary(&now.id, fields);
            }
            *before = Before { requests: now.requests, errors: now.errors, latency };
        }
        // Clients that went in the middle of a request have left memory behind, too, and count as none.
        let grew = resident().zip(left).is_some_and(|(now, left)| now > left + memory::GROWN);
        if (std::mem::replace(&mut worked, works) || grew) && !works {
            memory::give_back();
            left = resident();
        }
    }
}
