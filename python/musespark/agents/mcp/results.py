"""What MCP servers say of a tool and give back, as the schema and the value of a tool of ours."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from musespark.agents.tools import Content, text_of
from musespark.errors import InvalidRequest, ToolServerFailed
from musespark.vision.pixels import Limits, Picture, open_named

if TYPE_CHECKING:
    import mcp_types as types

MOST_PICTURES = 16  # of one result
_PICTURE = Limits(file_bytes=32 << 20, pixels=1 << 25)
# Keywords of draft 2020-12, and of those before it, that no grammar of ours follows.
_NOT_FOLLOWED = frozenset(
    (
        *("uniqueItems", "contains", "minContains", "maxContains", "propertyNames"),
        *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems"),
        *("unevaluatedProperties", "if", "then", "else", "not", "$schema", "$id", "$comment"),
    )
)
_IRREGULAR = re.compile(r"\(\?<?[=!]|\\[1-9k]")  # looks around or back: no regular language
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONE = ("items", "additionalProperties", "additionalItems")


def followed_schema(schema: Mapping[str, Any], where: str) -> dict[str, Any]:
    """An ``inputSchema`` without the keywords that calls cannot be held to; it allows what the
    server's does, and more. ToolServerFailed for what is no JSON schema of an object."""
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        place = "/".join(map(str, error.absolute_path))
        raise ToolServerFailed(
            f"{where}: its inputSchema is no JSON schema (draft 2020-12): {place}: "
            f"{error.message:.200}"
        ) from None
    except RecursionError:
        raise _too_deep(where) from None
    if schema.get("type", "object") != "object":
        raise ToolServerFailed(
            f"{where}: its inputSchema is of type {schema['type']!r:.60}, allowed is 'object'"
        )
    try:
        return _followed(schema)
    except RecursionError:
        raise _too_deep(where) from None


def _too_deep(where: str) -> ToolServerFailed:
    return ToolServerFailed(f"{where}: its inputSchema is nested too deeply to be read")


def _followed(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NOT_FOLLOWED or (key == "pattern" and _IRREGULAR.search(value)):
            continue
        if key in _BY_NAME:
            out[key] = {name: _followed(one) for name, one in value.items()}
        elif key in _LISTS:
            # Without what is left out, more than one may fit.
            union = "anyOf" if key == "oneOf" and "anyOf" not in schema else key
            out[union] = [_followed(one) for one in value]
        else:
            out[key] = _followed(value) if key in _ONE else value
    return out


def value_of(result: types.CallToolResult, where: str) -> str | Content:
    """A tool's result as text, or as text and pictures; ToolServerFailed with what a tool says
    that failed, and for more than 16 pictures. CorruptFile, InvalidRequest and MissingLibrary for a
    picture that cannot be opened."""
    parts: list[dict[str, Any]] = []
    for block in result.content:
        picture = _picture(block, where)
        if picture is None:
            parts.append({"type": "text", "text": text_of(_text(block))})
        else:
            parts.append({"type": "image", "image": picture})
    if not parts and result.structured_content is not None:
        try:
            parts.append({"type": "text", "text": text_of(result.structured_content)})
        except InvalidRequest as error:
            raise ToolServerFailed(f"{where}: {error}") from None
    content = Content(parts)
    if result.is_error:
        raise ToolServerFailed(f"{where}: {content.text or 'it failed, and does not say why'}")
    pictures = sum(part["type"] == "image" for part in parts)
    if pictures > MOST_PICTURES:
        raise ToolServerFailed(f"{where}: {pictures} pictures, at most {MOST_PICTURES} are taken")
    return content if pictures else content.text


def _picture(block: types.ContentBlock, where: str) -> Picture | None:
    """A block that is a picture; None for any other."""
    if block.type == "image":
        data = block.data
    elif block.type == "resource" and _is_picture(block.resource):
        data = block.resource.blob
    else:
        return None
    try:
        file = base64.b64decode(data, validate=True)
    except ValueError as error:
        raise ToolServerFailed(f"{where}: a picture that is not base64: {error}") from None
    return open_named(file, where, limits=_PICTURE)


def _is_picture(resource: Any) -> bool:
    return hasattr(resource, "blob") and (resource.mime_type or "").startswith("image/")


def _text(block: types.ContentBlock) -> str:
    """A block as text; what has none is named."""
    if block.type == "text":
        return block.text
    if block.type == "resource_link":
        return f"[resource {block.name}: {block.uri}]"
    if block.type == "resource":
        held = block.resource
        if hasattr(held, "text"):
            return held.text
        return f"[resource {held.uri}: {len(held.blob) * 3 // 4} bytes of {held.mime_type}]"
    return f"[{block.type}: {block.mime_type}, which is not told]"
