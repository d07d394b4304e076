//! Which event loop a worker runs on: io_uring where the kernel allows it, else epoll.
//!
//! This file, `worker.rs`, `arrivals.rs`, `timers.rs`, `client.rs`, `turns.rs`, `link.rs`, `legacy.rs` and `place.rs` are the
//! only ones on a request's way that know monoio.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::config::DriverChoice;
use crate::timers;

/// Submission entries of a worker's ring. Each in-flight operation takes one only until it is submitted.
const RING_ENTRIES: u32 = 1024;
/// A ring of this size fits into 64 KiB of locked memory, where that is all there is.
const RING_ENTRIES_MIN: u32 = 256;

/// The driver in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    IoUring,
    Epoll,
}

impl Driver {
    pub fn name(self) -> &'static str {
        match self {
            Driver::IoUring => "io_uring",
            Driver::Epoll => "epoll",
        }
    }
}

/// Decides on a driver; the second part says why it is not io_uring, if somebody should know.
///
/// Errors: io_uring was asked for by name and cannot be had.
pub fn choose(choice: DriverChoice) -> Result<(Driver, Option<String>), String> {
    match choice {
        DriverChoice::Epoll => Ok((Driver::Epoll, None)),
        DriverChoice::Auto => match probe() {
            Ok(()) => Ok((Driver::IoUring, None)),
            Err(reason) => {
                Ok((Driver::Epoll, Some(format!("io_uring cannot be used ({reason}); using epoll"))))
            }
        },
        DriverChoice::IoUring => match probe() {
            Ok(()) => Ok((Driver::IoUring, None)),
            Err(reason) => Err(format!("io_uring cannot be used ({reason}); choose --driver auto or epoll")),
        },
    }
}

/// Runs the future that `life` makes to its end, on a fresh event loop of this thread.
///
/// A ring that cannot be had although the probe got one (each takes locked memory on older kernels) becomes epoll where
/// that is allowed; `life` is told which it is.
/// Errors: the loop cannot be made.
pub fn block_on<F: Future>(
    driver: Driver,
    may_fall_back: bool,
    life: impl FnOnce(Driver) -> F,
) -> io::Result<F::Output> {
    if driver == Driver::IoUring {
        let built = ring_shape().and_then(|(flags, entries)| {
            RuntimeBuilder::<IoUringDriver>::new()
                .uring_builder(ring_builder(flags))
                .with_entries(entries)
                .enable_timer()
                .build()
        });
        match built {
            Ok(mut runtime) => return runtime.block_on(with_timers(life(Driver::IoUring))),
            Err(error) if !may_fall_back => return Err(error),
            Err(_) => {}
        }
    }
    let mut runtime =
        RuntimeBuilder::<LegacyDriver>::new().with_entries(RING_ENTRIES).enable_timer().build()?;
    runtime.block_on(with_timers(life(Driver::Epoll)))
}

async fn with_timers<F: Future>(life: F) -> io::Result<F::Output> {
    let _timers = timers::start()?;
    Ok(life.await)
}

/// The flags that spare a worker interrupts and locking inside the kernel.
///
/// Together they make a busy worker faster, each alone makes hardly a difference.
#[derive(Clone, Copy)]
enum RingFlags {
    /// COOP_TASKRUN, SINGLE_ISSUER and DEFER_TASKRUN: Linux 6.1.
    All,
    None,
}

fn ring_builder(flags: RingFlags) -> io_uring::Builder {
    let mut builder = io_uring::IoUring::builder();
    if let RingFlags::All = flags {
        builder.setup_coop_taskrun().setup_single_issuer().setup_defer_taskrun();
    }
    builder
}

