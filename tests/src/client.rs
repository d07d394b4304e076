//! A small blocking HTTP/1.1 client over any stream.
//!
//! It does what the tests need to see and nothing for comfort: fields arrive as sent, in order, the
//! body is decoded from content-length or chunked, and raw bytes can be sent at any time.

use std::{
    fmt,
    io::{self, Read, Write},
    net::TcpStream,
};

/// One keep-alive connection; requests and answers may be sent and read independently.
pub struct Client<S> {
    stream: S,
    /// Bytes read and not yet consumed, for answers that arrive together.
    pending: Vec<u8>,
}

/// One answer as it stood on the wire.
#[derive(Clone)]
pub struct Response {
    pub version: String,
    pub status: u16,
    pub reason: String,
    /// In order of arrival; names in lower case.
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl<S: Read + Write> Client<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, pending: Vec::new() }
    }

    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Writes `bytes` as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Sends a request and reads its answer, passing over `100 Continue`.
    pub fn try_request(
        &mut self,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        self.send(&request_bytes(method, target, fields, body))?;
        loop {
            let response = self.response(method)?;
            if response.status != 100 {
                return Ok(response);
            }
        }
    }

    /// As [`Self::try_request`]; a broken connection is a failed test.
    pub fn request(&mut self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> Response {
        self.try_request(method, target, fields, body)
            .unwrap_or_else(|error| panic!("{method} {target}: {error}"))
    }

    pub fn get(&mut self, target: &str) -> Response {
        self.request("GET", target, &[], b"")
    }

    /// Reads one answer to a request with `method` (HEAD has no body).
    ///
    /// Errors: `UnexpectedEof` when the stream ends before the answer does, `InvalidData` when it is
    /// no HTTP/1 answer.
    pub fn response(&mut self, method: &str) -> io::Result<Response> {
        let head_end = loop {
            if let Some(at) = find(&self.pending, b"\r\n\r\n") {
                break at;
            }
            self.fill()?;
        };
        let head: Vec<u8> = self.pending.drain(..head_end + 4).collect();
        let head = String::from_utf8(head).map_err(|_| invalid("the head is not UTF-8"))?;
        let mut response = parse_head(&head[..head_end])?;
        if method == "HEAD" || response.status < 200 || matches!(response.status, 204 | 304) {
            return Ok(response);
        }
        if let Some(coding) = response.field("transfer-encoding") {
            if coding != "chunked" || response.field("content-length").is_some() {
                return Err(invalid("ambiguous framing"));
            }
            response.body = self.chunked()?;
        } else if let Some(length) = response.field("content-length") {
            let length = length.parse().map_err(|_| invalid("content-length is no number"))?;
            response.body = self.exactly(length)?;
        } else {
            response.body = self.rest()?;
        }
        Ok(response)
    }

    /// Everything up to the end of the stream.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        self.stream.read_to_end(&mut self.pending)?;
        Ok(std::mem::take(&mut self.pending))
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
        self.exactly(count)
    }

    /// Next line without its end, for newline-delimited streams.
    pub fn line(&mut self) -> io::Result<String> {
        let end = loop {
            if let Some(at) = find(&self.pending, b"\n") {
                break at;
            }
            self.fill()?;
        };
        let mut line: Vec<u8> = self.pending.drain(..=end).collect();
        while matches!(line.last(), Some(b'\n' | b'\r')) {
            line.pop();
        }
        String::from_utf8(line).map_err(|_| invalid("the line is not UTF-8"))
    }

    /// Whether the peer has closed, waiting for it as long as the read timeout of the stream.
    /// A reset counts as closed: the kernel sends one when bytes were left unread.
    pub fn is_closed(&mut self) -> bool {
        if !self.pending.is_empty() {
            return false;
        }
        match self.stream.read(&mut [0; 1]) {
            Ok(read) => read == 0,
            Err(error) => matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe),
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        let read = self.stream.read(&mut chunk)?;
        if read == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "closed after {:?}",
                    String::from_utf8_lossy(&self.pending[..self.pending.len().min(200)])
                ),
            ));
        }
        self.pending.extend_from_slice(&chunk[..read]);
        Ok(())
    }

    fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.pending.len() < length {
            self.fill()?;
        }
        Ok(self.pending.drain(..length).collect())
    }

    fn chunked(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| invalid("bad chunk size"))?;
            if size == 0 {
                while !self.line()?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.exactly(size)?);
            if self.exactly(2)? != b"\r\n" {
                return Err(invalid("chunk without its end"));
            }
        }
    }
}

impl Response {
    /// First field of that name (given in lower case).
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Every field of that name, in order.
    pub fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON; anything else is a failed test.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in the body of {self:?}"))
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.body[..self.body.len().min(500)];
        write!(
            f,
            "{} {} {} {:?} {:?} ({} bytes)",
            self.version,
            self.status,
            self.reason,
            self.fields,
            String::from_utf8_lossy(shown),
            self.body.len()
        )
    }
}

/// A request as bytes: `host` is added, and `content-length` where a body calls for one.
pub fn request_bytes(method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\n").into_bytes();
    for (name, value) in fields {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    if !body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH") {
        bytes.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

fn parse_head(head: &str) -> io::Result<Response> {
    let mut lines = head.split("\r\n");
    let mut status_line = lines.next().unwrap_or_default().splitn(3, ' ');
    let version = status_line.next().unwrap_or_default();
    if !version.starts_with("HTTP/1.") {
        return Err(invalid("no HTTP/1 status line"));
    }
    let status =
        status_line.next().and_then(|status| status.parse().ok()).ok_or_else(|| invalid("no status"))?;
    let reason = status_line.next().unwrap_or_default();
    let fields = lines
        .map(|line| {
            let (name, value) = line.split_once(':').ok_or_else(|| invalid("a field without colon"))?;
            Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect::<io::Result<_>>()?;
    Ok(Response { version: version.to_owned(), status, reason: reason.to_owned(), fields, body: Vec::new() })
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}

impl Client<TcpStream> {
    /// Whether the daemon has sent something that was not read yet, or closed; does not wait.
    pub fn has_answer(&self) -> bool {
        self.stream.set_nonblocking(true).expect("a socket");
        let peeked = self.stream.peek(&mut [0; 1]);
        self.stream.set_nonblocking(false).expect("a socket");
        peeked.is_ok() || !self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent goes nowhere, what is read was put there: enough to try the reader alone.
    struct Canned(io::Cursor<Vec<u8>>);

    impl Read for Canned {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            // One byte a read: every answer is also tried in pieces.
            let one = buffer.len().min(1);
            self.0.read(&mut buffer[..one])
        }
    }

    impl Write for Canned {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn client(bytes: &[u8]) -> Client<Canned> {
        Client::new(Canned(io::Cursor::new(bytes.to_vec())))
    }

    #[test]
    fn reads_answers_that_follow_each_other() {
        let mut client = client(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a\r\nset-cookie: b\r\n\r\nhi\
              HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        );
        let first = client.get("/");
        assert_eq!((first.status, first.text()), (200, "hi"));
        assert_eq!(first.fields("set-cookie").collect::<Vec<_>>(), ["a", "b"]);
        let second = client.get("/");
        assert_eq!((second.status, second.text()), (404, "abc"));
        assert!(client.is_closed());
    }

    #[test]
    fn refuses_half_an_answer() {
        let mut client = client(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel");
        let error = client.try_request("GET", "/", &[], b"").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
