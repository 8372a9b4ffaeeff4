"""The server's own description, as OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REFERENCE = "#/components/schemas/{model}"
_ANSWERS = {
    "400": "The request is wrong; the message names the field.",
    "401": "The token is missing or wrong.",
    "403": "The host or origin is not allowed.",
    "404": "There is no such model.",
    "408": "The body did not come in time.",
    "413": "The body is too long.",
    "415": "The body is not of the type application/json.",
    "429": "Too much waits already; Retry-After says when to try again.",
    "501": "A library that this needs is not installed.",
    "503": "The server is ending or has no memory for it.",
}


class Operation(NamedTuple):
    """One path that a body is posted to."""

    path: str
    body: type[BaseModel]


def document(operations: Sequence[Operation], names: Sequence[str], version: str) -> dict[str, Any]:
    """Describes the operations for a model of these names."""
    bodies = {operation.body for operation in operations}
    pairs, defined = models_json_schema(
        [(body, "validation") for body in sorted(bodies, key=lambda body: body.__name__)],
        ref_template=_REFERENCE,
    )
    schemas = defined["$defs"]
    for body in bodies:
        name = pairs[(body, "validation")]["$ref"].rpartition("/")[2]
        schemas[name]["properties"]["model"]["enum"] = list(names)
    paths: dict[str, Any] = {
        operation.path: {"post": _posted(pairs[(operation.body, "validation")])}
        for operation in operations
    }
    paths |= {
        "/v1/models": {"get": _got("The model.", "application/json")},
        "/health": {"get": _got("The server is there.", "application/json")},
        "/metrics": {"get": _got("Counters for Prometheus.", "text/plain")},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "musespark", "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _posted(body: dict[str, Any]) -> dict[str, Any]:
    any_object = {"schema": {"type": "object"}}
    answers = {"application/json": any_object, "text/event-stream": {"schema": {"type": "string"}}}
    responses: dict[str, Any] = {"200": {"description": "The answer.", "content": answers}}
    for status, about in _ANSWERS.items():
        responses[status] = {"description": about, "content": {"application/json": any_object}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": responses,
        "security": [{}, {"token": []}],
    }


def _got(about: str, kind: str) -> dict[str, Any]:
    answer = {"description": about, "content": {kind: {}}}
    denied = {"description": "Not allowed.", "content": {"application/json": {}}}
    return {"responses": {"200": answer, "401": denied, "403": denied}}
