//! The exchanges of one worker: each request that a client waits for, by the id that its plugin sees.
//!
//! An id is `worker-sequence-slot` in hexadecimal. The slot finds the entry without hashing; the sequence, which never
//! repeats, tells a late answer from the answer to whoever has the slot now.
//! An answer counts only on the connection that its request went out on: no plugin can answer for another.

use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use slab::Slab;

use crate::answer::{Failure, Pieces};
use crate::link::Link;

/// Names one exchange, for as long as the worker lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExchangeId {
    pub worker: u8,
    pub sequence: u64,
    pub slot: usize,
}

/// The text of an [`ExchangeId`]; no allocation.
pub struct IdText {
    bytes: [u8; 40],
    len: usize,
}

impl IdText {
    pub fn as_str(&self) -> &str {
        // Only hexadecimal digits and `-` are ever put in.
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl ExchangeId {
    pub fn text(&self) -> IdText {
        let mut text = IdText { bytes: [0; 40], len: 0 };
        for (index, number) in
            [u64::from(self.worker), self.sequence, self.slot as u64].into_iter().enumerate()
        {
            if index > 0 {
                text.bytes[text.len] = b'-';
                text.len += 1;
            }
            let digits = (64 - number.leading_zeros()).div_ceil(4).max(1);
            for digit in (0..digits).rev() {
                let nibble = (number >> (digit * 4)) & 0xf;
                text.bytes[text.len] = b"0123456789abcdef"[nibble as usize];
                text.len += 1;
            }
        }
        text
    }

    /// `None` for whatever this core cannot have sent.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = [0_u64; 3];
        let (mut index, mut digits) = (0, 0);
        for byte in text.bytes() {
            if byte == b'-' {
                if digits == 0 {
                    return None;
                }
                (index, digits) = (index + 1, 0);
            } else {
                digits += 1;
                let number = numbers.get_mut(index).filter(|_| digits <= u64::BITS / 4)?;
                *number = *number << 4 | u64::from(char::from(byte).to_digit(16)?);
            }
        }
        let [worker, sequence, slot] = numbers;
        let whole = (index, digits > 0) == (2, true);
        whole.then_some(Self { worker: worker.try_into().ok()?, sequence, slot: slot.try_into().ok()? })
    }
}

/// One request on its way.
struct Exchange {
    sequence: u64,
    /// The connection it went out on; none while it is being prepared.
    link: Option<Rc<Link>>,
    deadline: Option<Instant>,
    pieces: Pieces,
    failed: Option<Failure>,
    waker: Option<Waker>,
}

/// What became of an answer that a plugin sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Delivery {
    Taken,
    /// Its request was given up, answered before, or never made.
    Stray,
}

#[derive(Default)]
pub struct Exchanges {
    worker: u8,
    next_sequence: u64,
    entries: Slab<Exchange>,
}

impl Exchanges {
    pub fn new(worker: u8) -> Self {
        Self { worker, next_sequence: 1, entries: Slab::new() }
    }

    /// Makes an entry for a request that is about to be sent.
    pub fn open(&mut self) -> ExchangeId {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let slot = self.entries.insert(Exchange {
            sequence,
            link: None,
            deadline: None,
            pieces: Pieces::default(),
            failed: None,
            waker: None,
        });
        ExchangeId { worker: self.worker, sequence, slot }
    }

    /// The request goes out on `link` now.
    pub fn launch(&mut self, id: ExchangeId, link: Rc<Link>, deadline: Instant) {
        if let Some(exchange) = self.find(id) {
            exchange.link = Some(link);
            exchange.deadline = Some(deadline);
        }
    }

    /// Forgets the exchange; gives the connection that should be told, if its answer is still due.
    pub fn close(&mut self, id: ExchangeId) -> Option<Rc<Link>> {
        self.find(id)?;
        let exchange = self.entries.remove(id.slot);
        if exchange.pieces.complete || exchange.failed.is_some() { None } else { exchange.link }
    }

