"""HTTP by hand over a Unix socket, for tests that send what no client would."""

from __future__ import annotations

import json
import socket
from pathlib import Path


def ask(path: Path, text: str | bytes) -> tuple[int, dict[str, str], bytes]:
    """Send raw bytes and read until the daemon closes: (status, headers, body)."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(10)
        raw.connect(str(path))
        raw.sendall(text.encode() if isinstance(text, str) else text)
        return parse(b"".join(iter(lambda: raw.recv(65536), b"")))


def parse(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of one answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, body


def get(target: str, *headers: str, host: str = "localhost", method: str = "GET") -> str:
    """A request that closes its connection."""
    return "\r\n".join((f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""))


def code_of(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    """(status, code) of a refusal, which must have words and a remedy too, and no traceback."""
    status, _, body = answer
    refusal = json.loads(body)
    assert set(refusal) == {"code", "message", "remedy"}
    assert b"Traceback" not in body
    return status, refusal["code"]
