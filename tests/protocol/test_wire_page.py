"""The reader that the documentation prints is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from moed.protocol.messages import ReplyHead, encode_message

PAGE = Path(__file__).resolve().parents[2] / "docs" / "wire.md"


def test_the_documented_reader_reads_our_messages() -> None:
    """Copied out of the page, with nothing of ours, it finds every tensor of a message."""
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    sent: list[np.ndarray[Any, np.dtype[Any]]] = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array(1.5),
        np.zeros((0, 4), np.int8),
    ]
    message = b"".join(bytes(buffer) for buffer in encode_message(ReplyHead(body="x"), sent))
    for back, array in zip(namespace["tensors"](message), sent, strict=True):
        np.testing.assert_array_equal(back, array)
        assert back.dtype == array.dtype
