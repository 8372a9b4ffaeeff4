"""The output items of a response, as they come and as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from musespark.results import Delta, TokenLogprob
from musespark.server.call_ids import told_id
from musespark.server.openai_shared import spelled
from musespark.server.wire import Ended, new_id
from musespark.text import Tokenizer

_Event = dict[str, Any]


class Items:
    """Of the response ``id``. ``alternatives`` to each token that are told with its
    log-probability; None: none is. ``done``: the items that are whole."""

    def __init__(self, id: str, tokenizer: Tokenizer, alternatives: int | None):
        self._response, self._tokenizer, self._alternatives = id, tokenizer, alternatives
        self.done: list[dict[str, Any]] = []
        self._open = ""  # the channel of the item that is written
        self._id, self._text = "", list[str]()
        self._logprobs: list[dict[str, Any]] = []

    def of_result(self, one: Ended, status: str) -> list[dict[str, Any]]:
        """All items of an answer that is whole, as a stream of it would end with them."""
        result = one.result
        pieces = [
            Delta(result.reasoning, "reasoning"),
            Delta(result.content, logprobs=tuple(one.logprobs)),
            *(Delta("", "tool", call) for call in result.tool_calls),
        ]
        for piece in pieces:
            if piece.text or piece.tool_call is not None:
                self.piece(piece)
        self.finish(status)
        return self.done

    def piece(self, delta: Delta) -> list[_Event]:
        """The events of a piece, without their numbers."""
        if delta.tool_call is not None:
            return [*self.finish("completed"), *self._call(delta.tool_call)]
        if delta.channel == "tool":
            return []  # the call comes when it is whole
        events = []
        if delta.channel != self._open:
            events = [*self.finish("completed"), *self._begin(delta.channel)]
        self._text.append(delta.text)
        told: dict[str, Any] = {"delta": delta.text}
        if self._open == "content":
            told["logprobs"] = self._told(delta.logprobs)
            self._logprobs += told["logprobs"]
        return [*events, self._event(f"response.{self._kind}.delta", content_index=0, **told)]

    def finish(self, status: str) -> list[_Event]:
        """The events that end the item under way, if there is one."""
        if not self._open:
            return []
        text = "".join(self._text)
        told: dict[str, Any] = {"text": text}
        if self._open == "content":
            told["logprobs"] = self._logprobs
            item = _message(self._id, status, text, self._logprobs)
        else:
            item = _thought(self._id, status, text)
        events = [
            self._event(f"response.{self._kind}.done", content_index=0, **told),
            self._event("response.content_part.done", content_index=0, part=item["content"][0]),
            self._item("response.output_item.done", item),
        ]
        self.done.append(item)
        self._open, self._text, self._logprobs = "", [], []
        return events

    @property
    def _kind(self) -> str:
        return "output_text" if self._open == "content" else "reasoning_text"

    def _begin(self, channel: str) -> list[_Event]:
        self._open = channel
        self._id = new_id("msg_" if channel == "content" else "rs_")
        whole = _message(self._id, "in_progress", "", [])
        if channel != "content":
            whole = _thought(self._id, "in_progress", "")
        part = whole["content"][0]
        return [
            self._item("response.output_item.added", {**whole, "content": []}),
            self._event("response.content_part.added", content_index=0, part=part),
        ]

    def _call(self, call: Mapping[str, Any]) -> list[_Event]:
        item = _call(new_id("fc_"), call, self._response)
        self._id, arguments = item["id"], item["arguments"]
        begun = {**item, "arguments": "", "status": "in_progress"}
        kind = "response.function_call_arguments"
        events = [
            self._item("response.output_item.added", begun),
            self._event(f"{kind}.delta", delta=arguments),
            self._event(f"{kind}.done", arguments=arguments, name=item["name"]),
            self._item("response.output_item.done", item),
        ]
        self.done.append(item)
        return events

    def _event(self, kind: str, **fields: Any) -> _Event:
        return {"type": kind, "item_id": self._id, "output_index": len(self.done), **fields}

    def _item(self, kind: str, item: dict[str, Any]) -> _Event:
        return {"type": kind, "output_index": len(self.done), "item": item}

    def _told(self, some: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        if self._alternatives is None:
            return []
        return [spelled(self._tokenizer, one, self._alternatives) for one in some]


def _message(
    id: str, status: str, text: str, logprobs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}
    item = {"id": id, "type": "message", "role": "assistant", "status": status}
    return {**item, "content": [part]}


def _thought(id: str, status: str, text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": id, "type": "reasoning", "status": status, "summary": [], "content": content}


def _call(id: str, call: Mapping[str, Any], response: str) -> dict[str, Any]:
    function = call["function"]
    return {
        "id": id,
        "type": "function_call",
        "status": "completed",
        "call_id": told_id(call["id"], response),
        "name": function["name"],
        "arguments": json.dumps(function["arguments"], ensure_ascii=False),
    }
