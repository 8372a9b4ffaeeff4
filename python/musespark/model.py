"""The public face of a loaded model."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from musespark import prompts
from musespark.adapters import Adapter, Adapters, Steering
from musespark.agents.asked import acting
from musespark.agents.loop import aact, act
from musespark.agents.result import ActResult
from musespark.agents.tools import Tools
from musespark.assets import json_asset, template_of, tokenizer_of
from musespark.batches import drain_in_order, embedded, run_batch
from musespark.contemplating import acontemplate, contemplate, drain_together
from musespark.encoder import Encoder
from musespark.engine import Engine, Handle, Retained, default_threads
from musespark.errors import InvalidRequest
from musespark.events import Request
from musespark.generation import AsyncStream, Collector, Stream
from musespark.images import Clip, encoded
from musespark.info import chosen_notes, info_of
from musespark.looking import look
from musespark.memory import choose_context, kv_formats
from musespark.options import CONTEMPLATING, check_stream, model_defaults
from musespark.prefix_store import PrefixFolderStats, prefixes_in
from musespark.requests import PreparedChat, Requests
from musespark.results import ChatResult, Completion, ModelInfo
from musespark.scoring import Scoring
from musespark.session import Session, refuse_turn_options
from musespark.steering import ControlVector, steer
from musespark.text import ChatTemplate
from musespark.thinking.thresholds import key_of, lookup
from musespark.thought_cache import checked_choice
from musespark.updating import Again, update_weights
from musespark.vision.embedding import ImageEmbedding
from musespark.vision.eyes import Eyes
from musespark.vision.opening import why_blind
from musespark.weights import LoadedWeights, LoraWeights, core_bytes

if TYPE_CHECKING:
    from musespark.vision.loop import Looked


class Model(Scoring):
    """A loaded model. Made by :func:`musespark.load`; close it, or use it as a context manager.

    Safe to use from any number of threads and event loops: what they ask runs as one batch, and
    every result is the one it would be alone. After ``os.fork`` load again in the child.

    Attributes: ``tokenizer``, ``template`` (may be set) and ``info``.
    """

    def __init__(
        self,
        weights: LoadedWeights,
        *,
        kv: str,
        context: int | None,
        threads: int | None,
        prefix_cache: bool = True,
        prefix_cache_bytes: int | None = None,
        prefix_folder: tuple[Path, int] | None = None,
        adapter: LoraWeights | None = None,
        place: Callable[[LoadedWeights], None] = lambda weights: None,
        eyes: Callable[[LoadedWeights, int], Eyes | None] = lambda weights, threads: None,
    ):
        self._weights = weights
        spec, assets = weights.spec, weights.assets
        config = json_asset(assets, "generation_config.json")
        self.tokenizer = tokenizer_of(assets, str(weights.info["source"]))
        info, merged = weights.info, bool(weights.info.get("merged"))
        lora = 0 if adapter is None or merged else core_bytes(adapter.tensors())
        keys, beside = kv_formats(kv, info["kv"]), {"adapter": lora, "drafter": weights.beside}
        fit = choose_context(spec, info["weights"], info["quantize"], keys, context, beside)
        limit, notes = fit.context, fit.notes
        place(weights)
        count = default_threads() if threads is None else threads
        self._eyes = eyes(weights, count)
        encodes = spec.bidirectional
        self._encoder = Encoder(spec, weights.tensors, threads=count) if encodes else None
        run = {"threads": count, "context": limit, "kv": keys, "memory_budget": fit.budget}
        run |= {"prefix_cache": prefix_cache, "prefix_cache_bytes": prefix_cache_bytes}
        start = functools.partial(Engine, drafter=weights.drafts, **run)
        self._engine = self._encoder or start(spec, weights.tensors)
        self._adapters = Adapters(self._engine, adapter, merged=merged)
        opened = (self._engine, weights, prefix_folder, keys)
        self._prefixes = prefixes_in(*opened, self._adapters.checksum_of)
        self._updating = threading.Lock()
        self._again = Again(place, eyes, start, prefix_folder, keys, count)
        notes += prompts.foreign_ends(self.tokenizer, spec.vocab)
        notes += chosen_notes(weights, config, kv=kv, threads=threads, count=count)
        self._info = info_of(
            weights,
            context=limit,
            kv=keys,
            threads=count,
            isa=self._engine.stats()["isa"],
            notes=notes,
        )
        self._requests = Requests(
            self.tokenizer,
            spec,
            self._info,
            self._adapters,
            model_defaults(config, spec.vocab),
            self._eyes,
            why_blind(weights),
            lookup(functools.partial(key_of, weights, keys)),
        )
        self.template = template_of(assets, str(info["source"]))

    @property
    def info(self) -> ModelInfo:
        """What was loaded and what was chosen; ``adapters`` are those open now."""
        protocol = self._requests.protocol.name if self.template else "no template"
        return replace(
            self._info,
            adapters=self._adapters.described(),
            stop_tokens=prompts.spelled(self.tokenizer, self._requests.stop_ids),
            notes=(*self._info.notes, f"chat protocol: {protocol}"),
        )

    @property
    def prefix_folder(self) -> PrefixFolderStats | None:
        """Of load's ``prefix_folder``, all written by now; None without one."""
        return self._prefixes.stats()

    # ---- text ---------------------------------------------------------------------------------

    def generate(
        self, prompt: str | Sequence[int], *, stream: bool = False, **options: Any
    ) -> Completion | Stream:
        """Continues a prompt: a str (the tokenizer adds what it adds around a text, such as BOS;
        markers in it are plain text) or token ids, taken as they are. No chat template.

        Options, None meaning the model's default (its generation_config.json, else greedy):
        ``max_new_tokens`` (alias ``max_tokens``; the model's own is cut to what the context leaves,
        yours raises ContextOverflow; without any up to the context), ``min_new_tokens``,
        ``temperature`` (0: greedy), ``top_k``, ``top_p``, ``min_p``, ``repetition_penalty``,
        ``presence_penalty``, ``frequency_penalty``, ``seed``, ``stop`` (a string or several),
        ``logprobs`` (how many alternatives a token), ``logit_bias`` {token id: addend},
        ``deadline`` (seconds; what is there then is returned), ``adapter`` (what
        :meth:`load_adapter` gave, or its name), ``steering`` (what :meth:`steer` gave, or off),
        ``speculation`` (auto: what stood before is drafted; off), ``signals`` (True:
        :class:`musespark.ThoughtSignals` of thoughts).
        ``stream=True``: an iterator of :class:`Delta` whose ``.result`` is the completion.

        With one of these a text that is not cut is of its form (needs llguidance): ``json_schema``
        (a dict, its JSON, or a type: of pydantic, a dataclass, ``list[int]``; the value is
        ``parsed``), ``regex``, ``grammar`` (Lark).

        Raises InvalidRequest (unknown or wrong option), ContextOverflow and MissingLibrary.
        """
        check_stream(stream)
        out = self._text_stream(prompt, options)
        return out if stream else out.drain()

    async def agenerate(
        self, prompt: str | Sequence[int], *, stream: bool = False, **options: Any
    ) -> Completion | AsyncStream:
        """:meth:`generate` for an event loop; ``stream=True`` gives an async iterator.

        The prompt is encoded in a thread; cancelling the task cancels the request.
        """
        check_stream(stream)
        import asyncio  # here: it takes longer than mapping the weights

        prepared = await asyncio.to_thread(self._text_request, prompt, options)
        out = AsyncStream(*self._submit(*prepared))
        return out if stream else await out.drain()

    def generate_batch(
        self, prompts: Sequence[str | Sequence[int]], **options: Any
    ) -> list[Completion]:
        """:meth:`generate` for several prompts in one engine run; the same results as one by one.
        ``seed``, ``adapter`` and ``steering`` may be lists, one for each prompt."""
        return self._batch(self._text_stream, prompts, options)

    # ---- chat ---------------------------------------------------------------------------------

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        tools: Tools | Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        mode: str = "auto",
        continue_final_message: bool = False,
        stream: bool = False,
        **options: Any,
    ) -> ChatResult | Stream:
        """Answers a conversation: OpenAI-shaped messages, or a str for one user turn.

        ``tools``: functions (not run here: :meth:`act`) or OpenAI's shape. ``tool_choice``: auto,
        required, none or a tool's name: calls then always parse and fit their schemas (needs
        llguidance); None: they are free, unless ``parallel_tool_calls=False`` (one at most) or
        ``allowed_tools`` (names) are given. ``reasoning_effort``: none, minimal, low, medium, high,
        xhigh, by the template or, where it knows none, by a budget. ``thinking_token_budget``:
        thought tokens at most; before it ends the model is led to an end, then
        ``thinking_closing_message`` is written; ``max_new_tokens`` counts the answer apart (no
        thought, marker of one or header), ``max_total_tokens`` all together. ``thinking_policy``: a
        :class:`musespark.ThinkingPolicy`, ``auto`` (what was calibrated for the model, at a rate of
        ``premature_exits``; else loops alone are ended) or ``off``. ``mode``: auto (the model
        decides), instant (no thought), thinking (one first) or contemplating (of ``n_agents``, see
        :class:`musespark.ContemplatingOptions`, :class:`musespark.ContemplationResult`).
        What the model's template does not use raises. Others: as of :meth:`generate`; ``stop``,
        ``json_schema``, ``regex`` and ``grammar`` are the answer's.
        ``continue_final_message``: the last message is the beginning of the answer, which the model
        goes on with; the result has what it adds. ``thought_cache``, ``thought_cache_tokens``: what
        becomes of thoughts' keys and values: :class:`musespark.ThoughtCache`. ``stream=True``: an
        iterator of :class:`Delta` of the channels ``reasoning``, ``content`` and ``tool``; its
        ``.result`` is the ChatResult.
        """
        check_stream(stream)
        given = {"tools": tools, "reasoning_effort": reasoning_effort, "mode": mode}
        given |= {"continue_final_message": continue_final_message, **options}
        out = self._chat_stream(messages, given)
        return out if stream else out.drain()

    async def achat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        stream: bool = False,
        **options: Any,
    ) -> ChatResult | AsyncStream:
        """:meth:`chat` for an event loop, as :meth:`agenerate`."""
        check_stream(stream)
        import asyncio  # here: it takes longer than mapping the weights

        if options.get("mode") == CONTEMPLATING:
            out: AsyncStream = await acontemplate(self, messages, options)
        else:
            prepared = await asyncio.to_thread(self._chat_request, messages, options)
            out = AsyncStream(*self._submit(*prepared))
        return out if stream else await out.drain()

    def chat_batch(
        self, conversations: Sequence[str | Sequence[Mapping[str, Any]]], **options: Any
    ) -> list[ChatResult]:
        """:meth:`chat` for several conversations in one engine run."""
        drain = drain_together if options.get("mode") == CONTEMPLATING else drain_in_order
        return self._batch(self._chat_stream, conversations, options, drain)

    def act(self, messages: Any, tools: Tools, **options: Any) -> ActResult:
        """:meth:`chat` with ``tools`` that are run until the model answers: Python functions or
        :class:`musespark.Tool`. ``approve``: a function of a call (True, False or a text: why not),
        asked before each of a tool with effects, which need it; ``dry_run=True``: none is run.
        ``on_event``: a function of each event. Limits (:func:`musespark.agents.act`): ``max_steps``
        (10 turns), ``max_seconds``, ``max_output_tokens``, ``max_result_characters``. Others are of
        each turn, as of :meth:`chat`; ``tool_choice`` is ``auto``."""
        return act(self.chat, messages, tools, **acting(options, self._requests))

    async def aact(self, messages: Any, tools: Tools, **options: Any) -> ActResult:
        """:meth:`act`, with its options, for an event loop: tools and ``approve`` may be coroutine
        functions."""
        return await aact(self.achat, messages, tools, **acting(options, self._requests))

    def session(
        self,
        system: str | None = None,
        *,
        adapter: Adapter | str | None = None,
        steering: Steering | str | None = None,
        thought_cache: str | None = None,
        thought_cache_tokens: int | None = None,
        **unknown: Any,
    ) -> Session:
        """A conversation that remembers, and computes only what is new in each turn.

                ``adapter``, ``steering`` (None: what every request gets now), ``thought_cache``,
        ``thought_cache_tokens``: of all turns, as in :meth:`chat`. Its other options are each
        turn's: :meth:`Session.chat`.
        """
        refuse_turn_options(unknown)
        additions = {"adapter": adapter, "steering": steering}
        self._adapters.chosen(additions)
        choice = checked_choice(thought_cache, thought_cache_tokens)
        return Session(self, system=system, **additions, thoughts=choice)

    def resume(self, path: str | os.PathLike[str], *, passphrase: str | None = None) -> Session:
        """A session that :meth:`Session.save` wrote, with the keys and values in the file: it goes
        on as if it had never ended, on whatever instruction set and threads.

        Raises InvalidRequest naming the field and both values where the file is of another version,
        model, template, format of keys and values, or an adapter that is not loaded; CorruptFile;
        WrongPassphrase and MissingLibrary for one that :meth:`Session.save` encrypted;
        FileNotFoundError; ContextOverflow and MemoryBudgetExceeded where it does not fit.
        """
        return Session._resumed(self, path, passphrase)

    # ---- adapters -----------------------------------------------------------------------------

    def load_adapter(self, path: str | os.PathLike[str], name: str | None = None) -> Adapter:
        """Loads a LoRA adapter beside the model, to be given to requests as ``adapter``.

        ``path``: a folder with PEFT's files. ``name``: its folder's where None. Requests with
        different adapters, or with none, run in one batch, each with the result it has alone.

        Raises InvalidRequest (no such folder, a name in use, a model with an adapter of its own),
        UnsupportedModel naming what it changes that is not computed here, and CorruptFile.
        """
        return self._adapters.load(path, name, self._weights.spec, self._info.family)

    def steer(
        self,
        vector: ControlVector | str | os.PathLike[str],
        layers: tuple[int, int] | Sequence[int] | None = None,
        strength: float = 1.0,
        *,
        everywhere: bool = True,
        check: bool = True,
        name: str | None = None,
    ) -> Steering:
        """Adds ``strength`` times a control vector (or the file of one) to the residual stream, at
        every token behind the blocks of ``layers``: (first, last), both included, or a list of
        them, counted from 0; None is all that it has. In every later request, until ``remove()`` or
        the end of a ``with`` block, in whatever thread; ``everywhere=False``: in those alone that
        name what this returns, or its ``name``, as ``steering``. A request beside them keeps its
        result.

        InvalidRequest for another width, a layer that is not there, a vector calibrated for other
        weights (unless ``check=False``), and where every request is steered already.
        """
        return steer(self, vector, layers, strength, everywhere, check, name)

    # ---- images -------------------------------------------------------------------------------

    def encode_image(self, image: Any) -> ImageEmbedding:
        """What the model makes of an image: a path or the bytes of a PNG, JPEG, WebP, GIF or BMP
        file (which needs Pillow), an image of Pillow, or a uint8 array [height, width, channels].

        May stand in messages as ``{"type": "image", "image": embedding}``; one that stands there
        itself is encoded once too. UnsupportedModel for a model without eyes.
        """
        return encoded(self._requests.eyes, image, self._requests.blind)

    def encode_video(self, frames: Any, *, fps: float | None = None) -> ImageEmbedding:
        """:meth:`encode_image` of a video with ``fps`` frames a second (24 where None): a uint8
        array [frames, height, width, channels] or a list of images, of which the model's processor
        takes some. Stands in messages as ``{"type": "video", "video": embedding}``."""
        return encoded(self._requests.eyes, Clip(frames, fps), self._requests.blind)

    def look(
        self,
        question: str,
        images: Sequence[Any],
        *,
        calls: int = 8,
        convention: str | None = None,
        **options: Any,
    ) -> Looked:
        """Answers a question about images with tools that look closer: the model may call them
        up to ``calls`` times (zoom, rotate, measure, read colours) and sees what they make; with 0
        there are none, as for a template that has no tools. The result has the last turn, the
        conversation and its :class:`musespark.VisualTrace`.

        ``convention``: how the model writes places, see musespark.vision.conventions; its family's
        own where None, else from 0 to 1000. ``options``: of each turn, as in :meth:`chat`;
        ``tool_choice`` is ``auto``, so that calls parse (needs ``musespark[grammar]``).
        """
        return look(self, question, images, calls=calls, convention=convention, **options)

    # ---- embeddings ---------------------------------------------------------------------------

    def embed(
        self, texts: str | Sequence[str | Sequence[int]], *, truncate: bool = False
    ) -> np.ndarray:
        """float32 [n, width]: the embeddings of n texts, of an embedding model (bert).

        ``texts``: one str, or a list of str (the tokenizer adds its markers) or of token ids. A
        text's row is the same alone and in any batch. ``truncate``: a text beyond the context is
        cut, its last token kept (which ends it); else it raises ContextOverflow. UnsupportedModel
        for a model that generates text.
        """
        return embedded(self, texts, truncate)

    async def aembed(
        self, texts: str | Sequence[str | Sequence[int]], *, truncate: bool = False
    ) -> np.ndarray:
        """:meth:`embed` for an event loop; cancelling the task ends it after a batch of texts."""
        import asyncio  # only here: it is slow to import

        stop = threading.Event()
        try:
            return await asyncio.to_thread(embedded, self, texts, truncate, stop.is_set)
        finally:
            stop.set()

    def update_weights(self, tensors: Mapping[str, Any]) -> None:
        """Other numbers for the model's weights, without loading it again: for rollouts of a model
        in training.

        ``tensors``: float32 or float16 arrays by the names of the checkpoint that the model was
        made from, all of them; those of the vision tower may be left out together, and stay. Each
        is packed in the format that its predecessor has, as :func:`musespark.convert` would.
        What was remembered of prompts and images is forgotten, requests under way end with
        :class:`Cancelled`, sessions compute their conversation again.

        InvalidRequest naming a tensor that is missing, unknown, of another shape (with both), of
        another type or not finite, and where adapters are loaded; UnsupportedModel for embedding
        models and for models made from quantized weights. The model is then as it was.
        """
        update_weights(self, tensors)

    def close(self) -> None:
        """Ends every request and gives memory and files back. Idempotent.

        Whoever waits for a request then, in whatever form (a call, a batch, a stream, a turn of a
        session, logits or scores), gets :class:`Cancelled`; what is asked later, Error.
        """
        self._prefixes.close()
        if self._eyes is not None:
            self._eyes.stop()
        self._engine.close()
        if self._eyes is not None:
            self._eyes.close()
        self._weights.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template; None where the model has none.

        A :class:`ChatTemplate`, a template's text, or the path of a ``.jinja`` file may be set,
        before the first chat: how the model writes thoughts and calls is found from it.
        """
        return self._requests.template

    @template.setter
    def template(self, given: ChatTemplate | str | os.PathLike[str] | None) -> None:
        self._requests.template = given

    def __reduce__(self) -> NoReturn:
        raise InvalidRequest(
            "a model cannot be pickled or copied: its memory and threads belong to this process; "
            f"load it again there, from {self._info.source!r:.300}"
        )

    def __repr__(self) -> str:
        i = self.info
        return f"<musespark.Model {i.family} {i.parameters / 1e6:.1f}M {i.source!r} kv={i.kv}>"

    def _repr_html_(self) -> str:
        return self.info._repr_html_()

    # ---- requests -----------------------------------------------------------------------------

    def _text_request(
        self, prompt: str | Sequence[int], given: Mapping[str, Any]
    ) -> tuple[Request, Collector, Retained | None]:
        request, collector = self._requests.text(prompt, given)
        return request, collector, self._prefixes.base_for(request)

    def _text_stream(self, prompt: str | Sequence[int], given: Mapping[str, Any]) -> Stream:
        return Stream(*self._submit(*self._text_request(prompt, given)))

    def _prepared_chat(
        self, messages: Any, given: Mapping[str, Any], *, retain: bool = False
    ) -> PreparedChat:
        if self._encoder is not None:
            self._encoder.submit()  # says what it is, whatever else is missing
        prepared = self._requests.prepared(messages, given, retain=retain)
        return replace(prepared, asked=prepared.asked.of(self))

    def _chat_request(
        self, messages: Any, given: Mapping[str, Any], *, retain: bool = False
    ) -> tuple[Request, Collector, Retained | None]:
        request, collector = self._prepared_chat(messages, given, retain=retain).ask()
        return request, collector, self._prefixes.base_for(request)

    def _chat_stream(self, messages: Any, given: Mapping[str, Any]) -> Stream:
        if given.get("mode") == CONTEMPLATING:
            return contemplate(self, messages, given)
        return Stream(*self._submit(*self._chat_request(messages, given)))

    def _submit(
        self, request: Request, collector: Collector, base: Retained | None = None
    ) -> tuple[Handle, Collector]:
        then = self._prefixes.after(request)
        return self._engine.submit(request, base=base, then=then), collector

    def _batch(self, begin: Any, items: Any, options: Any, *drain: Any) -> list[Any]:
        return run_batch(begin, lambda: self._engine.closed, items, options, *drain)
