//! Static files: the web root, and the bundles of plugins.
//!
//! No worker ever opens or reads a file: a disk can be slow, and a network file system can hang. Two threads do, and
//! answer like the store does. What they found of small files each worker keeps for itself, so that most requests need
//! neither thread nor copy from the disk; it is looked at again once it is [`FRESH`] old. Large files go out in pieces,
//! one at a time and only as fast as the client takes them.
//!
//! A file may change at any moment. Its tag names its content's size, times and place, what is read is compared with
//! what was announced, and where they no longer agree the connection is cut.

mod beneath;
mod conditions;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_channel::oneshot;
use rustix::io::Errno;
use toru_http::{Connection, Length, RequestHead, ResponseHead, normalize_path, percent_decode};

use crate::answer::{Failure, LocalAnswer, Pieces, add_field};
use crate::room::FilePlace;
use crate::timers;
use crate::worker::Worker;
use beneath::Folder;
use conditions::{Coding, Codings, Conditions, Validators, Verdict, whole_seconds};

/// Threads that read, of each [`Readers`]. One hanging file system takes one each, so there is more than one.
const READERS: usize = 2;
/// Reads that may wait for a thread; each is one client's.
const QUEUE_MAX: usize = 1024;
/// How long what is known of a file holds. A deployment is seen after this.
const FRESH: Duration = Duration::from_secs(1);
/// How often a small file that is written while it is read is read anew.
const READS_MAX: u32 = 3;
/// Larger files are not kept, and not read whole.
const KEPT_FILE_BYTES_MAX: u64 = 256 * 1024;
/// What one worker keeps of all files.
const KEPT_BYTES_MAX: usize = 8 * 1024 * 1024;
const KEPT_FILES_MAX: usize = 512;
/// What is read of a large file at once, and so what a client's connection may hold.
const PIECE_BYTES: u64 = 64 * 1024;
/// The file that stands for its folder.
const INDEX: &[u8] = b"index.html";

// ---- what is asked ----

/// A request for a file, free of the request's bytes.
pub struct Ask {
    source: Source,
    /// Decoded, relative, without a slash at its end; empty for the folder itself.
    path: Vec<u8>,
    /// The path ended with a slash, so it means a folder.
    folder: bool,
    /// Where the folder is redirected to if its slash was forgotten; still encoded.
    with_slash: String,
    /// A page of an application that has only one may be meant.
    fallback: bool,
    head_only: bool,
    codings: Codings,
    conditions: Conditions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    WebRoot,
    /// `<plugins>/<path>/bundle.js`, else `<plugins>/<path>/frontend/bundle.js`.
    Bundle,
}

impl Ask {
    /// A file under the web root.
    ///
    /// Errors: the method or the path is nothing that a file could have.
    pub fn page(head: &RequestHead<'_>) -> Result<Self, Failure> {
        only_reads(head)?;
        let path = normalize_path(head.target.path())
            .map_err(|error| Failure::Malformed { status: 400, detail: error.to_string() })?;
        let (mut decoded, mut encoded) =
            (Vec::with_capacity(path.len()), String::with_capacity(path.len() + 1));
        // Slashes in a row count as one, as nginx has it.
        for segment in path.split('/').filter(|segment| !segment.is_empty()) {
            let name = percent_decode(segment)
                .map_err(|error| Failure::Malformed { status: 400, detail: error.to_string() })?;
            let hidden = name.first() == Some(&b'.') && *name != *b".well-known";
            if hidden || name.contains(&b'/') {
                return Err(NOTHING);
            }
            if !decoded.is_empty() {
                decoded.push(b'/');
            }
            decoded.extend_from_slice(&name);
            encoded.push('/');
            encoded.push_str(segment);
        }
        encoded.push('/');
        if let Some(query) = head.target.query() {
            encoded.push('?');
            encoded.push_str(query);
        }
        let accepts_html = head.fields.get_all("accept").any(|value| {
            value.split(|&byte| byte == b',').any(|range| {
                let media_type = range.split(|&byte| byte == b';').next().unwrap_or_default();
                media_type.trim_ascii().eq_ignore_ascii_case(b"text/html")
            })
        });
        let last = decoded.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        // A script that is missing is missing, not a page; so is what nobody answers of the API.
        let fallback =
            (accepts_html || !last.contains(&b'.')) && decoded != b"api" && !decoded.starts_with(b"api/");
        Ok(Self {
            folder: path.ends_with('/'),
            with_slash: encoded,
            fallback,
            ..Self::new(head, Source::WebRoot, decoded)
        })
    }

