"""The state root depends on the records and on nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moed.consensus.stateroot import StateTree, value_hash

RECORDS = st.dictionaries(st.binary(min_size=1, max_size=6), st.binary(max_size=6), max_size=30)


def root_of(records: dict[bytes, bytes]) -> bytes:
    return StateTree().preview(records).root


@given(RECORDS, RECORDS)
def test_the_way_does_not_matter(first: dict[bytes, bytes], second: dict[bytes, bytes]) -> None:
    """Two steps give the root that their union gives at once."""
    tree = StateTree()
    tree.apply(tree.preview(first))
    tree.apply(tree.preview(second))
    assert tree.root == root_of({**first, **second})


@given(RECORDS, st.binary(min_size=1, max_size=6), st.binary(max_size=6))
def test_another_record_gives_another_root(records: dict[bytes, bytes], key: bytes, value: bytes) -> None:
    """A changed or added record shows; an unchanged one does not."""
    changed = {**records, key: value}
    assert (root_of(changed) == root_of(records)) == (changed == records)


@given(RECORDS, RECORDS)
def test_a_preview_changes_nothing(records: dict[bytes, bytes], changes: dict[bytes, bytes]) -> None:
    """Only `apply` moves the tree."""
    tree = StateTree()
    tree.apply(tree.preview(records))
    tree.preview(changes)
    assert tree.root == root_of(records)
    assert tree.preview({}).root == tree.root


def test_key_and_value_cannot_trade_bytes() -> None:
    """The boundary between key and value is part of the hash."""
    assert root_of({b"ab": b"c"}) != root_of({b"a": b"bc"})


@given(RECORDS, RECORDS, st.binary(min_size=1, max_size=6))
def test_a_branch_leads_to_the_root(first: dict[bytes, bytes], second: dict[bytes, bytes], key: bytes) -> None:
    """From what is there and from what is not, on a tree that grew in two steps."""
    tree = StateTree()
    tree.apply(tree.preview(first))
    tree.apply(tree.preview(second))
    records = {**first, **second}
    for one in (key, *list(records)[:5]):
        branch = tree.prove(one)
        assert branch.root_for(one) == tree.root
        assert branch.value_hash_of(one) == (value_hash(records[one]) if one in records else None)
