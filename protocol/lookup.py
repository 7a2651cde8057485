"""One Kademlia look-up as a machine: which nodes to ask next, over which path, and when it is done.

Iterative look-up of Maymounkov and Mazières (Kademlia, 2002, section 2.3): ask the nearest known nodes for nearer
ones until the nearest have all answered. A search for values runs over several disjoint paths (Baumgart and Mies,
S/Kademlia, 2007, section 4.4): no node is asked by two of them, and what a node names is known to its own path
alone, so a liar leads astray only the path that met it. It never waits: the caller asks, and reports an answer, a
failure or a delay for each question.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from heapq import merge

from .identity import NodeId
from .queries import Contact

_MAX_UNHEARD_PER_ADDRESS = 3
"""A liar can name many ids at a victim's address: one from which nothing comes back is not asked more often."""
_MAX_ASKED_PER_K = 8
"""A look-up ends after this many times k questions, whatever it is still told to ask."""
_MAX_KNOWN_PER_K = 16
_FALSE_NAMES = 3
"""After so many named nodes failed and none answered, the other names of the same node count for nothing."""


class _State(Enum):
    NEW = auto()
    ASKED = auto()
    SLOW = auto()
    """Asked, and waited for long enough that another is asked beside it."""
    ANSWERED = auto()
    FAILED = auto()


@dataclass(slots=True)
class _Informant:
    """How far the names that a node gave were true."""

    failed: int = 0
    answered: int = 0

    @property
    def is_discredited(self) -> bool:
        return self.failed >= _FALSE_NAMES and not self.answered


@dataclass(slots=True)
class _Candidate:
    """A contact as one path knows it; ``hop`` 1 is our own table, each answer leads one further."""

    distance: int
    contact: Contact
    hop: int
    state: _State = _State.NEW
    informants: list[_Informant] = field(default_factory=list)
    is_ours: bool = False

    def __lt__(self, other: _Candidate) -> bool:
        return self.distance < other.distance

    @property
    def is_credible(self) -> bool:
        """Whether we know it ourselves, or somebody named it whose names are not all false."""
        return self.is_ours or self.state is not _State.NEW or not all(each.is_discredited for each in self.informants)


