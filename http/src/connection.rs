//! One client connection as a state machine: bytes in, events out; response in, bytes out.
//!
//! Two things advance side by side and meet at the end of an exchange: `Reading`, what the client sends, and `Answer`,
//! what it is sent.
//! The next request is looked at only when the request is read *and* answered, so pipelined requests wait as bytes and
//! responses can't come out of order.
//!
//! ```text
//! Reading:  RequestLine ─► Fields ─► Body ─► Complete ─┐        Answer:  None ─► Due ─► Streaming ─► Done
//!               ▲            │         │               │                 (Due from `Event::Head` or a failure on)
//!               └────────────┼─────────┼── answered ◄──┘
//!                            └─────────┴─► Failed ─► Closed
//! ```
//!
//! An answer may be complete before the request is: what is left of the content is then dropped as it comes, or the
//! connection closes, whichever is cheaper.
//!
//! It does no I/O and reads no clock: the driver takes a deadline per [`Phase`].
//! A driver that closes after an early answer should shut down its sending side, then read and drop for a moment:
//! a close with unread bytes makes the kernel reset the connection, and the client may never see the answer
//! (RFC 9112 section 9.6).

use std::ops::Range;
use std::sync::Arc;

use memchr::memchr;

use crate::body::{Body, Chunked, Outcome};
use crate::request::{
    Framing, HeadReader, Method, RequestHead, Version, find_line, is_token_byte, strip_carriage_return,
};
use crate::response::{
    CONTINUE, FramingFields, HEAD_BYTES_SPARE, LAST_CHUNK, Length, Response, ResponseHead, write_chunk,
    write_head,
};
use crate::{Error, ErrorKind, Limits};

/// A client's connection.
///
/// INVARIANT: `start <= input.len()`; `line_start` and `scanned` count from `start`, and
/// `line_start <= scanned <= input.len() - start`.
#[derive(Debug)]
pub struct Connection {
    limits: Arc<Limits>,
    /// What has come and is not used up, from `start` on.
    input: Vec<u8>,
    start: usize,
    /// Where the head's current line starts.
    line_start: usize,
    /// Up to where the head's current line was searched for its end, so that a drip-fed head costs O(n).
    scanned: usize,
    eof: bool,
    reading: Reading,
    head: HeadReader,
    answer: Answer,
    /// This exchange is the last one.
    close: bool,
    /// `100 Continue` was sent, or content came without it.
    continue_settled: bool,
    output: Vec<u8>,
}

/// What there is to do next.
#[derive(Debug)]
pub enum Event<'a> {
    /// Nothing, until [`Connection::handle_input`] or [`Connection::handle_eof`].
    NeedInput,
    /// A request begins; it may be answered from here on.
    Head(RequestHead<'a>),
    /// A piece of its content, dechunked, never empty.
    Body(&'a [u8]),
    /// The request is complete; its trailers were checked and dropped.
    End,
    /// The request is complete and its answer is not; comes again until it is. Pipelined input waits.
    ResponseDue,
    /// The client broke the rules or went away within a request.
    ///
    /// Final: comes again until it is answered.
    /// If [`Connection::can_respond`], answer with [`Error::status`]; else [`Connection::abort_response`]; then close.
    Failed(Error),
    /// All is said or the client is gone: write the output that is left, then close the socket.
    Closed,
}

/// Where the connection stands, for choosing a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Between requests; not a byte of the next one has come.
    Idle,
    /// A head has begun to come.
    Head,
    /// Content is coming, wanted or dropped.
    Body,
    /// The request is complete or failed, and its answer is not finished.
    Response,
    /// Nothing more will be read.
    Closing,
}

impl Connection {
    /// A connection on which nothing has come yet; allocates nothing.
    pub fn new(limits: Arc<Limits>) -> Self {
        Self {
            limits,
            input: Vec::new(),
            start: 0,
            line_start: 0,
            scanned: 0,
            eof: false,
            reading: Reading::RequestLine { empty_lines: 0 },
            head: HeadReader::default(),
            answer: Answer::None,
            close: false,
            continue_settled: false,
            output: Vec::new(),
        }
    }

