//! The socket that a plugin listens at, and the folder of all of them: ours, or refused.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::lifeline;

/// Which folder it is, whatever its name: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FolderId(u64, u64);

impl FolderId {
    /// The folder of this name now; `None` if there is none, or a symbolic link.
    pub fn of(path: &Path) -> Option<Self> {
        fs::symlink_metadata(path).ok().filter(fs::Metadata::is_dir).map(|found| Self::from(&found))
    }
}

impl From<&fs::Metadata> for FolderId {
    fn from(found: &fs::Metadata) -> Self {
        Self(found.dev(), found.ino())
    }
}

/// What was to be done until the folder of the sockets was fit for use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// It was not there.
    pub made: bool,
    /// The mode that it had, where others could reach into it.
    pub mode_before: Option<u32>,
}

/// Makes the folder of the plugins' sockets, or checks that it is ours alone.
///
/// Errors: it is a symbolic link, no folder or another user's, or cannot be made; in words, with what to do.
pub(crate) fn prepare_sockets_dir(path: &Path) -> Result<Prepared, String> {
    let shown = path.display();
    let fail = |error: io::Error| format!("cannot prepare the socket folder {shown}: {error}");
    let mut prepared = Prepared::default();
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(fail)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => prepared.made = true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(fail(error)),
    }
    let found = fs::symlink_metadata(path).map_err(fail)?;
    check_kind(path, &found)?;
    if found.uid() != rustix::process::geteuid().as_raw() {
        let uid = found.uid();
        return Err(format!("the socket folder {shown} belongs to user {uid}; remove it or name another"));
    }
    let mode = found.mode() & 0o777;
    if mode != 0o700 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(fail)?;
        prepared.mode_before = (mode & 0o077 != 0).then_some(mode);
    }
    Ok(prepared)
}

fn check_kind(path: &Path, found: &fs::Metadata) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("the socket folder {} {why}", path.display()));
    if found.file_type().is_symlink() {
        return refuse("is a symbolic link; remove it or name another folder");
    }
    if !found.is_dir() {
        return refuse("is no folder; remove it or name another");
    }
    Ok(())
}

/// Looks whether any daemon would refuse what stands where the folder of the sockets is to be. Whose it has to be depends
/// on whose the daemon is, which may be another user than who asks.
///
/// Errors: it is a symbolic link, or no folder; in words, with what to do.
pub fn check_sockets_dir(path: &Path) -> Result<(), String> {
    fs::symlink_metadata(path).map_or(Ok(()), |found| check_kind(path, &found))
}

/// Keeps other daemons out of a folder until the file is dropped: two would take each other's sockets and values.
///
/// Errors: another daemon holds it, or it cannot be opened; in words.
pub fn lock_folder(path: &Path) -> Result<File, String> {
    let shown = path.display();
    let folder = File::open(path).map_err(|error| format!("cannot open the folder {shown}: {error}"))?;
    match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(folder),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(format!("another toru uses the folder {shown}; stop it or name another folder"))
        }
        Err(error) => Err(format!("cannot lock the folder {shown}: {error}")),
    }
}

/// Makes the folder of the plugins' sockets, or checks that it is ours alone, and keeps other daemons out of it until the
/// file is dropped.
///
/// Errors: it is not to be had; in words, with what to do.
pub fn claim_sockets_dir(path: &Path) -> Result<(Prepared, File), String> {
    let prepared = prepare_sockets_dir(path)?;
    Ok((prepared, lock_folder(path)?))
}

/// The folder of the sockets while the daemon runs: anybody who may write beside it may have removed it meanwhile.
pub(crate) struct SocketsDir {
    /// The folder that this daemon holds.
    id: Option<FolderId>,
    /// On that folder, where it is another one than the daemon was started with, which its starter holds.
    _lock: Option<File>,
}

/// What has become of the folder since it was last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    Same,
    /// It was gone.
    Made,
    /// Another one had its name.
    Another,
}

impl SocketsDir {
    /// `path` is held by the caller.
    pub fn held(path: &Path) -> Self {
        Self { id: FolderId::of(path), _lock: None }
    }

    pub fn id(&self) -> Option<FolderId> {
        self.id
    }

    /// Checks the folder as a start of the daemon does, and makes it where it is gone.
    ///
    /// Errors: no plugin must be given a socket there; in words, with what to do.
    pub fn renew(&mut self, path: &Path) -> Result<(Renewal, Prepared), String> {
        let prepared = prepare_sockets_dir(path)?;
        if FolderId::of(path) == self.id {
            return Ok((Renewal::Same, prepared));
        }
        let lock = lock_folder(path)?;
        let found = lock.metadata().map_err(|error| format!("cannot look at {}: {error}", path.display()))?;
        self.id = Some(FolderId::from(&found));
        self._lock = Some(lock);
        Ok((if prepared.made { Renewal::Made } else { Renewal::Another }, prepared))
    }
}

/// Whether a plugin's socket, ours, is where its name says.
pub(crate) fn has_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| check_socket(path, &found).is_ok())
}

/// Whether somebody listens at a path, as far as the kernel's table says: a connection would wait in the backlog of whoever
/// is busy. Who bound the path by another name is taken to.
pub(crate) fn is_listened_at(path: &Path) -> bool {
    // unix(7) and the kernel's `__SO_ACCEPTCON`.
    const LISTENS: u32 = 1 << 16;
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let name = format!(" {}", path.display());
    let flags = |line: &str| u32::from_str_radix(line.split_ascii_whitespace().nth(3)?, 16).ok();
    let mut named = table.lines().filter(|line| line.ends_with(&name)).filter_map(flags).peekable();
    named.peek().is_none() || named.any(|flags| flags & LISTENS != 0)
}

