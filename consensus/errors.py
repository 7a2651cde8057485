"""What breaks a rule of the network, one class per rule, each with the values that disagreed.

The tree:

    RuleBroken
    └── InvalidEpochInput       the arrays given to an epoch contradict each other or their ranges
"""

from __future__ import annotations


class RuleBroken(Exception):
    """A rule that every node checks does not hold; nothing of what broke it was applied.

    ``rule`` says in words what must hold; ``expected`` and ``actual`` are the two values that disagreed.
    """

    def __init__(self, rule: str, expected: object, actual: object) -> None:
        super().__init__(f"{rule}: expected {expected}, got {actual}")
        self.rule = rule
        self.expected = expected
        self.actual = actual


class InvalidEpochInput(RuleBroken):
    """An epoch was asked for with inputs that no ledger can hold: a bug in the caller, or foreign data."""