    /// Takes bytes that came from the client; what comes after a failure or the last request is dropped.
    pub fn handle_input(&mut self, bytes: &[u8]) {
        if matches!(self.reading, Reading::Failed(_) | Reading::Closed) {
            return;
        }
        if self.start == self.input.len() {
            self.input.clear();
            self.start = 0;
        } else if self.start >= self.input.len() / 2 {
            // Moving less than was used up keeps the cost of all moves linear.
            self.input.drain(..self.start);
            self.start = 0;
        }
        self.input.extend_from_slice(bytes);
        self.invariants();
    }

    /// Whether to read more; false is back-pressure: poll events, or answer, or close.
    pub fn wants_input(&self) -> bool {
        if self.eof {
            return false;
        }
        let limits = &self.limits;
        let room = match self.reading {
            Reading::Failed(_) | Reading::Closed => return false,
            Reading::Complete => limits.pipelined_bytes_max,
            // Never so little that the line being read could neither end nor fail.
            Reading::RequestLine { .. } | Reading::Fields | Reading::Body(_) => limits
                .pipelined_bytes_max
                .max(limits.request_line_bytes_max)
                .max(limits.head_bytes_max)
                .max(limits.chunk_line_bytes_max)
                .max(limits.trailer_bytes_max)
                .max(2),
        };
        self.unread().len() < room
    }

    /// The client closed its sending side; a request that is already complete is still answered.
    pub fn handle_eof(&mut self) {
        self.eof = true;
    }

    /// The driver's deadline for the rest of a request has passed: this is its failure, unless it is answered already.
    pub fn handle_timeout(&mut self) {
        if matches!(self.phase(), Phase::Head | Phase::Body) {
            self.fail(ErrorKind::TooSlow);
        }
    }