/// What this kernel accepts: the best flags, and the largest ring that the locked-memory limit allows.
fn ring_shape() -> io::Result<(RingFlags, u32)> {
    let mut last = io::Error::from(io::ErrorKind::Unsupported);
    for entries in [RING_ENTRIES, RING_ENTRIES_MIN] {
        for flags in [RingFlags::All, RingFlags::None] {
            match ring_builder(flags).build(entries) {
                Ok(_) => return Ok((flags, entries)),
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

/// Keeps a task that never has to wait from keeping its thread to itself.
///
/// The loop looks at sockets and timers once no task is ready. Where reads and writes are done at once, as with epoll and
/// with direct sends, a peer that always has something could go on for as long as it likes, before everybody else.
#[derive(Default)]
pub struct Pace {
    since: Option<Instant>,
}

impl Pace {
    /// To be called after each step, with whether that had to wait for something.
    pub async fn keep(&mut self, waited: bool) {
        /// What others may have to wait for one of these at a time.
        const TURN: Duration = Duration::from_millis(2);
        if waited {
            self.since = None;
        } else if self.since.get_or_insert_with(Instant::now).elapsed() > TURN {
            self.since = None;
            // To wake itself would not do, nor would `timers`: what is ready as soon as it is submitted lets the loop go on
            // without ever waiting, and only then is the driver asked for all that others wait for. The loop's own timers
            // are looked at only when no task is ready. Boxed: a timer takes half as much room again as a client's task
            // needs without it.
            Box::pin(monoio::time::sleep(Duration::from_millis(1))).await;
        }
    }
}

/// Waits for `future`; gives whether it really had to wait, and what came.
pub async fn waiting<F: Future>(future: F) -> (bool, F::Output) {
    let mut future = std::pin::pin!(future);
    let mut waited = false;
    let output = std::future::poll_fn(|cx| {
        let poll = future.as_mut().poll(cx);
        waited |= poll.is_pending();
        poll
    })
    .await;
    (waited, output)
}

/// Sends what a stream socket takes at once; gives how many bytes that was, 0 where it takes none now.
///
/// Most sends can be done at once, and then a system call costs less than a submission, its completion and the turn of
/// the loop in between. Whatever is left goes the long way, which waits.
/// Errors: the other side is gone.
pub fn send_now(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    match send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(count) => Ok(count),
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

fn probe() -> Result<(), String> {
    let (flags, entries) = ring_shape().map_err(|error| match error.raw_os_error() {
        Some(nix::libc::ENOMEM) => format!("{error}; the locked-memory limit is too low, see ulimit -l"),
        Some(nix::libc::EPERM | nix::libc::ENOSYS) => {
            format!("{error}; the kernel or a container refuses it")
        }
        _ => error.to_string(),
    })?;
    let ring = ring_builder(flags).build(entries).map_err(|error| error.to_string())?;
    // Before Linux 5.11, which has it, a wait with a limit leaves an entry behind in the ring. The loop's waits have none
    // (`timers.rs`), but rings of that age were never run.
    if !ring.params().is_feature_ext_arg() {
        return Err("the kernel lacks IORING_FEAT_EXT_ARG".into());
    }
    Ok(())
}

/// Runs `life` on each driver that there is.
#[cfg(test)]
pub fn on_each(life: impl AsyncFn(Driver)) {
    let (best, _) = choose(DriverChoice::Auto).expect("one can be had");
    for driver in [best, Driver::Epoll] {
        block_on(driver, false, async |driver| life(driver).await).expect("a loop");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_full_socket_takes_nothing_and_keeps_nobody_waiting() {
        let (socket, mut peer) = UnixStream::pair().expect("a pair");
        let bytes = vec![b'x'; 64 * 1024];
        let send = || send_now(&socket, &bytes).expect("the peer is there");
        let taken: usize = (0..10_000).map(|_| send()).take_while(|count| *count > 0).sum();
        assert!(taken > 0 && send() == 0, "{taken} bytes");
        let mut read = vec![0; taken];
        peer.read_exact(&mut read).expect("all that was taken");
        assert!(send() > 0);
        drop(peer);
        let gone = send_now(&socket, &bytes).expect_err("nobody is there");
        assert!(matches!(gone.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{gone}");
    }
}
