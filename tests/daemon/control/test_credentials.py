"""Who a caller is by the kernel's word, and what that allows."""

from __future__ import annotations

import os
import socket

import pytest

from moed.daemon.control.credentials import Access, AccessRules, Caller

RULES = AccessRules(daemon_uid=900, reader_gid=77)


@pytest.mark.parametrize(
    ("uid", "groups", "expected"),
    [
        (0, {0}, Access.ADMIN),
        (900, {900}, Access.ADMIN),
        (1000, {1000, 77}, Access.READER),
        (1000, {77}, Access.READER),
        (1000, {1000, 0}, Access.NOBODY),
        (65534, {65534}, Access.NOBODY),
    ],
)
def test_access_by_uid_and_group(uid: int, groups: set[int], expected: Access) -> None:
    """Root and the daemon's user change things, the group reads, others nothing; root's group is no root."""
    assert RULES.access_of(Caller(1, uid, frozenset(groups))) is expected


def test_a_machine_without_the_group_has_no_readers() -> None:
    """A missing group is not the group with the number None."""
    assert AccessRules(900, None).access_of(Caller(1, 1000, frozenset({77}))) is Access.NOBODY


def test_the_kernel_names_the_other_end() -> None:
    """Process, user and groups of a socket pair are this process's own."""
    here, there = socket.socketpair()
    with here, there:
        caller = Caller.of(here)
    assert (caller.pid, caller.uid) == (os.getpid(), os.geteuid())
    assert caller.groups == {os.getegid(), *os.getgroups()}


def test_a_tcp_socket_has_no_caller_with_access() -> None:
    """Linux answers for it with the uid -1, which is nobody."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
        assert RULES.access_of(Caller.of(tcp)) is Access.NOBODY
