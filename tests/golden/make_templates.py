"""Makes templates.json: what transformers renders for every chat template and conversation, and
continued.json: what it renders where the final message is to be continued.

    python tests/golden/make_templates.py ../shared/data/templates

Needs transformers 5.23. The fixture holds lengths and hashes only (the templates are under their
own licences); ``error`` where transformers raises.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import transformers
from template_cases import CASES, CONTINUED, VARIABLES, FixedClock, digest
from transformers.utils import chat_template_utils


def render(source: str, case: dict, add_generation_prompt: bool) -> str:
    """The digest of what transformers renders. Tool-call arguments are given as dicts; where a
    template fails on those and not on JSON text, the digest of that, marked ``text:``."""
    try:
        return digest(_rendered(source, case["messages"], case, add_generation_prompt))
    except Exception:  # whatever the template raises; the fixture records that it does
        if '"tool_calls"' not in json.dumps(case):
            return "error"
    try:
        messages = [_with_text_arguments(message) for message in case["messages"]]
        return "text:" + digest(_rendered(source, messages, case, add_generation_prompt))
    except Exception:
        return "error"


def continued(source: str, case: dict) -> str:
    """The digest of a rendering whose final message is left open. Refused where it is the user's,
    which transformers would continue too."""
    if case["messages"][-1]["role"] != "assistant":
        return "error"
    try:
        return digest(_rendered(source, case["messages"], case, False, continue_final_message=True))
    except Exception:
        return "error"


def _rendered(
    source: str, messages: list, case: dict, add_generation_prompt: bool, **more: bool
) -> str:
    """As PreTrainedTokenizerBase.apply_chat_template does: no None values in messages."""
    messages = [{k: v for k, v in m.items() if v is not None} for m in messages]
    texts, _ = chat_template_utils.render_jinja_template(
        [messages],
        tools=case.get("tools"),
        chat_template=source,
        add_generation_prompt=add_generation_prompt,
        **more,
        **{**VARIABLES, **case.get("variables", {})},
    )
    return texts[0]


def _with_text_arguments(message: dict) -> dict:
    message = copy.deepcopy(message)
    for call in message.get("tool_calls") or []:
        function = call["function"]
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return message


def main(folder: Path) -> None:
    chat_template_utils.datetime = FixedClock
    made = {"transformers": transformers.__version__, "templates": {}}
    open_ended = {}
    for path in sorted(folder.glob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        made["templates"][path.name] = {
            name: [render(source, case, flag) for flag in (False, True)]
            for name, case in CASES.items()
        }
        open_ended[path.name] = {name: continued(source, c) for name, c in CONTINUED.items()}
    out = Path(__file__).with_name("templates.json")
    lines = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(made['templates'][name], separators=(',', ':'))}"
        for name in made["templates"]
    )
    head = json.dumps(made["transformers"])
    out.write_text(f'{{"transformers": {head}, "templates": {{\n{lines}\n}}}}\n', encoding="utf-8")
    out.with_name("continued.json").write_text(
        "{\n"
        + ",\n".join(
            f"{json.dumps(name)}: {json.dumps(found, separators=(',', ':'))}"
            for name, found in open_ended.items()
        )
        + "\n}\n",
        encoding="utf-8",
    )
    print(f"{out}: {len(made['templates'])} templates, {len(CASES)} conversations")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
