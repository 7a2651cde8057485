"""Sends a flood of datagrams to one address, from one socket: ``python -m benchmarks.dht.flood HOST PORT SECONDS``."""

from __future__ import annotations

import os
import socket
import sys
import time

from moed.protocol.envelope import seal
from moed.protocol.identity import Identity
from moed.protocol.queries import Ping, encode_query

PER_S = 20_000
BURST = 200


def main() -> None:
    host, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    stranger = Identity(os.urandom(32))
    body = encode_query(bytes(20), Ping(stranger.node_id))
    signed = seal(stranger, b"dht benchmark".ljust(32, b"."), None, body, now_s=time.time(), nonce=bytes(8))
    junk = os.urandom(len(signed))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((host, port))
        started = time.perf_counter()
        sent = 0
        while (now := time.perf_counter()) - started < seconds:
            if sent > (now - started) * PER_S:
                time.sleep(BURST / PER_S / 4)
                continue
            for number in range(BURST):
                try:
                    sender.send(signed if number % 2 else junk)
                except OSError:
                    continue  # a full buffer of ours, or the node is gone
            sent += BURST
    sys.stderr.write(f"flood: {sent / seconds:.0f} datagrams/s for {seconds:.1f} s\n")


if __name__ == "__main__":
    main()
