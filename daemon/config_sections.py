"""Every key of the configuration: its type, its default, what it means and what it may be.

This is the only list of keys. The check, the words of a complaint and the commented example that `moed init`
writes all come from it. ``description`` is for the operator; ``allowed`` says in words what the constraint beside
it says to msgspec.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Role = Literal["follower", "miner", "validator"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "console"]
TextDomain = Literal["prose", "python", "tables", "c", "html"]
BUILT_IN_MODELS = ("gru", "transformer", "ngram")
DEFAULT_PORT = 4700
MAX_LIMIT = 1 << 40  # in bytes it is still a number that everything can count with


def _key(description: str, allowed: str) -> dict[str, Any]:
    return {"description": description, "extra": {"allowed": allowed}}


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the sections: a key that is not a field is refused."""


class NodeSection(_Section, frozen=True, kw_only=True):
    """Who this node is and where it can be reached."""

    role: Annotated[Role, Meta(**_key("what this node does in the network", "follower, miner or validator"))] = (
        "follower"
    )
    port: Annotated[
        int, Meta(ge=1, le=65535, **_key("one number for TCP (sessions) and UDP (Kademlia)", "1 to 65535"))
    ] = DEFAULT_PORT
    listen: Annotated[
        str, Meta(**_key("address of this machine to listen on; :: takes IPv6 and IPv4", "one IPv4 or IPv6 address"))
    ] = "0.0.0.0"  # noqa: S104 - a peer-to-peer node is there to be reached
    advertise: Annotated[
        Annotated[str, Meta(min_length=1, max_length=253)] | None,
        Meta(**_key("host name or address that peers should dial", "a host or address")),
    ] = None
    bootstrap: Annotated[
        tuple[str, ...],
        Meta(max_length=64, **_key("nodes of the network to join first", 'a list of "host:port", at most 64')),
    ] = ()
    socket: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(**_key("path of the control socket; moed.sock in the home if not set", "a path")),
    ] = None
    grace_s: Annotated[
        float, Meta(ge=0, le=60, **_key("seconds that running requests get to finish on shutdown", "0 to 60"))
    ] = 3.0


class ChainSection(_Section, frozen=True, kw_only=True):
    """How this node comes to the present state of the chain."""

    sync: Annotated[
        Literal["blocks", "snapshot"],
        Meta(
            **_key(
                "how a new node that is far behind begins: execute every block, or take the state that over two thirds "
                "of the stake signed at the end of the last epoch",
                "blocks or snapshot",
            )
        ),
    ] = "blocks"
    checkpoint: Annotated[
        Annotated[str, Meta(pattern="^[1-9][0-9]{0,17}:[0-9a-f]{64}$")] | None,
        Meta(
            **_key(
                "the last block of a late epoch, from somebody you trust (`moed chain checkpoint`): no chain with "
                "another block there is followed",
                '"HEIGHT:HASH"',
            )
        ),
    ] = None


class LogSection(_Section, frozen=True, kw_only=True):
    """What is logged, and how it looks on standard error."""

    level: Annotated[LogLevel, Meta(**_key("the least severe events to log", "debug, info, warning or error"))] = "info"
    format: Annotated[
        LogFormat,
        Meta(**_key("auto: colours on a terminal, JSON with syslog priorities elsewhere", "auto, json or console")),
    ] = "auto"


class ComputeSection(_Section, frozen=True, kw_only=True):
    """The hardware that miners and validators compute on."""

    device: Annotated[
        str,
        Meta(
            pattern="^(auto|cpu|cuda(:[0-9]{1,3})?)$",
            **_key("auto takes the first CUDA device, else the CPU", 'auto, cpu, cuda or "cuda:0"'),
        ),
    ] = "auto"
    precision: Annotated[
        Literal["float32", "bfloat16"],
        Meta(**_key("what answers are computed in; training stays float32", "float32 or bfloat16")),
    ] = "float32"
    torch_threads: Annotated[int, Meta(ge=1, le=1024, **_key("threads of one torch operation", "1 to 1024"))] = 1


