"""Ports for daemons that are to run beside each other on this machine."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

from .errors import NodeError

# Below the range from which Linux gives outgoing connections their ports (ip_local_port_range starts at 32768): a port
# found free here is not taken by somebody's outgoing connection before its daemon has started.
_PORTS = range(16_384, 32_768)


def free_ports(count: int) -> list[int]:
    """Port numbers that are free for TCP and UDP right now, all different.

    Raises:
        NodeError: no such ports were found.
    """
    ports: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(ports) == count:
            break
        with (
            suppress(OSError),
            socket.socket(type=socket.SOCK_STREAM) as tcp,
            socket.socket(type=socket.SOCK_DGRAM) as udp,
        ):
            tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
            ports.append(port)
    if len(ports) < count:
        raise NodeError(
            f"fewer than {count} ports of {_PORTS.start} to {_PORTS.stop - 1} are free on 127.0.0.1",
            "stop what holds them, or start fewer nodes",
        )
    return ports
