"""Real text to learn from, by domain, cut into splits that never overlap.

Every CPython carries several kinds of text; each is a *domain*:

    prose    the language reference in English, `pydoc_data.topics`
    python   source of the standard library (without the two folders that the next domain and prose use)
    tables   the character tables among ``encodings/*.py``
    c        the interpreter's C headers, where the development files are installed
    html     the help page of IDLE

A file is cut into blocks, and the hash of a block's content alone says which split the block belongs to. So two
machines agree on what is held out without talking, and another Python version moves only the blocks that differ.
Before the cut every passage that stood earlier in the domain is dropped: without that 42 % of the held-out windows
of 100 bytes of prose and 84 % of those of tables stand word for word in the training text; with it none (measured).
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from moed.protocol.domains import Domain, tagged_hash

from .errors import CorpusUnavailable

Split = Literal["train", "validation", "held_out"]
Tokens = npt.NDArray[np.uint8]

DOMAINS = ("prose", "python", "tables", "c", "html")
SPLITS: tuple[Split, ...] = get_args(Split)

MAX_CORPUS_BYTES = 2 << 20  # bounds memory, and start-up to a few hundred small files
BLOCK_BYTES = 4096
# Two lines in a row with at least so many bytes between their margins are a passage; shorter pairs (closing brackets,
# blank lines) repeat in any text.
MIN_PASSAGE_BYTES = 24
# Under this size blocks of 4 KiB are so few that a split could end up empty: a quarter of it is used.
SMALL_CORPUS_BYTES = 256 << 10
HELD_OUT_SHARE = 0.1
VALIDATION_SHARE = 0.1

_NOT_LIBRARY_SOURCE = {
    "__pycache__", "encodings", "pydoc_data", "site-packages", "dist-packages", "test", "tests", "idle_test",
    "idlelib", "lib2to3", "turtledemo",
}  # fmt: skip
_NAME_FILES = "or name your own text in the configuration (files = [...])"


@dataclass(frozen=True, slots=True)
class _Side:
    """One split: its runs of adjacent blocks end to end in ``data``, and where each run starts and ends."""

    data: Tokens
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Corpus:
    """The text of one domain in three splits: miners read ``train``, validators ``validation``; ``held_out``
    is for final losses only. A drawn row never crosses a split or a file."""

    domain: str
    sides: Mapping[Split, _Side]

    def size_bytes(self, split: Split) -> int:
        """The bytes of text in ``split``."""
        return len(self.sides[split].data)

    def sample(self, split: Split, rng: np.random.Generator, rows: int, length: int) -> Tokens:
        """Draw ``rows`` windows of ``length`` bytes, every window equally likely: uint8 [rows, length].

        Raises `CorpusUnavailable` where no run of the split is that long.
        """
        side = self.sides[split]
        windows = np.maximum(side.lengths - length + 1, 0)
        ends = np.cumsum(windows)
        if not len(ends) or ends[-1] == 0:
            raise CorpusUnavailable(
                self.domain, f"its {split} split has no {length} bytes in a row", "give it more text"
            )
        drawn = rng.integers(ends[-1], size=rows)
        run = np.searchsorted(ends, drawn, side="right")
        at = side.starts[run] + drawn - (ends[run] - windows[run])
        windows_drawn: Tokens = side.data[at[:, None] + np.arange(length)]
        return windows_drawn


def excerpt(corpus: Corpus, max_bytes: int) -> Corpus:
    """``corpus`` with only the first ``max_bytes`` of the text to train on: a miner that has little of its own."""
    return _with_train(corpus, 0, max_bytes)


def _with_train(corpus: Corpus, low: int, high: int) -> Corpus:
    """``corpus`` with only the bytes from ``low`` to ``high`` of its text to train on."""
    side = corpus.sides["train"]
    ends = side.starts + side.lengths
    runs = [side.data[max(a, low) : min(b, high)].tobytes() for a, b in zip(side.starts, ends, strict=True)]
    return Corpus(corpus.domain, {**corpus.sides, "train": _side([run for run in runs if run])})


def set_apart(corpus: Corpus, share: float) -> tuple[Corpus, Corpus]:
    """``corpus`` twice: without the last ``share`` of the bytes that it trains on, and with nothing else to train on.

    So a miner measures itself without reading what validators judge by.
    """
    size = corpus.size_bytes("train")
    cut = min(max(round(size * (1 - share)), 1), size - 1)
    return _with_train(corpus, 0, cut), _with_train(corpus, cut, size)


class TextSource(Protocol):
    """Whatever rows of text can be drawn from: a `Corpus`, or a `Blend` of several."""

    def sample(self, split: Split, rng: np.random.Generator, rows: int, length: int) -> Tokens:
        """``rows`` windows of ``length`` bytes of ``split``: uint8 [rows, length]."""
        ...


@dataclass(frozen=True, slots=True)
class Blend:
    """Several texts as one: each row is from one of ``parts``, as often as its share of ``shares`` says."""

    parts: Sequence[TextSource]
    shares: Sequence[float]

    def sample(self, split: Split, rng: np.random.Generator, rows: int, length: int) -> Tokens:
        """Draw as `Corpus.sample` does. Raises `CorpusUnavailable` like it."""
        chances = np.asarray(self.shares, dtype=np.float64)
        counts = rng.multinomial(rows, chances / chances.sum())
        drawn = [part.sample(split, rng, int(n), length) for part, n in zip(self.parts, counts, strict=True)]
        return np.concatenate(drawn)


def available_domains() -> tuple[str, ...]:
    """The built-in domains whose text is on this machine, in their fixed order."""
    return tuple(domain for domain in DOMAINS if next(_texts(domain), None) is not None)


def load_corpus(domain: str, files: Sequence[Path] = ()) -> Corpus:
    """Read a built-in domain, or ``files`` under the name ``domain``; at most `MAX_CORPUS_BYTES` are kept.

    Raises `CorpusUnavailable`, which names the domain and the remedy.
    """
    if not files and domain not in DOMAINS:
        raise CorpusUnavailable(domain, "it is not built in", f"use one of {', '.join(DOMAINS)}, {_NAME_FILES}")
    texts = _without_repeats(_bounded(_read_files(domain, files) if files else _texts(domain)))
    total = sum(map(len, texts))
    if total == 0 and files:
        raise CorpusUnavailable(domain, "its files are empty", "give it more text")
    if total == 0:
        raise CorpusUnavailable(domain, "this Python does not carry it", _remedy(domain))
    block = BLOCK_BYTES if total >= SMALL_CORPUS_BYTES else BLOCK_BYTES // 4
    runs = _cut(texts, block)
    for split, found in runs.items():
        if not found:
            raise CorpusUnavailable(domain, f"{total} bytes leave the {split} split empty", "give it more text")
    return Corpus(domain, {split: _side(found) for split, found in runs.items()})


def _remedy(domain: str) -> str:
    if domain == "c":
        return f"install the development files (python3-dev) {_NAME_FILES}"
    return f"use another domain {_NAME_FILES}"


def _bounded(texts: Iterator[bytes]) -> list[bytes]:
    kept: list[bytes] = []
    room = MAX_CORPUS_BYTES
    for text in texts:
        kept.append(text[:room])
        room -= len(kept[-1])
        if room == 0:
            break
    return kept


def _without_repeats(texts: Sequence[bytes]) -> list[bytes]:
    """The texts without the lines of any passage that stood earlier in one of them."""
    seen: set[tuple[bytes, bytes]] = set()
    kept: list[bytes] = []
    for text in texts:
        lines = text.splitlines(keepends=True)
        bare = [line.strip() for line in lines]
        repeated = [False] * len(lines)
        for at, pair in enumerate(pairwise(bare)):
            if len(pair[0]) + len(pair[1]) < MIN_PASSAGE_BYTES:
                continue
            if pair in seen:
                repeated[at] = repeated[at + 1] = True
            seen.add(pair)
        kept.append(b"".join(line for line, again in zip(lines, repeated, strict=True) if not again))
    return kept


def _cut(texts: Sequence[bytes], block_bytes: int) -> dict[Split, list[bytes]]:
    """Each split's runs: adjacent blocks of one file that landed on the same side, joined."""
    runs: dict[Split, list[bytes]] = {split: [] for split in SPLITS}
    for text in texts:
        begin, current = 0, None
        for at in range(0, len(text), block_bytes):
            split = _split_of(text[at : at + block_bytes])
            if current is not None and split != current:
                runs[current].append(text[begin:at])
                begin = at
            current = split
        if current is not None:
            runs[current].append(text[begin:])
    return runs


