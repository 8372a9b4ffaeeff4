"""The table of supported models in docs/models.md, made from what is registered.

``python -m musespark.families.support python/musespark/docs/models.md`` writes it between the two
markers there; a test keeps them equal.
"""

from __future__ import annotations

import sys
from pathlib import Path

from musespark.families import FAMILIES, MODULES, Family
from musespark.families.gguf_names import ARCHITECTURES
from musespark.families.vision.mmproj_types import KINDS

BEGIN, END = "<!-- families -->", "<!-- /families -->"


def support_table() -> str:
    """Markdown, one row for each family."""
    rows = [
        "| `model_type` | models | class in `architectures` | `general.architecture` in GGUF |",
        "|---|---|---|---|",
    ]
    rows += [_row(family) for family in MODULES]
    return "\n".join(rows)


def _row(family: Family) -> str:
    kinds = ", ".join(f"`{one}`" for one in family.model_types)
    classes = ", ".join(f"`{one}`" for one in family.architectures)
    towers = [name for name, kind in KINDS.items() if kind.model_type in family.model_types]
    texts = _gguf_names(family) or [text for name in towers[:1] for text in KINDS[name].texts]
    files = ", ".join(f"`{one}`" for one in texts) or "-"
    if towers:
        files += f" with mmproj {', '.join(f'`{one}`' for one in towers)}"
    return f"| {kinds} | {family.models} | {classes} | {files} |"


def _gguf_names(family: Family) -> list[str]:
    """Of its own name where llama.cpp has one for a family that we read as another's."""
    found = []
    for name, arch in ARCHITECTURES.items():
        model_types = {one.model_type for one in (arch, *arch.variants.values())}
        if {name} & {*FAMILIES} - model_types:
            model_types = {name}
        if model_types & {*family.model_types}:
            found.append(name)
    return found


def with_table(page: str) -> str:
    """A page's text with the table of this version."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise ValueError(f"the text has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{support_table()}\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
