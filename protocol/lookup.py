"""One Kademlia look-up as a machine: which nodes to ask next, and when it is done.

Iterative look-up of Maymounkov and Mazières (Kademlia, 2002, section 2.3): ask the nearest known nodes for nearer
ones, ``alpha`` at a time, until the ``k`` nearest have all answered. It never waits: the caller asks, and reports
an answer or a failure for each question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Enum, auto

from .identity import NodeId
from .queries import Contact

_MAX_IDS_PER_ADDRESS = 3
"""A liar can name many ids at a victim's address; honest nodes give at most an old and a new one."""


class _State(Enum):
    NEW = auto()
    ASKED = auto()
    ANSWERED = auto()
    FAILED = auto()


class Lookup:
    """The search for the ``k`` nodes nearest to ``target``, or for enough nodes that hold a value there."""

    def __init__(
        self,
        target: bytes,
        own_id: bytes,
        starts: Iterable[Contact],
        *,
        k: int,
        alpha: int,
        enough_values: int = 0,
    ) -> None:
        """Start from ``starts``; stop early once ``enough_values`` nodes have answered with a value (0: never)."""
        self._target = int.from_bytes(target, "big")
        self._own_id = own_id
        self._k = k
        self._alpha = alpha
        self._enough_values = enough_values
        self._values = 0
        self._contacts: dict[NodeId, Contact] = {}
        self._states: dict[NodeId, _State] = {}
        self._ids_at: Counter[tuple[str, int]] = Counter()
        self.asked = 0
        """How many nodes have been asked so far."""
        self._add(starts)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to ask or to wait for."""
        if self._enough_values and self._values >= self._enough_values:
            return True
        return all(self._states[each] is _State.ANSWERED for each in self._shortlist())

    def next_queries(self) -> list[Contact]:
        """The contacts to ask now; they count as asked from here on.

        ``alpha`` at a time while nearer nodes turn up. Once the next one is no nearer than what has answered, only
        confirmation is left: the rest of the shortlist at once, unless a few values will do.
        """
        if self.is_finished:
            return []
        shortlist = self._shortlist()
        new = [each for each in shortlist if self._states[each] is _State.NEW]
        in_flight = sum(state is _State.ASKED for state in self._states.values())
        best = next((each for each in shortlist if self._states[each] is _State.ANSWERED), None)
        is_closing_in = bool(new) and (best is None or self._distance(new[0]) < self._distance(best))
        width = self._alpha if is_closing_in else self._k
        if self._enough_values:
            # One more than is still needed, in case one of them is dead.
            width = min(self._alpha, self._enough_values - self._values + 1)
        room = width - in_flight
        chosen = new[: max(room, 0)]
        for each in chosen:
            self._states[each] = _State.ASKED
        self.asked += len(chosen)
        return [self._contacts[each] for each in chosen]

    def on_answer(self, contact: Contact, nearer: Iterable[Contact], *, has_value: bool = False) -> None:
        """``contact`` answered, naming ``nearer`` contacts, with or without a value."""
        self._states[contact.node_id] = _State.ANSWERED
        self._values += has_value
        self._add(nearer)

    def on_failure(self, contact: Contact) -> None:
        """``contact`` did not answer in time, or with nonsense."""
        self._states[contact.node_id] = _State.FAILED

    def nearest(self) -> list[Contact]:
        """The nearest nodes that answered, at most ``k``, nearest first."""
        answered = [each for each, state in self._states.items() if state is _State.ANSWERED]
        return [self._contacts[each] for each in sorted(answered, key=self._distance)[: self._k]]

    def _add(self, contacts: Iterable[Contact]) -> None:
        for contact in contacts:
            if contact.node_id in self._states or contact.node_id == self._own_id:
                continue
            if self._ids_at[contact.address] >= _MAX_IDS_PER_ADDRESS:
                continue
            self._ids_at[contact.address] += 1
            self._contacts[contact.node_id] = contact
            self._states[contact.node_id] = _State.NEW
        self._prune()

    def _prune(self) -> None:
        """Forget new contacts too far to be asked, so that long answers cannot fill memory."""
        new = [each for each, state in self._states.items() if state is _State.NEW]
        for each in sorted(new, key=self._distance)[4 * self._k :]:
            self._ids_at[self._contacts[each].address] -= 1
            del self._states[each], self._contacts[each]

    def _shortlist(self) -> list[NodeId]:
        live = [each for each, state in self._states.items() if state is not _State.FAILED]
        return sorted(live, key=self._distance)[: self._k]

    def _distance(self, node_id: bytes) -> int:
        return int.from_bytes(node_id, "big") ^ self._target
