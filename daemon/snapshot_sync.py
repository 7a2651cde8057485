"""Beginning at a snapshot of peers: follow the validators to a late block, then take the state there from its holders.

Nothing that a peer says is believed for its word: a step must be signed by the validators known so far, a piece must
have the hash in the manifest, and the pieces together must give the root in the signed header. A manifest is signed by
nobody, so the one behind which most of the stake stands is tried first, and who told one that leads to another root is
cut off. Pieces lie in files by their hashes until they are put together, so whoever is stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import trio

from moed.consensus.errors import RuleBroken
from moed.consensus.light import Checkpoint
from moed.consensus.proofs import StateProof
from moed.consensus.snapshots import MAX_PIECE_BYTES, Manifest, head_from, piece_hash
from moed.consensus.state import ValidatorSet
from moed.consensus.transition import Head
from moed.protocol.codec import decode_record
from moed.protocol.errors import Malformed, RemoteProtocolError
from moed.protocol.identity import node_id_of

from .errors import StoreFailed
from .gossip import Session
from .network.errors import AnswerTooLarge, CallError, RemoteRefusal
from .step_sync import ASK_DEADLINE_S, MAX_ANSWER_BYTES, StepSync, ask, refuse
from .store import Store

if TYPE_CHECKING:
    from .sync import RunBlocking

logger = structlog.get_logger()

FAR_EPOCHS = 2
"""Whoever is less behind than that executes the blocks."""
MAX_ASKED = 8
"""Peers that are asked for snapshots."""
MAX_OFFERS = 4
"""Manifests in one answer."""
BUSY_PAUSE_S = 0.25
MAX_BUSY = 240
"""How often a peer may say that it is busy before it counts as one that gives nothing: a minute."""


@dataclass(slots=True)
class _Offer:
    """One manifest, and who told it."""

    manifest: Manifest
    peers: list[Session] = field(default_factory=list)

    def stake(self, validators: ValidatorSet) -> int:
        tellers = {peer.node_id for peer in self.peers}
        return sum(member.power for member in validators.members if node_id_of(member.key) in tellers)


class SnapshotSync:
    """Finds where an empty chain may begin. ``folder`` holds the pieces meanwhile."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        *,
        checkpoint: Checkpoint | None = None,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._store = store
        self._folder = folder
        self._run_blocking = run_blocking
        self._steps = StepSync(store, checkpoint, run_blocking)

    @property
    def far_blocks(self) -> int:
        """From how many blocks on a snapshot is worth its way."""
        return FAR_EPOCHS * self._store.genesis.params.tempo

    async def find(self, peers: Sequence[Session]) -> Head | None:
        """The head at a snapshot that some of ``peers`` have, or None if none of them has one that holds."""
        await self._steps.start()
        offers = await self._ask_all(peers[:MAX_ASKED])
        for offer in sorted(offers, key=lambda one: -one.manifest.height):
            for peer in offer.peers:
                await self._steps.climb(peer, offer.manifest.height)
        if not self._steps.has_passed_checkpoint:
            return None
        for offer in sorted(self._of_this_chain(offers), key=self._rank, reverse=True):
            head = await self._begin_with(offer, self._steps.believed[offer.manifest.height].step)
            if head is not None:
                return head
        return None

    def _of_this_chain(self, offers: Sequence[_Offer]) -> list[_Offer]:
        """Those at blocks that the validators signed; who offers another block of such a height is cut off."""
        found: list[_Offer] = []
        for offer in offers:
            believed = self._steps.believed.get(offer.manifest.height)
            if believed is not None and believed.step.header.hash == offer.manifest.block_hash:
                found.append(offer)
            elif believed is not None:
                _refuse_all(offer, "another block has been decided at that height")
        return found

    def _rank(self, offer: _Offer) -> tuple[int, int, int]:
        """First what most stake stands behind, then most peers, then the newest."""
        stake = offer.stake(self._steps.believed[offer.manifest.height].decided_by)
        return stake, len(offer.peers), offer.manifest.height

    async def _ask_all(self, peers: Sequence[Session]) -> list[_Offer]:
        offers: dict[Manifest, _Offer] = {}

        async def note(peer: Session) -> None:
            body = await ask(peer, "chain.snapshots", None)
            try:
                for manifest in _read_manifests(body):
                    offers.setdefault(manifest, _Offer(manifest)).peers.append(peer)
            except RemoteProtocolError as error:
                refuse(peer, str(error))

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(note, peer)
        return list(offers.values())

    async def _begin_with(self, offer: _Offer, step: StateProof) -> Head | None:
        """Get the pieces and put them together. Whoever told a manifest that leads to another root is cut off."""
        manifest = offer.manifest
        logger.info("snapshot.begun", height=manifest.height, pieces=len(manifest.pieces), peers=len(offer.peers))
        if not await self._get_pieces(offer):
            return None
        try:
            head: Head = await self._run_blocking(self._put_together, manifest, step)
        except (RuleBroken, RemoteProtocolError) as error:
            _refuse_all(offer, str(error))
            return None
        return head

    def _put_together(self, manifest: Manifest, step: StateProof) -> Head:
        pieces = (self._place(one).read_bytes() for one in manifest.pieces)
        with self._disk():
            return head_from(self._store.genesis, step.header, step.commit, pieces)

    async def _get_pieces(self, offer: _Offer) -> bool:
        """Get what is not on the disk yet from all who have it, one piece at a time from each; False if some lack."""
        wanted = await self._run_blocking(self._lacking, offer.manifest)
        givers = list(offer.peers)
        while wanted and givers:  # again if somebody failed with a piece when the others thought that nothing was left
            async with trio.open_nursery() as nursery:
                for peer in list(givers):
                    nursery.start_soon(self._get_from, peer, offer.manifest, wanted, givers)
        return not wanted

    async def _get_from(self, peer: Session, manifest: Manifest, wanted: list[int], givers: list[Session]) -> None:
        """Take pieces from the list until it is empty, or the peer fails and is no giver any more."""
        while wanted:
            index = wanted.pop()
            piece = await self._get_piece(peer, manifest, index)
            if piece is None:
                wanted.append(index)
                givers.remove(peer)
                return
            await self._run_blocking(self._keep, manifest.pieces[index], piece)

    async def _get_piece(self, peer: Session, manifest: Manifest, index: int) -> bytes | None:
        request = {"height": manifest.height, "index": index}
        for _ in range(MAX_BUSY):
            try:
                reply = await peer.call(
                    "chain.snapshot_piece", request, deadline_s=ASK_DEADLINE_S, max_answer_bytes=MAX_ANSWER_BYTES
                )
            except RemoteRefusal as error:
                if error.code != "busy":
                    return None
                await trio.sleep(BUSY_PAUSE_S)
                continue
            except AnswerTooLarge as error:
                refuse(peer, str(error))
                return None
            except CallError as error:
                logger.info("snapshot.piece_failed", peer=peer.node_id.hex(), reason=str(error))
                return None
            piece = reply.body
            if (
                isinstance(piece, bytes)
                and len(piece) <= MAX_PIECE_BYTES
                and piece_hash(piece) == manifest.pieces[index]
            ):
                return piece
            refuse(peer, f"piece {index} is not what the manifest names")
            return None
        return None

    def _place(self, digest: bytes) -> Path:
        return self._folder / digest.hex()

    def _lacking(self, manifest: Manifest) -> list[int]:
        """The pieces that are not here whole, last first; files of other manifests go."""
        names = {one.hex() for one in manifest.pieces}
        with self._disk():
            self._folder.mkdir(exist_ok=True)
            for path in self._folder.iterdir():
                if path.name not in names or piece_hash(path.read_bytes()).hex() != path.name:
                    path.unlink()
        return [index for index, one in reversed(list(enumerate(manifest.pieces))) if not self._place(one).exists()]

    def _keep(self, digest: bytes, piece: bytes) -> None:
        with self._disk():
            self._place(digest).write_bytes(piece)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreFailed(
                f"cannot keep a snapshot in {self._folder}: {error.strerror}", "free some space and start moed again"
            ) from error

    async def finish(self) -> None:
        """The chain has begun: the pieces are not needed any more."""
        await self._run_blocking(self._clear)

    def _clear(self) -> None:
        with self._disk():
            if self._folder.is_dir():
                for path in self._folder.iterdir():
                    path.unlink()
                self._folder.rmdir()


def _refuse_all(offer: _Offer, reason: str) -> None:
    for peer in offer.peers:
        refuse(peer, reason)


def _read_manifests(body: Any) -> Iterator[Manifest]:
    """The manifests of an answer, each once. Raises `Malformed` or `TooLarge`."""
    if not isinstance(body, list) or len(body) > MAX_OFFERS or not all(isinstance(one, bytes) for one in body):
        raise Malformed(f"manifests travel as a list of at most {MAX_OFFERS} byte strings")
    for one in dict.fromkeys(body):
        yield decode_record(one, Manifest)
