//! Reading what the core sends through io_uring: see [`Options::io_uring`](super::Options::io_uring).
//!
//! One thread has the ring, and on it a task for each connection, which reads into the decoder's own buffer and has the
//! connection given a turn. It runs no handler, because one that blocks would stop all reading. Writes stay as they are:
//! one that the socket takes at once costs one system call, and through the ring it would cost two.

use std::io;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_uring::buf::BoundedBuf as _;
use tokio_uring::net::UnixStream as RingStream;

use super::lead::Lead;
use super::serve::lock;

/// One read is on its way for each connection, and the core has few.
const ENTRIES: u32 = 64;

/// The kernel answers a read of what is there within microseconds; this long says that it never will.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// The thread that reads; it ends when this is dropped.
pub(super) struct Readers(UnboundedSender<Reads>);

struct Reads {
    id: u64,
    stream: UnixStream,
    inbox: Arc<Inbox>,
    lead: Arc<Lead>,
}

impl Readers {
    /// Starts the thread.
    ///
    /// Errors: the kernel has no io_uring, refuses it, or refuses what a read needs.
    pub fn start() -> io::Result<Self> {
        let (sender, mut receiver) = unbounded_channel();
        let (tell, told) = mpsc::channel();
        std::thread::Builder::new().name("toru-ring".into()).spawn(move || {
            let runtime = match runtime() {
                Ok(runtime) => runtime,
                // Who waits for this is there until it comes.
                Err(error) => return drop(tell.send(Err(error))),
            };
            let _ = tell.send(Ok(()));
            runtime.block_on(async {
                while let Some(reads) = receiver.recv().await {
                    tokio_uring::spawn(read_all(reads));
                }
            });
            // Dropped, it would wait for reads that may never end.
            std::mem::forget(runtime);
        })?;
        let started = told.recv().unwrap_or_else(|_| Err(io::Error::other("its thread has ended")));
        started.map(|()| Self(sender))
    }

    /// Where a connection's bytes come in, with the buffer for the first of them.
    pub fn inbox(&self, buffer: Vec<u8>) -> Arc<Inbox> {
        Arc::new(Inbox {
            slot: Mutex::new(Slot::Lent(buffer)),
            changed: Notify::new(),
            settling: AtomicU8::new(NOT_ASKED),
        })
    }

    /// Reads a connection that has its turns from `lead` under this `id`.
    pub fn read(&self, id: u64, stream: UnixStream, inbox: Arc<Inbox>, lead: Arc<Lead>) {
        // The thread is there as long as `self`.
        let _ = self.0.send(Reads { id, stream, inbox, lead });
    }
}

/// A runtime on a ring that works.
fn runtime() -> io::Result<tokio_uring::Runtime> {
    let runtime = tokio_uring::Runtime::new(tokio_uring::builder().entries(ENTRIES))?;
    // A filter may let a ring be made and refuse its use, which shows in nothing but silence.
    let probed = runtime.block_on(async {
        let (ours, theirs) = UnixStream::pair()?;
        io::Write::write_all(&mut &theirs, b"!")?;
        let stream = RingStream::from_std(ours);
        match tokio::time::timeout(PROBE_TIMEOUT, read(&stream, Vec::with_capacity(1))).await {
            Ok((outcome, _)) => outcome.map(drop),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "a read does not come back")),
        }
    });
    match probed {
        Ok(()) => Ok(runtime),
        Err(error) => {
            std::mem::forget(runtime);
            Err(error)
        }
    }
}

/// Appends to the buffer, which has room.
async fn read(stream: &RingStream, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
    let at = buffer.len();
    let (outcome, slice) = stream.read(buffer.slice(at..)).await;
    (outcome, slice.into_inner())
}

async fn read_all(Reads { id, stream, inbox, lead }: Reads) {
    let stream = RingStream::from_std(stream);
    let mut reading: Option<Pin<Box<_>>> = None;
    loop {
        {
            let mut slot = lock(&inbox.slot);
            if let Slot::Lent(buffer) = &mut *slot {
                reading = Some(Box::pin(read(&stream, std::mem::take(buffer))));
                *slot = Slot::Empty;
            }
            // With a read on its way, its end comes with the close.
            if matches!(*slot, Slot::Closed) && reading.is_none() {
                return;
            }
        }
        let came = async {
            match &mut reading {
                Some(reading) => reading.await,
                None => std::future::pending().await,
            }
        };
        let changed = async {
            if inbox.settling.load(SeqCst) == ASKED {
                // What had come before is told before this, and looked at first below.
                tokio_uring::no_op().await
            } else {
                inbox.changed.notified().await;
                Err(io::ErrorKind::Interrupted.into())
            }
        };
        tokio::select! {
            biased;
            (outcome, buffer) = came => {
                reading = None;
                let is_end = matches!(outcome, Ok(0));
                inbox.put(outcome, buffer);
                lead.poke(id);
                if is_end {
                    return;
                }
            }
            settled = changed => if settled.is_ok() {
                inbox.settling.store(SETTLED, SeqCst);
                lead.poke(id);
            }
        }
    }
}

/// A connection's buffer on its way between the decoder and the ring.
pub(super) struct Inbox {
    slot: Mutex<Slot>,
    /// Wakes who reads.
    changed: Notify,
    settling: AtomicU8,
}

enum Slot {
    Empty,
    /// To be read into.
    Lent(Vec<u8>),
    /// Read into: how much.
    Came(io::Result<usize>, Vec<u8>),
    Closed,
}

/// Values of [`Inbox::settling`].
const NOT_ASKED: u8 = 0;
const ASKED: u8 = 1;
const SETTLED: u8 = 2;

impl Inbox {
    /// Has something read behind what the buffer holds; it has room.
    pub fn lend(&self, buffer: Vec<u8>) {
        *lock(&self.slot) = Slot::Lent(buffer);
        self.changed.notify_one();
    }

    /// What came of the read, and the buffer; `None` while there is nothing.
    pub fn take(&self) -> Option<(io::Result<usize>, Vec<u8>)> {
        let mut slot = lock(&self.slot);
        match std::mem::replace(&mut *slot, Slot::Empty) {
            Slot::Came(outcome, buffer) => Some((outcome, buffer)),
            other => {
                *slot = other;
                None
            }
        }
    }

    /// Whether all that had left the socket when this was first asked has been put in here; if not, a turn follows.
    pub fn is_settled(&self) -> bool {
        if self.settling.compare_exchange(NOT_ASKED, ASKED, SeqCst, SeqCst).is_ok() {
            self.changed.notify_one();
        }
        self.settling.load(SeqCst) == SETTLED
    }

    /// Nothing is lent or taken any more. Close the stream, too.
    pub fn close(&self) {
        *lock(&self.slot) = Slot::Closed;
        self.changed.notify_one();
    }

    fn put(&self, outcome: io::Result<usize>, buffer: Vec<u8>) {
        let mut slot = lock(&self.slot);
        if !matches!(*slot, Slot::Closed) {
            *slot = Slot::Came(outcome, buffer);
        }
    }
}
