"""A machine of its own for tests: this one's systemd, booted in namespaces over a throw-away copy of this root.

Nothing of this machine is changed: the copy is an overlay in memory, and processes, mounts, network, names and control
groups are of the booted machine alone. Its life ends with the process that holds it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BOOT_S = 30.0
TOOLS = ("unshare", "nsenter", "mount", "pivot_root", "systemctl", "setpriv", "journalctl")
SYSTEMD = Path("/lib/systemd/systemd")

SCRIPT = """
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/up" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/up,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs tmpfs dev
for device in null zero full random urandom tty; do touch dev/$device; mount --bind /dev/$device dev/$device; done
mkdir dev/shm dev/pts dev/mqueue
mount -t tmpfs tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
for link in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do ln -s /proc/self/${link#*:} dev/${link%%:*}; done
mount -t cgroup2 cgroup2 sys/fs/cgroup
rm -rf etc/systemd/system/*.wants/* etc/machine-id var/log/journal
tr -d - < /proc/sys/kernel/random/uuid > etc/machine-id
for unit in systemd-networkd systemd-networkd-wait-online systemd-resolved; do
  ln -sf /dev/null etc/systemd/system/$unit.service
done
mkdir -p "opt/copy" && cp -a "$2/." opt/copy/
mkdir old && pivot_root . old && cd / && umount -l /old && rmdir /old
exec env -i container=moed-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
  /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=0
"""


def why_not() -> str | None:
    """Why no machine can be booted here, or None."""
    if os.geteuid() != 0:
        return "booting a machine takes root"
    if not SYSTEMD.exists():
        return "systemd is not installed"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


class Booted:
    """A running machine."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def run(self, *command: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """One command inside, to its end."""
        inside = ("nsenter", f"--target={self._pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root")
        environment = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}
        # nsenter keeps a working folder of this machine, so the command starts with another one.
        command = (*inside, "sh", "-c", 'cd / && exec "$@"', "sh", *command)
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env=environment, stdin=subprocess.DEVNULL
        )

    def check(self, *command: str, timeout_s: float = 60.0) -> str:
        """Its output; fails with its complaint."""
        done = self.run(*command, timeout_s=timeout_s)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def wait(self, what: str, *command: str, words: str, timeout_s: float = 60.0) -> None:
        """Ask again and again until the output has ``words``."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            last = self.run(*command)
            if words in last.stdout:
                return
            time.sleep(0.1)
        raise AssertionError(f"waited {timeout_s:.0f} s in vain for {what}: {last.stdout}{last.stderr}")


@contextmanager
def booted(folder: Path, copied: Path) -> Iterator[Booted]:
    """Boot over ``folder``, with ``copied`` under /opt/copy; raises `AssertionError` if it does not come up."""
    with (folder / "boot.log").open("wb") as log:
        holder = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net", "--cgroup",
             "--propagation=private", "sh", "-c", SCRIPT, "boot", str(folder), str(copied)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        yield _await_boot(holder, folder)
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait(10)


def _await_boot(holder: subprocess.Popen[bytes], folder: Path) -> Booted:
    deadline = time.monotonic() + BOOT_S
    children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
    while time.monotonic() < deadline:
        assert holder.poll() is None, (folder / "boot.log").read_text()
        first = children.read_text().split()
        if first:
            machine = Booted(int(first[0]))
            if machine.run("systemctl", "is-system-running", timeout_s=10).stdout.strip() in ("running", "degraded"):
                return machine
        time.sleep(0.1)
    raise AssertionError(f"the machine did not come up: {(folder / 'boot.log').read_text()}")
