"""The control socket: bound where no other daemon answers, accepted with credentials, drained at the end."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import structlog
import trio

from moed.daemon.errors import AlreadyRunning, SocketError
from moed.daemon.logs import Logs
from moed.daemon.places import MAX_SOCKET_PATH_BYTES

from .api import ControlPlane, ControlRefused, Desk, Services
from .connection import ClientGone, Connection, DrainGate
from .credentials import Access, AccessRules, Caller
from .dispatch import Dispatcher
from .metrics import ControlMetrics

logger = structlog.get_logger()

SOCKET_MODE = 0o666  # the caller's credentials decide, not the file's mode
BACKLOG = 64
MAX_CONNECTIONS = 64
# Others can never take the last places, nor one of them all places, so an administrator always gets in.
RESERVED_FOR_ADMIN = 8
MAX_CONNECTIONS_PER_UID = 16
MAX_REFUSALS = 32  # that wait for their callers to read them; they take no place, whoever makes them in whatever number


class ControlServer:
    """Local control of one node. `run` it in the nursery of doors."""

    def __init__(
        self,
        socket_path: Path,
        plane: ControlPlane,
        desk: Desk,
        logs: Logs,
        *,
        metrics: ControlMetrics | None = None,
        rules: AccessRules | None = None,
    ) -> None:
        """``metrics`` is given where other parts add theirs to its registry; ``rules`` default to this process's."""
        self._path = socket_path
        self._metrics = metrics or ControlMetrics()
        self._dispatcher = Dispatcher(Services(plane, desk, logs, self._metrics))
        self._rules = rules or AccessRules.of_this_process()
        self._gate = DrainGate()
        self._open = 0
        self._open_by_uid: Counter[int] = Counter()
        self._refusing = 0

    async def run(
        self, requests: trio.Nursery, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Bind, report started, accept until cancelled; each connection lives in ``requests``.

        On cancellation the socket is closed and removed, idle connections and log followers end at once, and
        running requests go on for as long as ``requests`` lets them. Raises `AlreadyRunning` or `SocketError`.
        """
        async with open_control_socket(self._path) as listener:
            try:
                task_status.started()
                await trio.serve_listeners(self._serve, [listener], handler_nursery=requests)
            finally:
                self._gate.drain()

    async def _serve(self, stream: trio.SocketStream) -> None:
        """One connection: the supervision point, where an unknown bug costs this connection and nothing else."""
        try:
            caller = Caller.of(stream.socket)
        except OSError:
            await trio.aclose_forcefully(stream)
            return
        access = self._rules.access_of(caller)
        connection = Connection(stream, caller, access, self._dispatcher, self._gate)
        try:
            if self._has_room(caller, access):
                with self._place(caller):
                    await connection.run()
            else:
                await self._refuse(connection)
        except* ClientGone:
            pass
        except* Exception as group:  # a bug here must not become a kill switch for the node
            logger.exception("connection.crashed", uid=caller.uid, exc_info=group)
        finally:
            await trio.aclose_forcefully(stream)

    @contextmanager
    def _place(self, caller: Caller) -> Iterator[None]:
        self._open += 1
        self._open_by_uid[caller.uid] += 1
        self._metrics.connection_opened()
        try:
            yield
        finally:
            self._open -= 1
            self._open_by_uid[caller.uid] -= 1
            self._metrics.connection_closed()

    async def _refuse(self, connection: Connection) -> None:
        self._refusing += 1
        try:
            await connection.refuse(
                ControlRefused(503, "too_many_connections", "the socket has no free place", "try again later"),
                lingers=self._refusing <= MAX_REFUSALS,
            )
        finally:
            self._refusing -= 1

    def _has_room(self, caller: Caller, access: Access) -> bool:
        if access is Access.ADMIN:
            return self._open < MAX_CONNECTIONS
        return (
            self._open < MAX_CONNECTIONS - RESERVED_FOR_ADMIN
            and self._open_by_uid[caller.uid] < MAX_CONNECTIONS_PER_UID
        )


@asynccontextmanager
async def open_control_socket(path: Path) -> AsyncIterator[trio.SocketListener]:
    """A listening socket at ``path``, mode 0666; removed at the end unless another daemon has replaced it.

    A socket that lies there is dialled first: if it answers, `AlreadyRunning`; if nobody holds it, it is removed.
    Raises `SocketError` where none can be made.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise SocketError(
            f"the socket path {path} is longer than {MAX_SOCKET_PATH_BYTES} bytes", "set a shorter socket under [node]"
        )
    try:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        _remove_dead_socket(path)
        bound, identity = _bind(path)
    except OSError as error:
        raise SocketError(
            f"cannot make the control socket {path}: {error.strerror}",
            "make its folder, owned by the daemon's user, or set another socket under [node]",
        ) from error
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(bound))
    try:
        yield listener
    finally:
        _remove_own_socket(path, identity)
        await trio.aclose_forcefully(listener)


def _remove_dead_socket(path: Path) -> None:
    """Make ``path`` free, or raise `AlreadyRunning` or `SocketError`."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketError(f"{path} is in the way and no socket", "move it, or set another socket under [node]")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as probe:
        code = probe.connect_ex(os.fspath(path))
    # A full backlog (EAGAIN) is somebody's backlog.
    if code in (0, errno.EAGAIN):
        raise AlreadyRunning(
            f"another daemon is running here: it answers on {path}", "stop it first, or choose another --home"
        )
    if code != errno.ECONNREFUSED:
        raise SocketError(
            f"{path} is in the way and cannot be dialled: {os.strerror(code)}", "remove it, or set another socket"
        )
    path.unlink()


def _bind(path: Path) -> tuple[socket.socket, tuple[int, int] | None]:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        bound.bind(os.fspath(path))
        path.chmod(SOCKET_MODE)  # before listen: nobody can connect under another mode
        bound.listen(BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound, _identity_of(path)


def _remove_own_socket(path: Path, identity: tuple[int, int] | None) -> None:
    if _identity_of(path) == identity:
        with suppress(
            OSError
        ):  # its folder may be gone or read-only by now; a dead socket is removed at the next start
            path.unlink()


def _identity_of(path: Path) -> tuple[int, int] | None:
    """Device and inode of what lies at ``path``."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