    /// What has come since the last look, once anything has.
    pub fn poll(&mut self, id: ExchangeId, cx: &mut Context<'_>) -> Poll<Result<Pieces, Failure>> {
        let Some(exchange) = self.find(id) else {
            return Poll::Ready(Err(Failure::Internal("the exchange is closed".into())));
        };
        let pieces = &mut exchange.pieces;
        if pieces.head.is_some() || !pieces.content.is_empty() || pieces.complete {
            let news = Pieces {
                head: pieces.head.take(),
                content: std::mem::take(&mut pieces.content),
                complete: pieces.complete,
            };
            return Poll::Ready(Ok(news));
        }
        if let Some(failure) = exchange.failed.clone() {
            return Poll::Ready(Err(failure));
        }
        match &mut exchange.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// A piece, or all, of an answer that came over `link`.
    pub fn deliver(&mut self, id: ExchangeId, link: &Rc<Link>, news: Result<Pieces, Failure>) -> Delivery {
        let Some(exchange) = self.find(id).filter(|exchange| exchange.is_due_on(link)) else {
            return Delivery::Stray;
        };
        exchange.take(news);
        Delivery::Taken
    }

    /// Fails all that waits for an answer over `link`; how many that were.
    pub fn fail_link(&mut self, link: &Rc<Link>, failure: &Failure) -> usize {
        let mut failed = 0;
        for (_, exchange) in &mut self.entries {
            if exchange.is_due_on(link) {
                exchange.take(Err(failure.clone()));
                failed += 1;
            }
        }
        failed
    }

    /// Fails all whose time is up, and gives them with their connections.
    pub fn expire(&mut self, now: Instant) -> Vec<(ExchangeId, Rc<Link>)> {
        let mut expired = vec![];
        for (slot, exchange) in &mut self.entries {
            if exchange.deadline.is_some_and(|deadline| deadline <= now)
                && let Some(link) = exchange.link.clone()
                && exchange.is_due_on(&link)
            {
                exchange.take(Err(Failure::TimedOut));
                expired.push((ExchangeId { worker: self.worker, sequence: exchange.sequence, slot }, link));
            }
        }
        expired
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn find(&mut self, id: ExchangeId) -> Option<&mut Exchange> {
        if id.worker != self.worker {
            return None;
        }
        self.entries.get_mut(id.slot).filter(|exchange| exchange.sequence == id.sequence)
    }
}

impl Exchange {
    fn is_due_on(&self, link: &Rc<Link>) -> bool {
        !self.pieces.complete
            && self.failed.is_none()
            && self.link.as_ref().is_some_and(|own| Rc::ptr_eq(own, link))
    }

    fn take(&mut self, news: Result<Pieces, Failure>) {
        match news {
            Ok(news) => {
                if news.head.is_some() {
                    self.pieces.head = news.head;
                }
                if self.pieces.content.is_empty() {
                    self.pieces.content = news.content;
                } else {
                    self.pieces.content.extend_from_slice(&news.content);
                }
                self.pieces.complete |= news.complete;
            }
            Err(failure) => self.failed = Some(failure),
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ids_survive_their_text(worker: u8, sequence: u64, slot in 0..1usize << 48) {
            let id = ExchangeId { worker, sequence, slot };
            prop_assert_eq!(ExchangeId::parse(id.text().as_str()), Some(id));
        }

        #[test]
        fn foreign_ids_are_refused_and_never_panic(text in ".*") {
            if let Some(id) = ExchangeId::parse(&text) {
                prop_assert_eq!(text.split('-').count(), 3);
                let _ = id.text();
            }
        }
    }

    #[test]
    fn signs_and_leftovers_are_no_ids() {
        let long = "1-11111111111111111-1";
        let odd = [
            "",
            "1-2",
            "1-2-",
            "1-2-3-",
            "-1-2",
            "1-2-3-4",
            "+1-2-3",
            "1--3",
            "100-1-1",
            long,
            "g-1-1",
            "1-1-\u{663}",
        ];
        for text in odd {
            assert_eq!(ExchangeId::parse(text), None, "{text}");
        }
    }

    fn whole(content: &str) -> Result<Pieces, Failure> {
        Ok(Pieces { head: None, content: content.into(), complete: true })
    }

    fn poll(exchanges: &mut Exchanges, id: ExchangeId) -> Poll<Result<Pieces, Failure>> {
        exchanges.poll(id, &mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn an_answer_reaches_its_own_request_once_and_on_its_own_link() {
        let (link, other) = (Link::detached(), Link::detached());
        let mut exchanges = Exchanges::new(7);
        let id = exchanges.open();
        assert_eq!(exchanges.deliver(id, &link, whole("too early")), Delivery::Stray);
        exchanges.launch(id, link.clone(), Instant::now());
        assert_eq!(exchanges.deliver(id, &other, whole("another plugin's")), Delivery::Stray);
        assert!(poll(&mut exchanges, id).is_pending());
        assert_eq!(exchanges.deliver(id, &link, whole("mine")), Delivery::Taken);
        assert_eq!(exchanges.deliver(id, &link, whole("twice")), Delivery::Stray);
        let Poll::Ready(Ok(pieces)) = poll(&mut exchanges, id) else { panic!("answered") };
        assert_eq!(pieces.content, b"mine");
        assert!(exchanges.close(id).is_none(), "an answered request needs no cancel");
    }

    #[test]
    fn a_late_answer_never_reaches_the_next_user_of_the_slot() {
        let link = Link::detached();
        let mut exchanges = Exchanges::new(0);
        let first = exchanges.open();
        exchanges.launch(first, link.clone(), Instant::now());
        assert!(exchanges.close(first).is_some(), "an unanswered request is cancelled");
        let second = exchanges.open();
        exchanges.launch(second, link.clone(), Instant::now());
        assert_eq!(first.slot, second.slot);
        assert_eq!(exchanges.deliver(first, &link, whole("late")), Delivery::Stray);
        assert!(poll(&mut exchanges, second).is_pending());
    }

    #[test]
    fn pieces_add_up_until_they_are_looked_at() {
        let link = Link::detached();
        let mut exchanges = Exchanges::new(0);
        let id = exchanges.open();
        exchanges.launch(id, link.clone(), Instant::now());
        for content in ["a", "b"] {
            let news = Pieces { head: None, content: content.into(), complete: false };
            assert_eq!(exchanges.deliver(id, &link, Ok(news)), Delivery::Taken);
        }
        let Poll::Ready(Ok(pieces)) = poll(&mut exchanges, id) else { panic!("content is there") };
        assert_eq!((pieces.content.as_slice(), pieces.complete), (b"ab".as_slice(), false));
        exchanges.fail_link(&link, &Failure::PluginGone("it died"));
        assert!(matches!(poll(&mut exchanges, id), Poll::Ready(Err(Failure::PluginGone(_)))));
    }

    #[test]
    fn time_runs_out_only_for_those_whose_time_it_is() {
        let link = Link::detached();
        let mut exchanges = Exchanges::new(0);
        let now = Instant::now();
        let (soon, later) = (exchanges.open(), exchanges.open());
        exchanges.launch(soon, link.clone(), now);
        exchanges.launch(later, link.clone(), now + std::time::Duration::from_secs(1));
        let expired: Vec<_> = exchanges.expire(now).into_iter().map(|(id, _)| id).collect();
        assert_eq!(expired, [soon]);
        assert!(exchanges.expire(now).is_empty(), "once");
        assert!(poll(&mut exchanges, later).is_pending());
    }
}
