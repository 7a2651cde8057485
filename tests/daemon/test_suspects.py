"""Who is left out, since when, and when it is tried again."""

from __future__ import annotations

from moed.daemon.suspects import FIRST_PAUSE_S, MAX_NAMES, Suspects


def test_out_after_failures_in_a_row_until_it_answers() -> None:
    """An answer in between begins the count anew; a name that is out stays out until it answers."""
    suspects: Suspects[str] = Suspects(failures=2)
    suspects.failed("a", 0.0)
    suspects.answered("a")
    suspects.failed("a", 1.0)
    assert not suspects.is_out("a")
    suspects.failed("a", 2.0)
    assert suspects.is_out("a")
    assert suspects.due(2.0 + FIRST_PAUSE_S - 0.1) == []
    assert suspects.due(2.0 + FIRST_PAUSE_S) == ["a"]
    assert suspects.is_out("a")
    suspects.answered("a")
    assert not suspects.is_out("a")


def test_each_vain_try_doubles_the_pause() -> None:
    """Calls that were under way when it went out do not count as tries."""
    suspects: Suspects[str] = Suspects(failures=1)
    suspects.failed("a", 0.0)
    for late in range(5):
        suspects.failed("a", 0.1 * late)
    assert suspects.due(FIRST_PAUSE_S) == ["a"]
    suspects.failed("a", FIRST_PAUSE_S)
    assert suspects.due(3 * FIRST_PAUSE_S - 0.1) == []
    assert suspects.due(3 * FIRST_PAUSE_S) == ["a"]


def test_names_that_strangers_make_up_take_bounded_memory() -> None:
    """Whoever names node after node that is not there is neither remembered nor dialled for all of them."""
    suspects: Suspects[int] = Suspects(failures=1)
    for name in range(3 * MAX_NAMES):
        suspects.failed(name, 0.0)
    assert suspects.due(FIRST_PAUSE_S) == list(range(2 * MAX_NAMES, 3 * MAX_NAMES))
