"""The splits never overlap, are the same everywhere, and say what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moed.models import corpora
from moed.models.corpora import MAX_CORPUS_BYTES, SPLITS, available_domains, load_corpus
from moed.models.errors import CorpusUnavailable


@pytest.mark.parametrize("domain", available_domains())
def test_splits_are_disjoint_and_nearly_verbatim_free(domain: str) -> None:
    """No held-out window of 100 bytes to speak of stands word for word in the training text."""
    corpus = load_corpus(domain)
    train = corpus.sides["train"].data.tobytes()
    windows = corpus.sample("held_out", np.random.default_rng(0), 200, 100)
    assert sum(window.tobytes() in train for window in windows) <= 20
    assert sum(corpus.size_bytes(split) for split in SPLITS) <= MAX_CORPUS_BYTES
    assert corpus.size_bytes("train") > 4 * corpus.size_bytes("held_out")


def test_every_interpreter_carries_at_least_two_domains() -> None:
    """The two that are plain modules are there wherever the library is."""
    assert {"python", "tables"} <= set(available_domains())


def test_equal_blocks_are_on_the_same_side(tmp_path: Path) -> None:
    """A file that is in another corpus too is cut in the same way there: machines agree without talking."""
    text = np.random.default_rng(1).integers(97, 123, size=400_000, dtype=np.uint8).tobytes()
    path, more = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_bytes(text)
    more.write_bytes(text[::-1])
    alone, together = load_corpus("own", [path]), load_corpus("own", [more, path])
    for split in SPLITS:
        assert alone.sides[split].data.tobytes() in together.sides[split].data.tobytes()


def test_sampling_is_seeded_and_stays_inside_the_split() -> None:
    """The same seed draws the same rows, and each row is text of its split."""
    corpus = load_corpus("python")
    first = corpus.sample("validation", np.random.default_rng(7), 16, 65)
    again = corpus.sample("validation", np.random.default_rng(7), 16, 65)
    text = corpus.sides["validation"].data.tobytes()
    assert first.shape == (16, 65)
    assert first.dtype == np.uint8
    assert (first == again).all()
    assert all(row.tobytes() in text for row in first)


def test_rows_never_cross_the_end_of_a_run() -> None:
    """Every window that may be drawn lies in one run, the last byte of the last run included."""
    runs = [b"aaaa", b"bb", b"ccccc"]
    corpus = corpora.Corpus("own", {split: corpora._side(runs) for split in SPLITS})
    drawn = corpus.sample("train", np.random.default_rng(0), 400, 3)
    assert {row.tobytes() for row in drawn} == {b"aaa", b"ccc"}


def test_a_row_longer_than_any_run_is_refused() -> None:
    """There is no such window to draw, and the error names the domain."""
    corpus = corpora.Corpus("own", {split: corpora._side([b"abc"]) for split in SPLITS})
    with pytest.raises(CorpusUnavailable, match="own"):
        corpus.sample("train", np.random.default_rng(0), 1, 4)


def test_unknown_domain_names_the_remedy() -> None:
    """The operator learns which domains there are and that files may be named."""
    with pytest.raises(CorpusUnavailable, match=r"'poems'.*prose, python, tables.*files"):
        load_corpus("poems")


def test_missing_and_tiny_files_are_refused(tmp_path: Path) -> None:
    """A wrong path is named; a text too small to be split is refused before anything trains on it."""
    with pytest.raises(CorpusUnavailable, match=r"gone\.txt: No such file"):
        load_corpus("own", [tmp_path / "gone.txt"])
    small = tmp_path / "small.txt"
    small.write_text("one line\n")
    empty = tmp_path / "empty.txt"
    empty.touch()
    with pytest.raises(CorpusUnavailable, match="files are empty"):
        load_corpus("own", [empty])
    with pytest.raises(CorpusUnavailable, match="split empty"):
        load_corpus("own", [small])


def test_python_and_tables_share_no_file() -> None:
    """The library source that the python domain reads leaves out the folders of the other domains."""
    import sysconfig

    library = Path(sysconfig.get_path("stdlib"))
    read = list(corpora._library_sources(library))
    folders = {part for path in read for part in path.relative_to(library).parts[:-1]}
    assert read
    assert not folders & {"encodings", "pydoc_data", "site-packages", "test"}


@given(
    st.lists(st.integers(0, 999), unique=True, min_size=2, max_size=40),
    st.integers(0, 30),
    st.integers(2, 10),
)
@settings(max_examples=50, deadline=None)
def test_a_passage_that_stood_earlier_is_dropped(numbers: list[int], start: int, length: int) -> None:
    """A text of unlike lines is kept whole, and of a second text that quotes it only the new lines are left."""
    lines = [b"    the line with number %d of this text\n" % number for number in numbers]
    quoted = lines[start : start + length]
    new = [b"a first line that is new\n", b"and a last line that is new as well\n"]
    first, second = corpora._without_repeats([b"".join(lines), b"".join([new[0], *quoted, new[1]])])
    assert first == b"".join(lines)
    # One quoted line alone is no passage; two or more are.
    assert second == b"".join(new if len(quoted) >= 2 else [new[0], *quoted, new[1]])