    /// The bundle of the plugin with this id, which is known to be one.
    ///
    /// Errors: the method is not for files.
    pub fn bundle(head: &RequestHead<'_>, id: &str) -> Result<Self, Failure> {
        only_reads(head)?;
        Ok(Self::new(head, Source::Bundle, id.as_bytes().to_vec()))
    }

    fn new(head: &RequestHead<'_>, source: Source, path: Vec<u8>) -> Self {
        let head_only = head.method == "HEAD";
        Self {
            source,
            path,
            folder: false,
            with_slash: String::new(),
            fallback: false,
            head_only,
            codings: Codings::read(&head.fields),
            conditions: Conditions::read(&head.fields, head_only),
        }
    }
}

/// What is said of a path that nobody answers.
pub const NOTHING: Failure = Failure::NotFound("there is nothing here");

fn only_reads(head: &RequestHead<'_>) -> Result<(), Failure> {
    if matches!(head.method, "GET" | "HEAD") { Ok(()) } else { Err(Failure::MethodNotAllowed("GET, HEAD")) }
}

// ---- what is found ----

/// What identifies a content, and how it is announced.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    size: u64,
    /// Nanoseconds since 1970.
    modified_ns: i128,
    etag: String,
    content_type: &'static str,
    coding: Option<Coding>,
    /// Another client may get it in another coding.
    varies: bool,
}

impl Facts {
    fn new(found: &Metadata, name: &[u8], coding: Option<Coding>) -> Self {
        let modified_ns = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
        // A write that is hidden by setting the modification time back still shows in the change time. The rest is
        // hashed because it is nobody's business.
        let mut hasher = DefaultHasher::new();
        (found.dev(), found.ino(), found.ctime(), found.ctime_nsec(), modified_ns).hash(&mut hasher);
        Self {
            size: found.len(),
            modified_ns,
            etag: format!("\"{:x}-{:016x}\"", found.len(), hasher.finish()),
            content_type: content_type(name),
            coding,
            varies: false,
        }
    }

    fn modified(&self) -> SystemTime {
        let since = Duration::from_nanos(u64::try_from(self.modified_ns).unwrap_or(0));
        whole_seconds(UNIX_EPOCH + since)
    }

    /// Whether the open file still has the content that was announced. Another name, owner or link count changes none.
    fn still_hold(&self, found: &Metadata) -> bool {
        let modified_ns = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
        found.len() == self.size && modified_ns == self.modified_ns
    }
}

fn content_type(name: &[u8]) -> &'static str {
    let name = Path::new(std::ffi::OsStr::from_bytes(name));
    let extension = name.extension().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
    // What the table lacks, or has by a name that browsers or registries do not know (any more).
    match extension.to_ascii_lowercase().as_str() {
        // RFC 9239; a browser runs no module of another type.
        "mjs" | "cjs" => "text/javascript",
        "map" => "application/json",
        "jsonl" | "ndjson" => "application/x-ndjson",
        // Says its encoding itself, which a type that begins with `text` would contradict.
        "xml" | "xsl" => "application/xml",
        "yaml" | "yml" => "application/yaml",
        "toml" => "application/toml",
        "woff" => "font/woff",
        "otf" => "font/otf",
        "m4a" => "audio/mp4",
        "ts" => "video/mp2t",
        "m3u8" => "application/vnd.apple.mpegurl",
        "m4s" => "video/iso.segment",
        "docx" => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "xlsx" => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        "pptx" => "application/vnd.openxmlformats-officedocument.presentationml.presentation",
        _ => mime_guess::from_path(name).first_raw().unwrap_or("application/octet-stream"),
    }
}

