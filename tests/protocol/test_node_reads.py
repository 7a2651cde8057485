"""What we send, read by Node.js with npm's cbor-x, which knows nothing of us. Skipped where they are not installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest

from moed.protocol.messages import ReplyHead, encode_message

if TYPE_CHECKING:
    from moed.protocol.tensors import Array

SCRIPT = """
const { decode } = require('cbor-x');
const message = decode(require('fs').readFileSync(0));
const [head, ...items] = message;
const tensors = items.filter(item => !(item instanceof Uint8Array));  // byte strings are padding
const read = item => {
  const values = item.values ?? item;
  const [shape, typed] = values.value;
  return { shape, type: typed.constructor.name, values: Array.from(typed, Number) };
};
console.log(JSON.stringify({ head, tensors: tensors.map(read) }));
"""


def _node_with_cbor_x() -> str | None:
    node = shutil.which("node")
    if node is None:
        return None
    found = subprocess.run([node, "-e", "require('cbor-x')"], capture_output=True, check=False)
    return node if found.returncode == 0 else None


def test_cbor_x_finds_shape_and_values() -> None:
    """Integers and floats of 32 and 64 bits arrive as JavaScript's own typed arrays, with their shape beside them."""
    node = _node_with_cbor_x()
    if node is None:
        pytest.skip("node with npm's cbor-x is not installed (set NODE_PATH to where it is)")
    arrays: list[Array] = [
        np.arange(6, dtype=np.float32).reshape(2, 3) / 4,
        np.arange(4, dtype=np.float64) - 0.5,
        np.array([[-3], [70_000]], np.int32),
        np.array([1, 2, 65_535], np.uint16),
    ]
    data = b"".join(bytes(buffer) for buffer in encode_message(ReplyHead(body={"ok": True}), arrays))
    answer = subprocess.run([node, "-e", SCRIPT], input=data, capture_output=True, check=False)
    assert answer.returncode == 0, answer.stderr.decode()
    read = json.loads(answer.stdout)
    assert read["head"] == {"kind": "reply", "body": {"ok": True}}
    assert [tensor["shape"] for tensor in read["tensors"]] == [list(array.shape) for array in arrays]
    assert [tensor["type"] for tensor in read["tensors"]] == [
        "Float32Array",
        "Float64Array",
        "Int32Array",
        "Uint16Array",
    ]
    for tensor, array in zip(read["tensors"], arrays, strict=True):
        assert tensor["values"] == array.flatten().tolist()
