"""The parts of kademlia and trio-asyncio that we build on, with the types that those packages do not ship.

For the type checker the classes are declared here; at run time the names are the packages' own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections import OrderedDict
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager
    from contextvars import ContextVar
    from typing import Any, Generic, TypeVar

    _T = TypeVar("_T")
    _NodeT = TypeVar("_NodeT", bound="Node")
    _BucketT = TypeVar("_BucketT")

    class Node:
        id: bytes
        ip: str
        port: int
        long_id: int

        def __init__(self, node_id: bytes, ip: str | None = None, port: int | None = None) -> None: ...
        def distance_to(self, node: Node) -> int: ...
        def __iter__(self) -> Iterator[Any]: ...

    class KBucket(Generic[_NodeT]):
        range: tuple[int, int]
        nodes: OrderedDict[bytes, _NodeT]
        replacement_nodes: OrderedDict[bytes, _NodeT]
        ksize: int
        last_updated: float

        def __init__(self, rangeLower: int, rangeUpper: int, ksize: int) -> None: ...  # noqa: N803  # theirs
        def add_node(self, node: _NodeT) -> bool: ...
        def remove_node(self, node: _NodeT) -> None: ...
        def has_in_range(self, node: Node) -> bool: ...
        def head(self) -> _NodeT: ...

    class RoutingTable(Generic[_BucketT]):
        node: Node
        ksize: int
        buckets: list[_BucketT]

        def __init__(self, protocol: object, ksize: int, node: Node) -> None: ...
        def split_bucket(self, index: int) -> None: ...

    class IStorage: ...

    class KademliaProtocol(asyncio.DatagramProtocol):
        transport: asyncio.DatagramTransport
        storage: Any
        source_node: Node

        def __init__(self, source_node: Node, storage: object, ksize: int) -> None: ...

    current_loop: ContextVar[asyncio.AbstractEventLoop | None]

    def open_loop() -> AbstractAsyncContextManager[asyncio.AbstractEventLoop]: ...

else:
    from typing import Generic, TypeVar

    from kademlia import routing as _routing
    from kademlia.node import Node
    from kademlia.protocol import KademliaProtocol
    from kademlia.storage import IStorage
    from trio_asyncio import current_loop, open_loop

    _T = TypeVar("_T")

    class KBucket(_routing.KBucket, Generic[_T]):
        """The library's bucket, which may be given the type of its nodes."""

    class RoutingTable(_routing.RoutingTable, Generic[_T]):
        """The library's table, which may be given the type of its buckets."""


__all__ = [
    "IStorage",
    "KBucket",
    "KademliaProtocol",
    "Node",
    "RoutingTable",
    "current_loop",
    "open_loop",
]
