"""How much memory an expert will take, from its configuration alone: nothing of its size is allocated.

The module is built of stand-ins that have shapes and no values (torch's fake tensors), and every tensor that its
forward and backward passes make is counted from when it is made until the last reference to it goes. So whatever a
module does is counted, one's own factory included; torch decomposes each operator as it would on the device.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .device import Device
from .errors import ExpertError, ModelRefused
from .experts import BYTE_VALUES, ExpertSpec, build_expert
from .hosted_layer import KEPT_ROWS_BYTES, LayerSpec, build_layer
from .lessons import Lesson, distillation_loss
from .study import StudyConfig
from .training import TrainingConfig, next_byte_bits

_FLOAT_BYTES = 4
# Adam keeps two numbers for each weight, and a miner serves an averaged copy of the weights that it trains.
_MOMENTS, _COPIES = 2, 2
# what a linear layer's product of three dimensions ends with, before its bias is added
_PRODUCT = torch.ops.aten._unsafe_view.default  # noqa: SLF001 - the operator's name


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory of one expert, in bytes.

    parameters  its weights, and for a text expert the averaged copy that is served
    optimizer   the moments of Adam
    exchange    what learning from others keeps: their answers, and in a trial the states to go back to
    training    the most that one step takes beside all these, gradients among it
    serving     the most that one full batch takes beside them
    """

    parameters: int
    optimizer: int
    held: int
    training: int
    serving: int

    @property
    def kept(self) -> int:
        """What stays between two steps or batches."""
        return self.parameters + self.optimizer + self.held

    @property
    def transient(self) -> int:
        """The most that one step or batch takes beside that; the device runs one at a time."""
        return max(self.training, self.serving)

    @property
    def peak(self) -> int:
        """All of it."""
        return self.kept + self.transient


def predict_expert(
    spec: ExpertSpec,
    training: TrainingConfig,
    device: Device,
    *,
    is_trained: bool = True,
    exchange: StudyConfig | None = None,
) -> Footprint:
    """The footprint of a text expert that serves full batches, and trains and learns from others as configured.

    Raises `ModelRefused` for what cannot be built, and where a module does not run on stand-ins.
    """
    with _stand_ins(spec.name, device):
        module = build_expert(spec, 0).module
        weights = _bytes_of(module)
        trained = sum(_size(one) for one in module.parameters() if one.requires_grad)
        place = device.torch_device
        step = _peak_of(lambda: _train(module, training, place)) if is_trained else 0
        if is_trained and exchange is not None:
            step = max(step, _peak_of(lambda: _learn(module, training, exchange, place)))
        with device.computing():
            batch = _peak_of(lambda: _serve(module, (spec.max_rows, spec.max_length), place))
    moments = _MOMENTS * trained if is_trained else 0
    return Footprint(
        parameters=_COPIES * weights,
        optimizer=moments,
        held=_exchange_bytes(exchange, training, _COPIES * weights + moments) if exchange and is_trained else 0,
        training=step,
        serving=batch,
    )


