"""Who calls, by what the kernel says of the socket's other end, and what that caller may do.

    root, and the user that the daemon runs as      ADMIN    may also change things
    members of the group ``moed``                   READER   may read and infer
    everybody else                                  NOBODY   is refused

The socket's mode is 0666, so that everybody else gets a clear answer in place of "permission denied".
"""

from __future__ import annotations

import grp
import os
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

import trio

READER_GROUP = "moed"

_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python's socket module does not name it
_GID_BYTES = 4
_MAX_GROUPS_BYTES = 1024  # the most that Python's getsockopt takes: 256 groups


class Access(IntEnum):
    """How much a caller may do; each includes those below it."""

    NOBODY = 0
    READER = 1
    ADMIN = 2


@dataclass(frozen=True, slots=True)
class Caller:
    """A process at the other end, as it was when it connected."""

    pid: int
    uid: int
    groups: frozenset[int]

    @classmethod
    def of(cls, connection: socket.socket | trio.socket.SocketType) -> Self:
        """The peer of a connected Unix stream socket. Raises `OSError` where the kernel does not know it.

        `SO_PEERCRED` has the primary group only, so the supplementary ones are asked for as well. Of a caller in
        more than 256 groups only the primary one counts.
        """
        packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, gid = _CREDENTIALS.unpack(packed)
        try:
            listed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS_BYTES)
        except OSError:
            listed = b""
        supplementary = struct.unpack(f"={len(listed) // _GID_BYTES}I", listed)
        return cls(pid, uid, frozenset({gid, *supplementary}))


@dataclass(frozen=True, slots=True)
class AccessRules:
    """Which uids and groups have which access on this machine."""

    daemon_uid: int
    reader_gid: int | None

    @classmethod
    def of_this_process(cls) -> Self:
        """The rules for a daemon running as this process. A machine without the group has no readers."""
        try:
            reader_gid = grp.getgrnam(READER_GROUP).gr_gid
        except KeyError:
            reader_gid = None
        return cls(os.geteuid(), reader_gid)

    def access_of(self, caller: Caller) -> Access:
        """What ``caller`` may do."""
        if caller.uid in (0, self.daemon_uid):
            return Access.ADMIN
        if self.reader_gid is not None and self.reader_gid in caller.groups:
            return Access.READER
        return Access.NOBODY