/// What a reading thread found.
enum Found {
    /// Small, and read.
    Small(Facts, Vec<u8>),
    /// As it was when the worker last looked.
    Unchanged,
    Large(Facts, File),
    /// A folder with a page, asked for without its slash.
    Folder,
}

/// Looks for the file. Waits for the disk.
fn look(places: &Places, ask: &Look) -> io::Result<Found> {
    let mut outcome = look_once(places, ask);
    for _ in 1..READS_MAX {
        if !outcome.as_ref().is_err_and(is_torn) {
            break;
        }
        outcome = look_once(places, ask);
    }
    outcome
}

fn look_once(places: &Places, ask: &Look) -> io::Result<Found> {
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    match ask.source {
        Source::Bundle => {
            let folder = Folder::open(&places.plugins)?;
            for tail in [&b"/bundle.js"[..], b"/frontend/bundle.js"] {
                match read_best(&folder, &[&ask.path, tail].concat(), ask) {
                    Err(error) if is_missing(&error) => {}
                    outcome => return outcome,
                }
            }
            Err(gone())
        }
        Source::WebRoot => {
            let folder = Folder::open(places.web_root.as_deref().ok_or_else(gone)?)?;
            let outcome = look_at_page(&folder, ask);
            match (&places.fallback, outcome) {
                (Some(page), Err(error)) if ask.fallback && is_missing(&error) => {
                    read_best(&folder, page.as_bytes(), ask)
                }
                (_, outcome) => outcome,
            }
        }
    }
}

fn look_at_page(folder: &Folder, ask: &Look) -> io::Result<Found> {
    let index = || if ask.path.is_empty() { INDEX.to_vec() } else { [&ask.path, &b"/"[..], INDEX].concat() };
    if ask.folder || ask.path.is_empty() {
        return read_best(folder, &index(), ask);
    }
    let file = folder.open_file(&ask.path)?;
    let found = file.metadata()?;
    if !found.is_dir() {
        return read_found(folder, file, &found, &ask.path, ask);
    }
    // Without a page there is no folder either: its name is nobody's business.
    if folder.open_file(&index())?.metadata()?.is_file() {
        Ok(Found::Folder)
    } else {
        Err(Errno::NOENT.into())
    }
}

fn read_best(folder: &Folder, path: &[u8], ask: &Look) -> io::Result<Found> {
    let file = folder.open_file(path)?;
    let found = file.metadata()?;
    read_found(folder, file, &found, path, ask)
}

/// Reads the file, or what stands beside it in a coding that the client prefers.
fn read_found(folder: &Folder, file: File, found: &Metadata, path: &[u8], ask: &Look) -> io::Result<Found> {
    // Pipes, devices and sockets are no files.
    if !found.is_file() {
        return Err(Errno::NOENT.into());
    }
    let beside = |coding: Coding| {
        let file = folder.open_file(&[path, coding.extension().as_bytes()].concat()).ok()?;
        let found = file.metadata().ok().filter(Metadata::is_file)?;
        Some((file, found, coding))
    };
    let mut compressed: Vec<_> = [Coding::Brotli, Coding::Gzip].into_iter().filter_map(beside).collect();
    let varies = !compressed.is_empty();
    let best = ask.codings.wanted().find_map(|wanted| {
        let place = compressed.iter().position(|(_, _, coding)| *coding == wanted)?;
        Some(compressed.swap_remove(place))
    });
    let (file, mut facts) = match best {
        Some((file, found, coding)) => (file, Facts::new(&found, path, Some(coding))),
        None => (file, Facts::new(found, path, None)),
    };
    facts.varies = varies;
    if facts.size > KEPT_FILE_BYTES_MAX {
        return Ok(Found::Large(facts, file));
    }
    if ask.known.as_ref() == Some(&facts) {
        return Ok(Found::Unchanged);
    }
    let mut content = vec![0; facts.size as usize];
    file.read_exact_at(&mut content, 0)?;
    if !facts.still_hold(&file.metadata()?) {
        // Part of it may be old and part new, which no tag could name.
        return Err(torn());
    }
    Ok(Found::Small(facts, content))
}

