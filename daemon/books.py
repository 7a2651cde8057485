"""What a node keeps beside the chain, in the same file: inputs of past epochs, steps, notes, peers, receipts."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import closing

from moed.consensus.epoch_form import decode_inputs, encode_inputs
from moed.consensus.epoch_inputs import EpochInputs
from moed.consensus.errors import InvalidEpochInput
from moed.consensus.metagraph import ClosedEpoch
from moed.protocol.codec import decode_record, encode_record
from moed.protocol.errors import RemoteProtocolError
from moed.protocol.receipts import SignedSheet

from .database import MAX_SQL_INTEGER, REMEDY, Database
from .errors import StoreCorrupt

KEPT_SHEETS = 10_000
"""Sheets of receipts that are kept, the newest; one is at most 48 KiB, and mostly far less."""
KEPT_EPOCHS = 256
"""Epochs whose inputs are kept. To recompute them would mean to execute the chain from its genesis; to keep them costs
about 50 KiB each with 64 validators that rate 256 uids."""


class Books(Database):
    """The tables of one node's own; nobody else has the same."""

    def _keep_epoch(self, closed: ClosedEpoch, height: int) -> None:
        inputs = zlib.compress(encode_inputs(closed.inputs))
        self._db.execute("INSERT OR REPLACE INTO epochs VALUES (?, ?, ?)", (closed.number, height, inputs))
        self._db.execute("DELETE FROM epochs WHERE number <= ?", (closed.number - KEPT_EPOCHS,))

    def epoch_inputs(self, number: int) -> EpochInputs | None:
        """What the epoch of that number was computed from, if it is among the last `KEPT_EPOCHS`.

        Raises `StoreCorrupt` if it does not parse.
        """
        number = max(0, min(number, MAX_SQL_INTEGER))
        with self._alone("read"):
            row = self._db.execute("SELECT inputs FROM epochs WHERE number = ?", (number,)).fetchone()
        try:
            return decode_inputs(zlib.decompress(row[0])) if row else None
        except (zlib.error, InvalidEpochInput) as error:
            raise StoreCorrupt(f"epoch {number} in {self.path} does not parse: {error}", REMEDY) from error

    def remember(self, name: str, value: bytes) -> None:
        """Put a note of this node's own on disk before returning; it replaces the one of that name."""
        with self._writing():
            self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def recall(self, name: str) -> bytes | None:
        """The note of that name, if there is one."""
        with self._alone("read"):
            row = self._db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return bytes(row[0]) if row else None

    def keep_steps(self, steps: Sequence[tuple[int, bytes]]) -> None:
        """Put proofs of the validators on disk, by the height of the block that each rests on. Raises `StoreFailed`."""
        with self._writing():
            self._db.executemany("INSERT OR REPLACE INTO steps VALUES (?, ?)", steps)

    def drop_steps(self) -> None:
        """Forget every proof of the validators: they led where the chain was not."""
        with self._writing():
            self._db.execute("DELETE FROM steps")

    def last_step(self) -> bytes | None:
        """The latest proof of the validators, if there is one. Raises `StoreFailed`."""
        row = self._one("SELECT proof FROM steps ORDER BY height DESC LIMIT 1")
        return bytes(row[0]) if row else None

    def steps(self, start: int, spacing: int, limit: int, max_bytes: int) -> list[bytes]:
        """Up to ``limit`` proofs that follow on each other ``spacing`` blocks apart, from height ``start`` on.

        No more than fit into ``max_bytes``, but always one; none if the first is not here.
        """
        start = max(0, min(start, MAX_SQL_INTEGER))
        taken: list[bytes] = []
        size = 0
        query = "SELECT height, proof FROM steps WHERE height >= ? ORDER BY height LIMIT ?"
        with self._alone("read"), closing(self._db.execute(query, (start, limit))) as rows:
            for height, proof in rows:
                size += len(proof)
                if height != start + spacing * len(taken) or (taken and size > max_bytes):
                    break
                taken.append(bytes(proof))
        return taken

    def remember_peers(self, peers: Sequence[tuple[bytes, str, int, int]]) -> None:
        """Replace the remembered peers by these: (node id, host, port, last seen in unix seconds)."""
        with self._writing():
            self._db.execute("DELETE FROM peers")
            self._db.executemany("INSERT OR REPLACE INTO peers VALUES (?, ?, ?, ?)", peers)

    def remembered_peers(self) -> list[tuple[bytes, str, int, int]]:
        """What `remember_peers` last kept, the most recently seen first."""
        with self._alone("read"):
            rows = self._db.execute(
                "SELECT node_id, host, port, last_seen FROM peers ORDER BY last_seen DESC"
            ).fetchall()
        return [(bytes(node_id), host, port, seen) for node_id, host, port, seen in rows]

    def keep_receipts(self, sheets: Sequence[SignedSheet]) -> None:
        """Put sheets of receipts on disk, all or none; the oldest over `KEPT_SHEETS` go. Raises `StoreFailed`."""
        rows = [(one.hash, read.session, read.closed_ms, encode_record(one)) for one in sheets for read in [one.read()]]
        with self._writing():
            self._db.executemany("INSERT OR REPLACE INTO receipts VALUES (?, ?, ?, ?)", rows)
            self._db.execute(
                "DELETE FROM receipts WHERE hash IN "
                "(SELECT hash FROM receipts ORDER BY closed_ms DESC LIMIT -1 OFFSET ?)",
                (KEPT_SHEETS,),
            )

    def receipts(self) -> list[SignedSheet]:
        """Every sheet of receipts that is kept, the oldest first. Raises `StoreCorrupt` for one that does not parse."""
        with self._alone("read"):
            rows = self._db.execute("SELECT sheet FROM receipts ORDER BY closed_ms, hash").fetchall()
        try:
            return [decode_record(bytes(sheet), SignedSheet) for (sheet,) in rows]
        except RemoteProtocolError as error:
            raise StoreCorrupt(f"{self.path} holds a receipt that does not parse: {error}", REMEDY) from error