class _Path:
    """One of the disjoint paths: what it knows, nearest first."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.known: dict[NodeId, _Candidate] = {}
        self.order: list[_Candidate] = []
        self.in_flight = 0
        self.unheard_at: Counter[tuple[str, int]] = Counter()
        self.informants: dict[NodeId, _Informant] = {}

    def learn(self, candidate: _Candidate, informant: _Informant | None, max_known: int) -> None:
        node_id = candidate.contact.node_id
        held = self.known.get(node_id)
        if held is None:
            self.known[node_id] = held = candidate
            insort(self.order, candidate)
            if len(self.order) > max_known:
                self._forget_one()
        if informant is None:
            held.is_ours = True
        elif len(held.informants) < 4:
            held.informants.append(informant)

    def _forget_one(self) -> None:
        """Forget the farthest that was not asked, one of a discredited informant first."""
        for is_last_resort in (False, True):
            for index in range(len(self.order) - 1, -1, -1):
                each = self.order[index]
                if each.state is _State.NEW and (is_last_resort or not each.is_credible):
                    del self.order[index], self.known[each.contact.node_id]
                    return


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
        paths: int = 1,
        enough_values: int = 0,
        fewest_values: int = 0,
        spare: int = 0,
    ) -> None:
        """Start from ``starts``, dealt to the ``paths``; each path has ``alpha`` questions open while it closes in.

        Stop early once ``enough_values`` nodes have answered with a value (0: never), or ``fewest_values`` of them (if
        given) when the rest of the ``k`` nearest were all asked and are slow or failed. As many questions are open as
        values are still wanted, and ``spare`` more, so that the fastest decide. Several paths together confirm one and
        a half times ``k`` nodes, a single one ``k``.
        """
        self._target = int.from_bytes(target, "big")
        self._own_id = own_id
        self._k = k
        self._alpha = alpha
        self._enough_values = enough_values
        self._fewest_values = fewest_values or enough_values
        self._spare = spare
        if enough_values:
            self._alpha = -(-(enough_values + spare) // paths)
        self._max_asked = _MAX_ASKED_PER_K * k
        self._max_known = _MAX_KNOWN_PER_K * k
        width = k if paths == 1 else -(-3 * k // (2 * paths))
        self._paths = [_Path(width) for _ in range(paths)]
        self._asked_by: dict[NodeId, _Path] = {}
        self.values = 0
        """How many nodes have answered with a value."""
        self.value_hop = 0
        """The hop of the first answer with a value; 0 before it."""
        self._next_path = 0
        self._deal(starts, None, 1)

    @property
    def asked(self) -> int:
        """How many nodes have been asked so far."""
        return len(self._asked_by)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to ask or to wait for."""
        if self._enough_values and self.values >= self._enough_values:
            return True
        if self._enough_values and self.values >= self._fewest_values and self._is_rest_silent():
            return True
        if self.asked >= self._max_asked:
            return not any(path.in_flight for path in self._paths)
        return all(self._is_done(path) for path in self._paths)

    def next_queries(self) -> list[Contact]:
        """The contacts to ask now; they count as asked from here on.

        Each path asks ``alpha`` at a time while nearer nodes turn up. Once its next one is no nearer than what has
        answered, only confirmation is left: the rest of its shortlist at once. Once a value was met, as many in all
        as values are still wanted, and a few to spare.
        """
        chosen: list[Contact] = []
        if self.is_finished:
            return chosen
        is_progressing = True
        while is_progressing:
            is_progressing = False
            for path in self._paths:
                if self.asked < self._max_asked and (candidate := self._choose(path)) is not None:
                    self._start(path, candidate)
                    chosen.append(candidate.contact)
                    is_progressing = True
        return chosen

    def on_answer(self, contact: Contact, nearer: Iterable[Contact], *, has_value: bool = False) -> None:
        """``contact`` answered, naming ``nearer`` contacts, with or without a value."""
        path, candidate = self._settle(contact, _State.ANSWERED)
        path.unheard_at[contact.address] -= 1
        for informant in candidate.informants:
            informant.answered += 1
        if has_value:
            self.values += 1
            self.value_hop = self.value_hop or candidate.hop
        named = [each for each in nearer if each.node_id != self._own_id]
        informant = path.informants.setdefault(contact.node_id, _Informant())
        if any(not each.known for each in self._paths):
            # Too few starts to give each path one: what the first answers name is dealt out instead.
            self._deal(named, informant, candidate.hop + 1)
            return
        for each in named:
            self._learn(path, each, informant, candidate.hop + 1)

    def on_failure(self, contact: Contact, *, is_silent: bool = True) -> None:
        """``contact`` did not answer in time; or with nonsense, or somebody else did, and then it is not silent."""
        path, candidate = self._settle(contact, _State.FAILED)
        if not is_silent:
            path.unheard_at[contact.address] -= 1
        for informant in candidate.informants:
            informant.failed += 1

    def on_slow(self, contact: Contact) -> None:
        """``contact`` has not answered yet: ask another beside it. Its answer still counts."""
        path = self._asked_by[contact.node_id]
        candidate = path.known[contact.node_id]
        if candidate.state is _State.ASKED:
            candidate.state = _State.SLOW
            path.in_flight -= 1

    def nearest(self) -> list[Contact]:
        """The nearest nodes that answered, at most ``k``, nearest first."""
        answered = [
            candidate
            for node_id, path in self._asked_by.items()
            if (candidate := path.known[node_id]).state is _State.ANSWERED
        ]
        return [each.contact for each in sorted(answered)[: self._k]]

    def place_of(self, contact: Contact) -> tuple[int, int]:
        """(path, hop) of a contact that was asked: which path asked it, and how far it is from our own table."""
        path = self._asked_by[contact.node_id]
        return self._paths.index(path), path.known[contact.node_id].hop

    def _deal(self, contacts: Iterable[Contact], informant: _Informant | None, hop: int) -> None:
        ordered = sorted(contacts, key=lambda each: self._distance(each.node_id))
        for contact in ordered:
            if contact.node_id != self._own_id and not any(contact.node_id in each.known for each in self._paths):
                self._learn(self._paths[self._next_path], contact, informant, hop)
                self._next_path = (self._next_path + 1) % len(self._paths)

    def _learn(self, path: _Path, contact: Contact, informant: _Informant | None, hop: int) -> None:
        path.learn(_Candidate(self._distance(contact.node_id), contact, hop), informant, self._max_known)

    def _settle(self, contact: Contact, state: _State) -> tuple[_Path, _Candidate]:
        path = self._asked_by[contact.node_id]
        candidate = path.known[contact.node_id]
        if candidate.state is _State.ASKED:
            path.in_flight -= 1
        candidate.state = state
        return path, candidate

    def _start(self, path: _Path, candidate: _Candidate) -> None:
        candidate.state = _State.ASKED
        path.in_flight += 1
        path.unheard_at[candidate.contact.address] += 1
        self._asked_by[candidate.contact.node_id] = path

    def _choose(self, path: _Path) -> _Candidate | None:
        """The next contact that ``path`` may ask now."""
        new: _Candidate | None = None
        best: _Candidate | None = None
        for candidate in self._shortlist(path):
            if new is None and candidate.state is _State.NEW:
                new = candidate
            elif best is None and candidate.state is _State.ANSWERED:
                best = candidate
        if new is None:
            return None
        if self._enough_values:
            in_flight = sum(each.in_flight for each in self._paths)
            if in_flight >= self._enough_values - self.values + self._spare:
                return None
            if self.values:
                return new
        is_closing_in = best is None or new.distance < best.distance
        return new if path.in_flight < (self._alpha if is_closing_in else path.width) else None

    def _is_rest_silent(self) -> bool:
        """Whether the k nearest that any path knows, the failed ones too, were all asked and nobody is still awaited.

        Then who has not answered is dead, and the living ones have said what there is.
        """
        seen: set[NodeId] = set()
        for candidate in merge(*(path.order for path in self._paths)):
            node_id = candidate.contact.node_id
            if node_id in seen or not candidate.is_credible:
                continue
            asked_by = self._asked_by.get(node_id)
            if asked_by is None or asked_by.known[node_id].state is _State.ASKED:
                return False
            seen.add(node_id)
            if len(seen) == self._k:
                break
        return True

    def _is_done(self, path: _Path) -> bool:
        return all(each.state is _State.ANSWERED for each in self._shortlist(path))

    def _shortlist(self, path: _Path) -> Iterator[_Candidate]:
        """The nearest that ``path`` has asked or may ask, as many as it has to confirm."""
        left = path.width
        for candidate in path.order:
            if left == 0:
                return
            if candidate.state is _State.FAILED:
                continue
            if candidate.state is _State.NEW and not self._may_ask(path, candidate):
                continue
            left -= 1
            yield candidate

    def _may_ask(self, path: _Path, candidate: _Candidate) -> bool:
        contact = candidate.contact
        return (
            contact.node_id not in self._asked_by
            and path.unheard_at[contact.address] < _MAX_UNHEARD_PER_ADDRESS
            and candidate.is_credible
        )

    def _distance(self, node_id: bytes) -> int:
        return int.from_bytes(node_id, "big") ^ self._target
