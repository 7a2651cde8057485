"""What a validator has learned lies on disk, so that a restart goes on with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import structlog
import trio

from moed.consensus.state import read_neurons
from moed.models.gate_file import save_brain
from moed.models.validation import ValidatorBrain

from .asking import Candidate, Panel
from .chain import Chain
from .sync import RunBlocking

_log = structlog.get_logger()

SAVE_EVERY_S = 60.0
"""A minute of learning is what a crash may cost."""
FINAL_SAVE_S = 3.0
"""Less than the time in which the daemon must end."""


class GateMemory:
    """Stores a brain at ``path`` now and then and at the end; ``is_free`` is held meanwhile."""

    def __init__(
        self, path: Path, brain: ValidatorBrain, panel: Panel, is_free: trio.Lock, run_blocking: RunBlocking
    ) -> None:
        self._path = path
        self._brain = brain
        self._panel = panel
        self._is_free = is_free
        self._run_blocking = run_blocking
        self._saved_batches = brain.batches_learned

    async def run(self) -> None:
        """Save until cancelled, and once more then."""
        try:
            while True:
                await trio.sleep(SAVE_EVERY_S)
                await self._save()
        finally:
            with trio.move_on_after(FINAL_SAVE_S, shield=True):
                await self._save()

    async def _save(self) -> None:
        async with self._is_free:
            batches = self._brain.batches_learned
            if batches == self._saved_batches:
                return
            keys = {uid: one.public_key for uid, one in self._panel.miners.items()}
            try:
                await self._run_blocking(save_brain, self._path, self._brain, keys)
            except OSError as error:
                # A full disk costs what was learned since, not the service; the old file is still whole.
                _log.error("validator.save_failed", reason=str(error))
                return
            self._saved_batches = batches
        _log.info("validator.saved", batches=batches)


def remember(brain: ValidatorBrain, panel: Panel, chain: Chain, keys: Mapping[int, bytes]) -> None:
    """Go on with the miners of before a restart that still hold their places; of the others nothing is kept."""
    panel.miners = {
        neuron.uid: Candidate(neuron.uid, neuron.node_id, neuron.key, "", 1, neuron.registered_block)
        for neuron in read_neurons(chain.head.state)
        if keys.get(neuron.uid) == neuron.key
    }
    brain.set_miners(panel.miners, {uid: one.registered_block for uid, one in panel.miners.items()})
    _log.info("validator.restored", batches=brain.batches_learned, uids=sorted(panel.miners))
