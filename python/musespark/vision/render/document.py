"""One self-contained page: nothing is fetched, and nothing but its own script runs.

Texts of a model stand in a page as escaped text only (:func:`musespark.vision.render.texts.shown`),
never in the script. A content security policy with the hashes of script and style sheet is there
for what escaping might have missed.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from musespark.vision.render.texts import shown


def asset(package: str, name: str) -> str:
    """A text file of the package."""
    return (files(package) / name).read_text(encoding="utf-8")


def document(title: str, body: str, *, style: str, script: str = "") -> str:
    """The page. ``title``: text; ``body``: HTML; ``style``: after what all pages have."""
    style = asset("musespark.vision.render", "base.css") + style
    scripts = f"script-src {_hash(script)}; " if script else ""
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; {scripts}"
        "base-uri 'none'; form-action 'none'"
    )
    tail = f"<script>{script}</script>" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{shown(title, 120)}</title><style>{style}</style></head>\n"
        f"<body>{body}{tail}</body></html>\n"
    )


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
