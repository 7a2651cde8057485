"""The receipts of a node for those who score or bill: every call with its signatures, and sums by who and what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from moed.protocol.errors import BadSignature
from moed.protocol.receipts import CallReceipt, SignedSheet

from .tables import Table, short, size


def export_sheet(signed: SignedSheet, network_id: bytes) -> dict[str, Any]:
    """One sheet in JSON's types, bytes as lower-case hex; ``is_valid`` says whether its signatures hold here."""
    try:
        signed.check(network_id)
        is_valid = True
    except BadSignature:
        is_valid = False
    sheet = signed.read()
    return {
        "hash": signed.hash.hex(),
        "server": sheet.server.hex(),
        "caller": sheet.caller.hex(),
        "session": sheet.session.hex(),
        "number": sheet.number,
        "closed_ms": sheet.closed_ms,
        "is_valid": is_valid,
        "is_signed_by_both": signed.caller_signature is not None,
        "server_signature": signed.server_signature.hex(),
        "caller_signature": None if signed.caller_signature is None else signed.caller_signature.hex(),
        "calls": [_plain(call) for call in sheet.calls],
    }


def _plain(call: CallReceipt) -> dict[str, Any]:
    fields = msgspec.structs.asdict(call)
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()}


def sums(sheets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls, bytes and served time of the valid sheets, by server, caller, method and by who has signed."""
    rows: dict[tuple[str, str, str, bool], dict[str, Any]] = {}
    for sheet in sheets:
        if not sheet["is_valid"]:
            continue
        for call in sheet["calls"]:
            key = (sheet["server"], sheet["caller"], call["method"], sheet["is_signed_by_both"])
            names = dict(zip(("server", "caller", "method", "is_signed_by_both"), key, strict=True))
            row = rows.setdefault(key, {**names, "calls": 0, "request_bytes": 0, "answer_bytes": 0, "served_us": 0})
            row["calls"] += 1
            for name in ("request_bytes", "answer_bytes", "served_us"):
                row[name] += call[name]
    return [rows[key] for key in sorted(rows)]


def receipt_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The sums for people."""
    return Table(
        "Receipts",
        ("server", "caller", "method", "signed by", ">calls", ">in", ">out", ">served"),
        [
            (
                short(row["server"]),
                short(row["caller"]),
                row["method"],
                "both" if row["is_signed_by_both"] else "server",
                str(row["calls"]),
                size(row["request_bytes"]),
                size(row["answer_bytes"]),
                f"{row['served_us'] / 1e6:.3f} s",
            )
            for row in rows
        ],
    )
