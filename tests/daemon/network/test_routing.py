"""The routing table against brute force, beside the stock table that it mends."""

from __future__ import annotations

import importlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moed.daemon.network.library import Node
from moed.daemon.network.routing import (
    MAX_FAILURES,
    MAX_PER_SUBNET,
    REFRESH_AFTER_S,
    Peer,
    Table,
    random_id_in,
)
from moed.protocol.identity import NodeId
from moed.protocol.queries import Contact

STOCK: Any = importlib.import_module("kademlia.routing")  # untyped
K = 8
SPLIT_POINT = (1 << 159) - 1
"""The last id of the lower half."""


def id_of(number: int) -> NodeId:
    return NodeId(number.to_bytes(20, "big"))


def peer(number: int) -> Peer:
    return Peer(Contact(id_of(number), "192.0.2.1", number % 65535 + 1))


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def table_of(own: int, numbers: list[int], clock: Clock | None = None) -> tuple[Table, list[Contact]]:
    """A table with these contacts and the list of contacts that it doubted on the way."""
    doubted: list[Contact] = []
    table = Table(K, Node(id_of(own)), clock or Clock(), doubted.append)
    for number in numbers:
        table.add_contact(peer(number))
    return table, doubted


def numbers_of(seed: int, count: int) -> list[int]:
    """Distinct ids, half of them crowded near a few points so that buckets split deep."""
    rng = random.Random(seed)
    points = [rng.getrandbits(160) for _ in range(3)]
    ids = {rng.getrandbits(160) for _ in range(count // 2)}
    ids |= {rng.choice(points) ^ rng.getrandbits(rng.randrange(1, 160)) for _ in range(count // 2)}
    return sorted(ids, key=lambda number: number * 2654435761 % (1 << 61))


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(0, 600), st.integers(1, 30))
def test_the_k_nearest_are_exactly_those_of_brute_force(seed: int, count: int, k: int) -> None:
    """Over random tables and targets, `find_neighbors` gives what sorting the whole table gives."""
    rng = random.Random(seed)
    numbers = numbers_of(seed, count)
    table, _ = table_of(rng.getrandbits(160), numbers)
    held = table.peers()
    for target in [rng.getrandbits(160), *rng.sample(numbers, min(3, len(numbers)))]:
        excluded = rng.choice(held) if held else None
        found = table.find_neighbors(Node(id_of(target)), k=k, exclude=excluded)
        candidates = [each for each in held if each is not excluded and each.id != id_of(target)]
        assert found == sorted(candidates, key=lambda each: each.long_id ^ target)[:k]


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(0, 600))
def test_every_id_is_looked_up_in_the_bucket_that_holds_it(seed: int, count: int) -> None:
    """`get_bucket_for` agrees with the inclusive ranges, on both ends of every bucket and for every contact."""
    rng = random.Random(seed)
    table, _ = table_of(rng.getrandbits(160), numbers_of(seed, count))
    lower = 0
    for index, bucket in enumerate(table.buckets):
        assert bucket.range[0] == lower
        lower = bucket.range[1] + 1
        for number in (*bucket.range, rng.randint(*bucket.range)):
            assert table.get_bucket_for(Node(id_of(number))) == index
        for each in bucket.nodes.values():
            assert bucket.has_in_range(each)
            assert table.peer(each.id) is each
        assert len(bucket.nodes) <= K
        assert bucket.range[0] <= int.from_bytes(random_id_in(bucket, rng), "big") <= bucket.range[1]
    assert lower == 1 << 160


def test_the_split_point_is_found_again() -> None:
    """An id on a split point is known after it was added; the stock table, whose halves differ by one, loses it."""
    table, _ = table_of(5, [SPLIT_POINT])
    table.split_bucket(0)
    assert table.buckets[0].range[1] == SPLIT_POINT
    assert table.peer(id_of(SPLIT_POINT)) is not None
    stock = STOCK.RoutingTable(None, K, Node(id_of(5)))
    stock.add_contact(Node(id_of(SPLIT_POINT + 1), "192.0.2.1", 1))
    stock.split_bucket(0)
    assert stock.is_new_node(Node(id_of(SPLIT_POINT + 1))), "the stock table is mended: drop our override"


def test_the_stock_table_misses_nearest_contacts() -> None:
    """Over the same buckets the stock search sometimes stops short of the k nearest, ours never does."""
    rng = random.Random(3)
    ours, _ = table_of(rng.getrandbits(160), [rng.getrandbits(160) for _ in range(700)])
    stock = STOCK.RoutingTable(None, K, ours.node)
    stock.buckets = ours.buckets
    wrong = 0
    for _ in range(300):
        target = Node(id_of(rng.getrandbits(160)))
        nearest = sorted(ours.peers(), key=target.distance_to)[:K]
        assert ours.find_neighbors(target) == nearest
        wrong += stock.find_neighbors(target) != nearest
    assert wrong > 0, "the stock table is mended: drop our override"


def test_a_full_bucket_doubts_its_oldest_and_starts_no_task() -> None:
    """A newcomer to a full, unsplittable bucket waits, and the contact longest unheard is named for a ping."""
    base = (0b10101 << 155) + (0b10101 << 150)
    table, doubted = table_of(0, [base + number for number in range(K)])
    assert doubted == []
    # A bucket at a depth that is a multiple of five splits no further unless our own id is in it.
    table, doubted = table_of(0, [base + (number << 140) for number in range(400)])
    assert doubted
    oldest = doubted[-1]
    assert table.peer(oldest.node_id) is not None
    assert len(table.peers()) < 400


def test_a_contact_survives_lost_datagrams_unless_another_waits() -> None:
    """One loss removes nobody from a bucket with room; the third in a row does; a waiting newcomer takes the place."""
    table, _ = table_of(0, [1 << 159, 3 << 158])
    lost = id_of(1 << 159)
    for _ in range(MAX_FAILURES - 1):
        table.fail(lost)
    assert table.peer(lost) is not None
    table.add_contact(peer(1 << 159))  # it answered: the count starts again
    for _ in range(MAX_FAILURES):
        assert table.peer(lost) is not None
        table.fail(lost)
    assert table.peer(lost) is None
    table.fail(lost)

    base = 0b10101 << 155
    crowded, _ = table_of(0, [base + (number << 140) for number in range(1, 400)])
    full = next(bucket for bucket in crowded.buckets if bucket.replacement_nodes)
    victim = next(iter(full.nodes))
    crowded.fail(victim)
    assert crowded.peer(victim) is None
    assert len(full.nodes) == K


def test_buckets_age_on_the_clock_they_are_given() -> None:
    """No bucket is lonely before its hour, all of them after it, none again once touched."""
    clock = Clock()
    table, _ = table_of(0, numbers_of(1, 100), clock)
    assert table.lonely_buckets() == []
    clock.now_s += REFRESH_AFTER_S + 1
    assert table.lonely_buckets() == table.buckets
    table.buckets[0].touch_last_updated()
    assert table.lonely_buckets() == table.buckets[1:]


@pytest.mark.parametrize("count", [2000])
def test_a_flood_of_ids_cannot_fill_memory(count: int) -> None:
    """Thousands of ids that a stranger made up leave a table that grows with the logarithm of their number."""
    table, _ = table_of(0, [random.Random(number).getrandbits(160) for number in range(count)])
    assert len(table.peers()) < 60 * K
    table.add_contact(peer(0))
    assert table.peer(id_of(0)) is None, "we are no contact of our own"


def test_a_subnet_fills_no_bucket() -> None:
    """Of many public addresses of one /24 three are in a bucket; private ones, which say nothing, may fill it."""
    table, _ = table_of(0, [])
    for number in range(1, K + 1):
        table.add_contact(Peer(Contact(id_of((1 << 159) + number), f"8.8.8.{number}", 9000)))
    assert len(table.peers()) == MAX_PER_SUBNET
    table.add_contact(Peer(Contact(id_of((1 << 159) + 99), "8.8.9.1", 9000)))
    assert len(table.peers()) == MAX_PER_SUBNET + 1
    known = table.peers()[0].contact
    table.add_contact(Peer(known))  # heard again: it stays
    assert len(table.peers()) == MAX_PER_SUBNET + 1
    local, _ = table_of(0, [])
    for number in range(1, K + 1):
        local.add_contact(Peer(Contact(id_of((1 << 159) + number), f"10.0.0.{number}", 9000)))
    assert len(local.peers()) == K


def test_a_contact_with_the_very_id_comes_first_when_it_is_looked_for() -> None:
    """`nearest` names the contact that has the target as its id, which the stock search leaves out."""
    table, _ = table_of(5, list(range(10, 60)))
    target = id_of(30)
    assert table.nearest(target)[0].id == target
    assert len(table.nearest(target)) == K
    assert all(each.id != target for each in table.nearest(target, asker=target))
