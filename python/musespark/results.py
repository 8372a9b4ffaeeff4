"""What generation returns: plain frozen data that prints, pickles and renders in a notebook."""

from __future__ import annotations

import html
import json
import os
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from musespark.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np

    from musespark.explaining import Asked
    from musespark.thinking.xray import ThoughtXray
    from musespark.vision.trace import VisualTrace


@dataclass(frozen=True)
class Usage:
    """Token counts of one request.

    ``cached_tokens`` of the prompt were not computed again; ``reasoning_tokens`` are the part of
    ``completion_tokens`` inside thoughts (with the markers where they are no tokens of their own);
    ``probe_tokens`` are rows computed for trial answers and not made the reply's, as those of the
    trial that ends a thought are; what a thought wrote meanwhile and was taken back is not counted.
    ``image_tokens`` are the part of ``prompt_tokens`` that are rows of images.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    probe_tokens: int = 0
    image_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        """Of both requests together."""
        return Usage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds: prompt, first token after submission, and all tokens after the first.
    ``accepted_tokens`` of ``drafted_tokens`` in drafts came several in a step; of these
    ``drafter_accepted`` a drafter's, in ``drafter_passes``."""

    prefill_s: float = 0.0
    first_token_s: float = 0.0
    decode_s: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    drafter_passes: int = 0
    drafter_accepted: int = 0


@dataclass(frozen=True)
class ImageUse:
    """What was done for the images of a prompt: ``count`` of them, ``tokens`` rows in all; a video
    counts as one.

    ``encoded`` went through the vision tower, for ``encode_s`` seconds; ``from_memory`` and
    ``from_disk`` had been encoded before. Of the others (:attr:`known`) nothing was needed: keys
    and values of all their rows were there.
    """

    count: int = 0
    tokens: int = 0
    encoded: int = 0
    from_memory: int = 0
    from_disk: int = 0
    encode_s: float = 0.0

    @property
    def known(self) -> int:
        """Images whose rows nobody asked for."""
        return self.count - self.encoded - self.from_memory - self.from_disk


@dataclass(frozen=True)
class TrialAnswer:
    """What a model would have answered had its thought ended after ``thought_tokens`` of it
    (:class:`musespark.ThinkingPolicy`); cut after as many tokens as a trial has. ``confidence``:
    the geometric mean of its tokens' probabilities, which nobody has calibrated."""

    thought_tokens: int
    answer: str
    confidence: float


@dataclass(frozen=True, eq=False)
class ThoughtSignals:
    """What the model's logits said at each token of its thoughts; with ``signals=True``.

    One value for each thought token (closing words included, markers not), those of all thoughts of
    the turn in order. All are of the row that the token was chosen from, as the model gave it:
    before bias, penalties, temperature and filters; natural logarithms. float32 [n]:
    ``margin``: how far the logit of the marker that ends the thought is below the largest one; 0
    where it is the largest. ``logprob``: of the token. ``entropy``: of the distribution.
    ``confidence``: minus the mean log-probability of the 20 likeliest tokens (the token confidence
    of DeepConf, arXiv:2508.15260): the surer the model is, the larger.
    bool [n]: ``borders``: a sentence may end with the token; ``cues``: it is a word that thoughts
    turn at (wait, but, hmm, check, alternatively).
    """

    margin: np.ndarray
    logprob: np.ndarray
    entropy: np.ndarray
    confidence: np.ndarray
    borders: np.ndarray
    cues: np.ndarray

    def __len__(self) -> int:
        return len(self.margin)

    def to_dict(self) -> dict[str, list]:
        return {name: array.tolist() for name, array in vars(self).items()}


