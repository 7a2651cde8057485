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


def test_paths_ask_nobody_twice_and_share_no_rumour() -> None:
    """Three paths never ask one node twice, and what a node names is asked by the path that met it alone."""
    nodes = [contact(number) for number in range(200)]
    rng = random.Random(5)
    known = tables(nodes, rng)
    target = rng.randbytes(20)
    lookup = Lookup(target, b"self" * 5, nearest(nodes[:60], target, K), k=K, alpha=ALPHA, paths=3)
    asked: list[Contact] = []
    open_questions: list[Contact] = []
    named_by_path: dict[int, set[NodeId]] = {path: set() for path in range(3)}
    starts = {each.node_id for each in nearest(nodes[:60], target, K)}
    while not lookup.is_finished:
        new = lookup.next_queries()
        for each in new:
            path, hop = lookup.place_of(each)
            assert hop == 1 or each.node_id in named_by_path[path]
            assert (hop == 1) == (each.node_id in starts)
        asked += new
        open_questions += new
        current = open_questions.pop(rng.randrange(len(open_questions)))
        answer = nearest(known[current.node_id], target, K)
        named_by_path[lookup.place_of(current)[0]] |= {each.node_id for each in answer}
        lookup.on_answer(current, answer)
    assert len({each.node_id for each in asked}) == len(asked)
    assert lookup.nearest()[0] == nearest(nodes, target, 1)[0]
    assert len(asked) >= 3 * (3 * K // 6)


@settings(max_examples=25)
@given(st.integers(0, 2**32))
def test_one_liar_on_the_way_hides_no_value(seed: int) -> None:
    """A liar among the starts that names a hundred false nodes at the target keeps nobody from the values."""
    rng = random.Random(seed)
    nodes = [contact(number) for number in range(150)]
    known = tables(nodes, rng)
    target = rng.randbytes(20)
    holders = {each.node_id for each in nearest(nodes, target, K)}
    starts = rng.sample([each for each in nodes if each.node_id not in holders], 6)
    liar = nearest(starts, target, 1)[0]
    false = [
        Contact(NodeId((int.from_bytes(target, "big") ^ number).to_bytes(20, "big")), f"192.0.2.{number}", 53)
        for number in range(1, 101)
    ]
    lookup = Lookup(target, b"self" * 5, starts, k=K, alpha=ALPHA, paths=3, enough_values=K // 2 + 1)
    open_questions: list[Contact] = []
    while not lookup.is_finished:
        open_questions += lookup.next_queries()
        current = open_questions.pop(rng.randrange(len(open_questions)))
        if current == liar:
            lookup.on_answer(current, false)
        elif current in false:
            lookup.on_failure(current)
        else:
            answer = nearest(known[current.node_id], target, K)
            lookup.on_answer(current, answer, has_value=current.node_id in holders)
    assert lookup.values == K // 2 + 1
    # no more than it takes to see that the liar's names are false
    assert lookup.asked < 3 * K + 20


def test_false_names_are_dropped_after_three_failures() -> None:
    """Of a liar's eight names three are tried; of an honest node's names with two dead ones all are."""
    # the farthest of them names the others, so that they are asked one by one as the search closes in
    *names, who = nearest([contact(number) for number in range(9)], bytes(20), 9)
    for answers, expected in ((0, 3), (6, 8)):
        lookup = Lookup(bytes(20), b"self" * 5, [who], k=K, alpha=1)
        assert lookup.next_queries() == [who]
        lookup.on_answer(who, names)
        asked = 0
        while not lookup.is_finished:
            for each in lookup.next_queries():
                asked += 1
                if asked > 8 - answers:
                    lookup.on_answer(each, [])
                else:
                    lookup.on_failure(each)
        assert asked == expected


def test_a_slow_node_is_passed_by_and_still_heard() -> None:
    """Once a node is slow another is asked beside it; its late answer counts as any other."""
    nodes = [contact(number) for number in range(6)]
    lookup = Lookup(bytes(20), b"self" * 5, nodes, k=K, alpha=1)
    (slow,) = lookup.next_queries()
    assert lookup.next_queries() == []
    lookup.on_slow(slow)
    (other,) = lookup.next_queries()
    lookup.on_answer(other, [])
    lookup.on_answer(slow, [])
    while not lookup.is_finished:
        for each in lookup.next_queries():
            lookup.on_answer(each, [])
    assert slow in lookup.nearest()


def test_the_fastest_majority_ends_a_search_for_values() -> None:
    """With ``spare`` so many more are asked at once, and the first who have enough values decide."""
    nodes = [contact(number) for number in range(20)]
    lookup = Lookup(bytes(20), b"self" * 5, nodes, k=20, alpha=ALPHA, paths=3, enough_values=11, spare=9)
    asked = lookup.next_queries()
    assert len(asked) == 20
    for each in asked[:11]:
        assert not lookup.is_finished
        lookup.on_answer(each, [], has_value=True)
    assert lookup.is_finished
    assert lookup.value_hop == 1


def test_fewer_values_do_where_the_rest_is_dead() -> None:
    """Seven values end a search when the other thirteen of the twenty nearest are slow; six do not."""
    nodes = [contact(number) for number in range(20)]
    for living in (7, 6):
        lookup = Lookup(
            bytes(20), b"self" * 5, nodes, k=20, alpha=ALPHA, paths=3, enough_values=11, fewest_values=7, spare=9
        )
        asked = lookup.next_queries()
        for each in asked[:living]:
            lookup.on_answer(each, [], has_value=True)
        for each in asked[living:-1]:
            lookup.on_slow(each)
        assert not lookup.is_finished, "one is still awaited"
        lookup.on_slow(asked[-1])
        assert lookup.is_finished == (living == 7)
