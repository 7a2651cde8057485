"""The limit to compare with: bytes through trio TCP with AES-256-GCM on both ends and nothing else.

``measure`` sends one way to a process of its own: no framing but a fixed message length, no streams, windows,
messages or checks.
"""

from __future__ import annotations

import subprocess
import sys
import time

import trio

from moed.protocol.aead import TAG_BYTES, Cipher, nonce_bytes, open_into, seal_into

from .moed_side import ROOT

CHUNK_BYTES = 65_472
CHUNKS_PER_SEND = 4
KEY = bytes(32)


def _seal(out: memoryview, chunk: memoryview, counter: int) -> None:
    seal_into(Cipher.AESGCM, out, chunk, ad=b"", nonce=nonce_bytes(Cipher.AESGCM, counter), key=KEY)


async def _receive(total_bytes: int) -> None:
    """Accept one connection, decrypt ``total_bytes`` into place again and again until it ends, confirm each."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listeners[0].socket.getsockname()[1], flush=True)
    stream = await listeners[0].accept()
    sealed = memoryview(bytearray(CHUNKS_PER_SEND * (CHUNK_BYTES + TAG_BYTES)))
    plain = memoryview(bytearray(total_bytes))
    size, counter = CHUNK_BYTES + TAG_BYTES, 0
    while True:
        at = filled = 0
        while at < total_bytes:
            count = await stream.socket.recv_into(sealed[filled:])
            if count == 0:
                return
            filled += count
            start = 0
            while filled - start >= size and at < total_bytes:
                nonce = nonce_bytes(Cipher.AESGCM, counter)
                open_into(
                    Cipher.AESGCM,
                    plain[at : at + CHUNK_BYTES],
                    sealed[start : start + size],
                    ad=b"",
                    nonce=nonce,
                    key=KEY,
                )
                start, at, counter = start + size, at + CHUNK_BYTES, counter + 1
            rest = filled - start
            sealed[:rest] = sealed[start:filled]
            filled = rest
        await stream.send_all(b"k")


async def _send(port: int, total_bytes: int, rounds: int) -> float:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    plain = memoryview(bytearray(total_bytes))
    sealed = memoryview(bytearray(CHUNKS_PER_SEND * (CHUNK_BYTES + TAG_BYTES)))
    size, counter, began = CHUNK_BYTES + TAG_BYTES, 0, 0.0
    for number in range(rounds + 2):
        if number == 2:
            began = time.perf_counter()
        for first in range(0, total_bytes, CHUNKS_PER_SEND * CHUNK_BYTES):
            at = 0
            for start in range(first, min(first + CHUNKS_PER_SEND * CHUNK_BYTES, total_bytes), CHUNK_BYTES):
                _seal(sealed[at : at + size], plain[start : start + CHUNK_BYTES], counter)
                at, counter = at + size, counter + 1
            await stream.send_all(sealed[:at])
        await stream.receive_some(1)
    took = time.perf_counter() - began
    await stream.aclose()
    return total_bytes * rounds / took / 1e6


def measure(mib: int, rounds: int) -> float:
    """MB/s one way, messages of about ``mib`` MiB."""
    total_bytes = (mib << 20) // CHUNK_BYTES * CHUNK_BYTES
    receiver = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.rpc.bare_cipher", str(total_bytes)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert receiver.stdout is not None
    rate: float = trio.run(_send, int(receiver.stdout.readline()), total_bytes, rounds)
    receiver.wait()
    return rate


if __name__ == "__main__":
    trio.run(_receive, int(sys.argv[1]))