    /// What there is to do; call until `NeedInput`, `ResponseDue`, `Failed` or `Closed`.
    pub fn poll_event(&mut self) -> Event<'_> {
        let step = self.advance();
        self.invariants();
        match step {
            Step::NeedInput => Event::NeedInput,
            Step::Head(bytes) => Event::Head(self.head.view(&self.input[bytes])),
            Step::Body(bytes) => Event::Body(&self.input[bytes]),
            Step::End => Event::End,
            Step::ResponseDue => Event::ResponseDue,
            Step::Failed(kind) => Event::Failed(Error { kind }),
            Step::Closed => Event::Closed,
        }
    }

    /// Writes `100 Continue`, at most once and only if the client waits for it: it asked, none of its content has come,
    /// and no answer has begun.
    pub fn send_continue(&mut self) {
        if self.continue_outstanding() && self.unread().is_empty() && matches!(self.answer, Answer::Due) {
            self.output.extend_from_slice(CONTINUE);
            self.continue_settled = true;
        }
    }

    /// Whether a response is owed and not begun: from `Event::Head` or `Event::Failed` on.
    pub fn can_respond(&self) -> bool {
        matches!(self.answer, Answer::Due)
    }

    /// Answers in one call.
    ///
    /// Content is left out where there must be none (HEAD, 204, 205, 304).
    /// To a HEAD, an empty body means that its length is not known, and no `content-length` is written.
    /// Panics unless [`Connection::can_respond`].
    pub fn respond(&mut self, response: &Response<'_>) {
        self.output.reserve(HEAD_BYTES_SPARE + response.head.fields.len() + response.body.len());
        let unknown = response.body.is_empty() && self.head.method() == Method::Head;
        let length = (!unknown).then_some(Length::Known(response.body.len() as u64));
        self.start_answer(&response.head, length);
        self.send_body(response.body);
        self.finish_response();
    }

    /// Begins a streamed answer. Panics unless [`Connection::can_respond`].
    pub fn start_response(&mut self, head: &ResponseHead<'_>, length: Length) {
        self.output.reserve(HEAD_BYTES_SPARE + head.fields.len());
        self.start_answer(head, Some(length));
    }

    /// Appends content to a streamed answer.
    ///
    /// Bytes past the announced length are left out: they would be read as the next response.
    /// Panics unless an answer has begun.
    pub fn send_body(&mut self, bytes: &[u8]) {
        let Answer::Streaming(encoding) = &mut self.answer else { panic!("no response has begun") };
        match encoding {
            Encoding::Nothing => {}
            Encoding::Length { remaining } => {
                let piece = usize::try_from(*remaining).unwrap_or(usize::MAX).min(bytes.len());
                *remaining -= piece as u64;
                self.output.extend_from_slice(&bytes[..piece]);
            }
            Encoding::Chunked => write_chunk(&mut self.output, bytes),
            Encoding::UntilClose => self.output.extend_from_slice(bytes),
        }
    }

    /// Ends a streamed answer.
    ///
    /// If less came than was announced the connection closes, which is how the client learns that the content is cut.
    /// Panics unless an answer has begun.
    pub fn finish_response(&mut self) {
        let Answer::Streaming(encoding) = &self.answer else { panic!("no response has begun") };
        match encoding {
            Encoding::Nothing | Encoding::UntilClose | Encoding::Length { remaining: 0 } => {}
            Encoding::Length { .. } => self.close = true,
            Encoding::Chunked => self.output.extend_from_slice(LAST_CHUNK),
        }
        self.answer = Answer::Done;
        if self.close {
            self.stop_reading();
        } else if matches!(self.reading, Reading::Complete) {
            self.next_request();
        }
    }

    /// Gives up an answer, begun or not: nothing more is written, and the connection closes.
    ///
    /// The client sees chunked content without its end, or less than the announced length: an error, as it should.
    pub fn abort_response(&mut self) {
        self.close = true;
        self.answer = Answer::Done;
        self.stop_reading();
    }

    /// Makes the current exchange the last one; an idle connection closes at once.
    pub fn close_after_response(&mut self) {
        self.close = true;
        let idle = self.phase() == Phase::Idle;
        if idle || matches!(self.answer, Answer::Done) {
            self.stop_reading();
        }
    }

    /// Bytes to write to the client.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// Bytes to write to the client, owned for the time of the write.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Takes a written buffer back, to save the next allocation.
    ///
    /// Bounds: dropped when its capacity is above 8 KiB, so that one large response doesn't stay with an idle
    /// connection.
    pub fn reuse_output(&mut self, mut buffer: Vec<u8>) {
        if self.output.is_empty() && buffer.capacity() <= BUFFER_BYTES_KEPT {
            buffer.clear();
            self.output = buffer;
        }
    }

    /// Whether to close once the output is written.
    pub fn is_closing(&self) -> bool {
        matches!(self.reading, Reading::Closed)
    }

    /// Where the connection stands, for choosing a deadline.
    pub fn phase(&self) -> Phase {
        match self.reading {
            Reading::RequestLine { .. } if self.unread().is_empty() => Phase::Idle,
            Reading::RequestLine { .. } | Reading::Fields => Phase::Head,
            Reading::Body(_) => Phase::Body,
            Reading::Complete | Reading::Failed(_) => Phase::Response,
            Reading::Closed => Phase::Closing,
        }
    }

    fn advance(&mut self) -> Step {
        loop {
            let step = match &mut self.reading {
                Reading::RequestLine { .. } => self.read_request_line(),
                Reading::Fields => self.read_field_lines(),
                Reading::Body(body) => match body.decode(&self.input[self.start..], &self.limits) {
                    Err(kind) => Err(kind),
                    Ok(decoded) => {
                        let from = self.start;
                        self.start += decoded.consumed;
                        Ok(self.take_content(from, decoded.outcome))
                    }
                },
                Reading::Complete => return Step::ResponseDue,
                Reading::Failed(kind) => return Step::Failed(*kind),
                Reading::Closed => return Step::Closed,
            };
            match step {
                Ok(Some(Step::NeedInput)) if self.eof => self.end_input(),
                Ok(Some(step)) => return step,
                Ok(None) => {}
                Err(kind) => self.fail(kind),
            }
        }
    }

    fn read_request_line(&mut self) -> Result<Option<Step>, ErrorKind> {
        let Reading::RequestLine { empty_lines } = &mut self.reading else { return Ok(None) };
        let unread = &self.input[self.start..];
        // Only at the first look at it, so that a drip-fed line costs O(n).
        if self.scanned == 0
            && let Some(line_bytes) = self.head.take_usual_request_line(unread, &self.limits)
        {
            self.line_start = line_bytes;
            self.scanned = line_bytes;
            self.reading = Reading::Fields;
            return Ok(None);
        }
        match unread {
            [] | [b'\r'] => return Ok(Some(Step::NeedInput)),
            [b'\r', b'\n', ..] => {
                // Some clients end a request with one CRLF too many (RFC 9112 section 2.2).
                *empty_lines += 1;
                if *empty_lines > EMPTY_LINES_MAX {
                    return Err(ErrorKind::TooManyEmptyLines);
                }
                self.start += 2;
                return Ok(None);
            }
            [b'\r', ..] => return Err(ErrorKind::BareCr),
            [b'\n', ..] => return Err(ErrorKind::BareLf),
            // Told from the first byte, so that whoever talks TLS to this port needn't wait for a deadline.
            [first, ..] if !is_token_byte(*first) => return Err(ErrorKind::BadMethod),
            _ => {}
        }
        let (bytes_max, too_long) = (self.limits.request_line_bytes_max, ErrorKind::RequestLineTooLong);
        let line = match find_line(unread, &mut self.scanned, bytes_max, too_long) {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(Some(Step::NeedInput)),
            // Without a space the method alone is that long, and there is no target to be too long.
            Err(_) if memchr(b' ', &unread[..bytes_max]).is_none() => return Err(ErrorKind::BadRequestLine),
            Err(too_long) => return Err(too_long),
        };
        self.head.take_request_line(strip_carriage_return(&unread[..line])?)?;
        self.line_start = line + 1;
        self.scanned = line + 1;
        self.reading = Reading::Fields;
        Ok(None)
    }

    fn read_field_lines(&mut self) -> Result<Option<Step>, ErrorKind> {
        let unread = &self.input[self.start..];
        loop {
            if unread[self.line_start..].starts_with(b"\r\n")
                && self.line_start + 2 <= self.limits.head_bytes_max
            {
                self.line_start += 2;
                break;
            }
            // As above.
            if self.scanned == self.line_start
                && let Some(end) = self.head.take_usual_field_line(unread, self.line_start, &self.limits)?
            {
                self.line_start = end;
                self.scanned = end;
                continue;
            }
            let too_large = ErrorKind::HeadTooLarge;
            let Some(end) = find_line(unread, &mut self.scanned, self.limits.head_bytes_max, too_large)?
            else {
                return Ok(Some(Step::NeedInput));
            };
            let line = self.line_start
                ..self.line_start + strip_carriage_return(&unread[self.line_start..end])?.len();
            self.line_start = end + 1;
            self.scanned = end + 1;
            if line.is_empty() {
                break;
            }
            self.head.take_field_line(unread, line, &self.limits)?;
        }
        let framing = self.head.finish(&self.limits)?;
        let head = self.start..self.start + self.line_start;
        self.start = head.end;
        self.line_start = 0;
        self.scanned = 0;
        self.reading = Reading::Body(match framing {
            Framing::Length(remaining) => Body::Length { remaining },
            Framing::Chunked => Body::Chunked(Chunked::new()),
        });
        self.answer = Answer::Due;
        self.close |= !self.head.wants_keep_alive();
        Ok(Some(Step::Head(head)))
    }

    /// `from` is where the decoder's input started.
    fn take_content(&mut self, from: usize, outcome: Outcome) -> Option<Step> {
        let answered = matches!(self.answer, Answer::Done);
        match outcome {
            Outcome::NeedInput => Some(Step::NeedInput),
            Outcome::Content(piece) => {
                // From now on the client doesn't wait for a `100 Continue`.
                self.continue_settled = true;
                (!answered).then_some(Step::Body(from + piece.start..from + piece.end))
            }
            Outcome::End if answered => {
                self.next_request();
                None
            }
            Outcome::End => {
                self.reading = Reading::Complete;
                Some(Step::End)
            }
        }
    }

    /// The input is used up and no more will come.
    fn end_input(&mut self) {
        let between_requests = self.phase() == Phase::Idle;
        let answered = matches!(self.answer, Answer::Done);
        if between_requests || answered {
            self.stop_reading();
        } else {
            self.fail(ErrorKind::Incomplete);
        }
    }

    fn fail(&mut self, kind: ErrorKind) {
        self.close = true;
        if matches!(self.reading, Reading::RequestLine { .. }) {
            self.head.take_method_alone(&self.input[self.start..]);
        }
        match self.answer {
            // Nobody is left to tell.
            Answer::Done => self.stop_reading(),
            Answer::None | Answer::Due => {
                self.answer = Answer::Due;
                self.reading = Reading::Failed(kind);
                self.drop_input();
            }
            Answer::Streaming(_) => {
                self.reading = Reading::Failed(kind);
                self.drop_input();
            }
        }
    }

    fn stop_reading(&mut self) {
        self.reading = Reading::Closed;
        self.drop_input();
    }

    fn drop_input(&mut self) {
        self.input = Vec::new();
        self.start = 0;
        self.line_start = 0;
        self.scanned = 0;
    }

    fn next_request(&mut self) {
        self.reading = Reading::RequestLine { empty_lines: 0 };
        self.answer = Answer::None;
        self.continue_settled = false;
        self.head.clear();
        if self.unread().is_empty() && self.input.capacity() > BUFFER_BYTES_KEPT {
            self.drop_input();
        }
    }

    /// Writes the head; `None` leaves the length out, which only an answer to HEAD may do.
    fn start_answer(&mut self, head: &ResponseHead<'_>, length: Option<Length>) {
        assert!(self.can_respond(), "no response is due");
        assert!((200..=999).contains(&head.status), "status {} is no final one", head.status);
        let http10 = self.head.version() == Version::Http10;
        let tunnel = self.head.method() == Method::Connect && head.status < 300;
        let to_head = self.head.method() == Method::Head;
        // 204 and a tunnel must not carry these fields; the ones of a 304 would have to match a 200 nobody has made.
        let fieldless = tunnel || matches!(head.status, 204 | 304);
        // A 205 says that there is no content; a length of 0 is how it says so (RFC 9110 section 15.3.6).
        let length = if head.status == 205 { Some(Length::Known(0)) } else { length };

        let mut fields = FramingFields { content_length: None, chunked: false, connection: None };
        let encoding = match length {
            _ if fieldless => Encoding::Nothing,
            None => Encoding::Nothing,
            Some(Length::Known(bytes)) => {
                fields.content_length = Some(bytes);
                if to_head { Encoding::Nothing } else { Encoding::Length { remaining: bytes } }
            }
            // HTTP/1.0 knows no chunks: the close is the end.
            Some(Length::Chunked) if http10 && to_head => Encoding::Nothing,
            Some(Length::Chunked) if http10 => Encoding::UntilClose,
            Some(Length::Chunked) => {
                fields.chunked = true;
                if to_head { Encoding::Nothing } else { Encoding::Chunked }
            }
        };
        self.close |= tunnel || matches!(encoding, Encoding::UntilClose) || !self.content_is_cheap_to_drop();
        fields.connection = match (self.close, http10) {
            (true, _) => Some("close"),
            // An HTTP/1.0 client that asked closes unless it is told (RFC 9112 appendix C.2.2).
            (false, true) => Some("keep-alive"),
            (false, false) => None,
        };
        write_head(&mut self.output, head, fields);
        self.answer = Answer::Streaming(encoding);
    }

    /// Whether what is left of the request's content may be read and dropped to keep the connection.
    fn content_is_cheap_to_drop(&self) -> bool {
        match &self.reading {
            Reading::Complete => true,
            // A client that still waits for `100 Continue` may send its content or not: nobody can tell what comes.
            Reading::Body(Body::Length { remaining }) => {
                *remaining == 0 || (*remaining <= DROPPED_CONTENT_BYTES_MAX && !self.continue_outstanding())
            }
            Reading::Body(Body::Chunked(_)) => false,
            Reading::RequestLine { .. } | Reading::Fields | Reading::Failed(_) | Reading::Closed => false,
        }
    }

    fn continue_outstanding(&self) -> bool {
        matches!(self.reading, Reading::Body(_)) && self.head.expects_continue() && !self.continue_settled
    }

    fn unread(&self) -> &[u8] {
        &self.input[self.start..]
    }

    fn invariants(&self) {
        debug_assert!(self.start <= self.input.len());
        debug_assert!(self.line_start <= self.scanned && self.scanned <= self.unread().len());
        debug_assert!(!matches!(self.reading, Reading::Closed) || self.unread().is_empty());
        debug_assert!(
            !matches!(self.reading, Reading::RequestLine { .. } | Reading::Fields)
                || matches!(self.answer, Answer::None),
            "a request that is not read can't be answered",
        );
    }
}

