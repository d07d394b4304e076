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
