//! What the service manager hears: ready, stopping, how many plugins run, and that the supervisor is alive.
//!
//! The watchdog is fed on the supervisor's own thread, from inside its loop: a supervisor that hangs feeds nobody, and
//! systemd starts the daemon anew. Without `NOTIFY_SOCKET` nothing is sent and nobody is woken.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use sd_notify::NotifyState;
use toru_supervisor::{Command, Handle};

/// How often the status text is renewed where no watchdog asks for more.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// What is said only once is worth waiting for a service manager that is busy.
const WORD_PATIENCE: Duration = Duration::from_secs(1);

pub struct Service {
    /// `None` where no service manager listens.
    interval: Option<Duration>,
    /// Every plugin of the start has said what it is, or was skipped.
    scanned: Arc<AtomicBool>,
}

impl Service {
    pub fn from_env(scanned: Arc<AtomicBool>) -> Self {
        let listens = std::env::var_os("NOTIFY_SOCKET").is_some();
        let interval = || match sd_notify::watchdog_enabled() {
            // Three times within the limit, so that one late beat does no harm.
            Some(limit) => (limit / 3).min(STATUS_INTERVAL),
            None => STATUS_INTERVAL,
        };
        Self { interval: listens.then(interval), scanned }
    }

    /// When [`Service::beat`] is due again.
    pub fn interval(&self) -> Option<Duration> {
        self.interval
    }

    pub fn ready(&self, supervisor: &Handle) {
        self.tell(&[NotifyState::Ready]);
        self.beat(supervisor);
    }

    /// The settings are read anew; [`Service::reloaded`] tells of the end.
    pub fn reloading(&self) {
        // systemd takes the word only together with the time, so that it cannot be an older one.
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            self.tell(&[NotifyState::Reloading, now]);
        }
    }

    /// What tells that a reload has ended; may be called on any thread.
    pub fn reloaded(&self) -> impl FnOnce() + Send + 'static {
        let listens = self.interval.is_some();
        move || {
            if listens {
                let _ = notify(&[NotifyState::Ready], Some(WORD_PATIENCE));
            }
        }
    }

    pub fn stopping(&self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// Has the supervisor say that it lives, and what its plugins do.
    pub fn beat(&self, supervisor: &Handle) {
        if self.interval.is_none() {
            return;
        }
        let scanned = self.scanned.clone();
        supervisor.send(Command::Snapshot(Box::new(move |plugins| {
            let running = plugins.iter().filter(|plugin| plugin.state == "running").count();
            let many = if plugins.len() == 1 { "" } else { "s" };
            // Before that, a count would be of those that were quick.
            let reading = if scanned.load(Relaxed) { "" } else { "still reading plugins: " };
            let status = format!("{reading}{} plugin{many}, {running} running", plugins.len());
            // A service manager that has gone away or does not read is no trouble of ours.
            let _ = notify(&[NotifyState::Status(&status), NotifyState::Watchdog], None);
        })));
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if self.interval.is_some() {
            let _ = notify(states, Some(WORD_PATIENCE));
        }
    }
}

/// As `sd_notify::notify`, which waits for as long as the manager does not read, and knows no abstract address: one that
/// begins with `@`, such as a container's manager gives. `patience` is how long one that reads slowly is waited for.
/// Source: sd_notify(3), "Environment".
fn notify(states: &[NotifyState<'_>], patience: Option<Duration>) -> io::Result<()> {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&address)?,
    };
    let message: String = states.iter().map(|state| format!("{state}\n")).collect();
    let socket = UnixDatagram::unbound()?;
    match patience {
        None => socket.set_nonblocking(true)?,
        Some(patience) => socket.set_write_timeout(Some(patience))?,
    }
    socket.send_to_addr(message.as_bytes(), &address).map(drop)
}
