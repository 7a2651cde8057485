"""Tests of the constants: the table in the documentation is the one in the code."""

from __future__ import annotations

import re
from pathlib import Path

from moed.consensus.params import DEVNET, ChainParams

PAGE = Path(__file__).parents[2] / "docs" / "consensus.md"


def test_the_documented_constants_are_the_ones_in_force() -> None:
    """Every constant is listed once, in the order of the code, with its default and the devnet's value."""
    table = PAGE.read_text().split("| constant | default | devnet |")[1].split("\n\n")[0]
    listed = re.findall(r"^\| `(\w+)` \| (\S+) \| (\S+) \|$", table, re.MULTILINE)
    params = ChainParams()
    assert listed == [
        (name, str(getattr(params, name)), str(getattr(DEVNET, name))) for name in params.__struct_fields__
    ]