/// Where the client is in its request.
#[derive(Debug)]
enum Reading {
    RequestLine {
        empty_lines: u8,
    },
    Fields,
    /// The head was told; content follows, at least its end.
    Body(Body),
    /// The end was told; waits for the answer.
    Complete,
    /// Waits for the answer, then closes.
    Failed(ErrorKind),
    Closed,
}

/// Where the answer to the request being read is.
#[derive(Debug)]
enum Answer {
    /// There is no request yet.
    None,
    Due,
    Streaming(Encoding),
    /// Complete, while the rest of the request is dropped or the connection closes.
    Done,
}

#[derive(Debug)]
enum Encoding {
    Nothing,
    Length { remaining: u64 },
    Chunked,
    UntilClose,
}

/// An event as places in the buffer, so that finding it doesn't borrow the connection.
enum Step {
    NeedInput,
    Head(Range<usize>),
    Body(Range<usize>),
    End,
    ResponseDue,
    Failed(ErrorKind),
    Closed,
}

/// RFC 9112 section 2.2 asks for at least one; a client that sends more is no HTTP client.
const EMPTY_LINES_MAX: u8 = 1;

/// Content of an already answered request that is read and dropped to save a new connection.
const DROPPED_CONTENT_BYTES_MAX: u64 = 64 * 1024;

