"""The kademlia package's routing table with its faults mended and its clock handed in.

What is overridden, and why:

- `get_bucket_for` compared with ``<`` against inclusive ranges, so that an id on a split point was put in one
  bucket and looked up in the next;
- `find_neighbors` stopped at the first k met, which are not always the k nearest;
- `add_contact` pinged the oldest contact of a full bucket in a task whose errors nobody saw;
- the first range ended at 2^160, one past the largest id;
- a contact was dropped after one lost datagram, so that one minute without network emptied the table;
- a bucket took any number of contacts of one subnet;
- bucket clocks read `time.monotonic`, which does not follow virtual time.
"""

from __future__ import annotations

import bisect
import ipaddress
import random
from collections.abc import Callable
from functools import lru_cache
from itertools import chain

from moed.protocol.identity import NodeId
from moed.protocol.queries import Contact
from moed.protocol.round_trips import RoundTrips

from .library import KBucket, Node, RoutingTable

ID_BITS = 160
REFRESH_AFTER_S = 3600.0
MAX_PER_SUBNET = 3
"""So many contacts of one IPv4 /24 or IPv6 /48 are in one bucket: addresses of one subnet are cheap to come by."""
MAX_FAILURES = 3
"""A contact that failed this often in a row goes even if no other waits for its place."""


class Peer(Node):
    """A contact in the table, with what we measured of it."""

    def __init__(self, contact: Contact) -> None:
        super().__init__(contact.node_id, contact.host, contact.port)
        self.last_seen_s = contact.last_seen_s
        self.round_trips = RoundTrips()
        self.failures = 0
        self.clock_ahead_s: float | None = None
        """By how much its clock is ahead of ours, as its last answer showed."""
        self.subnet = subnet_of(contact.host)

    @property
    def contact(self) -> Contact:
        return Contact(NodeId(self.id), self.ip, self.port, self.last_seen_s)


class Bucket(KBucket[Peer]):
    """A bucket on the clock that it is given."""

    def __init__(self, lower: int, upper: int, ksize: int, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        super().__init__(lower, upper, ksize)

    def touch_last_updated(self) -> None:
        self.last_updated = self._now_s()

    def is_crowded_by(self, node: Peer) -> bool:
        """Whether the bucket holds as many contacts of the node's subnet as it may."""
        return node.subnet is not None and (
            sum(each.subnet == node.subnet for each in self.nodes.values()) >= MAX_PER_SUBNET
        )

    def depth(self) -> int:
        """The length of the prefix that the range shares; the library compared the ids' bit strings."""
        return int(ID_BITS - (self.range[1] - self.range[0]).bit_length())

    def split(self) -> tuple[Bucket, Bucket]:
        middle = (self.range[0] + self.range[1]) // 2
        one = Bucket(self.range[0], middle, self.ksize, self._now_s)
        two = Bucket(middle + 1, self.range[1], self.ksize, self._now_s)
        one.last_updated = two.last_updated = self.last_updated
        for node in chain(self.nodes.values(), self.replacement_nodes.values()):
            (one if node.long_id <= middle else two).add_node(node)
        return one, two


class Table(RoutingTable[Bucket]):
    """All contacts that have proven their key and their address, in buckets.

    ``on_doubt`` is called with the longest unheard contact of a full bucket when a newcomer waits for its place.
    """

    def __init__(self, ksize: int, node: Node, now_s: Callable[[], float], on_doubt: Callable[[Contact], None]) -> None:
        self._now_s = now_s
        self._on_doubt = on_doubt
        super().__init__(None, ksize, node)

    def flush(self) -> None:
        self.buckets = [Bucket(0, (1 << ID_BITS) - 1, self.ksize, self._now_s)]

    def get_bucket_for(self, node: Node) -> int:
        return bisect.bisect_left(self.buckets, node.long_id, key=lambda bucket: bucket.range[1])

    def find_neighbors(self, node: Node, k: int | None = None, exclude: Node | None = None) -> list[Peer]:
        """The k contacts nearest to ``node`` by XOR, nearest first, without itself and ``exclude``.

        A bucket's range is an aligned block of ids, so all its distances share their top bits: buckets ordered
        by the smallest distance they can hold never interleave, and reading stops at the first that fills k.
        """
        k = k or self.ksize

        def smallest_distance(bucket: Bucket) -> int:
            lower, upper = bucket.range
            return int((lower ^ node.long_id) & ~(upper - lower))

        found: list[Peer] = []
        for bucket in sorted(self.buckets, key=smallest_distance):
            near = [
                peer
                for peer in bucket.nodes.values()
                if peer.id != node.id and (exclude is None or peer.id != exclude.id)
            ]
            found += sorted(near, key=node.distance_to)
            if len(found) >= k:
                break
        return found[:k]

    def nearest(self, target: bytes, asker: bytes | None = None) -> list[Peer]:
        """The k contacts nearest to ``target``, without ``asker``; a contact with this very id comes first."""
        exclude = None if asker is None else Node(asker)
        exact = None if target == asker else self.peer(target)
        found = self.find_neighbors(Node(target), exclude=exclude)
        return found if exact is None else [exact, *found][: self.ksize]

    def lonely_buckets(self) -> list[Bucket]:
        before = self._now_s() - REFRESH_AFTER_S
        return [bucket for bucket in self.buckets if bucket.last_updated < before]

    def add_contact(self, node: Peer) -> None:
        """Put ``node`` at the fresh end of its bucket, splitting full buckets by the paper's rule (4.2)."""
        if node.id == self.node.id:
            return
        while True:
            index = self.get_bucket_for(node)
            bucket = self.buckets[index]
            if node.id not in bucket.nodes and bucket.is_crowded_by(node):
                return
            if bucket.add_node(node):
                return
            if not bucket.has_in_range(self.node) and bucket.depth() % 5 == 0:
                self._on_doubt(bucket.head().contact)
                return
            self.split_bucket(index)

    def peer(self, node_id: bytes) -> Peer | None:
        """The contact with this id, if it is in the table."""
        return self.buckets[self.get_bucket_for(Node(node_id))].nodes.get(node_id)

    def fail(self, node_id: bytes) -> None:
        """Count an unanswered question; remove the contact if another waits for its place, or at the third."""
        peer = self.peer(node_id)
        if peer is None:
            return
        peer.failures += 1
        bucket = self.buckets[self.get_bucket_for(peer)]
        if bucket.replacement_nodes or peer.failures >= MAX_FAILURES:
            bucket.remove_node(peer)

    def remove(self, node_id: bytes) -> None:
        """Forget this contact, if we have it."""
        peer = self.peer(node_id)
        if peer is not None:
            self.buckets[self.get_bucket_for(peer)].remove_node(peer)

    def peers(self) -> list[Peer]:
        """Every contact, in order of id ranges."""
        return [peer for bucket in self.buckets for peer in bucket.nodes.values()]


@lru_cache(maxsize=4096)
def subnet_of(host: str) -> str | None:
    """The IPv4 /24 or IPv6 /48 of a numeric host; None for addresses that are not of the public Internet."""
    address = ipaddress.ip_address(host)
    if not address.is_global:
        return None
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 48), strict=False))


def random_id_in(bucket: Bucket, rng: random.Random) -> NodeId:
    """A uniform id of the bucket's range, to refresh it with."""
    return NodeId(rng.randint(*bucket.range).to_bytes(ID_BITS // 8, "big"))
