"""Prints requirements of pyproject.toml, one a line: `build`, `project`, or the name of an extra.

python .ci/requirements.py build project test
"""

from __future__ import annotations

import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib


def requirements(group: str, pyproject: dict) -> list[str]:
    """The requirement strings of one group; KeyError names an unknown extra."""
    if group == "build":
        # Without build isolation the backend does not fetch its own tools.
        return [*pyproject["build-system"]["requires"], "cmake>=3.20", "ninja>=1.5"]
    if group == "project":
        return pyproject["project"]["dependencies"]
    return pyproject["project"]["optional-dependencies"][group]


def main() -> None:
    path = Path(__file__).resolve().parent.parent / "pyproject.toml"
    pyproject = tomllib.loads(path.read_text(encoding="utf-8"))
    for group in sys.argv[1:]:
        print("\n".join(requirements(group, pyproject)))


if __name__ == "__main__":
    main()
