"""The look-up machine against brute force: over random networks, with dead nodes, and with liars."""

from __future__ import annotations

import random
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moed.protocol.identity import NodeId
from moed.protocol.lookup import Lookup
from moed.protocol.queries import Contact

K = 8
ALPHA = 3


def contact(number: int) -> Contact:
    node_id = NodeId(blake2b(number.to_bytes(8, "big"), digest_size=20).digest())
    return Contact(node_id, f"10.0.{number // 250}.{number % 250}", 9000)


def distance(one: bytes, other: bytes) -> int:
    return int.from_bytes(one, "big") ^ int.from_bytes(other, "big")


def nearest(contacts: list[Contact], target: bytes, count: int) -> list[Contact]:
    return sorted(contacts, key=lambda each: distance(each.node_id, target))[:count]


def tables(nodes: list[Contact], rng: random.Random) -> dict[NodeId, list[Contact]]:
    """What each node knows: up to K contacts in each distance range from itself, as full k-buckets would hold."""
    known = {}
    for node in nodes:
        ranges: dict[int, list[Contact]] = {}
        for other in rng.sample(nodes, len(nodes)):
            if other is not node:
                ranges.setdefault(distance(node.node_id, other.node_id).bit_length(), []).append(other)
        known[node.node_id] = [each for bucket in ranges.values() for each in bucket[:K]]
    return known


def run(
    lookup: Lookup, answer: dict[NodeId, list[Contact]], target: bytes, dead: set[NodeId], rng: random.Random
) -> int:
    """Drive ``lookup`` with answers in random order; returns the most questions that were open at once."""
    open_questions: list[Contact] = []
    most = 0
    for _ in range(10_000):
        open_questions += lookup.next_queries()
        most = max(most, len(open_questions))
        if lookup.is_finished:
            return most
        assert open_questions, "neither finished nor asking"
        asked = open_questions.pop(rng.randrange(len(open_questions)))
        if asked.node_id in dead:
            lookup.on_failure(asked)
        else:
            lookup.on_answer(asked, nearest(answer[asked.node_id], target, K))
    pytest.fail("the look-up does not end")


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(2, 150), st.sampled_from([0.0, 0.3]))
def test_it_finds_the_k_nearest_that_live(seed: int, size: int, dead_share: float) -> None:
    """The result is exactly the k nearest living nodes, whichever order answers come in."""
    rng = random.Random(seed)
    nodes = [contact(number) for number in range(size)]
    known = tables(nodes, rng)
    target = rng.randbytes(20)
    dead = {node.node_id for node in rng.sample(nodes[1:], int(dead_share * (size - 1)))}
    living = [node for node in nodes if node.node_id not in dead]
    lookup = Lookup(target, b"self" * 5, [nodes[0]], k=K, alpha=ALPHA)
    assert run(lookup, known, target, dead, rng) <= K
    found = lookup.nearest()
    assert found == nearest(found, target, K)
    if not dead:
        assert found == nearest(living, target, K)
    else:  # a dead node may have been the only one that knew another
        expected = nearest(living, target, K)
        assert len(set(found) & set(expected)) >= len(expected) * 0.7
    assert lookup.asked <= size


def test_it_stops_at_enough_values_and_asks_few_at_once() -> None:
    """A search for values ends with the third and never has more than alpha questions open."""
    nodes = [contact(number) for number in range(40)]
    target = bytes(20)
    lookup = Lookup(target, b"self" * 5, nodes[:20], k=K, alpha=ALPHA, enough_values=3)
    answered = 0
    while not lookup.is_finished:
        batch = lookup.next_queries()
        assert 0 < len(batch) <= ALPHA
        for each in batch:
            if not lookup.is_finished:
                lookup.on_answer(each, nodes, has_value=True)
                answered += 1
    assert answered == 3
    assert lookup.next_queries() == []


def test_nothing_to_ask_is_finished_at_once() -> None:
    """Without contacts, or with ourselves only, there is nothing to wait for."""
    own = contact(0)
    for starts in ([], [own]):
        lookup = Lookup(bytes(20), own.node_id, starts, k=K, alpha=ALPHA)
        assert lookup.is_finished
        assert lookup.next_queries() == []
        assert lookup.nearest() == []


def test_a_liar_cannot_aim_the_questions_at_one_address_nor_fill_memory() -> None:
    """Of many invented ids at one address at most three are asked, and far ones are forgotten."""
    liar = contact(0)
    lookup = Lookup(bytes(20), b"self" * 5, [liar], k=K, alpha=ALPHA)
    assert lookup.next_queries() == [liar]
    invented = [Contact(NodeId(number.to_bytes(20, "big")), "192.0.2.66", 53) for number in range(1, 1000)]
    lookup.on_answer(liar, invented)
    victims = 0
    while not lookup.is_finished:
        for each in lookup.next_queries():
            victims += 1
            lookup.on_failure(each)
    assert victims == 3
    flooded = Lookup(bytes(20), b"self" * 5, [contact(number) for number in range(5000)], k=K, alpha=ALPHA)
    assert len(flooded._paths[0].known) == len(flooded._paths[0].order) == 16 * K