@dataclass(frozen=True)
class TokenLogprob:
    """One generated token: natural-log probability before temperature and filters, and the best
    ``logprobs`` alternatives as (token id, log-probability), best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """A piece of streamed output. ``channel`` is ``content``, ``reasoning`` or ``tool``.

    ``logprobs``: where asked for, of the tokens since the last piece that are text of this channel;
    markers are in none, and a piece may end inside a token's text.
    """

    text: str
    channel: str = "content"
    tool_call: dict[str, Any] | None = None
    logprobs: tuple[TokenLogprob, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Completion:
    """The result of :meth:`Model.generate`; ``str(result)`` is the text.

    ``tokens`` are the generated ids (a matched stop token or stop string is not part of ``text``).
    ``seed`` is always filled: the same prompt, options and seed give the same tokens again.
    ``kv``: the formats of keys and values it was made with, as :attr:`ModelInfo.kv`. ``parsed``:
    where a ``json_schema`` was given and the text is whole (finish_reason ``stop``), its value (an
    object of the type, where one was given); else None. ``parse_error``: why a whole
    text has none, such as validators of the class. ``signals``: where asked for, else None.
    ``stop_string``: the one of ``stop`` that was met, else None.
    """

    text: str
    tokens: tuple[int, ...]
    seed: int
    finish_reason: str
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    logprobs: tuple[TokenLogprob, ...] | None = None
    kv: str = ""
    parsed: Any = None
    parse_error: str = ""
    signals: ThoughtSignals | None = field(default=None, compare=False, repr=False)
    stop_string: str | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed over the tokens after the first; 0.0 where fewer than two were made."""
        n = self.usage.completion_tokens - 1
        return n / self.timings.decode_s if n > 0 and self.timings.decode_s > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        signals = None if self.signals is None else self.signals.to_dict()
        parsed = self.parsed.model_dump() if hasattr(self.parsed, "model_dump") else self.parsed
        plain = asdict(replace(self, signals=None, parsed=parsed))
        return {**plain, "signals": signals}

    def _footer_html(self) -> str:
        u = self.usage
        return (
            f"<div style='color:gray;font-size:smaller'>{html.escape(self.finish_reason)} · "
            f"{u.prompt_tokens} + {u.completion_tokens} tokens · "
            f"{self.tokens_per_second:.1f} tokens/s · seed {self.seed}</div>"
        )

    def _repr_html_(self) -> str:
        text = html.escape(self.text)
        return f"<div style='white-space:pre-wrap'>{text}</div>{self._footer_html()}"


@dataclass(frozen=True)
class ThoughtCache:
    """What became of the keys and values of a turn's thoughts; of the layers without a window,
    where nothing else is said.

    ``thought_cache="demote"``: whole pages of 64 tokens inside a finished thought go to 4 bits,
    before the answer is written. ``"drop"``: nothing after the prompt is kept for others to begin
    with, and a session computes its answer again without the thought, as the next prompt has it;
    results stay the same. ``thought_cache_tokens=n``: a thought under way has at most n rows beyond
    the page in which it begins; at so many a quarter goes, of each head those that are least
    important and most redundant (csrc/ops/choose_rows.h). What ``demote`` and ``n`` change does
    not depend on how the request is computed.

    ``policy``: ``keep``, ``demote`` or ``drop``, as asked for. ``tokens``: thought tokens written.
    ``evictions``: how often rows were evicted, ``evicted_tokens`` of them in all, the same number
    for each head. ``demoted_pages``: pages of 64 tokens in 4 bits now, those of thoughts in the
    prompt included. ``bytes``: of the whole pages inside the turn's thoughts at its end, before any
    are dropped. ``freed_bytes``: given back by demoting and evicting, and (in all layers)
    by dropping. ``recomputed_tokens``: tokens of the answer that are computed again in a dropped
    thought's place.
    """

    policy: str = "keep"
    tokens: int = 0
    bytes: int = 0
    freed_bytes: int = 0
    demoted_pages: int = 0
    evictions: int = 0
    evicted_tokens: int = 0
    recomputed_tokens: int = 0

    @property
    def kept_tokens(self) -> int:
        """Thought tokens that every layer could see at the end."""
        return self.tokens - self.evicted_tokens


