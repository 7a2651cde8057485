"""Starts the hivemind driver where hivemind is installed, and asks it for one repeat at a time."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

DRIVER = Path(__file__).with_name("hivemind_driver.py")


def has_hivemind(python: str) -> bool:
    """Whether that interpreter's environment has hivemind."""
    check = "import importlib.util, sys; sys.exit(importlib.util.find_spec('hivemind') is None)"
    try:
        return subprocess.run([python, "-c", check], check=False).returncode == 0
    except FileNotFoundError:
        return False


class Anchor:
    """The driver process."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, str(DRIVER), "drive"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.version: str = self._read()["hivemind"]

    def measure(self, what: str, **arguments: int) -> Any:
        """One repeat of a workload."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"measure": what, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the hivemind driver ended with {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the driver and its servers."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