def _split_of(block: bytes) -> Split:
    point = int.from_bytes(tagged_hash(Domain.CORPUS_BLOCK, block)[:8], "big") / 2**64
    if point < HELD_OUT_SHARE:
        return "held_out"
    return "validation" if point < HELD_OUT_SHARE + VALIDATION_SHARE else "train"


def _side(runs: Sequence[bytes]) -> _Side:
    lengths = np.array([len(run) for run in runs], dtype=np.int64)
    data = np.frombuffer(b"".join(runs), dtype=np.uint8)
    return _Side(data, np.cumsum(lengths) - lengths, lengths)


def _texts(domain: str) -> Iterator[bytes]:
    """The texts of a built-in domain, one a file, in an order that does not depend on the file system."""
    library = Path(sysconfig.get_path("stdlib"))
    if domain == "prose":
        yield from _topics()
    elif domain == "python":
        yield from _read_present(_by_hash(_library_sources(library), library))
    elif domain == "tables":
        files = _read_present(sorted((library / "encodings").glob("*.py")))
        yield from (text for text in files if b"charmap" in text)  # the rest is ordinary source
    elif domain == "c":
        yield from _read_present(sorted(Path(sysconfig.get_path("include")).rglob("*.h")))
    elif domain == "html":
        yield from _read_present(sorted((library / "idlelib").glob("*.html")))


def _topics() -> Iterator[bytes]:
    """The pages of the language reference; `pydoc` finds them the same way."""
    try:
        from pydoc_data.topics import topics  # some distributions leave this package out
    except ImportError:
        return
    for name in sorted(topics):
        yield topics[name].encode()


def _library_sources(library: Path) -> Iterator[Path]:
    for folder, inside, names in os.walk(library):
        inside[:] = [name for name in inside if name not in _NOT_LIBRARY_SOURCE and not name.startswith("config-")]
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def _by_hash(paths: Iterator[Path], root: Path) -> list[Path]:
    """Shuffled by name, so that the size bound keeps a sample of the whole and not the letters a to d."""
    names = ((path, path.relative_to(root).as_posix().encode()) for path in paths)
    return [path for path, name in sorted(names, key=lambda item: tagged_hash(Domain.CORPUS_BLOCK, item[1]))]


def _read_present(paths: Sequence[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            if text := file.read(MAX_CORPUS_BYTES):
                yield text


def _read_files(domain: str, files: Sequence[Path]) -> Iterator[bytes]:
    for path in files:
        try:
            with path.open("rb") as file:
                yield file.read(MAX_CORPUS_BYTES)
        except OSError as error:
            raise CorpusUnavailable(domain, f"{path}: {error.strerror}", "correct its path") from error
