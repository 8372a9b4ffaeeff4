"""Makes templates.json: what transformers renders for every chat template and conversation, and
continued.json: what it renders where the final message is to be continued.

    python tests/golden/make_templates.py ../shared/data/templates

Needs transformers 5.23. The fixture holds lengths and hashes only (the templates are under their
own licences); ``error`` where transformers raises.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import transformers
from template_cases import (
    CASES,
    CONTINUED,
    EXPLICIT_NONE,
    VARIABLES,
    FixedClock,
    digest,
    other_forms,
)
from transformers.utils import chat_template_utils


def render(source: str, case: dict, add_generation_prompt: bool, **more: bool) -> list[str]:
    """Digests of what transformers renders: of the conversation as it is given, then the others
    that its other forms (template_cases.other_forms) give."""
    found = []
    for messages in (case["messages"], *other_forms(case["messages"])):
        try:
            found.append(digest(_rendered(source, messages, case, add_generation_prompt, **more)))
        except Exception:  # whatever the template raises; the fixture records that it does
            found.append("error")
    return [found[0], *sorted({*found[1:]} - {found[0], "error"})]


def continued(source: str, case: dict) -> list[str]:
    """The digests of a rendering whose final message is left open. Refused where it is the user's,
    which transformers would continue too."""
    if case["messages"][-1]["role"] != "assistant":
        return ["error"]
    return render(source, case, False, continue_final_message=True)


def _rendered(
    source: str, messages: list, case: dict, add_generation_prompt: bool, **more: bool
) -> str:
    """As PreTrainedTokenizerBase.apply_chat_template does: no None values in messages, but for
    the content of a form that is None on purpose."""
    messages = [{k: v for k, v in m.items() if v is not None} for m in messages]
    messages = [{**m, "content": None} if m.pop(EXPLICIT_NONE, False) else m for m in messages]
    texts, _ = chat_template_utils.render_jinja_template(
        [messages],
        tools=case.get("tools"),
        chat_template=source,
        add_generation_prompt=add_generation_prompt,
        **more,
        **{**VARIABLES, **case.get("variables", {})},
    )
    return texts[0]


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
