"""The daemon's answers as tables for people: one function for each, named after the verb that shows it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from .tables import Table, credits_of, duration, exact_credits, percent, rate, short, size


def status_parts(status: Mapping[str, Any]) -> list[Table | Mapping[str, str]]:
    """GET /v1/status."""
    name = status.get("network_name")
    chain = f"height {status['height']}"
    if "epoch" in status:
        chain += f", {status['epoch']} epochs ended"
    uid = "" if status["uid"] is None else f", uid {status['uid']}"
    return [
        {
            "node": status["node_id"],
            "role": f"{status['role']}{uid}",
            "network": f"{name} ({short(status['network'])})" if name else short(status["network"]),
            "chain": chain,
            "state root": status["state_root"],
            "peers": str(status["peers"]),
            "up for": duration(status["uptime_s"]),
            "ready": "yes" if status["ready"] else "no",
            "synced": "yes" if status["synced"] else _unsynced_words(status),
            "version": status["version"],
        }
    ]


def _unsynced_words(status: Mapping[str, Any]) -> str:
    if not status["heights_heard"]:
        return "no: no peer has told its height"
    return f"no: {_counted(status['best_known_height'] - status['height'], 'block')} to go"


def peers_parts(peers: Sequence[Mapping[str, Any]]) -> list[Table | Mapping[str, str]]:
    """GET /v1/peers."""
    rows = [
        [
            short(peer["node_id"]),
            _cell(peer.get("uid")),
            ", ".join(peer.get("roles") or ()) or "-",
            peer["address"],
            _cell(peer.get("direction")),
            "-" if peer.get("rtt_ms") is None else f"{peer['rtt_ms']:.1f} ms",
        ]
        for peer in peers
    ]
    return [Table(_counted(len(rows), "peer"), ("node", ">uid", "roles", "address", "dialled", ">round trip"), rows)]


def experts_parts(experts: Sequence[Mapping[str, Any]]) -> list[Table | Mapping[str, str]]:
    """GET /v1/experts."""
    rows = [
        [
            _cell(expert["uid"]),
            short(expert["node_id"]),
            expert["name"],
            _cell(expert.get("kind")),
            _cell(expert.get("domain")),
            rate(expert.get("forwards_per_s"), "/s"),
            "-" if expert.get("queue_delay_ms") is None else f"{expert['queue_delay_ms']:.1f} ms",
        ]
        for expert in experts
    ]
    heads = (">uid", "node", "name", "kind", "domain", ">forwards", ">queue")
    return [Table(_counted(len(rows), "expert"), heads, rows)]


def capacity_parts(capacity: Mapping[str, Any]) -> list[Table | Mapping[str, str]]:
    """GET /v1/capacity."""
    rows = [
        [
            short(node["node_id"]),
            _cell(device.get("kind")),
            _cell(device.get("name")),
            _cell(device.get("count")),
            size(device.get("total_bytes")),
            size(device.get("free_bytes")),
            rate(device.get("matmul_flops_per_s"), "FLOP/s"),
            rate(device.get("copy_bytes_per_s"), "B/s"),
        ]
        for node in capacity["nodes"]
        for device in node.get("devices", ())
    ]
    heads = ("node", "kind", "device", ">count", ">memory", ">free", ">matmul", ">copy")
    total = capacity["total"]
    facts = {
        "nodes": _cell(total.get("nodes")),
        "devices": _cell(total.get("devices")),
        "memory": size(total.get("memory_bytes")),
        "matmul": rate(total.get("matmul_flops_per_s"), "FLOP/s"),
    }
    return [Table("Devices, as their nodes measured them", heads, rows), facts]


def rankings_parts(rankings: Mapping[str, Any]) -> list[Table | Mapping[str, str]]:
    """GET /v1/rankings: a column of weights for each validator."""
    voters = sorted({uid for miner in rankings["miners"] for uid in miner["weight_by_validator"]}, key=int)
    miners = [
        [
            str(place),
            str(miner["uid"]),
            short(miner["node_id"]),
            _cell(miner["domain"]),
            percent(miner["incentive"]),
            *(percent(miner["weight_by_validator"].get(uid)) for uid in voters),
            credits_of(miner.get("emission")),
        ]
        for place, miner in enumerate(rankings["miners"], start=1)
    ]
    validators = [
        [
            str(row["uid"]),
            short(row["node_id"]),
            credits_of(row["stake"]),
            percent(row["dividends"]),
            percent(row["trust"]),
        ]
        for row in rankings["validators"]
    ]
    columns = (">#", ">uid", "node", "domain", ">incentive", *(f">by {uid}" for uid in voters), ">emission")
    return [
        Table(f"Miners after epoch {rankings['epoch']} (height {rankings['height']})", columns, miners),
        Table("Validators", (">uid", "node", ">stake", ">dividends", ">trust"), validators),
    ]


def reward_parts(reward: Mapping[str, Any]) -> list[Table | Mapping[str, str]]:
    """GET /v1/why/reward: the way from weights to payment."""
    facts = {
        "reward": f"uid {reward['uid']} in epoch {reward['epoch']} (height {reward['height']})",
        "consensus": f"{percent(reward['consensus'])}; weights over it are clipped to it",
        "rank": f"{percent(reward['rank'])}, the sum of stake × clipped weight",
        "incentive": f"{percent(reward['incentive'])} of all ranks, pays {credits_of(reward['incentive_emission'])}",
        "dividends": f"{percent(reward['dividends'])} of all yields, pays {credits_of(reward['dividend_emission'])}",
        "payment": credits_of(reward["emission"]),
    }
    if reward["is_emergency"]:
        facts["note"] = "nobody was ranked in this epoch, so stake alone was paid"
    ratings = [
        [
            str(row["uid"]),
            *(percent(row[name]) for name in ("stake", "weight", "clipped", "rank", "bond")),
            percent(row["without"]["incentive"]),
            credits_of(row["without"]["emission"]),
        ]
        for row in reward["ratings"]
    ]
    holdings = [
        [str(row["uid"]), *(percent(row[name]) for name in ("bond", "incentive", "dividend"))]
        for row in reward["holdings"]
    ]
    heads = (">by", ">stake", ">weight", ">clipped", ">rank", ">bond", ">incentive without", ">payment without")
    parts: list[Table | Mapping[str, str]] = [facts]
    if ratings:
        parts.append(Table("Rated by", heads, ratings))
    if holdings:
        parts.append(Table("Bonds held", (">in", ">bond", ">incentive", ">brings"), holdings))
    return parts


def chain_parts(chain: Mapping[str, Any]) -> list[Table | Mapping[str, str]]:
    """GET /v1/chain, newest block first."""
    rows = [
        [
            str(block["height"]),
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(block["time_ms"] / 1000)),
            short(block["proposer"]),
            str(block["transactions"]),
            short(block["hash"]),
            short(block["state_root"]),
        ]
        for block in sorted(chain["blocks"], key=lambda block: -int(block["height"]))
    ]
    facts = {
        "height": str(chain["height"]),
        "state root": chain["state_root"],
        "validators": str(len(chain["validators"])),
    }
    if "signed_stake_share" in chain:
        facts["signed by"] = f"{percent(chain['signed_stake_share'])} of the stake"
    if chain.get("next", {}).get("missing"):
        under_way = chain["next"]
        facts["next block"] = (
            f"{under_way['height']}, round {under_way['round']}, {under_way['step']}, for {under_way['since_s']:.0f} s"
        )
        facts["not heard of"] = ", ".join(short(node_id) for node_id in under_way["missing"])
    return [facts, Table("Blocks", (">height", "time", "proposer", ">txs", "hash", "state root"), rows)]


def dht_get_parts(found: Mapping[str, Any]) -> list[Table | Mapping[str, str]]:
    """GET /v1/dht/get."""
    rows = [
        [
            record["kind"],
            short(record["node_id"]),
            "left" if record["withdrawn"] else ", ".join(record.get("addresses", ())) or record.get("topic", "-"),
            ", ".join(record.get("roles", ())) or "-",
            str(record["sequence"]),
            time.strftime("%H:%M:%S", time.localtime(record["expires_at_s"])),
        ]
        for record in found["records"]
    ]
    facts = {
        "key": found["key"],
        "answered by": f"{found['answered_by']} of {found['asked']} nodes asked",
        "took": f"{found['took_ms']:.1f} ms",
    }
    heads = ("kind", "node", "where", "roles", ">sequence", "expires")
    return [facts, Table(_counted(len(rows), "record"), heads, rows)]


def dht_table_parts(table: Mapping[str, Any]) -> list[Table | Mapping[str, str]]:
    """GET /v1/dht/table."""
    rows = [
        [
            str(bucket["depth"]),
            short(contact["node_id"]),
            f"{contact['host']}:{contact['port']}",
            "-" if contact["round_trip_ms"] is None else f"{contact['round_trip_ms']:.1f} ms",
            str(contact["unanswered"]),
        ]
        for bucket in table["buckets"]
        for contact in bucket["contacts"]
    ]
    dropped = {f"dropped {reason}": str(count) for reason, count in sorted(table["dropped"].items())}
    facts = {"contacts": str(table["contacts"]), "buckets": str(len(table["buckets"])), **dropped}
    heads = (">shared bits", "node", "address", ">round trip", ">unanswered")
    return [facts, Table(_counted(len(rows), "contact"), heads, rows)]


def dht_lookup_parts(lookup: Mapping[str, Any]) -> list[Table | Mapping[str, str]]:
    """GET /v1/dht/lookup."""
    steps = [
        [
            str(step["hop"]),
            short(step["node_id"]),
            f"{step['host']}:{step['port']}",
            f"{step['asked_ms']:.1f} ms",
            f"{step['took_ms']:.1f} ms",
            step["outcome"],
            str(step["named"]),
        ]
        for step in sorted(lookup["steps"], key=lambda step: (step["hop"], step["asked_ms"]))
    ]
    nearest = [[each["node_id"], f"{each['host']}:{each['port']}"] for each in lookup["nearest"]]
    heads = (">hop", "node", "address", ">asked at", ">took", "answer", ">named")
    return [
        {"target": lookup["target"], "took": f"{lookup['took_ms']:.1f} ms"},
        Table(_counted(len(steps), "question"), heads, steps),
        Table("Nearest nodes", ("node", "address"), nearest),
    ]


def doctor_parts(health: Mapping[str, Any]) -> list[Table | Mapping[str, str]]:
    """POST /v1/doctor."""
    words = {True: "peers can dial this node", False: "peers CANNOT dial this node", None: "too few could be asked"}
    return [
        {
            "DHT contacts": str(health["contacts"]),
            "sessions": str(health["sessions"]),
            "advertised": ", ".join(health["advertised"]) or "-",
            "seen from outside as": f"{health['external_host'] or '-'} ({_counted(health['host_votes'], 'vote')})",
            "UDP": words[health["udp"]],
            "TCP": words[health["tcp"]],
            "asked": _counted(health["dial_votes"], "peer"),
            "takes part as": "client" if health["is_client"] else "full node",
            "clock": _clock_words(health["clocks_ahead_s"], health["clocks"]),
        },
        *findings_parts(health["findings"]),
    ]


def _clock_words(ahead_s: float | None, clocks: int) -> str:
    if ahead_s is None:
        return "nobody could be asked"
    side = "behind" if ahead_s > 0 else "ahead of"
    return f"{abs(ahead_s):.2f} s {side} {'the middle one of ' if clocks > 1 else ''}{_counted(clocks, 'peer')}"


def account_parts(account: Mapping[str, Any]) -> list[Table | Mapping[str, str]]:
    """GET /v1/account."""
    facts = {
        "public key": account["public_key"],
        "uid": _cell(account["uid"]),
        "owner": account["owner"] or "itself",
        "key expires": f"at block {account['key_expires']}" if account["key_expires"] else "never",
        "balance": exact_credits(account["balance"]),
        "stake behind it": exact_credits(account["stake_behind"]),
        "next nonce": str(account["next_nonce"]),
        "a uid costs": exact_credits(account["registration_price"]),
    }
    rows = [
        [
            short(row["pool"]),
            _cell(row["uid"]),
            exact_credits(row["stake"]),
            ", ".join(f"{exact_credits(part['units'])} from block {part['release']}" for part in row["leaving"]) or "-",
        ]
        for row in account["positions"]
    ]
    return [facts, Table("Stake of this key", ("pool", ">uid", ">credits", "leaving"), rows)] if rows else [facts]


def findings_parts(findings: Sequence[Mapping[str, str]]) -> list[Table | Mapping[str, str]]:
    """What `doctor` found."""
    if not findings:
        return [{"findings": "nothing is wrong"}]
    rows = [[one["severity"], one["code"], one["cause"], one["remedy"]] for one in findings]
    return [Table(_counted(len(rows), "finding"), ("", "code", "cause", "remedy"), rows)]


def route_parts(route: Mapping[str, Any]) -> list[Table | Mapping[str, str]]:
    """POST /v1/route; miners that were chosen come first."""
    heads = (">uid", "expert", "asked", ">gate score", ">share", ">latency", ">bits/byte", ">worth", "refused")
    rows = [
        [
            str(one["uid"]),
            one["name"],
            "yes" if one["chosen"] else "-",
            f"{one['score']:.2f}",
            percent(one["share"]),
            "-" if one["latency_ms"] is None else f"{one['latency_ms']:.0f} ms",
            *("-" if one[name] is None else f"{one[name]:.3f}" for name in ("bits", "leave_one_out_bits")),
            _cell(one["refused"]),
        ]
        for one in route["experts"]
    ]
    facts = {
        "mixture": f"{route['mixture_bits']:.3f} bits per byte over {route['context_bytes']} bytes",
        "without any": f"{route['baseline_bits']:.3f} bits per byte",
        "next": ", ".join(f"{one['text']!r} {one['chance']:.0%}" for one in route["next"]),
    }
    return [Table(f"Route (top {route['k']})", heads, rows), facts]


def losses_parts(losses: Mapping[str, Any]) -> list[Table | Mapping[str, str]]:
    """POST /v1/losses; lower is better."""
    names = {"mixture": "mixture", "best_single": "best single expert", "uniform_average": "uniform average"}
    rows = [[shown, f"{losses[name]:.3f}"] for name, shown in names.items()]
    return [Table("Held-out loss", ("of", ">bits per byte"), rows)]


def config_parts(found: Mapping[str, Any]) -> list[Table | Mapping[str, str]]:
    """GET /v1/config."""
    rows = [
        [one["key"], json.dumps(one["value"], ensure_ascii=False), one["source"], "yes" if one["is_live"] else "no"]
        for one in found["settings"]
    ]
    return [Table("Configuration", ("key", "value", "from", "live"), rows)]


def reload_parts(done: Mapping[str, Any]) -> list[Table | Mapping[str, str]]:
    """POST /v1/config/reload."""
    return [
        {
            "changed": ", ".join(done["changed"]) or "nothing",
            "waits for the next start": ", ".join(done["waiting_for_restart"]) or "nothing",
        }
    ]


def sql_parts(answer: Mapping[str, Any]) -> list[Table | Mapping[str, str]]:
    """POST /v1/sql."""
    rows = [[_cell(value) for value in row] for row in answer["rows"]]
    title = _counted(len(rows), "row") + (", and more that are left out" if answer["truncated"] else "")
    return [Table(title, answer["columns"], rows)]


def resources_parts(found: Mapping[str, Any]) -> list[Table | Mapping[str, str]]:
    """GET /v1/resources."""
    network = found["network"]
    rows = [
        ["memory", size(found["memory"]["used_bytes"]), size(found["memory"]["limit_bytes"])],
        ["disk of the home", size(found["disk"]["used_bytes"]), size(found["disk"]["limit_bytes"])],
        ["disk free", size(found["disk"]["free_bytes"]), "-"],
        ["open files", str(found["files"]["used"]), str(found["files"]["limit"])],
        ["CPU time", duration(found["cpu"]["seconds"]), "-"],
        ["threads", str(found["cpu"]["threads"]), "-"],
        ["threads of torch", "-", str(found["cpu"]["torch_threads"])],
        ["sent to peers", size(network["sent_bytes"]), _per_second(network["upload_limit_bytes_per_s"])],
        ["received from peers", size(network["received_bytes"]), _per_second(network["download_limit_bytes_per_s"])],
        ["loop lag, longest", f"{found['loop_lag_ms']['max']:.1f} ms", "-"],
    ]
    peers = [
        [peer_class, size(moved["sent"]), size(moved["received"])] for peer_class, moved in found["peer_bytes"].items()
    ]
    return [
        Table("Resources", ("what", ">used", ">limit"), rows),
        Table("Bytes over sessions", ("peers", ">sent", ">received"), peers),
    ]


def _per_second(count: int | None) -> str:
    return "-" if count is None else f"{size(count)}/s"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _cell(value: Any) -> str:
    return "-" if value is None else str(value)
