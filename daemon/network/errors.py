"""What can come of asking a peer, in types that say whether to try again, elsewhere, or not at all.

The tree:

    CallError
    ├── DialFailed              no session: nobody there, not the one expected, another network, or too slow
    ├── PeerLost                the session ended first; whether the peer did the work is not known
    │   └── PeerLeaving         the peer starts nothing new: it did none of the work, asking elsewhere is safe
    ├── DeadlineExceeded        the time that was given is over; the peer was told to stop
    ├── RemoteRefusal           the peer answered that it will not, with a code and a reason
    ├── Overloaded              this node has no room for the answer now
    ├── AnswerTooLarge          the peer answers with more than the call takes; none of it was kept
    └── RequestTooLarge         the peer takes no message of this length; nothing was sent
"""

from __future__ import annotations


class CallError(Exception):
    """Base of every way in which a peer does not answer."""


class DialFailed(CallError):
    """No session came of it. ``code`` is a short stable name for logs and tests."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class PeerLost(CallError):
    """The session is over; connect again or ask another."""


class PeerLeaving(PeerLost):
    """The session takes nothing new any more; the peer has not begun this call."""


class DeadlineExceeded(CallError):
    """No answer within the time that was given."""


class RemoteRefusal(CallError):
    """The peer's own refusal: ``code`` for programs, ``message`` for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Overloaded(CallError):
    """The answer came, but the memory for incoming messages is taken; ask for less at once."""


class AnswerTooLarge(CallError):
    """The peer began an answer longer than the caller's ``max_answer_bytes``; ask another peer, this one is not honest
    or speaks another version."""


class RequestTooLarge(CallError):
    """The request exceeds what the peer announced that it takes; send less."""