/// Capacity in bytes of a buffer that an idle connection may keep.
const BUFFER_BYTES_KEPT: usize = 8 * 1024;

/// Any bytes from a client: in one read or many the same events and the same answers, and the output stays bounded.
#[doc(hidden)]
pub fn fuzz_connection(data: &[u8]) {
    let limits = Arc::new(Limits {
        request_line_bytes_max: 200,
        head_bytes_max: 400,
        fields_max: 8,
        body_bytes_max: 1000,
        chunk_line_bytes_max: 40,
        trailer_bytes_max: 80,
        pipelined_bytes_max: 64,
    });
    let whole = trace(data, || data.len(), &limits);
    for step in [1, 2, 3, 17] {
        assert_eq!(whole, trace(data, || step, &limits), "in steps of {step}");
    }
    // The data's own bytes choose uneven pieces, so that a fuzzer can steer them.
    let mut sizes = data.iter().cycle();
    let uneven = trace(data, || sizes.next().map_or(1, |&size| usize::from(size)), &limits);
    assert_eq!(whole, uneven, "in uneven pieces");
}

/// Everything a driver could see of a connection that is fed `data` in pieces of `size()` bytes, and what the client got.
///
/// The target's second byte chooses how the request is answered: `e` early, `s` streamed, anything else when due.
fn trace(data: &[u8], mut size: impl FnMut() -> usize, limits: &Arc<Limits>) -> (Vec<String>, String) {
    let mut connection = Connection::new(limits.clone());
    let (mut events, mut fed) = (Vec::<String>::new(), 0);
    let head = |status| ResponseHead { status, fields: b"a: b\r\n", date: "Thu, 01 Jan 2026 00:00:00 GMT" };
    let (mut early, mut streamed) = (false, false);
    loop {
        match connection.poll_event() {
            Event::NeedInput if fed == data.len() => connection.handle_eof(),
            Event::NeedInput => {
                assert!(connection.wants_input(), "neither event nor room for input");
                let end = (fed + size().max(1)).min(data.len());
                connection.handle_input(&data[fed..end]);
                fed = end;
                continue;
            }
            Event::Head(request) => {
                assert!(request.content_length.is_none() || !request.chunked);
                assert!(request.fields.len() <= limits.fields_max);
                let choice = request.target.raw.as_bytes().get(1);
                (early, streamed) = (choice == Some(&b'e'), choice == Some(&b's'));
                let mut told = format!("{} {} {:?}", request.method, request.target.raw, request.version);
                for field in request.fields {
                    told.push_str(&format!(", {}: {}", field.name, field.value.escape_ascii()));
                }
                events.push(told);
            }
            Event::Body(piece) => {
                assert!(!piece.is_empty());
                // Pieces are joined, since where they are cut depends on the reads and nothing else.
                match events.last_mut() {
                    Some(last) if last.starts_with("body ") => {
                        last.push_str(&piece.escape_ascii().to_string())
                    }
                    _ => events.push(format!("body {}", piece.escape_ascii())),
                }
                continue;
            }
            Event::End => events.push("end".to_owned()),
            Event::ResponseDue if streamed => {
                connection.start_response(&head(200), Length::Chunked);
                connection.send_body(b"streamed");
                connection.finish_response();
            }
            Event::ResponseDue => connection.respond(&Response { head: head(200), body: b"due" }),
            Event::Failed(error) => {
                events.push(format!("{error:?}"));
                assert!(!connection.wants_input());
                assert!((400..600).contains(&error.status()));
                assert!(connection.can_respond());
                connection.respond(&Response { head: head(error.status()), body: b"failed" });
                assert!(connection.is_closing());
            }
            Event::Closed => {
                assert!(connection.is_closing() && !connection.wants_input());
                return (events, connection.take_output().escape_ascii().to_string());
            }
        }
        if early && connection.can_respond() {
            connection.respond(&Response { head: head(404), body: b"early" });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drip_fed_lines_are_searched_once() {
        let mut connection = Connection::new(Arc::new(Limits::default()));
        for byte in b"GET /drip HTTP/1.1\r\nhost: a\r\nslow: drip" {
            connection.handle_input(&[*byte]);
            assert!(matches!(connection.poll_event(), Event::NeedInput));
            assert_eq!(connection.scanned, connection.unread().len(), "the next search starts at the end");
        }
    }

    #[test]
    fn used_up_input_is_not_kept() {
        let mut connection = Connection::new(Arc::new(Limits::default()));
        let head = ResponseHead { status: 200, fields: b"", date: "Thu, 01 Jan 2026 00:00:00 GMT" };
        let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGE";
        for _ in 0..1000 {
            connection.handle_input(&request[connection.unread().len()..]);
            assert!((0..9).any(|_| matches!(connection.poll_event(), Event::ResponseDue)));
            connection.respond(&Response { head, body: b"" });
            connection.take_output();
        }
        assert!(connection.input.capacity() < 1024, "{} bytes", connection.input.capacity());

        connection.handle_input(b"T / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n");
        connection.handle_input(&[b'x'; 100_000]);
        assert!((0..9).any(|_| matches!(connection.poll_event(), Event::ResponseDue)));
        connection.respond(&Response { head, body: b"" });
        assert_eq!(connection.input.capacity(), 0, "a large buffer does not stay with an idle connection");
    }
}