class LimitsSection(_Section, frozen=True, kw_only=True):
    """What the daemon may take of this machine; threads are under [compute]. No limit where nothing is set."""

    memory_mib: Annotated[
        Annotated[int, Meta(ge=64, le=MAX_LIMIT)] | None,
        Meta(**_key("resident memory; the daemon stops in order when it takes more", "64 and more, to 2^40 MiB")),
    ] = None
    disk_mib: Annotated[
        Annotated[int, Meta(ge=16, le=MAX_LIMIT)] | None,
        Meta(**_key("what the home may hold; the daemon stops in order over it", "16 and more, to 2^40 MiB")),
    ] = None
    upload_kib_per_s: Annotated[
        Annotated[int, Meta(ge=16, le=MAX_LIMIT)] | None,
        Meta(**_key("bytes sent to peers over sessions", "16 and more, to 2^40 KiB a second")),
    ] = None
    download_kib_per_s: Annotated[
        Annotated[int, Meta(ge=16, le=MAX_LIMIT)] | None,
        Meta(**_key("bytes taken from peers over sessions", "16 and more, to 2^40 KiB a second")),
    ] = None
    gpu_memory_share: Annotated[
        float, Meta(gt=0, le=1, **_key("share of a CUDA device's memory that torch may take", "over 0, up to 1"))
    ] = 1.0


class ExpertSection(_Section, frozen=True, kw_only=True):
    """One expert that a miner makes, trains and serves; a double-bracketed section each."""

    name: Annotated[
        str,
        Meta(pattern="^[a-z0-9][a-z0-9_.-]{0,62}$", **_key("unique in this home", "a-z, 0-9, _ . -, at most 63")),
    ]
    model: Annotated[
        str,
        Meta(
            pattern=r"^(gru|transformer|ngram|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$",
            **_key("a built-in model or your own factory", 'gru, transformer, ngram or "package.module:make"'),
        ),
    ] = "gru"
    domain: Annotated[
        TextDomain | None,
        Meta(**_key("which text that Python ships it learns, if no files are given", "prose, python, tables, c, html")),
    ] = None
    files: Annotated[
        tuple[str, ...],
        Meta(max_length=10_000, **_key("your own text instead: paths, relative to the home", "a list of paths")),
    ] = ()
    options: Annotated[
        dict[str, int | float | str | bool],
        Meta(**_key("given to the model: width, layers, heads, embedding, …", "a table of numbers and words")),
    ] = {}
    train: Annotated[bool, Meta(**_key("whether it goes on training between requests", "true or false"))] = True
    training_share: Annotated[
        float, Meta(ge=0, le=1, **_key("share of the idle time that training may take", "0 to 1"))
    ] = 0.5
    exchange_rows_per_minute: Annotated[
        float,
        Meta(ge=0, le=100_000, **_key("rows a minute to learn from other miners' answers to; 0: none", "0 to 100000")),
    ] = 240.0
    max_rows: Annotated[int, Meta(ge=1, le=4096, **_key("most rows in one request", "1 to 4096"))] = 64
    max_sequence_bytes: Annotated[int, Meta(ge=2, le=65536, **_key("most bytes in one row", "2 to 65536"))] = 256


