"""A node's home folder: what `moed init` makes and `moed run` finds there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from moed.consensus.errors import InvalidGenesis
from moed.consensus.genesis import Genesis, GenesisAccount, decode_genesis, encode_genesis
from moed.consensus.params import CREDIT, ChainParams
from moed.protocol.identity import Identity

from .errors import GenesisError
from .keystore import load_identity


@dataclass(frozen=True, slots=True)
class Home:
    """The files of one node."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def key(self) -> Path:
        return self.folder / "work.key"

    @property
    def genesis(self) -> Path:
        return self.folder / "genesis.json"

    @property
    def database(self) -> Path:
        return self.folder / "chain.db"

    @property
    def signed(self) -> Path:
        """The record of the last vote that this node signed."""
        return self.folder / "signed.cbor"

    @property
    def experts(self) -> Path:
        """Where experts keep their checkpoints."""
        return self.folder / "experts"

    def load_identity(self) -> Identity:
        """The node's key. Raises `KeyFileError`."""
        return load_identity(self.key)

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


def solo_genesis(identity: Identity, *, params: ChainParams | None = None) -> Genesis:
    """The genesis of a network whose one validator is ``identity``: final at once, and open to others."""
    account = GenesisAccount(
        public_key=identity.public_key.hex(), balance=1_000 * CREDIT, stake=1_000 * CREDIT, is_validator=True
    )
    return Genesis(
        name=f"solo-{identity.node_id.hex()[:8]}",
        created_ms=int(time.time() * 1000),
        params=params or ChainParams(),
        accounts=(account,),
    )


def write_genesis(path: Path, genesis: Genesis) -> None:
    """Write a genesis file that does not exist yet."""
    with path.open("xb") as file:
        file.write(encode_genesis(genesis))
