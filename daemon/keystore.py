"""The work key on the disk: made once, read only where it is safe, held by one daemon at a time."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moed.protocol.identity import SEED_BYTES, Identity

from .errors import AlreadyRunning, KeyFileError
from .places import CONFIG_FILE


def create_identity(path: Path) -> Identity:
    """Draw a new key and write it to ``path``, mode 0600; an existing file is never replaced. Raises `KeyFileError`."""
    seed = secrets.token_bytes(SEED_BYTES)
    write_key_file(path, seed)
    return Identity(seed)


def write_key_file(path: Path, data: bytes) -> None:
    """Write a file with secrets, mode 0600; one that exists is never replaced.

    It appears under its name only when its bytes are on the disk, so a power cut leaves a whole key or none.
    Raises `KeyFileError`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_synced(temporary, data)
        try:
            os.link(temporary, path)  # unlike a rename, a link refuses a name that is taken
        finally:
            temporary.unlink()
        _sync_folder(path.parent)
    except FileExistsError:
        raise KeyFileError(
            f"{path} exists already", "keep it: a key that is gone is gone; or choose another place"
        ) from None
    except OSError as error:
        raise KeyFileError(
            f"cannot write {path}: {error.strerror}", "check the folder's owner and mode, and the disk"
        ) from error


def load_identity(path: Path) -> Identity:
    """Read the key at ``path``. Raises `KeyFileError` if it is missing, not ours, readable by others, or no key."""
    descriptor = _open_key(path)
    try:
        return _read_key(path, descriptor)
    finally:
        os.close(descriptor)


def load_seed(path: Path) -> bytes:
    """Read the secret itself, to seal a copy of it. Raises like `load_identity`."""
    descriptor = _open_key(path)
    try:
        return _read_seed(path, descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def hold_identity(path: Path) -> Iterator[Identity]:
    """Read the key at ``path`` and keep it locked while inside, so that one home runs one daemon.

    The lock goes with the process, however it ends. Raises `KeyFileError`, and `AlreadyRunning` where another
    process holds the key.
    """
    descriptor = _open_key(path)
    try:
        identity = _read_key(path, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"another daemon is running here: it holds {path}", "stop it first, or choose another --home"
            ) from None
        yield identity
    finally:
        os.close(descriptor)


def _remedy_of_no_key(home: Path) -> str:
    if not (home / CONFIG_FILE).exists():
        return f"make one with: moed init --home {home}"
    # `moed init` refuses a home that has a configuration
    return f"bring its copy back: moed keys restore COPY --home {home}; without one, moed init makes another home"


def _open_key(path: Path) -> int:
    try:
        # Without O_NONBLOCK a named pipe in the key's place would hang the start.
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise KeyFileError(f"there is no key {path}", _remedy_of_no_key(path.parent)) from None
    except OSError as error:
        raise KeyFileError(f"cannot read {path}: {error.strerror}", "check its owner and mode") from error


def _read_key(path: Path, descriptor: int) -> Identity:
    return Identity(_read_seed(path, descriptor))


def _read_seed(path: Path, descriptor: int) -> bytes:
    """Check the opened file itself, not its name, so that nothing can be swapped in between."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise KeyFileError(f"{path} is not a file", "put the key file there, or make one with: moed init")
    if found.st_uid != os.geteuid():
        raise KeyFileError(
            f"{path} belongs to uid {found.st_uid}, and this process runs as uid {os.geteuid()}",
            f"run as that user, or: chown {os.geteuid()} {path}",
        )
    if found.st_mode & 0o077:
        raise KeyFileError(
            f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, so others can reach this node's key",
            f"chmod 600 {path}, and make a new key if a stranger may have read it",
        )
    seed = os.read(descriptor, SEED_BYTES + 1)
    if len(seed) != SEED_BYTES or found.st_size != SEED_BYTES:
        raise KeyFileError(
            f"{path} holds {found.st_size} bytes, and a key is {SEED_BYTES}", "restore the key from your copy of it"
        )
    return seed


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
