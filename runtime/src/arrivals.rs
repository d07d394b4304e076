//! Which clients have sent something, or have gone: one epoll set for all of a worker's clients, beside its event loop.
//!
//! A keep-alive client is read from as often as it asks, and each time it has nothing yet. A read that waits in the ring
//! is first tried, then armed, then tried again; and it needs a buffer of its own for as long as it waits. Sockets in a set
//! are armed once, for ever: the loop waits for the set alone, and reads from those that have something, into one buffer.

use std::cell::{Cell, RefCell, RefMut};
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::task::{Context, Poll, Waker};

use monoio::net::UnixStream;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// The most that one read takes.
pub const READ_BYTES_MAX: usize = 64 * 1024;
/// Events that are taken from the set at a time: what so many clients' tasks need stays in the processor's caches until
/// they have their turn.
const EVENTS_MAX: usize = 64;

/// The set of one worker.
pub struct Arrivals {
    /// As the loop knows it, which waits for nothing but its own types: all that is asked of this one is whether it is
    /// readable.
    set: UnixStream,
    buffer: RefCell<Vec<u8>>,
}

/// What is known of one client's socket.
pub struct Arrival {
    /// A read that brings less than it could has brought all that there was.
    reads_all: bool,
    /// There may be something to read: not tried since the kernel said so, or not to the end.
    may_read: Cell<bool>,
    presence: Cell<Presence>,
    waiter: RefCell<Option<Waker>>,
}

/// What the kernel has said of a client's going.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Presence {
    #[default]
    Here,
    /// It has closed its sending side, and perhaps both: only what is written to it can tell.
    SentAll,
    Gone,
}

impl Arrivals {
    /// A set for this thread's loop. Errors: no descriptor, or no memory for it.
    pub fn new() -> io::Result<Self> {
        let set = StdUnixStream::from(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        Ok(Self { set: UnixStream::from_std(set)?, buffer: RefCell::default() })
    }

    fn set(&self) -> BorrowedFd<'_> {
        // SAFETY: open until `self.set` is dropped, which the borrow of `self` forbids.
        unsafe { BorrowedFd::borrow_raw(self.set.as_raw_fd()) }
    }

    /// Has the set tell of `socket` under the name `key`, from now on until it is left.
    ///
    /// Errors: no memory, or more watched sockets than the system allows.
    pub fn enter(&self, socket: impl AsFd, key: usize) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        Ok(epoll::add(self.set(), socket, epoll::EventData::new_u64(key as u64), flags)?)
    }

    /// To be called before the socket is closed.
    pub fn leave(&self, socket: impl AsFd) {
        let _ = epoll::delete(self.set(), socket);
    }

    /// Tells of what comes, for ever: the key, and what to note of it there.
    ///
    /// Errors: the set cannot be waited for.
    pub async fn tell(&self, mut each: impl FnMut(usize, News)) -> io::Result<Infallible> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            match self.set.readable(false).await {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                Ok(()) | Err(_) => {}
            }
            if self.take(&mut events, &mut each)? == EVENTS_MAX {
                // There may be more, and where nothing has to be waited for, all of it would be told before anybody had a turn.
                // A task that wakes itself has its next turn before all others; behind another one it waits for them.
                monoio::spawn(async {}).await;
            }
        }
    }

    /// The same for what has come until now.
    pub fn tell_at_once(&self, mut each: impl FnMut(usize, News)) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        while self.take(&mut events, &mut each)? == EVENTS_MAX {}
        Ok(())
    }

    /// Takes some of what has come; gives how many there were.
    fn take(&self, events: &mut Vec<epoll::Event>, each: &mut impl FnMut(usize, News)) -> io::Result<usize> {
        match epoll::wait(self.set(), rustix::buffer::spare_capacity(events), Some(&Default::default())) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let count = events.len();
        for event in events.drain(..) {
            each(event.data.u64() as usize, News(event.flags));
        }
        Ok(count)
    }

    /// Where all reads go.
    pub fn buffer(&self) -> RefMut<'_, [u8]> {
        RefMut::map(self.buffer.borrow_mut(), |buffer| {
            // Zeroed pages cost nothing until they are read into.
            if buffer.is_empty() {
                *buffer = vec![0; READ_BYTES_MAX];
            }
            &mut buffer[..]
        })
    }
}

