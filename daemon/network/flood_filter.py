"""Drops the datagrams of flooding addresses in the kernel, before they take room in the socket's buffer.

A classic BPF program on our own socket (`SO_ATTACH_FILTER`), which needs no privilege. Where the system has no such
thing (not Linux) or the socket serves both families, nothing is attached and the rate limits work alone.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket as stdlib_socket
import struct
import sys
from collections.abc import Sequence

MAX_BLOCKED = 32
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27  # asm-generic/socket.h; Python has no names for them
_INSTRUCTION = struct.Struct("HBBI")  # struct sock_filter: code, jump if true, jump if false, operand
_LOAD_WORD, _LOAD_HALF, _JUMP_EQUAL, _RETURN = 0x20, 0x28, 0x15, 0x06
_SOURCE_HOST = 0xFFF00000 + 12  # SKF_NET_OFF and the offset of the source in an IPv4 header
_SOURCE_PORT = 0  # the data of a UDP socket's filter begins with the UDP header
_WHOLE = 0xFFFF


def drop_from(socket: stdlib_socket.socket, addresses: Sequence[tuple[str, int]]) -> bool:
    """Drop what comes from ``addresses`` from now on, and nothing else; whether the system does so.

    An empty list ends all dropping. At most `MAX_BLOCKED` addresses count.
    """
    if sys.platform != "linux" or socket.family != stdlib_socket.AF_INET:
        return False
    numeric = [(int(ipaddress.IPv4Address(host)), port) for host, port in addresses[:MAX_BLOCKED] if ":" not in host]
    try:
        if not numeric:
            socket.setsockopt(stdlib_socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
            return True
        code = program(numeric)
        buffer = ctypes.create_string_buffer(code, len(code))
        descriptor = struct.pack("@HP", len(code) // _INSTRUCTION.size, ctypes.addressof(buffer))
        socket.setsockopt(stdlib_socket.SOL_SOCKET, _SO_ATTACH_FILTER, descriptor)
    except OSError:  # none attached that could be detached, or a system that refuses
        return not numeric
    return True


def program(addresses: Sequence[tuple[int, int]]) -> bytes:
    """The BPF program that drops these (IPv4 host, port) sources and keeps all others whole."""
    code = []
    for index, (host, port) in enumerate(addresses):
        # after this instruction come those of the later addresses (4 each), then `keep`, then `drop`
        to_drop = 4 * (len(addresses) - index - 1) + 1
        code += [
            _INSTRUCTION.pack(_LOAD_WORD, 0, 0, _SOURCE_HOST),
            _INSTRUCTION.pack(_JUMP_EQUAL, 0, 2, host),
            _INSTRUCTION.pack(_LOAD_HALF, 0, 0, _SOURCE_PORT),
            _INSTRUCTION.pack(_JUMP_EQUAL, to_drop, 0, port),
        ]
    code += [_INSTRUCTION.pack(_RETURN, 0, 0, _WHOLE), _INSTRUCTION.pack(_RETURN, 0, 0, 0)]
    return b"".join(code)
