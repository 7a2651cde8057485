"""Runs every promise's test and prints the table id · sentence · test · result; a promise without a test is open.

``python tests/promises [--write FILE]``: with ``--write`` the table is kept as Markdown as well.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent
PROMISES: dict[str, dict[str, str]] = tomllib.loads((FOLDER / "sentences.toml").read_text())
NAME = re.compile(r"test_([a-z]+\d+)_")


class Results:
    """A pytest plug-in that remembers how each promise's tests ended."""

    def __init__(self) -> None:
        self.tests: dict[str, list[str]] = {}
        self.outcomes: dict[str, set[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = report.nodeid.split("::")[-1]
        found = NAME.match(test)
        if found is None or (report.when != "call" and report.passed):
            return
        promise = found.group(1).upper()
        if test not in self.tests.setdefault(promise, []):
            self.tests[promise].append(test)
        self.outcomes.setdefault(promise, set()).add(report.outcome)

    def verdict(self, promise: str) -> str:
        outcomes = self.outcomes.get(promise, set())
        if "failed" in outcomes:
            return "BROKEN"
        if "passed" in outcomes:
            return "kept"
        return "skipped" if outcomes else "open"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the table as Markdown")
    options = parser.parse_args()
    results = Results()
    code = pytest.main(["-q", str(FOLDER)], plugins=[results])
    lines = ["# What moed promises", "", "| id | promise | test | result |", "|---|---|---|---|"]
    counts: dict[str, int] = {}
    for section, sentences in PROMISES.items():
        lines.append(f"| | **{section}** | | |")
        for promise, sentence in sentences.items():
            verdict = results.verdict(promise)
            counts[verdict] = counts.get(verdict, 0) + 1
            tests = ", ".join(f"`{test}`" for test in results.tests.get(promise, []))
            lines.append(f"| {promise} | {sentence} | {tests} | {verdict} |")
    summary = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    lines += ["", f"{sum(counts.values())} promises: {summary}."]
    text = "\n".join(lines) + "\n"
    sys.stdout.write("\n" + text)
    if options.write:
        options.write.write_text(text)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
