"""What can go wrong between a corpus, an expert, its answers and the queue, and what to do about it.

The tree:

    ModelError
    ├── CorpusUnavailable           the text to learn from is not on this machine: name other files
    ├── ModelRefused                a configuration names a model that cannot be built: correct it
    ├── ExpertError                 an expert that was built does not do its work
    │   ├── ShapeMismatch           tokens or answers of the wrong shape, type or length
    │   ├── ExpertFailed            the model's own code or the device gave up on one batch
    │   │   └── OutOfMemory         the batch does not fit the device: run it in parts
    │   ├── TrainingDiverged        the loss stayed infinite or not a number: training stops
    │   └── CheckpointCorrupt       a stored model is not what was written: set it aside
    ├── InvalidAnswer               a miner's answer that counts as no answer
    │   ├── PeekedAhead             the answer knew a byte that it had to predict
    │   └── CopiedAnswer            the answer is another miner's
    ├── NoAnswer                    one expert on another node gave none; it says why
    ├── RowsUnanswered              some rows of a batch got fewer answers than asked for; it says which
    ├── NotEnoughAnswers            too few answers came back to compute what was asked
    └── RequestRefused              the queue does not take, or no longer keeps, a request
        ├── QueueFull               too much is waiting already: back off
        ├── RequestTooLarge         more rows or longer rows than the expert takes: send less
        ├── UnknownExpert           no expert of that name is served here
        ├── NoBackward              the expert gives no gradients, or none to this caller now
        ├── DeadlinePassed          nobody waits for the answer any more
        └── Stopping                the device worker ends; ask another miner
"""

from __future__ import annotations

from collections.abc import Sequence


class ModelError(Exception):
    """Base of everything that this layer raises.

    ``code`` is the short stable name that travels in a refusal and stands in logs and counters.
    """

    code = "model_error"


class CorpusUnavailable(ModelError):
    """The text of a domain is missing or too small; the message names the domain and the remedy."""

    code = "corpus_unavailable"

    def __init__(self, domain: str, why: str, remedy: str) -> None:
        super().__init__(f"no text for domain {domain!r}: {why}; {remedy}")
        self.domain = domain


class ModelRefused(ModelError):
    """A model's configuration cannot be built; the message names the field and what it may be."""

    code = "model_refused"


class ExpertError(ModelError):
    """Base of what goes wrong inside one expert; other experts are not touched by it."""

    code = "expert_error"


class ShapeMismatch(ExpertError):
    """Tokens or answers are not of the shape, type or length that the encoding asks for."""

    code = "shape_mismatch"


class ExpertFailed(ExpertError):
    """The model's own code, or its device, gave up on one batch; the expert stays up."""

    code = "expert_failed"


class OutOfMemory(ExpertFailed):
    """A batch does not fit what memory its device has left; a smaller one may."""

    code = "out_of_memory"


class TrainingDiverged(ExpertError):
    """The loss or its gradient stayed not finite; training stops, serving goes on with the last average."""

    code = "training_diverged"


class CheckpointCorrupt(ExpertError):
    """A stored model fails its checks; nothing of it was used. Set the file aside and start anew."""

    code = "checkpoint_corrupt"


class InvalidAnswer(ModelError):
    """A miner's answer is not what the encoding promises; it counts as no answer."""

    code = "invalid_answer"


class PeekedAhead(InvalidAnswer):
    """An answer gave a planted false byte a chance that only a model that had read it would give."""

    code = "peeked_ahead"


class CopiedAnswer(InvalidAnswer):
    """A miner answers on canaries as one that was there before it does."""

    code = "copied_answer"


class NoAnswer(ModelError):
    """One expert on another node gave no answer; ``code`` is the network's or that node's own name for why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RowsUnanswered(ModelError):
    """Some rows of a batch got too few answers: ``rows`` are their indexes, ``reasons`` the causes."""

    code = "rows_unanswered"

    def __init__(self, rows: Sequence[int], reasons: Sequence[NoAnswer]) -> None:
        causes = "; ".join(sorted({f"{one.code}: {one}" for one in reasons})) or "no expert is reachable"
        super().__init__(f"{len(rows)} rows have too few answers ({causes})")
        self.rows = tuple(rows)
        self.reasons = tuple(reasons)


class NotEnoughAnswers(ModelError):
    """Too few valid answers came back to compute what was asked; ask again."""

    code = "not_enough_answers"


class RequestRefused(ModelError):
    """Base of the refusals of the queue; nothing was computed."""

    code = "request_refused"


class QueueFull(RequestRefused):
    """A bound of the queue is reached, for everybody or for this caller; back off."""

    code = "queue_full"


class RequestTooLarge(RequestRefused):
    """One request has more rows, or longer rows, than the expert takes; send less."""

    code = "request_too_large"


class UnknownExpert(RequestRefused):
    """No expert of that name is served here; look it up again."""

    code = "unknown_expert"


class NoBackward(RequestRefused):
    """The expert gives no gradients, or none to this caller, or none more for the moment."""

    code = "no_backward"


class DeadlinePassed(RequestRefused):
    """The caller's deadline came before the answer; the work was dropped."""

    code = "deadline_passed"


class Stopping(RequestRefused):
    """The device worker is ending, so nothing more is served here; ask another miner."""

    code = "stopping"