@dataclass(frozen=True)
class ChatResult(Completion):
    """The result of :meth:`Model.chat`. ``text`` and ``content`` are the answer to the user.

    ``reasoning`` is the thought text (channels joined by a blank line), ``tool_calls`` are
    OpenAI-shaped dicts, ``malformed_tool_calls`` raw texts of calls that could not be parsed,
    ``protocol_errors`` what else has no place in the model's protocol: (reason, raw text).
    ``thinking_stop_reason``, of the last thought: ``natural`` (the model closed it), ``budget``,
    ``confident``, ``stable``, ``hopeless``, ``loop`` (closed for it:
    :class:`musespark.ThinkingPolicy`), ``deadline`` (closed by a policy's, or cut inside it by the
    request's), ``length``, ``cancelled`` (cut inside it) or ``none`` (it did not think).
    ``thinking_policy``, which acted: ``calibrated 0.05`` (what was calibrated for the model, for
    this rate of premature exits), ``loop`` (nothing was: only budgets and loops end thoughts; it
    says so where what was is for other efforts, of another version or cannot be read),
    ``given`` (the caller's), ``off``, or ``none`` (no token marks the model's thoughts).
    ``thought_cache``: what became of the thoughts' keys and values; None where the model's are not
    marked.
    ``trials``: trial answers along the thought, in order.
    ``images``: what was done for the prompt's images; None where it has none. ``trace``: a
    :class:`musespark.VisualTrace` of what was said of them, which holds their pixels; None where
    there are none, or where one was given as an embedding. ``asked``: what
    :meth:`explain_thinking` needs; copies and pickles have none.
    """

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    malformed_tool_calls: tuple[str, ...] = ()
    protocol_errors: tuple[tuple[str, str], ...] = ()
    thinking_stop_reason: str = "none"
    thinking_policy: str = "none"
    thought_cache: ThoughtCache | None = None
    trials: tuple[TrialAnswer, ...] = ()
    images: ImageUse | None = None
    trace: VisualTrace | None = field(default=None, compare=False, repr=False)
    asked: Asked | None = field(default=None, compare=False, repr=False)

    def explain_thinking(self, *, answer_tokens: int = 64) -> ThoughtXray:
        """What each sentence of the thought did to the answer: at every sentence end the thought is
        closed on trial, which gives the probability of the final answer there and what the model
        would have answered instead. ``answer_tokens``: how many of the answer's first tokens are
        compared. The result stays as it is.

        Needs the model, which must be open and have the same weights: Error where it is gone or
        closed. InvalidRequest where the result did not think or its thoughts are marked by no
        tokens, where rows of the thought were evicted (``thought_cache_tokens``), and for a copy.
        """
        if self.asked is None:
            raise InvalidRequest(
                "explain_thinking: this result is a copy, which does not know its model; ask the "
                "one that chat returned"
            )
        return self.asked.explain(self, answer_tokens)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "asked": None}

    def to_dict(self) -> dict[str, Any]:
        out = Completion.to_dict(replace(self, trace=None, asked=None))
        del out["asked"]
        return {**out, "trace": None if self.trace is None else json.loads(self.trace.to_json())}

    @property
    def reasoning_content(self) -> str:
        """The field name other servers use for :attr:`reasoning`."""
        return self.reasoning

    @property
    def message(self) -> dict[str, Any]:
        """The assistant message, ready to append to the conversation."""
        out: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning:
            out["reasoning_content"] = self.reasoning
        if self.tool_calls:
            out["tool_calls"] = [dict(call) for call in self.tool_calls]
        return out

    def to_openai(self, *, model: str = "musespark") -> dict[str, Any]:
        """This result as an OpenAI chat-completion object (arguments as JSON text)."""
        message = dict(self.message)
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    **call,
                    "function": {
                        **call["function"],
                        "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
                    },
                }
                for call in self.tool_calls
            ]
        reason = {"cancelled": "stop", "deadline": "length"}.get(self.finish_reason)
        usage = self.usage
        return {
            "object": "chat.completion",
            "model": model,
            "choices": [
                {"index": 0, "message": message, "finish_reason": reason or self.finish_reason}
            ],
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "total_tokens": usage.total_tokens,
                "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
                "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            },
        }

    def _repr_html_(self) -> str:
        thought = ""
        if self.reasoning:
            thought = (
                f"<details><summary style='color:gray'>thought "
                f"({self.usage.reasoning_tokens} tokens)</summary>"
                f"<div style='white-space:pre-wrap;color:gray'>{html.escape(self.reasoning)}</div>"
                "</details>"
            )
        calls = "".join(
            f"<pre>{html.escape(json.dumps(call['function'], ensure_ascii=False))}</pre>"
            for call in self.tool_calls
        )
        return thought + super()._repr_html_() + calls


