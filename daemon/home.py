"""A node's home folder: what `moed init` makes and `moed run` finds there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from moed.consensus.errors import InvalidGenesis
from moed.consensus.genesis import (
    WORKLOADS,
    Genesis,
    GenesisAccount,
    Workload,
    decode_genesis,
    encode_genesis,
)
from moed.consensus.params import CREDIT, ChainParams
from moed.protocol.identity import Identity

from . import places
from .config_example import write_default
from .config_sections import DEFAULT_PORT
from .errors import ConfigError, GenesisError
from .keystore import create_identity


@dataclass(frozen=True, slots=True)
class Home:
    """The files of one node."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / places.CONFIG_FILE

    @property
    def key(self) -> Path:
        return self.folder / places.KEY_FILE

    @property
    def next_key(self) -> Path:
        """The key that takes the work key's place when a rotation is finished."""
        return self.key.with_name("work.next.key")

    @property
    def snapshots(self) -> Path:
        """The states at the end of the last epochs, which this node gives to those who begin late."""
        return self.folder / "snapshots"

    @property
    def incoming(self) -> Path:
        """The pieces of a snapshot on their way here; gone when the chain has begun."""
        return self.folder / "incoming"

    @property
    def genesis(self) -> Path:
        return self.folder / places.GENESIS_FILE

    @property
    def database(self) -> Path:
        return self.folder / places.DATABASE_FILE

    @property
    def signed(self) -> Path:
        """The journal of what this node signed at the height under way."""
        return self.folder / "signed.journal"

    @property
    def experts(self) -> Path:
        """Where experts keep their checkpoints."""
        return self.folder / "experts"

    @property
    def gate(self) -> Path:
        """Where a validator keeps what it has learned."""
        return self.folder / "gate.ckpt"

    def load_genesis(self) -> Genesis:
        """The network's genesis. Raises `GenesisError` naming the file and what is wrong in it."""
        return read_genesis(self.genesis)


def read_genesis(path: Path) -> Genesis:
    """Read a genesis file. Raises `GenesisError` naming the file and what is wrong in it."""
    try:
        return decode_genesis(path.read_bytes())
    except OSError as error:
        raise GenesisError(
            f"cannot read the genesis {path}: {error.strerror}", "copy the network's genesis there"
        ) from error
    except InvalidGenesis as error:
        raise GenesisError(f"{path} is no genesis: {error}", "copy the network's own genesis file again") from error


def solo_genesis(
    identity: Identity, *, params: ChainParams | None = None, workloads: tuple[Workload, ...] = WORKLOADS
) -> Genesis:
    """The genesis of a network whose one validator is ``identity``: final at once, and open to others."""
    account = GenesisAccount(
        public_key=identity.public_key.hex(), balance=1_000 * CREDIT, stake=1_000 * CREDIT, is_validator=True
    )
    return Genesis(
        name=f"solo-{identity.node_id.hex()[:8]}",
        created_ms=int(time.time() * 1000),
        params=params or ChainParams(),
        workloads=workloads,
        accounts=(account,),
    )


def write_genesis(path: Path, genesis: Genesis) -> None:
    """Write a genesis file that does not exist yet."""
    with path.open("xb") as file:
        file.write(encode_genesis(genesis))


def workloads_of(names: tuple[str, ...]) -> tuple[Workload, ...]:
    """The workloads of these names. Raises `ConfigError` naming one that is none."""
    unknown = set(names) - set(WORKLOADS)
    if unknown:
        raise ConfigError(f"{min(unknown)!r} is no workload", f"it is one of: {', '.join(WORKLOADS)}")
    return tuple(one for one in WORKLOADS if one in names)


@dataclass(frozen=True, slots=True)
class Initialised:
    """What `initialise` made: hexadecimal ids, for people to read."""

    node_id: str
    network_id: str
    network_name: str


def initialise(
    folder: Path,
    *,
    role: str,
    port: int | None = None,
    bootstrap: tuple[str, ...] = (),
    genesis_file: Path | None = None,
    workloads: tuple[Workload, ...] = (),
) -> Initialised:
    """Make a home with key, configuration and genesis. Raises a `NodeError`; nothing that exists is replaced.

    Without ``genesis_file`` the node is the one validator of a network of its own, which does ``workloads``, or all.
    """
    if workloads and genesis_file is not None:
        raise ConfigError("--workload is for a new network, and --genesis names one", "give one of the two")
    if bootstrap and genesis_file is None:
        raise ConfigError(
            "--bootstrap names a network to join, and --genesis is missing",
            "give the genesis file of that network: --genesis FILE",
        )
    home = Home(places.expand(folder).absolute())
    try:
        taken = [path for path in (home.config, home.key, home.genesis) if path.exists()]
    except OSError as error:
        raise ConfigError(f"cannot look into {home.folder}: {error.strerror}", "choose another --home") from error
    if taken:
        raise ConfigError(f"{taken[0]} exists already", "use it as it is, or choose another --home")
    genesis = read_genesis(genesis_file) if genesis_file is not None else None
    try:
        home.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"cannot make {home.folder}: {error.strerror}", "choose another --home") from error
    write_default(home.config, role=role, port=port or DEFAULT_PORT, bootstrap=list(bootstrap))
    identity = create_identity(home.key)
    if genesis is None:
        genesis = solo_genesis(identity, workloads=workloads or WORKLOADS)
    write_genesis(home.genesis, genesis)
    return Initialised(identity.node_id.hex(), genesis.network_id.hex(), genesis.name)
