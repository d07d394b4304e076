//! Which event loop a worker runs on: io_uring where the kernel allows it, else epoll.
//!
//! This file, `worker.rs`, `client.rs`, `work.rs`, `link.rs` and `legacy.rs` are the only ones of a request that know monoio.

use std::future::Future;
use std::io;

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use crate::config::DriverChoice;

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
            Ok(mut runtime) => return Ok(runtime.block_on(life(Driver::IoUring))),
            Err(error) if !may_fall_back => return Err(error),
            Err(_) => {}
        }
    }
    let mut runtime =
        RuntimeBuilder::<LegacyDriver>::new().with_entries(RING_ENTRIES).enable_timer().build()?;
    Ok(runtime.block_on(life(Driver::Epoll)))
}

/// The flags that spare a worker interrupts and locking inside the kernel.
///
/// All together were measured at about 1.1 times the throughput, each alone at nothing.
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

fn probe() -> Result<(), String> {
    let (flags, entries) = ring_shape().map_err(|error| match error.raw_os_error() {
        Some(nix::libc::ENOMEM) => format!("{error}; the locked-memory limit is too low, see ulimit -l"),
        Some(nix::libc::EPERM | nix::libc::ENOSYS) => {
            format!("{error}; the kernel or a container refuses it")
        }
        _ => error.to_string(),
    })?;
    let ring = ring_builder(flags).build(entries).map_err(|error| error.to_string())?;
    // Without it each wait with a timer leaves an entry behind in the ring (before Linux 5.11).
    if !ring.params().is_feature_ext_arg() {
        return Err("the kernel lacks IORING_FEAT_EXT_ARG".into());
    }
    Ok(())
}