/// What the kernel said of a socket.
pub struct News(epoll::EventFlags);

impl Arrival {
    /// `reads_all`: see [`Arrival::read`].
    pub fn new(reads_all: bool) -> Self {
        Self { reads_all, may_read: Cell::default(), presence: Cell::default(), waiter: RefCell::default() }
    }

    pub fn note(&self, news: News) {
        self.may_read.set(true);
        let presence = if news.0.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            Presence::Gone
        } else if news.0.intersects(epoll::EventFlags::RDHUP) {
            Presence::SentAll
        } else {
            Presence::Here
        };
        self.presence.set(self.presence.get().max(presence));
        if let Some(waiter) = self.waiter.take() {
            waiter.wake();
        }
    }

    pub fn presence(&self) -> Presence {
        self.presence.get()
    }

    /// Ready once there may be something to read.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.may_read.get() {
            return Poll::Ready(());
        }
        self.poll_news(cx)
    }

    /// Has the next news wake this task; never ready.
    pub fn poll_news(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut waiter = self.waiter.borrow_mut();
        match &mut *waiter {
            Some(waiter) => waiter.clone_from(cx.waker()),
            None => *waiter = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Reads what has come; gives 0 at the end, and nothing where nothing has come.
    ///
    /// Nothing more is looked for until the kernel tells of it once a read has found nothing or, on a socket that
    /// `reads_all`, less than it could have taken.
    /// Errors: the client has reset the connection, and whatever else recv(2) fails with.
    pub fn read(&self, socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((count, _)) => {
                // An end is told once, and perhaps has been.
                if self.reads_all && count < buffer.len() && self.presence.get() == Presence::Here {
                    self.may_read.set(false);
                }
                Ok(Some(count))
            }
            Err(Errno::AGAIN) => {
                self.may_read.set(false);
                Ok(None)
            }
            Err(Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write as _;
    use std::mem::MaybeUninit;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::rc::Rc;
    use std::time::Duration;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;
    use crate::driver::on_each;
    use crate::timers;

    const KEY: usize = 7;

    struct Watched {
        arrivals: Rc<Arrivals>,
        arrival: Rc<Arrival>,
        socket: OwnedFd,
    }

    impl Watched {
        fn new(socket: impl Into<OwnedFd>, reads_all: bool) -> Self {
            let (arrivals, arrival) = (Rc::new(Arrivals::new().unwrap()), Rc::new(Arrival::new(reads_all)));
            let socket = socket.into();
            arrivals.enter(&socket, KEY).unwrap();
            let (set, noted) = (arrivals.clone(), arrival.clone());
            monoio::spawn(async move {
                set.tell(|key, news| {
                    assert_eq!(key, KEY);
                    noted.note(news);
                })
                .await
            });
            Self { arrivals, arrival, socket }
        }

        /// What one read brings, of `room` bytes at most.
        fn read(&self, room: usize) -> io::Result<Option<String>> {
            let buffer = &mut self.arrivals.buffer()[..room];
            let count = self.arrival.read(&self.socket, buffer)?;
            Ok(count.map(|count| String::from_utf8_lossy(&buffer[..count]).into_owned()))
        }

        async fn told(&self) {
            let told = poll_fn(|cx| self.arrival.poll_readable(cx));
            timers::timeout(Duration::from_secs(20), told).await.expect("news");
        }

        async fn tells_nothing(&self) -> bool {
            let told = poll_fn(|cx| self.arrival.poll_readable(cx));
            timers::timeout(Duration::from_millis(20), told).await.is_err()
        }
    }

    fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn what_comes_is_told_once_and_again_when_more_comes() {
        on_each(async |_| {
            let (mut client, socket) = tcp_pair();
            client.write_all(b"before").unwrap();
            let watched = Watched::new(socket, true);
            watched.told().await;
            assert_eq!(watched.read(4).unwrap().as_deref(), Some("befo"));
            watched.told().await;
            assert_eq!(watched.read(4).unwrap().as_deref(), Some("re"), "a full read is not the last");
            assert!(watched.tells_nothing().await);
            for text in ["one", "two"] {
                client.write_all(text.as_bytes()).unwrap();
                watched.told().await;
                assert_eq!(watched.read(64).unwrap().as_deref(), Some(text));
            }
            assert_eq!(watched.arrival.presence(), Presence::Here);
            watched.arrivals.leave(&watched.socket);
            client.write_all(b"unheard").unwrap();
            assert!(watched.tells_nothing().await);
        });
    }

    #[test]
    fn who_is_told_of_has_its_turn_before_all_others_are_told_of() {
        on_each(async |_| {
            let arrivals = Rc::new(Arrivals::new().unwrap());
            let pairs: Vec<_> = (0..3 * EVENTS_MAX).map(|_| StdUnixStream::pair().unwrap()).collect();
            for (key, (client, socket)) in pairs.iter().enumerate() {
                (&mut &*client).write_all(b"x").unwrap();
                arrivals.enter(socket, key).unwrap();
            }
            let (arrival, told) = (Rc::new(Arrival::new(false)), Rc::new(Cell::new(0)));
            let (waits, before) = (arrival.clone(), told.clone());
            let turn = monoio::spawn(async move {
                poll_fn(|cx| waits.poll_readable(cx)).await;
                before.get()
            });
            let (set, counted) = (arrivals.clone(), told.clone());
            monoio::spawn(async move {
                set.tell(|_, news| {
                    counted.set(counted.get() + 1);
                    arrival.note(news);
                })
                .await
            });
            let before = turn.await;
            assert!(before <= EVENTS_MAX, "behind {before} others");
            while told.get() < pairs.len() {
                timers::sleep(Duration::from_millis(1)).await;
            }
        });
    }

    #[test]
    fn an_end_behind_what_came_is_found() {
        on_each(async |_| {
            let (mut client, socket) = tcp_pair();
            let watched = Watched::new(socket, true);
            client.write_all(b"last").unwrap();
            drop(client);
            watched.told().await;
            // Whether the end came with the first news or has news of its own.
            assert_eq!(watched.read(64).unwrap().as_deref(), Some("last"));
            watched.told().await;
            assert_eq!(watched.read(64).unwrap().as_deref(), Some(""));
            assert_eq!(watched.arrival.presence(), Presence::SentAll);
        });
    }

    #[test]
    fn who_resets_is_gone_though_nothing_is_read() {
        on_each(async |_| {
            let (client, mut socket) = tcp_pair();
            // Unread bytes make its close a reset.
            socket.write_all(b"unread").unwrap();
            let watched = Watched::new(socket, true);
            drop(client);
            let gone = poll_fn(|cx| {
                let gone = watched.arrival.presence() == Presence::Gone;
                if gone { Poll::Ready(()) } else { watched.arrival.poll_news(cx) }
            });
            timers::timeout(Duration::from_secs(20), gone).await.expect("news");
            assert!(watched.read(64).is_err());
        });
    }

    #[test]
    fn pieces_that_are_read_one_by_one_are_all_found() {
        on_each(async |_| {
            let (client, socket) = StdUnixStream::pair().unwrap();
            let watched = Watched::new(socket, false);
            let passed = [client.as_fd()];
            for text in ["a", "b", "c"] {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut with = SendAncillaryBuffer::new(&mut space);
                assert!(with.push(SendAncillaryMessage::ScmRights(&passed)));
                sendmsg(&client, &[io::IoSlice::new(text.as_bytes())], &mut with, SendFlags::empty())
                    .unwrap();
            }
            let mut all = String::new();
            while all != "abc" {
                watched.told().await;
                all += &watched.read(64).unwrap().unwrap_or_default();
            }
        });
    }
}
