//! The socket that a plugin listens at: ours, or refused.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::lifeline;

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
