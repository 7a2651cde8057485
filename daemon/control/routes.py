"""The one table of routes of the local API, and the handlers of those that have no file of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moed import __version__

from . import answers, ledger, questions
from . import openai_shapes as shapes
from .api import Answer, Ask, Body, Route, Services, json_body
from .completions import complete
from .credentials import Access
from .metrics import CONTENT_TYPE
from .openai import chat_completions, completions, list_models, show_model
from .openapi import describe
from .operator import reload_config, resources, set_config, show_config, sql
from .streams import events, logs
from .tensors import CBOR, forward


async def _status(services: Services, _ask: Ask) -> Answer:
    return json_body(await services.plane.status())


async def _peers(services: Services, _ask: Ask) -> Answer:
    return json_body(await services.plane.peers())


async def _experts(services: Services, _ask: Ask) -> Answer:
    return json_body(await services.plane.experts())


async def _capacity(services: Services, ask: Ask) -> Answer:
    question: questions.CapacityQuestion = ask.question
    return json_body(await services.plane.capacity(question.owner))


async def _rankings(services: Services, _ask: Ask) -> Answer:
    return json_body(await services.plane.rankings())


async def _why_reward(services: Services, ask: Ask) -> Answer:
    question: questions.RewardQuestion = ask.question
    return json_body(await services.plane.why_reward(uid=question.uid, epoch=question.epoch))


async def _chain(services: Services, ask: Ask) -> Answer:
    question: questions.ChainQuestion = ask.question
    return json_body(await services.plane.chain(start=question.start, limit=question.limit))


async def _dht_get(services: Services, ask: Ask) -> Answer:
    question: questions.DhtGetQuestion = ask.question
    return json_body(await services.plane.dht_get(question.key))


async def _dht_table(services: Services, _ask: Ask) -> Answer:
    return json_body(await services.plane.dht_table())


async def _dht_lookup(services: Services, ask: Ask) -> Answer:
    question: questions.DhtLookupQuestion = ask.question
    return json_body(await services.plane.dht_lookup(question.id))


async def _doctor(services: Services, _ask: Ask) -> Answer:
    health = await services.plane.doctor()
    table = await services.plane.dht_table()
    found = services.desk.judge(health, await services.plane.status(), table["dropped"])
    return json_body({**health, "findings": found})


async def _route(services: Services, ask: Ask) -> Answer:
    question: questions.RouteQuestion = ask.question
    return json_body(await services.plane.route(question.text.encode()))


async def _teach(services: Services, ask: Ask) -> Answer:
    question: questions.TeachQuestion = ask.question
    texts = [text.encode() for text in question.texts]
    return json_body(await services.plane.teach(texts, steps=question.steps))


async def _losses(services: Services, _ask: Ask) -> Answer:
    return json_body(await services.plane.losses())


async def _stop(services: Services, _ask: Ask) -> Answer:
    services.plane.request_stop()
    return json_body({"stopping": True})


async def _metrics(services: Services, _ask: Ask) -> Answer:
    await services.refresh_metrics()
    return Body(services.metrics.render(), CONTENT_TYPE)


async def _openapi(_services: Services, _ask: Ask) -> Answer:
    return json_body(describe(ROUTES.values(), __version__))


_TABLE = (
    Route("GET", "/v1/status", "This node at a glance", _status, answers.StatusAnswer),
    Route("GET", "/v1/peers", "Nodes that this one has a session with", _peers, list[answers.PeerRow]),
    Route("GET", "/v1/experts", "Experts that the network offers", _experts, list[answers.ExpertRow]),
    Route(
        "GET", "/v1/capacity", "Hardware of the network, measured", _capacity, answers.CapacityAnswer,
        questions.CapacityQuestion,
    ),
    Route("GET", "/v1/rankings", "Miners and validators as consensus ranks them", _rankings, answers.RankingsAnswer),
    Route(
        "GET", "/v1/why/reward", "One reward taken apart: weights, clip, rank, bonds, payment", _why_reward,
        answers.RewardAnswer, questions.RewardQuestion, is_heavy=True,
    ),
    Route(
        "GET", "/v1/chain", "Head and blocks of the state chain", _chain, answers.ChainAnswer, questions.ChainQuestion
    ),
    Route("GET", "/v1/account", "What a key holds", ledger.account, ledger.AccountAnswer, ledger.AccountQuestion),
    Route(
        "POST", "/v1/tx/send", "Sign a transaction with the node's key and send it", ledger.send,
        ledger.SentAnswer, ledger.SendQuestion, access=Access.ADMIN,
    ),
    Route(
        "POST", "/v1/tx/submit", "Send a transaction that was signed elsewhere", ledger.submit,
        ledger.SentAnswer, ledger.SubmitQuestion, access=Access.ADMIN,
    ),
    Route(
        "GET", "/v1/dht/get", "Records that the network keeps under a key", _dht_get,
        answers.DhtGetAnswer, questions.DhtGetQuestion, is_heavy=True,
    ),
    Route("GET", "/v1/dht/table", "The routing table, bucket by bucket", _dht_table, answers.DhtTableAnswer),
    Route(
        "GET", "/v1/dht/lookup", "The way to an id, question by question", _dht_lookup,
        answers.DhtLookupAnswer, questions.DhtLookupQuestion, is_heavy=True,
    ),
    Route(
        "POST", "/v1/doctor", "Ask peers where they see this node and to dial it back", _doctor,
        answers.DoctorAnswer, is_heavy=True,
    ),
    Route(
        "POST", "/v1/complete", "Continue a text through the mixture of experts", complete,
        answers.CompleteAnswer, questions.CompleteQuestion, is_heavy=True, has_events=True,
    ),
    Route("GET", "/v1/models", "The one model, for OpenAI clients", list_models, shapes.ModelList),
    Route("GET", "/v1/models/moed", "The mixture as an OpenAI model", show_model, shapes.Model),
    Route(
        "POST", "/v1/completions", "Continue a text, for OpenAI clients", completions,
        shapes.TextCompletion, shapes.CompletionsQuestion, is_heavy=True, has_events=True,
    ),
    Route(
        "POST", "/v1/chat/completions", "Continue a conversation, for OpenAI clients", chat_completions,
        shapes.ChatCompletion, shapes.ChatQuestion, is_heavy=True, has_events=True,
    ),
    Route(
        "POST", "/v1/route", "One text under the X-ray: whom the gate asks, and what each answer is worth", _route,
        answers.RouteAnswer, questions.RouteQuestion, is_heavy=True,
    ),
    Route(
        "POST", "/v1/teach", "Train the gate on an application's own texts", _teach,
        answers.TeachAnswer, questions.TeachQuestion, access=Access.ADMIN, is_heavy=True,
    ),
    Route(
        "POST", "/v1/losses", "Measure the mixture on held-out text", _losses, answers.LossesAnswer, is_heavy=True
    ),
    Route(
        "GET", "/v1/logs", "The daemon's last log lines, or all as they come", logs,
        answers.LogsAnswer, questions.LogsQuestion, has_events=True,
    ),
    Route(
        "GET", "/v1/events", "What happened, or all that happens, numbered", events,
        answers.EventsAnswer, questions.EventsQuestion, has_events=True,
    ),
    Route("GET", "/v1/config", "Every setting, its value and source", show_config, answers.ConfigAnswer),
    Route(
        "POST", "/v1/config/set", "Change a live setting until the next reload", set_config,
        answers.ConfigAnswer, questions.SettingQuestion, access=Access.ADMIN,
    ),
    Route(
        "POST", "/v1/config/reload", "Read the configuration file again", reload_config,
        answers.ReloadAnswer, access=Access.ADMIN,
    ),
    Route("POST", "/v1/sql", "One SELECT over what the node keeps", sql, answers.SqlAnswer, questions.SqlQuestion,
          is_heavy=True),
    Route("GET", "/v1/resources", "What the daemon takes of its machine", resources, answers.ResourcesAnswer),
    Route(
        "POST", "/v1/mixture/forward", "Next-byte log-probabilities of the mixture, in CBOR", forward, bytes,
        is_heavy=True, content_type=CBOR, is_cbor=True,
    ),
    Route("GET", "/v1/metrics", "Metrics for Prometheus", _metrics, str, content_type="text/plain"),
    Route("POST", "/v1/stop", "Stop the daemon in order", _stop, answers.StopAnswer, access=Access.ADMIN),
    Route("GET", "/v1/openapi.json", "This document", _openapi, dict[str, Any]),
)  # fmt: skip
ROUTES: Mapping[tuple[str, str], Route] = {(route.method, route.path): route for route in _TABLE}