class LayerSection(_Section, frozen=True, kw_only=True):
    """Layers that a miner serves to other people's models; a double-bracketed section for each sort."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9][a-z0-9_.-]*(\.\[\d{1,4}-\d{1,4}\])*$",
            max_length=80,
            **_key(
                'one name, or a part of a grid: "ffn.[0-3].[0-7]" is 32 layers', "a-z, 0-9, _ . -, ranges at the end"
            ),
        ),
    ]
    layer: Annotated[
        Literal["ffn", "block", "encoder", "classifier"],
        Meta(
            **_key(
                "what each computes: a feed-forward step, a transformer block, features of a row, or its class",
                "ffn, block, encoder or classifier",
            )
        ),
    ] = "ffn"
    width: Annotated[int, Meta(ge=1, le=65536, **_key("numbers in one row, in and out", "1 to 65536"))]
    classes: Annotated[
        int, Meta(ge=0, le=65536, **_key("how many classes a classifier tells apart", "1 to 65536; 0 for the others"))
    ] = 0
    max_rows: Annotated[int, Meta(ge=1, le=65536, **_key("most rows in one request", "1 to 65536"))] = 1024
    learning_rate: Annotated[
        float, Meta(ge=0, le=1, **_key("how far a caller's gradient moves the weights; 0 keeps them", "0 to 1"))
    ] = 1e-3


class GradientsSection(_Section, frozen=True, kw_only=True):
    """Who may send gradients to this miner's layers, which learn from them."""

    stranger_share: Annotated[
        float,
        Meta(ge=0, le=1, **_key("share of the device's time for callers without stake, all together", "0 to 1")),
    ] = 0.0
    caller_share: Annotated[
        float, Meta(gt=0, le=1, **_key("share of the device's time for any one caller", "over 0, to 1"))
    ] = 1.0
    burst_s: Annotated[
        float, Meta(gt=0, le=3600, **_key("seconds of it that may be used at once", "over 0, to 3600"))
    ] = 2.0


class ValidatorSection(_Section, frozen=True, kw_only=True):
    """How a validator draws its batches, trains its gate and measures miners."""

    domains: Annotated[
        tuple[TextDomain, ...],
        Meta(
            **_key("text to judge by; all that this machine has if empty", "a list of prose, python, tables, c, html")
        ),
    ] = ()
    files: Annotated[
        tuple[str, ...],
        Meta(max_length=10_000, **_key("your own text to judge by: paths, relative to the home", "a list of paths")),
    ] = ()
    locks: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")], ...],
        Meta(max_length=64, **_key("your own tasks to judge by, beside the texts", 'a list of "package.module:make"')),
    ] = ()
    top_k: Annotated[int, Meta(ge=1, le=64, **_key("miners that the gate asks for one input", "1 to 64"))] = 2
    batch_rows: Annotated[int, Meta(ge=1, le=4096, **_key("rows in one batch", "1 to 4096"))] = 12
    sequence_bytes: Annotated[int, Meta(ge=2, le=65536, **_key("bytes in one row", "2 to 65536"))] = 128
    probe_every: Annotated[
        int, Meta(ge=1, le=100_000, **_key("batches between two that go to every miner, to score them", "1 to 100000"))
    ] = 4
    exploration: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            **_key("least share of rows that also go to a miner the gate would not pick", "0 to 1"),
        ),
    ] = 0.05


class Sections(_Section, frozen=True, kw_only=True):
    """The file as a whole."""

    node: NodeSection = NodeSection()
    chain: ChainSection = ChainSection()
    log: LogSection = LogSection()
    compute: ComputeSection = ComputeSection()
    limits: LimitsSection = LimitsSection()
    experts: tuple[ExpertSection, ...] = ()
    layers: tuple[LayerSection, ...] = ()
    gradients: GradientsSection = GradientsSection()
    validator: ValidatorSection = ValidatorSection()


PLAIN_SECTIONS: tuple[tuple[str, type[msgspec.Struct]], ...] = (
    ("node", NodeSection),
    ("chain", ChainSection),
    ("log", LogSection),
    ("compute", ComputeSection),
    ("limits", LimitsSection),
    ("gradients", GradientsSection),
    ("validator", ValidatorSection),
)
"""The sections that stand once, in the order of the file."""
LISTED_SECTIONS: tuple[tuple[str, type[msgspec.Struct]], ...] = (("experts", ExpertSection), ("layers", LayerSection))
"""The sections of which there may be several; they come after the others."""

LIVE_KEYS = frozenset(
    {
        "log.level",
        "node.grace_s",
        "limits.memory_mib",
        "limits.disk_mib",
        "limits.upload_kib_per_s",
        "limits.download_kib_per_s",
    }
)
"""What a running daemon takes over on a reload; every other key waits for the next start."""