/// Whether the error says that there is no such file, or none that may be seen.
fn is_missing(error: &io::Error) -> bool {
    let Some(errno) = Errno::from_io_error(error) else { return error.kind() == io::ErrorKind::NotFound };
    matches!(
        errno,
        Errno::NOENT
            | Errno::NOTDIR
            | Errno::LOOP
            | Errno::XDEV
            | Errno::NAMETOOLONG
            | Errno::NXIO
            | Errno::INVAL
            | Errno::ISDIR
    )
}

/// The file was written while it was read.
fn torn() -> io::Error {
    io::ErrorKind::StaleNetworkFileHandle.into()
}

fn is_torn(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StaleNetworkFileHandle | io::ErrorKind::UnexpectedEof)
}

fn failure(error: &io::Error) -> Failure {
    match error.kind() {
        _ if is_missing(error) => NOTHING,
        io::ErrorKind::PermissionDenied => {
            Failure::Forbidden("the server has no right to read this file".into())
        }
        _ if is_torn(error) => Failure::FileBusy("the file is being written; ask again"),
        _ if matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => {
            Failure::FileBusy("the server has no room to open the file")
        }
        _ => Failure::Internal(format!("the file cannot be read: {error}")),
    }
}

// ---- the threads that read ----

/// Where files are, and who reads them.
pub struct Files {
    places: Arc<Places>,
    readers: Readers,
}

struct Places {
    web_root: Option<PathBuf>,
    /// Relative to the web root.
    fallback: Option<String>,
    plugins: PathBuf,
}

impl Files {
    pub fn new(web_root: Option<PathBuf>, fallback: Option<String>, plugins: PathBuf) -> Self {
        Self { places: Arc::new(Places { web_root, fallback, plugins }), readers: Readers::new("toru-files") }
    }

    pub fn has_web_root(&self) -> bool {
        self.places.web_root.is_some()
    }

    /// Why the web root cannot be used, if there is one and it cannot.
    pub fn trouble(&self) -> Option<String> {
        let root = self.places.web_root.as_deref()?;
        let error = Folder::open(root).err()?;
        Some(format!(
            "the web root {} cannot be opened: {error}; its files are 404 until it can",
            root.display()
        ))
    }
}

/// Threads that wait for a disk in the workers' place. They begin with the first read.
pub struct Readers {
    name: &'static str,
    queue: OnceLock<SyncSender<Job>>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Readers {
    /// `name` is the threads', at most 15 bytes.
    pub fn new(name: &'static str) -> Self {
        Self { name, queue: OnceLock::new() }
    }

    /// Runs something that may wait for a disk on a reading thread, and waits for it as long as `patience`.
    ///
    /// Errors: too many wait already, or the disk does not answer.
    pub async fn run<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (tell, told) = oneshot::channel();
        let job = Box::new(move || {
            // Nobody waits any longer for the answer to a client that has gone.
            if !tell.is_canceled() {
                let _ = tell.send(work());
            }
        });
        match self.queue.get_or_init(|| start_readers(self.name)).try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(Failure::FileBusy("too many files are being read")),
            Err(TrySendError::Disconnected(_)) => {
                return Err(Failure::Internal("the reading threads have ended".into()));
            }
        }
        match timers::timeout(patience, told).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(oneshot::Canceled)) => Err(Failure::Internal("reading failed".into())),
            Err(_) => Err(Failure::FileBusy("the disk does not answer")),
        }
    }
}

fn start_readers(name: &str) -> SyncSender<Job> {
    let (queue, jobs) = sync_channel(QUEUE_MAX);
    let jobs = Arc::new(Mutex::new(jobs));
    for _ in 0..READERS {
        let jobs = jobs.clone();
        // With fewer threads it is slower, with none every read is refused: both are told where they are felt.
        let _ = std::thread::Builder::new().name(name.into()).spawn(move || read_jobs(&jobs));
    }
    queue
}

fn read_jobs(jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        // A job that panics drops its answer, which is how its worker learns of it.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
    }
}

