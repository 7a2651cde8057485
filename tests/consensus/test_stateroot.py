"""The state root depends on the records and on nothing else."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from moed.consensus.stateroot import LEVELS, MAX_BUCKET, Branch, StateTree, value_hash
from moed.protocol.codec import decode_record, encode_record

RECORDS = st.dictionaries(st.binary(min_size=1, max_size=6), st.binary(max_size=6), max_size=30)

NUMBERS = """
    2869 42137 162632 166945 371517 391731 454904 513772 654730 683051 704296 709822 848512 888214 953599 1020589
    1143878 1306917 1313118 1369634 1374621 1784875 1870462 1881900 1960501 2037819 2039857 2148060 2196107 2199457
    2224665 2264184 2438292 2528213 2591479 2712864 2741244 2795086 2806491 2843797 2890032 2978940 3013198 3018404
    3020304 3023334 3190172 3320698 3346115 3352673 3379442 3487132 3521897 3619046 3633902 3691631 3712658 3819799
    3848249 3872772 3957574 4078390 4106963 4125572 4158206 4223284 4247856 4307978 4323111 4397342 4463524 4515952
    4539728 4565154 4588082 4695336 4756210 4762766 4944368 4977546 5028537 5043628 5049169 5097960 5197586 5262556
    5308084 5359114 5360052 5367730 5370894 5453692 5701939 5759878 5820795 5823139 5873780 6117040 6145922 6235187
    6257112 6272703 6327927 6631133 6766447 6847415 6867562 6923959 6991127 7181338 7403625 7405158 7514411 7565299
    7592640 7616014 7618251 7630298 7662824 7673568 7708997 7851523 7859448 7880307 7978486 8028693 8268704 8269545
    8323608 8634975 8638787 8704689 8726589 8756368 8813486 8938355 8961181 8997915 9058543 9064277 9092406 9151092
    9173021 9290118 9380034 9383050 9450288 9536575 9579341 9662543
"""
ALIKE = [int(number).to_bytes(4, "big") for number in NUMBERS.split()]
"""Keys, found by trying ten million, that all lead to the first bucket of the unsplit tree."""


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


def test_keys_that_were_sought_to_share_a_bucket_make_no_proof_long() -> None:
    """However many lead the same way, a proof has a bucket of the usual size, and a few steps more."""
    records = dict.fromkeys(ALIKE, b"value")
    tree = StateTree()
    tree.apply(tree.preview(records))
    depths = set()
    for key in (*ALIKE, b"not there"):
        branch = decode_record(encode_record(tree.prove(key)), Branch)
        assert branch.root_for(key) == tree.root
        assert branch.value_hash_of(key) == (value_hash(b"value") if key in records else None)
        assert len(branch.bucket) <= MAX_BUCKET
        depths.add(len(branch.siblings))
    assert min(depths) == LEVELS
    assert max(depths) > LEVELS + 1


@settings(max_examples=20)
@given(st.sets(st.sampled_from(ALIKE)), st.permutations(ALIKE), st.integers(20, 80))
def test_a_split_depends_on_the_records_alone(few: set[bytes], order: list[bytes], step: int) -> None:
    """In which order and how many at a time records come, the root is that of all at once."""
    tree = StateTree()
    tree.apply(tree.preview(dict.fromkeys(few, b"old")))
    tree.preview(dict.fromkeys(order, b"never applied"))
    for start in range(0, len(order), step):
        tree.apply(tree.preview(dict.fromkeys(order[start : start + step], b"new")))
    assert tree.root == root_of(dict.fromkeys(ALIKE, b"new"))
    branch = tree.prove(order[0])
    assert branch.root_for(order[0]) == tree.root
    assert branch.value_hash_of(order[0]) == value_hash(b"new")
