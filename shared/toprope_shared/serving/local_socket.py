"""The Unix socket beside the port: taken safely, and gone again at the end.

Who may connect is who may write to the file: owner and group. A file that a killed process left behind is replaced, one behind
which somebody listens is not.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from toprope_shared.errors import InputError

# Source: unix(7), sun_path has 108 bytes with the 0 at its end. macOS has 4 less.
MAX_PATH_BYTES = 107
MODE = 0o660
CONNECT_S = 1.0
BACKLOG = 1024


def fits(path: Path) -> bool:
    """Say whether a path is short enough for a socket."""
    return len(os.fsencode(path)) <= MAX_PATH_BYTES


@contextlib.contextmanager
def unix_socket(path: Path, mode: int = MODE) -> Iterator[socket.socket]:
    """Listen at `path`, and remove the file at the end.

    Args:
        path: a file that does not exist, or a socket at which nobody listens; its folder must exist.
        mode: permissions of the file; it never has more, not for a moment.

    Raises:
        InputError: the path is too long, somebody listens there, something else lies there, or it can't be written.
    """
    if not fits(path):
        raise InputError(
            f"the socket's path {path} has {len(os.fsencode(path))} bytes, and the system allows {MAX_PATH_BYTES}; "
            'choose a shorter one with the setting socket, or switch it off with socket = "none"'
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made = _bind(sock, path, mode)
    except OSError as error:
        sock.close()
        raise InputError(
            f"can't listen at {path}: {error.strerror or error}; choose another file with the setting socket"
        ) from error
    except InputError:
        sock.close()
        raise
    try:
        yield sock
    finally:
        sock.close()
        _remove(path, made)


def _bind(sock: socket.socket, path: Path, mode: int) -> os.stat_result:
    _clear(path)
    with contextlib.suppress(OSError):  # only Linux gives the file the socket's mode; elsewhere the umask is the guard
        os.fchmod(sock.fileno(), 0o600)
    sock.bind(str(path))
    path.chmod(mode)
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return path.lstat()


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens at."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise InputError(f"{path} exists and is not a socket; move it away, or choose another file with the setting socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except TimeoutError:  # its queue is full, so somebody has it
            pass
    raise InputError(f"another program listens at {path}; stop it, or choose another file with the setting socket")


def _remove(path: Path, made: os.stat_result) -> None:
    """Remove the file that was made here, and not another one that took its place."""
    with contextlib.suppress(FileNotFoundError):
        now = path.lstat()
        if (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino):
            path.unlink()