/// What a reading thread needs of an [`Ask`].
struct Look {
    source: Source,
    path: Vec<u8>,
    folder: bool,
    fallback: bool,
    codings: Codings,
    known: Option<Facts>,
}

// ---- what a worker keeps ----

/// Small files that one worker has seen.
#[derive(Default)]
pub struct Kept {
    entries: HashMap<Key, Rc<Entry>>,
    bytes: usize,
    /// Counts uses; the entry with the smallest number was used longest ago.
    clock: Cell<u64>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    source: Source,
    path: Vec<u8>,
    folder: bool,
    fallback: bool,
    codings: Codings,
}

struct Entry {
    facts: Facts,
    content: Rc<[u8]>,
    checked: Cell<Instant>,
    /// Somebody is looking whether it has changed.
    checking: Cell<bool>,
    used: Cell<u64>,
}

impl Kept {
    fn get(&self, key: &Key) -> Option<Rc<Entry>> {
        let entry = self.entries.get(key)?;
        self.clock.set(self.clock.get() + 1);
        entry.used.set(self.clock.get());
        Some(entry.clone())
    }

    fn put(&mut self, key: Key, facts: Facts, content: Rc<[u8]>, now: Instant) {
        self.remove(&key);
        while self.entries.len() >= KEPT_FILES_MAX || self.bytes + content.len() > KEPT_BYTES_MAX {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used.get());
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { break };
            self.remove(&oldest);
        }
        self.bytes += content.len();
        self.clock.set(self.clock.get() + 1);
        let used = Cell::new(self.clock.get());
        let entry = Entry { facts, content, checked: Cell::new(now), checking: Cell::new(false), used };
        self.entries.insert(key, Rc::new(entry));
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.content.len();
        }
    }
}

impl Entry {
    /// Whether it may be served unseen: it is fresh, or somebody is looking and it was fresh a moment ago.
    fn holds(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.checked.get());
        age < FRESH || (self.checking.get() && age < 2 * FRESH)
    }
}

/// Marks an entry as looked at for as long as it lives: a client that goes away takes its look with it.
struct Checking(Rc<Entry>);

impl Drop for Checking {
    fn drop(&mut self) {
        self.0.checking.set(false);
    }
}

// ---- the answer ----

/// An answer from a file.
pub struct Reply {
    status: u16,
    fields: Vec<u8>,
    /// Of the content, also where HEAD asks for none of it.
    length: u64,
    content: Content,
}

enum Content {
    None,
    Kept(Rc<[u8]>, std::ops::Range<usize>),
    Open(Transfer),
}

/// A large file on its way to a client.
pub struct Transfer {
    file: Arc<OpenFile>,
    facts: Facts,
    offset: u64,
    end: u64,
}

impl Reply {
    /// Writes the head and what is at hand; gives what has to be read for the rest.
    pub fn write(mut self, connection: &mut Connection, date: &str, request_id: &str) -> Option<Transfer> {
        add_field(&mut self.fields, "x-request-id", request_id);
        let head = ResponseHead { status: self.status, fields: &self.fields, date };
        connection.start_response(&head, Length::Known(self.length));
        match self.content {
            Content::Open(transfer) => return Some(transfer),
            Content::Kept(content, range) => connection.send_body(&content[range]),
            Content::None => {}
        }
        connection.finish_response();
        None
    }
}

impl Transfer {
    /// The next piece, and whether it is the last.
    ///
    /// Errors: the file has changed or cannot be read; what was announced cannot be kept, so the connection must be cut.
    pub async fn next(&mut self, worker: &Worker) -> Result<Pieces, Failure> {
        let (file, facts, offset) = (self.file.clone(), self.facts.clone(), self.offset);
        let count = PIECE_BYTES.min(self.end - offset);
        let read = move || -> io::Result<Vec<u8>> {
            let mut content = vec![0; count as usize];
            file.file.read_exact_at(&mut content, offset)?;
            if !facts.still_hold(&file.file.metadata()?) {
                return Err(torn());
            }
            Ok(content)
        };
        let shared = &worker.shared;
        let content = shared.files.readers.run(worker.config().http.request_timeout, read).await?;
        let content = content.map_err(|error| failure(&error))?;
        self.offset += count;
        Ok(Pieces { head: None, content, complete: self.offset == self.end })
    }
}

