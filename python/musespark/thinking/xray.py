"""Thought X-ray: what each sentence of a thought did to the answer, as data."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from musespark.untrusted import checked_path
from musespark.weights.files import write_whole

FORMAT = "musespark.thought-xray"
VERSION = 1
#: A sentence that moves :attr:`ForcedAnswer.confidence` by as much has changed something.
MOVED = 0.1


@dataclass(frozen=True, kw_only=True)
class ForcedAnswer:
    """What a model says where its thought is closed on trial.

    ``answer``: written greedily, at most as many tokens as are compared; ``is_final``: its tokens
    are those of the final answer. ``probability``: of the final answer's tokens here, under the
    model's own distribution (before temperature and filters); ``confidence``: the geometric mean
    over these tokens, as :attr:`TrialAnswer.confidence`; ``token_logprob``: its natural logarithm.
    Nobody has calibrated them.
    """

    answer: str
    is_final: bool
    probability: float
    confidence: float
    token_logprob: float


@dataclass(frozen=True, kw_only=True)
class ThoughtSentence(ForcedAnswer):
    """A sentence, and what the model says where the thought is closed behind it.

    ``text``: the sentences of a thought together are its text. ``tokens``: [first, after the last)
    in the result's ``tokens``. ``thought``: which of the turn's thoughts, from 0. ``changed``: the
    answer is another than before the sentence, or ``confidence`` moved by :data:`MOVED` or more.
    """

    text: str
    tokens: tuple[int, int]
    thought: int
    changed: bool


@dataclass(frozen=True, kw_only=True)
class ThoughtXray:
    """The probability of the final answer along a thought: what
    :meth:`ChatResult.explain_thinking` gives. Renders in notebooks.

    ``model``, ``question``: what was asked, and whom. ``answer``: the text of the ``answer_tokens``
    that are compared, the first of the final answer. ``answer_is_trial``: there was none (the turn
    ended inside its thought, or with it); in its place stands the trial's where the thought ended.
    ``thinking_stop_reason``: of the result. ``before``: closed before its first token, without a
    thought. ``sentences``: in order, those of all the turn's thoughts; each thought is closed in
    its place, with the turn as it was written up to there. ``probe_tokens``: computed for all this,
    without what the model still knew; the one field that may differ from run to run.

    What a sentence did is what the model makes of the text so far, not why it wrote the next.
    """

    model: str
    question: str
    answer: str
    answer_tokens: int
    answer_is_trial: bool
    thinking_stop_reason: str
    before: ForcedAnswer
    sentences: tuple[ThoughtSentence, ...]
    probe_tokens: int = field(default=0, compare=False)

    @property
    def committed_at(self) -> int | None:
        """How many sentences it took until every later trial gives the final answer. 0: it is what
        the model says without a thought. None: the last trial gives another, as may be where the
        answer was sampled."""
        trials = [self.before, *self.sentences]
        others = [i for i, trial in enumerate(trials) if not trial.is_final]
        first = others[-1] + 1 if others else 0
        return None if first == len(trials) else first

    @property
    def thought_tokens(self) -> int:
        """Tokens of all sentences."""
        return _tokens(self.sentences)

    @property
    def saved_tokens(self) -> int:
        """Thought tokens after the commitment; 0 where there is none."""
        at = self.committed_at
        return 0 if at is None else _tokens(self.sentences[at:])

    def to_dict(self) -> dict[str, Any]:
        """Plain data, :attr:`committed_at` and the counts of tokens with it."""
        derived = ("committed_at", "thought_tokens", "saved_tokens")
        return {
            "format": FORMAT,
            "version": VERSION,
            **asdict(self),
            **{name: getattr(self, name) for name in derived},
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON, in ASCII."""
        return json.dumps(self.to_dict(), allow_nan=False, indent=1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes :meth:`to_json` to a file, whole or not at all."""
        write_whole(checked_path(path, "path"), self.to_json().encode())

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """One page that holds everything it shows; written to ``path`` where one is given."""
        from musespark.thinking.xray_page import page

        text = page(self)
        if path is not None:
            write_whole(checked_path(path, "path"), text.encode())
        return text

    def _repr_html_(self) -> str:
        from musespark.thinking.xray_page import cell

        return cell(self)

    def __str__(self) -> str:
        at, count = self.committed_at, len(self.sentences)
        lines = ["per token  answer there             sentence"]
        lines.append(f"{self.before.confidence:9.2f}  {_line(self.before.answer, 24)}")
        for one in self.sentences:
            same = " " if one.changed else "="
            answer, text = _line(one.answer, 24), _line(one.text, 60)
            lines.append(f"{one.confidence:9.2f}{same} {answer:<24} {text}")
        told = "never" if at is None else f"after {at} of {count} sentences"
        lines.append(f"committed: {told}; {self.saved_tokens} thought tokens came after that")
        if self.answer_is_trial:
            lines.append("there is no answer; the trial at the end stands in its place")
        return "\n".join(lines)


def _tokens(sentences: tuple[ThoughtSentence, ...]) -> int:
    return sum(last - first for first, last in (one.tokens for one in sentences))


def _line(text: str, most: int) -> str:
    told = " ".join(text.split())
    return told if len(told) <= most else told[: most - 1] + "…"
