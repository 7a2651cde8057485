"""moed as a systemd service: what `moed service install` puts where, and how `uninstall` takes it away again.

Everything is made anew on each install, so a second one is an upgrade. The home with the key is never touched once it
is there, and stays at an uninstall unless it is purged.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from moed import __version__

from .errors import NodeError

UNIT = Path("/etc/systemd/system/moed.service")
DROP_INS = Path("/etc/systemd/system/moed.service.d")
SYSUSERS = Path("/etc/sysusers.d/moed.conf")
SETTINGS = Path("/etc/moed")
"""Made by ConfigurationDirectory= in the unit, for files that an operator wants to keep there."""
HOME = Path("/var/lib/moed")
PREFIX = Path("/opt/moed")
LINKS = Path("/usr/local/bin")
USER = "moed"
COMPLETIONS = {
    "bash": Path("/usr/share/bash-completion/completions/moectl"),
    "zsh": Path("/usr/share/zsh/vendor-completions/_moectl"),
    "fish": Path("/usr/share/fish/vendor_completions.d/moectl.fish"),
}
COMMANDS = ("moed", "moectl")
MAN_PAGES = {name: Path("/usr/local/share/man/man1") / f"{name}.1" for name in COMMANDS}
_HIDDEN = (Path("/root"), Path("/home"), Path("/run/user"))
"""What ProtectHome= in the unit hides from the daemon."""
_TIMEOUT_S = 600.0


class ServiceRefused(NodeError):
    """The service cannot be installed or asked about here; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Source:
    """What the service's environment is made of: the interpreter, what pip installs, and packages that it may use."""

    python: Path
    package: str
    borrowed_packages: Path | None = None


def default_source() -> Source:
    """This interpreter, or the system's where the service could not read this one; the project it was started from."""
    own = Path(sys.executable).resolve()
    if any(own.is_relative_to(hidden) for hidden in _HIDDEN):
        own = Path("/usr/bin/python3")
    project = Path(__file__).resolve().parents[1]
    is_project = (project / "pyproject.toml").is_file()
    return Source(own, str(project) if is_project else f"moed=={__version__}")


def install(source: Source, *, has_gpu: bool, starts: bool) -> Iterator[str]:
    """Install or upgrade; yields what was done, line by line. Raises `ServiceRefused` before anything is changed."""
    _require_systemd()
    _require_python(source.python)
    yield _make_environment(source)
    yield _place(SYSUSERS, _shipped("moed.sysusers"))
    _run("systemd-sysusers", str(SYSUSERS))
    yield f"user and group {USER}"
    yield _make_home()
    yield _place(UNIT, _shipped("moed.service"))
    if has_gpu:
        yield _place(DROP_INS / "gpu.conf", _shipped("gpu.conf"))
    else:
        (DROP_INS / "gpu.conf").unlink(missing_ok=True)
    yield from _place_commands()
    _run("systemctl", "daemon-reload")
    if starts:
        _run("systemctl", "enable", "moed")
        _run("systemctl", "restart", "moed")
        yield "enabled and started: moectl status, journalctl -u moed"
    else:
        yield "not started: systemctl enable --now moed"


def uninstall(*, purges: bool) -> Iterator[str]:
    """Stop the service and take away what `install` made; the home and the user only if it ``purges``."""
    _require_systemd()
    if UNIT.exists():
        _run("systemctl", "disable", "--now", "moed")
        yield "stopped and disabled"
    links = (LINKS / name for name in COMMANDS)
    for path in (UNIT, DROP_INS / "gpu.conf", *COMPLETIONS.values(), *MAN_PAGES.values(), *links):
        if path.is_symlink() or path.exists():
            path.unlink()
            yield f"removed {path}"
    for folder in (DROP_INS, SETTINGS):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    if PREFIX.exists():
        shutil.rmtree(PREFIX)
        yield f"removed {PREFIX}"
    _run("systemctl", "daemon-reload")
    if not purges:
        yield f"kept {HOME} with the key, and the user {USER}; --purge removes them"
        return
    for folder in (HOME, SETTINGS):
        if folder.exists():
            shutil.rmtree(folder)
            yield f"removed {folder}"
    SYSUSERS.unlink(missing_ok=True)
    if _has_user():
        _run("userdel", USER)
    yield f"removed the user {USER}"