/// What came of a request for a file.
pub enum Outcome {
    Reply(Reply),
    Local(LocalAnswer),
}

/// Answers a request for a file.
///
/// Errors: there is none ([`Failure::NotFound`]), or it cannot be read.
pub async fn answer(worker: &Rc<Worker>, ask: Ask) -> Result<Outcome, Failure> {
    let Ask { source, path, folder, with_slash, fallback, head_only, codings, conditions } = ask;
    let key = Key { source, path, folder, fallback, codings };
    let kept = worker.kept_files.borrow().get(&key);
    if let Some(entry) = kept.as_ref().filter(|entry| entry.holds(Instant::now())) {
        return reply(&entry.facts, &conditions, head_only, &Body::Kept(entry.content.clone()));
    }
    let checking = kept.map(|entry| {
        entry.checking.set(true);
        Checking(entry)
    });
    let look_for = Look {
        source,
        path: key.path.clone(),
        folder,
        fallback,
        codings,
        known: checking.as_ref().map(|checking| checking.0.facts.clone()),
    };
    let shared = &worker.shared;
    let places = shared.files.places.clone();
    let room = shared.clone();
    let asked = Instant::now();
    let found = shared
        .files
        .readers
        .run(worker.config().http.request_timeout, move || {
            let found = look(&places, &look_for)?;
            // At once: until the worker hears of it, others are opened.
            let place = match found {
                Found::Large(..) => {
                    let clients = room.connections.load(Relaxed);
                    Some(room.descriptors.take_file(clients).ok_or(Errno::MFILE)?)
                }
                _ => None,
            };
            Ok((found, place))
        })
        .await?
        .map_err(|error| failure(&error));
    match (found, &checking) {
        (Ok((Found::Unchanged, _)), Some(Checking(entry))) => {
            // What the disk said was true when it was asked at the earliest.
            entry.checked.set(asked);
            reply(&entry.facts, &conditions, head_only, &Body::Kept(entry.content.clone()))
        }
        (Ok((Found::Small(facts, content), _)), _) => {
            let content: Rc<[u8]> = content.into();
            worker.kept_files.borrow_mut().put(key, facts.clone(), content.clone(), asked);
            reply(&facts, &conditions, head_only, &Body::Kept(content))
        }
        (other, _) => {
            worker.kept_files.borrow_mut().remove(&key);
            match other? {
                (Found::Large(facts, file), place) => {
                    let open = Arc::new(OpenFile { file, _place: place });
                    reply(&facts, &conditions, head_only, &Body::Open(open))
                }
                (Found::Folder, _) => Ok(Outcome::Local(redirect(&with_slash))),
                (Found::Small(..) | Found::Unchanged, _) => {
                    Err(Failure::Internal("a file that nobody knew is unchanged".into()))
                }
            }
        }
    }
}

enum Body {
    Kept(Rc<[u8]>),
    Open(Arc<OpenFile>),
}

struct OpenFile {
    file: File,
    _place: Option<FilePlace>,
}

