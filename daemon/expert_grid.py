"""Experts on a grid, as the DHT knows them: what their server announces, and who lives below a prefix.

A server of ``ffn.3.7`` enters itself under the topic of each prefix that leads there (``ffn.3.``), and its entry's note
is the set of coordinates that it serves right below, a bit each. So one look-up of a prefix tells which of its children
live and who serves them. The empty prefix of a grid of several dimensions has no topic: one set of the DHT holds few
owners, and a search knows the best first coordinates anyway.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from moed.models.beam import split_name, steps_to
from moed.protocol.identity import NodeId
from moed.protocol.records import MAX_NOTE_BYTES, MAX_TOPIC_CHARS, TopicEntry

REMEMBER_S = 20.0
"""How long an answer about a prefix is used. A new expert may stay unknown for so long; one that has gone is left out
sooner, by those who ask it in vain."""
MAX_COORDINATE = MAX_NOTE_BYTES * 8 - 1
MAX_REMEMBERED = 4096
_TOPIC, _NAMED = "grid:", "expert:"

FindTopic = Callable[[str], Awaitable[list[TopicEntry]]]


def grid_topics(names: Collection[str]) -> dict[str, bytes]:
    """What a server of these experts announces: a note for each topic. A name that ends in no number has no place on a
    grid, and a topic of its own with an empty note.

    Raises `ValueError` for what cannot be announced.
    """
    children: dict[str, set[int]] = {}
    plain: dict[str, bytes] = {}
    for name in names:
        split = split_name(name)
        if split is None:
            if len(_NAMED + name) > MAX_TOPIC_CHARS:
                raise ValueError(f"{name!r} is too long to be announced: {MAX_TOPIC_CHARS - len(_NAMED)} characters")
            plain[_NAMED + name] = b""
        for prefix, child in steps_to(name):
            if child > MAX_COORDINATE or len(_TOPIC + prefix) > MAX_TOPIC_CHARS:
                raise ValueError(f"{name!r} cannot stand on a grid: coordinates go to {MAX_COORDINATE}")
            if split is not None and (prefix != split[0] or len(split[1]) == 1):
                children.setdefault(prefix, set()).add(child)
    return plain | {_TOPIC + prefix: _note(those) for prefix, those in children.items()}


def _note(children: Collection[int]) -> bytes:
    bits = sum(1 << child for child in children)
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def _children(note: bytes) -> frozenset[int]:
    bits = int.from_bytes(note, "little")
    return frozenset(child for child in range(bits.bit_length()) if bits >> child & 1)


@dataclass(slots=True)
class _Known:
    read_at_s: float
    owners: dict[int, list[NodeId]] = field(default_factory=dict)


class GridDirectory:
    """Who lives below which prefix, asked of the DHT through ``find_topic`` and remembered for a while."""

    def __init__(self, find_topic: FindTopic, *, is_out: Callable[[NodeId], bool] = lambda _owner: False) -> None:
        """``is_out`` says of a server that it does not answer now."""
        self._find_topic = find_topic
        self._is_out = is_out
        self._known: dict[str, _Known] = {}

    async def live(self, prefixes: Collection[str]) -> Mapping[str, Collection[int]]:
        """The coordinates below each prefix that have a server; prefixes that are not remembered are asked at once."""
        known = await self._read_all(prefixes)
        return {
            prefix: [
                child for child, owners in known[prefix].owners.items() if not all(self._is_out(one) for one in owners)
            ]
            for prefix in prefixes
        }

    async def find(self, experts: Collection[str]) -> None:
        """Learn who serves these experts, as `owners` tells then; what is not remembered is asked at once."""
        await self._read_all({_shelf(one)[0] for one in experts})

    def owners(self, expert: str) -> Sequence[NodeId]:
        """Who serves an expert, as far as its prefix, or its name where that is no place, is remembered."""
        shelf, child = _shelf(expert)
        known = self._known.get(shelf)
        return known.owners.get(child, []) if known is not None else []

    async def _read_all(self, shelves: Collection[str]) -> Mapping[str, _Known]:
        """What is known of each: held here meanwhile, because what is read may push what is remembered out."""
        now_s = trio.current_time()
        known = {one: self._known[one] for one in shelves if one in self._known}
        known = {one: found for one, found in known.items() if found.read_at_s + REMEMBER_S >= now_s}

        async def read(shelf: str) -> None:
            known[shelf] = await self._read(shelf)

        async with trio.open_nursery() as nursery:
            for shelf in set(shelves) - set(known):
                nursery.start_soon(read, shelf)
        return known

    async def _read(self, shelf: str) -> _Known:
        is_prefix = shelf.endswith(".")
        entries = await self._find_topic((_TOPIC if is_prefix else _NAMED) + shelf)
        known = _Known(trio.current_time())
        for entry in entries:
            for child in _children(entry.note) if is_prefix else (0,):
                known.owners.setdefault(child, []).append(entry.node_id)
        self._known.pop(shelf, None)
        if len(self._known) >= MAX_REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[shelf] = known
        return known


def _shelf(expert: str) -> tuple[str, int]:
    """Where an expert is announced: the prefix before its last coordinate and that, or its name alone and 0."""
    prefix, dot, child = expert.rpartition(".")
    return (prefix + dot, int(child)) if split_name(expert) is not None else (expert, 0)
