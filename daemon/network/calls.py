"""What crosses between the network and the rest of the daemon: a call that came in, the reply that goes out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from moed.protocol.tensors import Codec

if TYPE_CHECKING:
    from moed.protocol.messages import Announced
    from moed.protocol.receipts import CallReceipt
    from moed.protocol.tensors import Array, WireTensor

    from .peer import Peer


SMALL_ANSWER_BYTES = 64 << 10
"""More than any answer without tensors or blocks takes, a refusal in words included."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request or notice of ``peer``, decoded.

    ``tensors`` are views over the received message where that is possible; ``wire_tensors`` describe how they came
    (dtype, shape, codec). ``deadline`` is on `trio.current_time`, infinite for a notice: after it nobody waits.
    """

    peer: Peer
    method: str
    body: Any
    tensors: tuple[Array, ...]
    wire_tensors: tuple[WireTensor, ...]
    deadline: float


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a call. A handler may ask for a ``codec`` that shortens its float tensors on the wire.

    The tensors' memory is read while they are sent: do not change it afterwards.
    """

    body: Any = None
    tensors: Sequence[Array] = ()
    codec: Codec = Codec.NONE


class Receipts(Protocol):
    """Where both sides' view of each call goes, to become a receipt; neither method waits."""

    def served(self, peer: Peer, call: CallReceipt) -> None:
        """A call of ``peer`` whose answer is on its way."""

    def answered(self, peer: Peer, call: CallReceipt) -> None:
        """An answer of ``peer``; ``served_us`` is the whole time that it took."""


class Refused(Exception):
    """Raised by a handler that will not answer; the caller gets `RemoteRefusal` with the same words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


Handler = Callable[[Call], Awaitable[Reply | None]]
Screen = Callable[["Announced"], None]


@dataclass(frozen=True, slots=True)
class Method:
    """A handler with what the network should know of it.

    ``screen`` refuses (`Refused` or a `RemoteProtocolError`) a large request by its first bytes, before there is
    memory for it. ``at_once`` is tried before the handler, where the message is read: it answers without waiting, or
    gives None for what needs the handler. ``is_receipted``: both sides sign a receipt for each call.
    """

    handler: Handler
    screen: Screen | None = None
    at_once: Callable[[Call], Reply | None] | None = None
    is_receipted: bool = False
