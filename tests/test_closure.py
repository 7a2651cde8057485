"""The runtime closure holds no compiled Rust, and light commands load nothing heavy."""

from __future__ import annotations

import mmap
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

# What rustc leaves in every binary that it links: paths of its own library, and the symbol of its panic handler.
MARKS = (b"/rustc/", b"rust_panic", b"rust_begin_unwind")
BINARIES = (".so", ".pyd", ".dylib")


def runtime_closure(name: str) -> dict[str, Distribution]:
    """Every installed distribution that ``name`` needs to run, itself included; extras are left out."""
    found: dict[str, Distribution] = {}
    waiting = [name]
    while waiting:
        wanted = waiting.pop()
        key = wanted.lower().replace("_", "-")
        if key in found:
            continue
        try:
            one = distribution(wanted)
        except PackageNotFoundError:
            continue  # a marker of the requirement held elsewhere, not here
        found[key] = one
        for line in one.requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


def rust_binaries(one: Distribution) -> list[str]:
    """The shared libraries of a distribution that rustc built."""
    guilty = []
    for entry in one.files or []:
        path = Path(str(one.locate_file(entry)))
        if not (path.name.endswith(BINARIES) or ".so." in path.name) or not path.is_file() or path.stat().st_size == 0:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if any(data.find(mark) >= 0 for mark in MARKS):
                guilty.append(str(entry))
    return guilty


def test_the_runtime_closure_has_no_compiled_rust() -> None:
    """Every package that moed needs to run is looked through, torch among them."""
    closure = runtime_closure("moed")
    assert {"torch", "trio", "kademlia", "cbor2", "pynacl", "structlog", "msgspec", "numpy"} <= set(closure)
    assert {name: found for name, one in closure.items() if (found := rust_binaries(one))} == {}


def test_a_rust_extension_would_be_found() -> None:
    """The search finds one that is known to be there: mypy's parser, a development tool."""
    try:
        one = distribution("ast_serialize")
    except PackageNotFoundError:
        pytest.skip("no Rust extension is installed here to look for")
    assert rust_binaries(one) != []


LIGHT = {
    "moectl": "import moed.daemon.ctl",
    "moed --help": "import moed.daemon.cli",
    "moed init": "import moed.daemon.home",
    "moed chain verify": "import moed.daemon.store",
    "a follower": "import moed.daemon.node, moed.daemon.roles",
}


@pytest.mark.parametrize("what", list(LIGHT))
def test_light_commands_do_not_load_torch(what: str) -> None:
    """torch comes into memory for a role that computes, and for nothing else; moectl does without trio too."""
    forbidden = ["torch"] + (["trio", "numpy"] if what in ("moectl", "moed --help") else [])
    program = f"{LIGHT[what]}; import sys; print([name for name in {forbidden!r} if name in sys.modules])"
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": str(root / "src")}
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
