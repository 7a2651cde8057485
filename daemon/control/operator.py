"""The routes for operators: settings, reload, SQL, resources."""

from __future__ import annotations

from . import questions
from .api import Answer, Ask, Services, json_body


async def show_config(services: Services, _ask: Ask) -> Answer:
    """GET /v1/config."""
    return json_body(services.desk.config())


async def set_config(services: Services, ask: Ask) -> Answer:
    """POST /v1/config/set."""
    question: questions.SettingQuestion = ask.question
    return json_body(services.desk.change(question.key, question.value))


async def reload_config(services: Services, _ask: Ask) -> Answer:
    """POST /v1/config/reload."""
    return json_body(services.desk.reload())


async def sql(services: Services, ask: Ask) -> Answer:
    """POST /v1/sql."""
    question: questions.SqlQuestion = ask.question
    await services.refresh_metrics()
    return json_body(await services.desk.sql(question.query, services.metrics.registry))


async def resources(services: Services, _ask: Ask) -> Answer:
    """GET /v1/resources."""
    return json_body(services.desk.resources())
