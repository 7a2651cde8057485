"""A daemon that strangers shout at stays up, answers, and keeps its memory."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from support.daemons import Daemon, make_network, running, wait_until

SEED = 20231
MIB = 1 << 20


def assert_alive_and_flat(daemon: Daemon, attack: Callable[[], None]) -> None:
    """Run ``attack`` twice: after the first, everything that fills once is full; the second must add nothing."""
    attack()
    daemon.wait_ready()
    before = daemon.resident_bytes()
    attack()
    height = daemon.wait_ready()["height"]
    grown = daemon.resident_bytes() - before
    assert grown < 4 * MIB, f"resident memory grew by {grown / MIB:.1f} MiB"
    daemon.wait_height(height + 1)


def test_random_datagrams_change_nothing(tmp_path: Path) -> None:
    """10,000 random datagrams of every size leave the UDP port answering and the table as it was."""
    print(f"seed {SEED}")
    generator = random.Random(SEED)
    target, other = make_network(tmp_path, (70, 30))
    with running(target, other):
        wait_until("the two to meet", lambda: (target.status() or {}).get("peers") == 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as shouter:

            def shout() -> None:
                for number in range(5_000):
                    shouter.sendto(generator.randbytes(generator.randint(0, 1400)), ("127.0.0.1", target.port))
                    if number % 200 == 0:
                        time.sleep(0.005)  # let the socket's buffer drain, else the kernel drops what is to be tested

            assert_alive_and_flat(target, shout)
        assert (target.status() or {})["peers"] == 1


def test_junk_on_the_session_port_changes_nothing(tmp_path: Path) -> None:
    """Random bytes, half-open handshakes and frames that announce too much cost one connection each."""
    print(f"seed {SEED}")
    generator = random.Random(SEED)
    target, other = make_network(tmp_path, (70, 30))
    with running(target, other):
        wait_until("the two to meet", lambda: (target.status() or {}).get("peers") == 1)
        half_open: list[socket.socket] = []

        def connect() -> socket.socket:
            return socket.create_connection(("127.0.0.1", target.port), timeout=5)

        def attack() -> None:
            for number in range(300):
                with suppress(OSError), connect() as one:
                    if number % 3 == 0:
                        one.sendall(generator.randbytes(generator.randint(1, 70_000)))
                    elif number % 3 == 1:
                        one.sendall(b"\xff\xff" * 40_000)  # every length field as large as it can be
                    else:
                        one.sendall(generator.randbytes(generator.randint(1, 30)))
            with suppress(OSError):
                half_open.extend(connect() for _ in range(50))

        try:
            assert_alive_and_flat(target, attack)
            # an honest peer is not shut out meanwhile
            other.stop()
            other.start()
            wait_until("the honest peer to come back", lambda: (target.status() or {}).get("peers") == 1)
        finally:
            for one in half_open:
                one.close()