def predict_layer(spec: LayerSpec, device: Device) -> Footprint:
    """The footprint of a layer whose callers send full batches forward and, unless it keeps its weights, backward."""
    with _stand_ins(spec.name, device):
        module = build_layer(spec, 0)
        weights = _bytes_of(module)
        rows = min(spec.max_rows, KEPT_ROWS_BYTES // (_FLOAT_BYTES * spec.width))
        graph = _left_of(lambda: _run(module, spec, rows, device)) if rows else 0
        # a graph that waits is gone before the backward pass, but there while another forward pass runs again for it
        again = _peak_of(lambda: _run(module, spec, spec.max_rows, device))
        both = _peak_of(lambda: torch.autograd.backward(_run(module, spec, spec.max_rows, device), _like(spec, device)))
        with torch.no_grad():
            batch = _peak_of(lambda: _run(module, spec, spec.max_rows, device))
    is_trained = spec.learning_rate > 0
    return Footprint(
        parameters=weights,
        optimizer=_MOMENTS * weights if is_trained else 0,
        held=graph,
        training=max(again, both - graph),
        serving=batch,
    )


def _train(module: nn.Module, training: TrainingConfig, place: torch.device) -> None:
    rows = torch.zeros(training.rows, training.length + 1, dtype=torch.uint8, device=place)
    loss = next_byte_bits(module(rows[:, :-1]), rows[:, 1:]).mean()
    loss.backward()  # type: ignore[no-untyped-call]  # torch ships this method without types
    module.zero_grad(set_to_none=True)


def _learn(module: nn.Module, training: TrainingConfig, study: StudyConfig, place: torch.device) -> None:
    """A step in which a lesson takes the place of most own rows, as `training.Trainer.step` makes it."""
    shape = (min(study.rows, training.rows - 1), training.length)
    tokens = torch.zeros(shape, dtype=torch.uint8, device=place)
    lesson = Lesson(tokens, tokens, torch.zeros(*shape, BYTE_VALUES, device=place))
    own = torch.zeros(training.rows - shape[0], training.length + 1, dtype=torch.uint8, device=place)
    loss = next_byte_bits(module(own[:, :-1]), own[:, 1:]).mean()
    told = distillation_loss(module(lesson.tokens), lesson, study.trust)
    loss = loss + (told - loss) * (shape[0] / training.rows)
    loss.backward()  # type: ignore[no-untyped-call]
    module.zero_grad(set_to_none=True)


@torch.no_grad()
def _serve(module: nn.Module, shape: tuple[int, int], place: torch.device) -> Tensor:
    answer: Tensor = module(torch.zeros(shape, dtype=torch.uint8, device=place)).float()
    return answer


def _run(module: nn.Module, spec: LayerSpec, rows: int, device: Device) -> Tensor:
    x = torch.zeros(rows, spec.width, device=device.torch_device, requires_grad=torch.is_grad_enabled())
    output: Tensor = module(x)
    return output


def _like(spec: LayerSpec, device: Device) -> Tensor:
    return torch.zeros(spec.max_rows, spec.out_width, device=device.torch_device)


def _exchange_bytes(study: StudyConfig, training: TrainingConfig, state: int) -> int:
    """Two whole states, while the two branches of a trial are compared; the answers that are learned from again; and
    those that come in while a trial runs, which reads none."""
    lessons = study.bank_lessons + study.trial_lessons + 2 * study.trial_steps
    return lessons * study.rows * training.length * BYTE_VALUES * _FLOAT_BYTES + 2 * state


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _bytes_of(module: nn.Module) -> int:
    return sum(_size(one) for one in (*module.parameters(), *module.buffers()))


@contextmanager
def _stand_ins(name: str, device: Device) -> Iterator[None]:
    """Tensors without values, new ones on ``device``; a module that needs values cannot be predicted, and says so."""
    try:
        with FakeTensorMode(), device.torch_device:
            yield
    except ModelRefused:
        raise
    except ExpertError as error:  # it does not run on values either
        raise ModelRefused(f"expert {name!r}: {error}") from error
    except Exception as error:  # whatever one's own module, or torch under it, makes of tensors without values
        raise ModelRefused(
            f"expert {name!r}: its memory cannot be predicted ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "its forward must not look at values"
        ) from error


def _peak_of(work: Callable[[], object]) -> int:
    """The most bytes that were alive at one time among the tensors that ``work`` made."""
    with _Count() as count:
        work()
    peak: int = count.peak
    return peak


def _left_of(work: Callable[[], object]) -> int:
    """The bytes that are still alive when ``work`` has returned, held by its result."""
    with _Count() as count:
        result = work()
        left: int = count.live
    del result
    return left


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Follows the memory of every tensor that an operator returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.live = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        self._product: int | None = None

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for one in tree_leaves((args, kwargs)):
            if isinstance(one, Tensor):
                self._follow(one.untyped_storage(), 0)  # what is not known was there before: the weights
        result = operator(*args, **(kwargs or {}))
        replaced = self._product if operator is torch.ops.aten.add.Tensor and _is_bias(args) else None
        self._product = None
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                self._follow(storage, storage.nbytes(), replaced)
                if operator is _PRODUCT:
                    self._product = _key_of(storage)
        self.peak = max(self.peak, self.live)
        return result

    def _follow(self, storage: torch.UntypedStorage, size: int, replaced: int | None = None) -> None:
        key = _key_of(storage)
        if key in self._known:
            return
        if replaced in self._known:
            # A linear layer adds its bias to the product in place, but for stand-ins, of which it makes another one.
            self._gone(replaced, size)
        self.live += size
        self._known[key] = weakref.ref(storage, lambda _: self._gone(key, size))

    def _gone(self, key: int | None, size: int) -> None:
        if key is not None and self._known.pop(key, None) is not None:
            self.live -= size


def _key_of(storage: torch.UntypedStorage) -> int:
    return int(storage._cdata)  # noqa: SLF001 - stand-ins have no address; this is what torch tells storages apart by


def _is_bias(args: Any) -> bool:
    return len(args) == 2 and isinstance(args[1], Tensor) and args[1].dim() == 1
