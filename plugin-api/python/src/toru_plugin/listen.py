"""Where a plugin listens: a socket that is private from its first moment and takes nobody else's place.

Source: PROTOCOL.md, "The process".
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import Final

SOCKET_PATH_BYTES_MAX: Final = 107
"""`sun_path` has 108 bytes with its final zero."""

FALLBACK_DIRECTORY: Final = "/tmp/toru-plugins"


def bind(path: str) -> socket.socket:
    """A listening socket at `path`, 0600 from its first moment.

    A socket file that nobody answers on is removed first; anything else there is left alone.
    Errors: OSError with the reason.
    """
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise OSError(f"the path has more than {SOCKET_PATH_BYTES_MAX} bytes")
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISSOCK(mode):
            raise OSError("something that is no socket is there")
        _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.setblocking(False)
    return listener


def _remove_stale(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # A full backlog: somebody is there.
    raise OSError("another process is listening there")


def make_private_directory(path: str) -> None:
    """A directory of this user's with mode 0700 at `path`. Errors: OSError, something else is there."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise OSError(f"{path} is not a directory of this user")