fn reply(facts: &Facts, conditions: &Conditions, head_only: bool, body: &Body) -> Result<Outcome, Failure> {
    let now = SystemTime::now();
    // A clock that was set back must not make a date in the future of it (RFC 9110 section 8.8.2.1).
    let modified = facts.modified().min(whole_seconds(now));
    let validators = Validators { etag: &facts.etag, modified, size: facts.size };
    let (status, part) = match conditions.judge(&validators, now) {
        Verdict::Whole => (200, 0..facts.size),
        Verdict::Part(first, last) => (206, first..last + 1),
        Verdict::NotModified => (304, 0..0),
        Verdict::PreconditionFailed => return Err(Failure::PreconditionFailed),
        Verdict::Unsatisfiable => return Err(Failure::Unsatisfiable { size: facts.size }),
    };
    let mut fields = Vec::with_capacity(384);
    if status != 304 {
        if facts.content_type.starts_with("text/") {
            add_field(&mut fields, "content-type", &format!("{}; charset=utf-8", facts.content_type));
        } else {
            add_field(&mut fields, "content-type", facts.content_type);
        }
        add_field(&mut fields, "accept-ranges", "bytes");
        if let Some(coding) = facts.coding {
            add_field(&mut fields, "content-encoding", coding.name());
        }
    }
    if status == 206 {
        let range = format!("bytes {}-{}/{}", part.start, part.end - 1, facts.size);
        add_field(&mut fields, "content-range", &range);
    }
    add_field(&mut fields, "etag", &facts.etag);
    add_field(&mut fields, "last-modified", &httpdate::fmt_http_date(modified));
    // May be kept, but not used without asking: else browsers guess, and show an old page after a deployment.
    add_field(&mut fields, "cache-control", "no-cache");
    if facts.varies {
        add_field(&mut fields, "vary", "accept-encoding");
    }
    add_field(&mut fields, "x-content-type-options", "nosniff");
    let length = part.end - part.start;
    let content = match body {
        _ if status == 304 || head_only || length == 0 => Content::None,
        Body::Kept(content) => Content::Kept(content.clone(), part.start as usize..part.end as usize),
        Body::Open(file) => Content::Open(Transfer {
            file: file.clone(),
            facts: facts.clone(),
            offset: part.start,
            end: part.end,
        }),
    };
    Ok(Outcome::Reply(Reply { status, fields, length, content }))
}

fn redirect(to: &str) -> LocalAnswer {
    let mut fields = Vec::new();
    add_field(&mut fields, "location", to);
    add_field(&mut fields, "cache-control", "no-cache");
    LocalAnswer { status: 301, fields, body: Vec::new() }
}

/// The files that a worker keeps.
pub type KeptFiles = RefCell<Kept>;

#[cfg(test)]
mod tests {
    use super::content_type;

    #[test]
    fn common_types_are_as_browsers_know_them() {
        for (extensions, expect) in [
            ("html HTML htm", "text/html"),
            ("js mjs cjs", "text/javascript"),
            ("css", "text/css"),
            ("txt log", "text/plain"),
            ("csv", "text/csv"),
            ("md", "text/markdown"),
            ("vtt", "text/vtt"),
            ("json map", "application/json"),
            ("jsonld", "application/ld+json"),
            ("ndjson jsonl", "application/x-ndjson"),
            ("webmanifest", "application/manifest+json"),
            ("wasm", "application/wasm"),
            ("xml", "application/xml"),
            ("rss", "application/rss+xml"),
            ("atom", "application/atom+xml"),
            ("xhtml", "application/xhtml+xml"),
            ("yaml yml", "application/yaml"),
            ("toml", "application/toml"),
            ("pdf", "application/pdf"),
            ("zip", "application/zip"),
            ("gz", "application/gzip"),
            ("docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
            ("svg", "image/svg+xml"),
            ("png", "image/png"),
            ("jpg jpeg", "image/jpeg"),
            ("gif", "image/gif"),
            ("webp", "image/webp"),
            ("avif", "image/avif"),
            ("ico", "image/x-icon"),
            ("woff", "font/woff"),
            ("woff2", "font/woff2"),
            ("ttf", "font/ttf"),
            ("otf", "font/otf"),
            ("mp4", "video/mp4"),
            ("webm", "video/webm"),
            ("ts", "video/mp2t"),
            ("m3u8", "application/vnd.apple.mpegurl"),
            ("mp3", "audio/mpeg"),
            ("m4a", "audio/mp4"),
            ("ogg opus", "audio/ogg"),
            ("wav", "audio/wav"),
            ("flac", "audio/flac"),
            ("bin unheard-of", "application/octet-stream"),
        ] {
            for extension in extensions.split(' ') {
                assert_eq!(content_type(format!("a.b/c.{extension}").as_bytes()), expect, "{extension}");
            }
        }
        assert_eq!(content_type(b"LICENSE"), "application/octet-stream");
    }
}
