//! The state of everything, put together from the supervisor's word, the workers' counters and `/proc`.

use std::collections::HashMap;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use toru_plugin_api::status::{Limits, PluginOnWorker, PluginStatus, Snapshot, WorkerStatus};
use toru_supervisor::PluginStatus as Supervised;

use crate::driver::Driver;
use crate::histogram::Counts;
use crate::history::WINDOW;
use crate::metrics::Latencies;
use crate::worker::{Stats, Target, Worker};

/// A moment's picture; `plugins` is what the supervisor said.
pub fn snapshot(worker: &Worker, plugins: &[Supervised]) -> Snapshot {
    let shared = &worker.shared;
    let mut plugins: Vec<PluginStatus> = plugins.iter().map(|plugin| describe(worker, plugin)).collect();
    plugins.sort_by(|a, b| a.id.cmp(&b.id));
    let targets = worker.targets();
    let on_worker = |number: usize, counter: fn(&Stats) -> &AtomicU64| {
        targets.iter().map(|(_, target)| counter(&target.shared.stats[number]).load(Relaxed)).sum()
    };
    // The last one is the control thread, which serves no public client.
    let public = &shared.workers[..shared.workers.len() - 1];
    Snapshot {
        timestamp: worker.timestamp().to_owned(),
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
                driver: if stats.epoll.load(Relaxed) { Driver::Epoll } else { Driver::IoUring }
                    .name()
                    .to_owned(),
                connections: stats.connections.load(Relaxed),
                requests: stats.requests.load(Relaxed),
                in_flight: on_worker(number, |stats| &stats.in_flight),
                queued: on_worker(number, |stats| &stats.queued),
                lag_us: stats.lag_us.load(Relaxed),
                past_requests_per_s: vec![],
            })
            .collect(),
        store: shared.store.status(),
        window_ms: None,
    }
}

/// What somebody sees who watches: a snapshot with the last seconds instead of everything since the start.
///
/// On the control thread alone, which keeps the history.
pub fn watched(worker: &Worker, plugins: &[Supervised]) -> Snapshot {
    worker.history.refresh(worker, true);
    let mut snapshot = snapshot(worker, plugins);
    snapshot.window_ms = Some(WINDOW.as_millis() as u64);
    let by_id: HashMap<&str, &Supervised> =
        plugins.iter().map(|plugin| (plugin.metadata.id.as_str(), plugin)).collect();
    for status in &mut snapshot.plugins {
        let Some(plugin) = by_id.get(status.id.as_str()) else { continue };
        worker.history.dress(worker, plugin.index, status);
        let Some(target) = worker.by_index(plugin.index) else { continue };
        status.limits = Some(limits(worker, &target));
        let public = &target.shared.stats[..target.shared.stats.len() - 1];
        status.by_worker = public
            .iter()
            .map(|stats| PluginOnWorker {
                connections: stats.links.load(Relaxed),
                in_flight: stats.in_flight.load(Relaxed),
                queued: stats.queued.load(Relaxed),
                requests: stats.requests.load(Relaxed),
            })
            .collect();
    }
    snapshot
}

fn limits(worker: &Worker, target: &Target) -> Limits {
    let config = worker.config();
    let view = target.view.borrow();
    let process = config.processes.get(&view.metadata.id).cloned().unwrap_or_default();
    Limits {
        in_flight_max: target.shared.gate.capacity() as u64,
        timeout_ms: worker.time_limit(&view).as_millis() as u64,
        message_bytes_max: config.message_bytes_max as u64,
        kv_bytes_max: config.store.quota_bytes,
        memory_bytes_max: process.memory_bytes_max,
        open_files_max: process.open_files_max,
        nice: process.nice,
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
        last_restart: plugin.restarted_unix_ms,
        failures: plugin.failures.into(),
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
        status.stray_answers = target.shared.strays.load(Relaxed);
        status.dropped_log_lines = target.shared.log.dropped.load(Relaxed);
        for stats in &target.shared.stats {
            status.requests += stats.requests.load(Relaxed);
            status.errors += stats.errors.load(Relaxed);
            status.abandoned += stats.abandoned.load(Relaxed);
            status.stray_answers += stats.strays.load(Relaxed);
        }
        status.p50_us = latency.quantile_us(0.5);
        status.p95_us = latency.quantile_us(0.95);
        status.p99_us = latency.quantile_us(0.99);
    }
    if let Some(pid) = plugin.pid {
        let used = worker.history.usage(plugin.index, pid).or_else(|| usage_since_look(worker, plugin, pid));
        (status.cpu_percent, status.rss_bytes) = used.unzip();
    }
    status
}

/// CPU in percent of one core since this worker's last look, and resident memory in bytes.
fn usage_since_look(worker: &Worker, plugin: &Supervised, pid: u32) -> Option<(f64, u64)> {
    let usage = usage(pid)?;
    let now = Instant::now();
    let seen = worker.cpu_seen.borrow_mut().insert(plugin.index, (pid, now, usage.cpu));
    let (wall, used) = match seen {
        Some((before, at, cpu)) if before == pid && cpu <= usage.cpu => (now - at, usage.cpu - cpu),
        // The first look at this process: since its start.
        _ => (plugin.uptime.unwrap_or_default(), usage.cpu),
    };
    let percent = used.as_secs_f64() / wall.as_secs_f64().max(0.001) * 100.0;
    Some(((percent * 10.0).round() / 10.0, usage.rss_bytes))
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

/// The same with their sum.
pub fn latencies(worker: &Worker, index: usize) -> Latencies {
    let stats = worker.by_index(index).map(|target| target.shared.clone());
    let sum = stats.iter().flat_map(|shared| &shared.stats).map(|stats| stats.latency.sum()).sum();
    Latencies { counts: latency(worker, index), sum }
}

#[derive(Clone, Copy)]
pub struct Usage {
    /// Since the process began.
    pub cpu: Duration,
    pub rss_bytes: u64,
}

/// Whether a process has ended or is on its way out: the kernel closes what it had open only then.
pub fn is_ending(pid: u32) -> bool {
    // proc(5): state is field 3, and flags, of which PF_EXITING is one, are field 9.
    const EXITING: u64 = 4;
    let Some(fields) = stat(pid) else { return true };
    let mut fields = fields.split_ascii_whitespace();
    let dead = matches!(fields.next(), None | Some("Z" | "X"));
    let flags = fields.nth(5).and_then(|flags| flags.parse::<u64>().ok());
    dead || flags.is_some_and(|flags| flags & EXITING != 0)
}

/// The fields of `/proc/PID/stat` from the third on; `None` when the process is gone.
fn stat(pid: u32) -> Option<String> {
    // The name, which may hold anything, ends at the last parenthesis.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')').map(|(_, fields)| fields.to_owned())
}

/// What the kernel says a process has used; `None` when it is gone.
pub fn usage(pid: u32) -> Option<Usage> {
    // proc(5): utime is field 14, rss field 24.
    let stat = stat(pid)?;
    let fields: Vec<&str> = stat.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = number(14)? + number(15)?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Some(Usage {
        cpu: Duration::from_millis(ticks * 1000 / per_second),
        rss_bytes: number(24)? * rustix::param::page_size() as u64,
    })
}