def status() -> dict[str, Any]:
    """What is installed and how it runs. Raises `ServiceRefused` without systemd."""
    _require_systemd(as_root=False)
    names = ("ActiveState", "SubState", "StatusText", "MainPID", "NRestarts", "UnitFileState")
    shown = _run("systemctl", "show", "moed", *(f"--property={name}" for name in names))
    found = dict(line.partition("=")[::2] for line in shown.splitlines())
    return {
        "installed": UNIT.exists(),
        "active": found.get("ActiveState", "unknown"),
        "state": found.get("SubState", "unknown"),
        "says": found.get("StatusText", ""),
        "pid": int(found.get("MainPID") or 0),
        "restarts": int(found.get("NRestarts") or 0),
        "starts_at_boot": found.get("UnitFileState") == "enabled",
        "home": str(HOME),
        "has_gpu_access": (DROP_INS / "gpu.conf").exists(),
    }


def _require_systemd(*, as_root: bool = True) -> None:
    if not Path("/run/systemd/system").is_dir():
        raise ServiceRefused("systemd does not run here", "run the node in the foreground: moed run --home DIR")
    if as_root and os.geteuid() != 0:
        raise ServiceRefused("only root may change services", "use: sudo moed service …")


def _require_python(python: Path) -> None:
    if any(python.resolve().is_relative_to(hidden) for hidden in _HIDDEN):
        raise ServiceRefused(
            f"{python} lies in a home, which the service does not see", "name a Python of the system with --python"
        )
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    if not python.exists() or not _succeeds(str(python), "-c", check):
        raise ServiceRefused(f"{python} is no Python 3.11 or newer", "name another one with --python")


def _make_environment(source: Source) -> str:
    python = PREFIX / "bin" / "python"
    if not python.exists():
        _run(str(source.python), "-m", "venv", "--without-pip", str(PREFIX))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    if source.borrowed_packages is not None:
        (site,) = (PREFIX / "lib").glob("python3*/site-packages")
        (site / "borrowed.pth").write_text(f"{source.borrowed_packages}\n")
        pip += ["--no-deps", "--no-build-isolation", "--force-reinstall"]
    _run(*pip, "--upgrade", source.package)
    return f"environment {PREFIX} with {source.package}"


def _make_home() -> str:
    if (HOME / "config.toml").exists():
        return f"home {HOME} as it was"
    HOME.mkdir(parents=True, exist_ok=True)
    shutil.chown(HOME, USER, USER)
    HOME.chmod(0o700)
    become = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups")
    _run(*become, str(PREFIX / "bin" / "moed"), "init", "--home", str(HOME))
    return f"home {HOME} with a key, a configuration, and a network of its own"


def _place_commands() -> Iterator[str]:
    LINKS.mkdir(parents=True, exist_ok=True)
    for name in COMMANDS:
        link = LINKS / name
        link.unlink(missing_ok=True)
        link.symlink_to(PREFIX / "bin" / name)
    yield f"commands {' and '.join(COMMANDS)} in {LINKS}"
    for name, path in MAN_PAGES.items():
        yield _place(path, _run(str(PREFIX / "bin" / "python"), "-m", "moed.daemon.man_page", name))
    for shell, path in COMPLETIONS.items():
        if path.parent.is_dir():
            yield _place(path, _run(str(PREFIX / "bin" / "moectl"), "completion", shell))


def _place(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)
    return f"file {path}"


def _shipped(name: str) -> str:
    return files("moed.systemd").joinpath(name).read_text()


def _has_user() -> bool:
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return False
    return True


def _run(*command: str) -> str:
    """The command's output. Raises `ServiceRefused` with its own words where it fails."""
    try:
        done = _finished(command)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceRefused(f"{command[0]} failed: {error}", "see whether it is installed") from error
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise ServiceRefused(f"{' '.join(command[:3])}: {words[-1]}", "mend that and try again")
    return done.stdout


def _succeeds(*command: str) -> bool:
    return _finished(command).returncode == 0


def _finished(command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S)  # noqa: S603 - our own words