/// Makes way for a plugin's socket: removes a stale socket of ours, refuses everything else.
pub(crate) fn vacate_socket(path: &Path) -> Result<(), String> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("cannot look at {}: {error}", path.display())),
    };
    check_socket(path, &found)?;
    fs::remove_file(path)
        .map_err(|error| format!("cannot remove the stale socket {}: {error}", path.display()))
}

/// Removes the sockets of plugins at which nobody listens from `folder`, which is this daemon's alone: a plugin that is
/// disabled or gone by now has nobody else to do it. Gives how many there were.
pub(crate) fn clear_sockets(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let stale =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "sock")).filter(|path| {
            fs::symlink_metadata(path).is_ok_and(|found| check_socket(path, &found).is_ok())
                && lifeline::connect(path)
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        });
    stale.filter(|path| fs::remove_file(path).is_ok()).count()
}

pub(crate) fn check_socket(path: &Path, found: &fs::Metadata) -> Result<(), String> {
    let path = path.display();
    if found.file_type().is_symlink() {
        return Err(format!("{path} is a symbolic link; remove it"));
    }
    if !found.file_type().is_socket() {
        return Err(format!("{path} is no socket; remove it"));
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(format!("{path} belongs to user {}; remove it", found.uid()));
    }
    Ok(())
}

/// A non-blocking connection to a plugin, or why there is none: often that nobody listens there yet.
///
/// Errors: the path is not a socket of ours; in words.
pub(crate) fn connect(path: &Path) -> Result<io::Result<UnixStream>, String> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) => return Ok(Err(error)),
    };
    check_socket(path, &found)?;
    if found.mode() & 0o777 != 0o600 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .map_err(|error| format!("cannot make {} private: {error}", path.display()))?;
    }
    Ok(lifeline::connect(path))
}

/// Whether it was for want of something of our own that a connection was not made: no fault of the listener.
pub(crate) fn is_our_want(error: &io::Error) -> bool {
    use nix::libc::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE | ENOBUFS | ENOMEM))
}

/// Whether a connection that was not made says nothing against the listener: one lives behind a full backlog too.
pub(crate) fn may_listen(error: &io::Error) -> bool {
    is_our_want(error) || error.raw_os_error() == Some(nix::libc::EAGAIN)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_folder_of_the_sockets_is_made_closed_or_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("sockets");
        let made = Prepared { made: true, mode_before: None };
        let (prepared, lock) = claim_sockets_dir(&path).expect("made");
        assert_eq!(prepared, made);
        assert!(claim_sockets_dir(&path).expect_err("held").contains("another toru"));
        let mut held = SocketsDir::held(&path);
        assert_eq!(held.renew(&path), Ok((Renewal::Same, Prepared::default())));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).expect("chmod");
        let closed = Prepared { made: false, mode_before: Some(0o750) };
        assert_eq!(held.renew(&path), Ok((Renewal::Same, closed)));
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o700);
        // Gone, it is made and held anew, whoever still holds what it was.
        let before = held.id();
        fs::remove_dir(&path).expect("empty");
        assert_eq!(held.renew(&path), Ok((Renewal::Made, made)));
        assert_eq!(held.id(), FolderId::of(&path));
        assert_ne!(held.id(), before);
        assert!(claim_sockets_dir(&path).expect_err("held").contains("another toru"));
        drop(lock);
        // Another folder of ours in its place does as well; what is not one does not.
        fs::rename(&path, dir.path().join("away")).expect("rename");
        fs::create_dir(&path).expect("folder");
        assert_eq!(held.renew(&path).expect("ours").0, Renewal::Another);
        fs::remove_dir(&path).expect("empty");
        std::os::unix::fs::symlink("away", &path).expect("symlink");
        assert!(held.renew(&path).expect_err("a link").contains("symbolic link; remove it"));
        fs::remove_file(&path).expect("a link");
        fs::write(&path, "").expect("write");
        assert!(held.renew(&path).expect_err("a file").contains("no folder; remove it"));
        fs::remove_file(&path).expect("a file");
        if rustix::process::geteuid().is_root() {
            fs::create_dir(&path).expect("folder");
            std::os::unix::fs::chown(&path, Some(65534), None).expect("root may");
            assert!(held.renew(&path).expect_err("nobody's").contains("belongs to user 65534; remove it"));
        }
    }

    #[test]
    fn only_sockets_at_which_nobody_listens_are_cleared() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = |name: &str| dir.path().join(name);
        drop(UnixListener::bind(path("stale.sock")).expect("bind"));
        drop(UnixListener::bind(path("other")).expect("bind"));
        let _living = UnixListener::bind(path("living.sock")).expect("bind");
        fs::write(path("file.sock"), "").expect("write");
        std::os::unix::fs::symlink(path("other"), path("link.sock")).expect("symlink");
        assert_eq!(clear_sockets(dir.path()), 1);
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).expect("readable").flatten().map(|e| e.file_name()).collect();
        left.sort();
        assert_eq!(left, ["file.sock", "link.sock", "living.sock", "other"]);
        assert_eq!(clear_sockets(&path("nowhere")), 0);
    }
}
