"""What a session tells its shell: one record per thing that happened."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .aead import Cipher
    from .frames import GoodbyeCode, Priority, ResetCode
    from .identity import NodeId, PublicKey


class NeedData(Enum):
    """The type of `NEED_DATA`."""

    NEED_DATA = "need data"


NEED_DATA: Final = NeedData.NEED_DATA


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """The handshake is complete and the peer proved its node id."""

    node_id: NodeId
    public_key: PublicKey
    cipher: Cipher


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """A whole request: answer with `Session.send_response`, or `Session.reset`. 0 ``remaining_ms`` is no deadline."""

    stream: int
    priority: Priority
    remaining_ms: int
    message: memoryview


@dataclass(frozen=True, slots=True)
class NoticeReceived:
    """A whole one-way message."""

    priority: Priority
    message: memoryview


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    """The whole answer to our request on ``stream``."""

    stream: int
    message: memoryview


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """Our request on ``stream`` gets no answer."""

    stream: int
    code: ResetCode
    is_local: bool  # this side ended it (its memory budget, an expired deadline), not the peer


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """Nobody waits for the answer to the peer's request on ``stream`` any more."""

    stream: int
    code: ResetCode


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The peer answered our ping with this token."""

    token: int


@dataclass(frozen=True, slots=True)
class GoodbyeReceived:
    """The peer opens nothing more and takes nothing new."""

    code: GoodbyeCode


@dataclass(frozen=True, slots=True)
class Ended:
    """The byte stream is at its end; ``is_clean`` if the peer had said goodbye."""

    is_clean: bool


Event = (
    SessionOpened
    | RequestReceived
    | NoticeReceived
    | ResponseReceived
    | RequestEnded
    | RequestCancelled
    | PongReceived
    | GoodbyeReceived
    | Ended
)
