"""What stops the daemon or a command, in words for the operator: what is wrong, and the remedy.

The tree:

    NodeError                       exit code 1: it was asked rightly and could not be done
    ├── ConfigError                 exit code 3: a wrong key or value in the configuration, or wrong usage
    ├── KeyFileError                the work key is missing, unsafe or not a key
    ├── GenesisError                the genesis is missing, not one, or another network's
    ├── PortTaken                   another process holds the TCP or UDP port
    ├── SocketError                 the control socket cannot be made where it should be
    │   └── AlreadyRunning          another daemon answers on that socket
    ├── DaemonUnreachable           exit code 2: no daemon answers where a command looked for one
    ├── DaemonRefused               the daemon answered a command with an error
    ├── StoreError                  the chain database
    │   ├── StoreFailed             the disk refused: full, read-only, gone
    │   └── StoreCorrupt            what is on the disk is not what was written
    ├── TooFewFiles                 the process may not open enough files
    ├── LimitReached                memory or disk is over what the configuration allows, or the disk is nearly full
    ├── ChainFileError              an exported chain or a proof that is none, was changed, or is another network's
    ├── SimulationFailed            a simulated network broke a promise: a bug, and how to see it again
    └── ServiceEnded                a part that must run for ever returned; a bug

`str` of each is one line, so a command prints it and exits with ``exit_code``, without a traceback.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_NO_DAEMON = 2
EXIT_USAGE = 3


class NodeError(Exception):
    """Base of what the operator gets to read. ``message`` names the thing, ``remedy`` says what to do about it."""

    exit_code = EXIT_FAILED
    code = "failed"
    """The short stable name of what is wrong; docs/faults.md lists them."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        # Messages quote paths and values from outside, and the promise is one line.
        return " ".join(f"{self.message} ({self.remedy})".split())


class ConfigError(NodeError):
    """The configuration or the command line asks for something that cannot be; correct it and start again."""

    code = "bad_config"

    exit_code = EXIT_USAGE


class KeyFileError(NodeError):
    """The work key cannot be used as it lies there; nothing was started or signed."""

    code = "bad_key"


class GenesisError(NodeError):
    """The genesis file is not there, is none, or does not belong to the chain in this home."""

    code = "bad_genesis"


class PortTaken(NodeError):
    """Another process listens on the port; choose another or stop that process."""

    code = "port_taken"


class SocketError(NodeError):
    """The control socket cannot be made: no such folder, no permission, or something else lies there."""

    code = "no_socket"


class AlreadyRunning(SocketError):
    """Another daemon answered on the control socket; two would fight over one chain database."""

    code = "already_running"


class DaemonUnreachable(NodeError):
    """A command found no daemon: none runs, or it listens elsewhere."""

    exit_code = EXIT_NO_DAEMON


class DaemonRefused(NodeError):
    """The daemon answered, and the answer was no. ``code`` is the short stable name of the reason."""

    def __init__(self, message: str, remedy: str, *, code: str, status: int) -> None:
        super().__init__(message, remedy)
        self.code = code
        self.status = status


class StoreError(NodeError):
    """The chain database cannot be used; nothing that was acknowledged is lost by stopping now."""

    code = "store_failed"


class StoreFailed(StoreError):
    """The disk refused a read or a write; mend the disk and start again."""

    code = "store_failed"


class StoreCorrupt(StoreError):
    """What is stored is not what was written; restore the file or sync from peers."""

    code = "store_corrupt"


class ChainFileError(NodeError):
    """A file with blocks or a proof is not what it should be; get it again, or from somebody else."""


class TooFewFiles(NodeError):
    """The process may open so few files that a node cannot run; nothing was started."""

    code = "too_few_files"


class LimitReached(NodeError):
    """The daemon takes more than it may; it stops in order, and a service manager starts it again."""

    code = "limit_reached"


class SimulationFailed(NodeError):
    """A simulated life broke a promise; the message holds the seed, which shows it again."""


class ServiceEnded(NodeError):
    """A service that must run until it is cancelled returned: a bug, so the whole daemon stops and is restarted."""

    code = "service_ended"

    def __init__(self, name: str) -> None:
        super().__init__(f"the service {name!r} ended by itself", "this is a bug: please report it with the log")
        self.name = name
