//! The state of everything, put together from the supervisor's word, the workers' counters and `/proc`.

use std::fs;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use toru_plugin_api::status::{PluginStatus, Snapshot, WorkerStatus};
use toru_plugin_api::time::as_str;
use toru_supervisor::PluginStatus as Supervised;

use crate::histogram::Counts;
use crate::worker::Worker;

/// A moment's picture; `plugins` is what the supervisor said.
pub fn snapshot(worker: &Worker, plugins: &[Supervised]) -> Snapshot {
    let shared = &worker.shared;
    let mut plugins: Vec<PluginStatus> = plugins.iter().map(|plugin| describe(worker, plugin)).collect();
    plugins.sort_by(|a, b| a.id.cmp(&b.id));
    // The last one is the control thread, which serves no public client.
    let public = &shared.workers[..shared.workers.len() - 1];
    Snapshot {
        timestamp: as_str(&worker.timestamp()).to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_ms: shared.started.elapsed().as_millis() as u64,
        dropped_log_lines: shared.logger.dropped(),
        plugins,
        workers: public
            .iter()
            .enumerate()
            .map(|(number, stats)| WorkerStatus {
                number: number as u64,
                driver: shared.driver.name().to_owned(),
                connections: stats.connections.load(Relaxed),
                requests: stats.requests.load(Relaxed),
            })
            .collect(),
    }
}

/// One plugin at this moment.
pub fn describe(worker: &Worker, plugin: &Supervised) -> PluginStatus {
    let metadata = &plugin.metadata;
    let running = plugin.state == "running";
    let mut status = PluginStatus {
        id: metadata.id.clone(),
        name: metadata.name.clone(),
        version: metadata.version.clone(),
        author: metadata.author.clone(),
        icon: metadata.icon.clone(),
        route: metadata.route.clone(),
        enabled: plugin.enabled,
        running,
        health: match (running, plugin.unanswered_pings) {
            // One ping may be on its way.
            (true, 0 | 1) => "healthy".into(),
            (true, _) => "unresponsive".into(),
            (false, _) => plugin.state.into(),
        },
        pid: plugin.pid,
        socket_path: plugin.socket.display().to_string(),
        state: plugin.state.into(),
        restarts: plugin.restarts,
        last_exit: plugin.last_exit.clone(),
        next_start: plugin.next_start.map(|left| unix_ms(SystemTime::now() + left)),
        uptime_ms: plugin.uptime.map(|uptime| uptime.as_millis() as u64),
        ping_us: plugin.ping.map(|ping| ping.as_micros() as u64),
        protocol: metadata.protocol.as_str().into(),
        ..PluginStatus::default()
    };
    if let Some(target) = worker.by_index(plugin.index) {
        let latency = latency(worker, plugin.index);
        status.in_flight = target.shared.gate.in_use() as u64;
        status.queued = target.shared.gate.queued() as u64;
        for stats in &target.shared.stats {
            status.requests += stats.requests.load(Relaxed);
            status.errors += stats.errors.load(Relaxed);
            status.stray_answers += stats.strays.load(Relaxed);
        }
        status.p50_us = latency.quantile_us(0.5);
        status.p95_us = latency.quantile_us(0.95);
        status.p99_us = latency.quantile_us(0.99);
    }
    if let Some(pid) = plugin.pid
        && let Some(usage) = usage(pid)
    {
        status.rss_bytes = Some(usage.rss_bytes);
        let now = Instant::now();
        let uptime = plugin.uptime.unwrap_or_default();
        let seen = worker.cpu_seen.borrow_mut().insert(pid, (now, usage.cpu));
        let (wall, used) = match seen {
            Some((at, cpu)) if cpu <= usage.cpu => (now - at, usage.cpu - cpu),
            // The first look, or another process with this pid: since its start.
            _ => (uptime, usage.cpu),
        };
        let percent = used.as_secs_f64() / wall.as_secs_f64().max(0.001) * 100.0;
        status.cpu_percent = Some((percent * 10.0).round() / 10.0);
    }
    status
}

fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Latencies of a plugin's requests, over all workers, since the daemon started.
pub fn latency(worker: &Worker, index: usize) -> Counts {
    let mut sum = Counts::default();
    if let Some(target) = worker.by_index(index) {
        for stats in &target.shared.stats {
            stats.latency.add_to(&mut sum);
        }
    }
    sum
}

struct Usage {
    cpu: Duration,
    rss_bytes: u64,
}

/// What the kernel says a process has used; `None` when it is gone.
fn usage(pid: u32) -> Option<Usage> {
    // proc(5): the name, which may hold anything, ends at the last parenthesis; utime is field 14, rss field 24.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = number(14)? + number(15)?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Some(Usage {
        cpu: Duration::from_millis(ticks * 1000 / per_second),
        rss_bytes: number(24)? * rustix::param::page_size() as u64,
    })
}
