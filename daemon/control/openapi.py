"""The OpenAPI document, made from the table of routes, so that it cannot say something else than the code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from .answers import Refusal
from .questions import NoQuestion

if TYPE_CHECKING:
    from .api import Route  # api asks this module for the document

_REF = "#/components/schemas/{name}"


def describe(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of ``routes``."""
    routes = list(routes)
    kinds = [kind for route in routes for kind in (route.question, route.answer)] + [Refusal]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    schema_of = {id(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    refusal = {
        "description": "Refused: what is wrong and what to do about it",
        "content": {"application/json": {"schema": schema_of[id(Refusal)]}},
    }
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation: dict[str, Any] = {
            "operationId": f"{route.method.lower()}_{route.name}",
            "summary": route.summary,
            "description": f"Who may: {route.access.name.lower()} and above.",
            "responses": {"200": _success(route, schema_of[id(route.answer)]), "default": refusal},
        }
        if route.is_cbor:
            body = {
                "required": True,
                "content": {route.content_type: {"schema": {"type": "string", "format": "binary"}}},
            }
            operation["requestBody"] = body
        if route.question is not NoQuestion:
            operation |= _question(route, components)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "moed local API",
            "version": version,
            "description": "HTTP on the daemon's Unix socket. The kernel says who calls: root and the daemon's user "
            "are admin, members of the group moed are reader, others are refused.",
        },
        "servers": [{"url": "http://localhost", "description": "over the Unix socket"}],
        "paths": paths,
        "components": {"schemas": components},
    }


def _success(route: Route, schema: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {route.content_type: {"schema": schema}}
    if route.has_events:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {"description": route.summary, "content": content}


def _question(route: Route, components: dict[str, Any]) -> dict[str, Any]:
    name = route.question.__name__
    if route.method != "GET":
        schema = {"$ref": _REF.format(name=name)}
        return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
    # The parameters stand in the query, so the record itself is no schema that anybody sends.
    described = components.pop(name)
    required = described.get("required", [])
    return {
        "parameters": [
            {"name": field, "in": "query", "required": field in required, "schema": schema}
            for field, schema in described["properties"].items()
        ]
    }
