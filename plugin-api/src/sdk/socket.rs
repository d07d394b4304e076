//! The plugin's socket file: where it is, how it comes to be, how it goes.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;

/// Where a plugin that is run by hand listens.
const SOCKET_DIR: &str = "/tmp/toru-plugins";

/// `sun_path` has 108 bytes and wants a NUL at its end.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The path from the core, or by hand one in [`SOCKET_DIR`], which is made if need be.
pub(super) fn path(id: &str) -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("TORU_PLUGIN_SOCKET").filter(|path| !path.is_empty()) {
        return Ok(PathBuf::from(path));
    }
    let refuse = |reason: &str| Err(format!("{SOCKET_DIR}: {reason}"));
    match fs::DirBuilder::new().mode(0o700).create(SOCKET_DIR) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            // /tmp belongs to everybody: somebody may have put something there to catch our socket.
            let found = fs::symlink_metadata(SOCKET_DIR).map_err(|error| format!("{SOCKET_DIR}: {error}"))?;
            if !found.is_dir() {
                return refuse("is not a directory");
            }
            if found.uid() != rustix::process::geteuid().as_raw() {
                return refuse("belongs to another user; set TORU_PLUGIN_SOCKET");
            }
        }
        Err(error) => return refuse(&error.to_string()),
    }
    Ok(Path::new(SOCKET_DIR).join(format!("{id}.sock")))
}

/// Binds the socket, 0600 from its first moment, in place of one on which nobody answers.
///
/// Must run before the process has a second thread: the umask is the whole process's.
pub(super) fn bind(path: &Path) -> Result<(UnixListener, Bound), String> {
    let failed = |reason: &dyn std::fmt::Display| format!("failed to listen on {}: {reason}", path.display());
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        let length = path.as_os_str().len();
        return Err(failed(&format!("the path has {length} bytes, the limit is {SOCKET_PATH_BYTES_MAX}")));
    }
    match fs::symlink_metadata(path) {
        Err(_) => {}
        Ok(found) if !found.file_type().is_socket() => {
            return Err(failed(&"something that is no socket is in its place"));
        }
        Ok(_) => {
            if UnixStream::connect(path).is_ok() {
                return Err(failed(&"another process listens there"));
            }
            fs::remove_file(path).map_err(|error| failed(&error))?;
        }
    }
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener.map_err(|error| failed(&error))?;
    let metadata = fs::symlink_metadata(path).map_err(|error| failed(&error))?;
    let bound = Bound { path: path.to_owned(), file: (metadata.dev(), metadata.ino()) };
    Ok((listener, bound))
}

/// Removes the socket file when dropped, unless another one has taken its place.
#[derive(Debug)]
pub(super) struct Bound {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Ok(found) = fs::symlink_metadata(&self.path)
            && (found.dev(), found.ino()) == self.file
        {
            // It may be gone in between; either way it is not there any more.
            let _ = fs::remove_file(&self.path);
        }
    }
}