@dataclass(frozen=True)
class ImageAttention:
    """Where a model looked, see :meth:`Model.image_attention`.

    ``maps``: of each image, in order, float32 [layers, tokens, rows, columns]: of every token of
    the answer, with what weight the row that chose it attends to each embedding of the image, the
    mean over a layer's heads. Of an image in tiles that one counts that shows all of it.
    ``layers``: which ones, those without a window.
    """

    maps: tuple[np.ndarray, ...]
    layers: tuple[int, ...]


@dataclass(frozen=True)
class ModelInfo:
    """What was loaded and what was chosen; prints as a small table, also in a notebook.

    ``source``: the path, or the hub id with its commit, which loads the same bytes again.
    ``notes`` says every automatic choice, and what of the model is not used, in words.

    ``kv``: the format of keys and values, or how many KV heads of all layers have which;
    ``kv_formats`` has it for each layer (by ",") and KV head (by "/", where they differ).
    ``kv_bytes_per_token``: keys and values of a token in all layers together, once packed. It is no
    factor of the length: layers with a window hold no more than their window, and the tokens of the
    step at hand are not packed yet. ``kv_bytes_full_context``: the most that one sequence of
    ``context`` tokens takes, all of that counted. ``adapters``: a line for each that is loaded.
    ``stop_tokens`` end a text or turn wherever the model writes them.
    """

    source: str
    family: str
    parameters: int
    weight_formats: dict[str, int]
    weight_bytes: int
    vocab: int
    layers: int
    hidden: int
    context: int
    max_context: int
    kv: str
    kv_bytes_per_token: int
    kv_bytes_full_context: int
    threads: int
    isa: str
    adapters: tuple[str, ...] = ()
    stop_tokens: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kv_formats: str = ""

    @property
    def name(self) -> str:
        """A short name without a path of this machine, as a server and frameworks call the model:
        that of its folder or file, its hub id, or ``spark-nano``."""
        if self.source.startswith("Spark Nano"):
            return "spark-nano"
        if os.path.isabs(self.source) or os.path.exists(self.source):
            name = os.path.basename(os.path.abspath(self.source))
            return name.removesuffix(".safetensors").removesuffix(".gguf")
        return self.source.partition("@")[0]

    def __str__(self) -> str:
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        return "\n".join([*lines, *(f"{'note':<{width}}  {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self._rows()
        )
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        listed = f"<details open><summary>notes</summary><ul>{notes}</ul></details>"
        return f"<table>{rows}</table>{listed if notes else ''}"

    def _rows(self) -> list[tuple[str, str]]:
        formats = sorted(self.weight_formats.items(), key=lambda item: -item[1])
        return [
            ("source", self.source),
            (
                "model",
                f"{self.family}, {self.parameters / 1e6:,.1f} M parameters, {self.layers} layers "
                f"× {self.hidden:,}, vocabulary {self.vocab:,}",
            ),
            (
                "weights",
                f"{human_bytes(self.weight_bytes)}: "
                + ", ".join(f"{name} {human_bytes(size)}" for name, size in formats),
            ),
            ("context", f"{self.context:,} tokens, the model's own limit is {self.max_context:,}"),
            ("keys and values", self._keys_and_values()),
            ("runs on", f"{self.threads} threads, {self.isa}"),
            ("stops at", " ".join(self.stop_tokens) or "nothing: up to max_new_tokens"),
            *(("adapter", adapter) for adapter in self.adapters),
        ]

    def _keys_and_values(self) -> str:
        if self.kv == "none":
            return "none: an encoder keeps none"
        per_token, full = self.kv_bytes_per_token, self.kv_bytes_full_context
        return (
            f"{self.kv}: {human_bytes(per_token)} a token, {human_bytes(full)} for a full context"
        )


def human_bytes(count: float) -> str:
    """Bytes for people, such as 1.4 GiB; two digits after the point from a GiB on."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.2f} GiB"
