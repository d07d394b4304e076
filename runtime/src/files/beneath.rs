//! Opening files that lie beneath a folder and nowhere else, whatever links and dots say.
//!
//! `openat2(2)` with `RESOLVE_BENEATH` lets the kernel watch every step, so a link that is exchanged meanwhile leads
//! nowhere either. Where a container's filter forbids it, the path is walked step by step, and no link is followed at
//! all.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// How often a walk that was disturbed by a rename is begun anew.
const WALKS_MAX: u32 = 8;

/// A folder that files are opened beneath.
#[derive(Debug)]
pub struct Folder(OwnedFd);

impl Folder {
    /// Opens `path`, which may itself be a link: who named it may have put one there to exchange it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(openat(CWD, path, flags, Mode::empty())?))
    }

    /// Opens the file or folder at `path` for reading; an empty path is the folder itself.
    ///
    /// Never waits for somebody to write to a named pipe, and never takes a terminal for its own.
    /// Errors: as open(2); `ELOOP` or `EXDEV` for a link that leads out.
    pub fn open_file(&self, path: &[u8]) -> io::Result<File> {
        match self.open_watched(path) {
            Err(Errno::NOSYS | Errno::PERM) => Ok(self.open_step_by_step(path)?.into()),
            outcome => Ok(outcome?.into()),
        }
    }

    fn open_watched(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let path = if path.is_empty() { b"." } else { path };
        let mut outcome = Err(Errno::AGAIN);
        for _ in 0..WALKS_MAX {
            outcome = openat2(&self.0, path, READ, Mode::empty(), resolve);
            // The kernel could not rule out that a rename led it astray.
            if !matches!(outcome, Err(Errno::AGAIN | Errno::INTR)) {
                break;
            }
        }
        outcome
    }

    fn open_step_by_step(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let mut steps = path.split(|&byte| byte == b'/').filter(|step| !step.is_empty()).peekable();
        let mut reached: Option<OwnedFd> = None;
        while let Some(step) = steps.next() {
            if matches!(step, b"." | b"..") {
                return Err(Errno::XDEV);
            }
            let flags = if steps.peek().is_some() {
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC
            } else {
                READ
            };
            let from = reached.as_ref().unwrap_or(&self.0);
            reached = Some(openat(from, step, flags | OFlags::NOFOLLOW, Mode::empty())?);
        }
        match reached {
            Some(found) => Ok(found),
            None => openat(&self.0, c".", READ, Mode::empty()),
        }
    }
}

const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn both_ways_open_what_is_beneath_and_nothing_else() {
        let place = tempfile::tempdir().expect("a folder");
        let root = place.path().join("root");
        fs::create_dir_all(root.join("a/b")).expect("folders");
        fs::write(root.join("a/b/file"), "inside").expect("a file");
        fs::write(place.path().join("secret"), "outside").expect("a file");
        symlink("b/file", root.join("a/link")).expect("a link");
        symlink("../secret", root.join("out")).expect("a link");
        symlink(place.path().join("secret"), root.join("absolute")).expect("a link");
        symlink("..", root.join("up")).expect("a link");
        symlink("loop", root.join("loop")).expect("a link");
        let folder = Folder::open(&root).expect("it is there");
        let text = |opened: Result<OwnedFd, Errno>| {
            opened.map(|file| {
                let mut text = String::new();
                let _ = File::from(file).read_to_string(&mut text);
                text
            })
        };
        for (path, watched, by_steps) in [
            ("a/b/file", Some("inside"), Some("inside")),
            // A link that stays inside is fine where the kernel watches; step by step there are no links.
            ("a/link", Some("inside"), None),
            ("out", None, None),
            ("absolute", None, None),
            ("up/secret", None, None),
            ("../secret", None, None),
            ("a/../../secret", None, None),
            ("loop", None, None),
            ("missing", None, None),
            ("a/b/file/x", None, None),
        ] {
            assert_eq!(text(folder.open_watched(path.as_bytes())).ok().as_deref(), watched, "{path}");
            assert_eq!(text(folder.open_step_by_step(path.as_bytes())).ok().as_deref(), by_steps, "{path}");
        }
        assert!(folder.open_watched(b"").is_ok() && folder.open_step_by_step(b"").is_ok());
    }

    #[test]
    fn a_pipe_without_a_writer_holds_nobody_up() {
        let place = tempfile::tempdir().expect("a folder");
        nix::unistd::mkfifo(&place.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let folder = Folder::open(place.path()).expect("it is there");
        for opened in [folder.open_watched(b"pipe"), folder.open_step_by_step(b"pipe")] {
            assert!(!File::from(opened.expect("it opens at once")).metadata().expect("it is open").is_file());
        }
    }
}
