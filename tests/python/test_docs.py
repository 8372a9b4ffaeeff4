"""README.md and the guides: code that compiles, names that exist, links that lead somewhere.

What they say in words nobody can test; what they name, here.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import musespark
from musespark.agents import events
from musespark.agents.result import ActResult
from musespark.cli import COMMANDS, build_parser
from musespark.lab.steps import STEPS
from support import tree

README = tree.ROOT / "README.md"
GUIDES = sorted((tree.PACKAGE / "docs").glob("*.md"))
PAGES = [README, *GUIDES]
LINKED = [path for path in tree.tracked_files() if path.suffix == ".md"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
# What stands in examples for things that the reader has to have.
PLACEHOLDERS = ("MODEL_FOLDER", "ADAPTER_FOLDER", "org/name")


def where(path: Path) -> str:
    return str(path.relative_to(tree.ROOT))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path, language: str) -> list[str]:
    return [code for name, code in FENCED.findall(text_of(path)) if name == language]


def prose(path: Path) -> str:
    return FENCED.sub("", text_of(path))


def test_the_guides_are_read() -> None:
    assert len(GUIDES) > 10 and set(PAGES) <= set(LINKED)
    assert sum(len(blocks(path, "python")) for path in PAGES) > 30


# --- Python ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=where)
def test_python_compiles(path: Path) -> None:
    for code in blocks(path, "python"):
        ast.parse(code)


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of a chain of attributes on a name; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    start = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{start}.{node.attr}" if start else ""


def names_in(code: str) -> Iterator[str]:
    """Dotted names that a piece of code uses, and what it imports."""
    try:
        parsed = ast.parse(code)
    except SyntaxError:
        return  # test_python_compiles says so
    for node in ast.walk(parsed):
        if isinstance(node, ast.Attribute) and dotted(node):
            yield dotted(node)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{one.name}" for one in node.names)
        elif isinstance(node, ast.Import):
            yield from (one.name for one in node.names)


def package_names() -> dict[str, str]:
    """Names of ours in code and in spans of text -> the page of the last that has it."""
    found = {}
    for path in PAGES:
        for code in blocks(path, "python"):
            found |= dict.fromkeys(names_in(code), where(path))
        for span in SPAN.findall(prose(path)):
            found |= dict.fromkeys(re.findall(r"(?<![\w./])musespark(?:\.\w+)+", span), where(path))
    return {name: page for name, page in found.items() if name.split(".")[0] == "musespark"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of frameworks that are imported
@pytest.mark.parametrize("name", sorted(package_names()))
def test_names_exist(name: str) -> None:
    found, so_far = musespark, "musespark"
    for part in name.split(".")[1:]:
        so_far += f".{part}"
        if not hasattr(found, part):
            try:
                importlib.import_module(so_far)
            except musespark.MissingLibrary as error:
                pytest.skip(str(error))
            except ImportError:
                pytest.fail(f"{package_names()[name]}: there is no {so_far}")
        found = getattr(found, part)


def test_what_models_and_sessions_are_asked_exists() -> None:
    with musespark.load() as model:
        known = {"model": model, "session": model.session()}
        asked = {
            (where(path), *name.split(".")[:2])
            for path in PAGES
            for code in blocks(path, "python")
            for name in names_in(code)
            if name.split(".")[0] in known and "." in name
        }
        assert len(asked) > 20
        missing = [one for one in sorted(asked) if not hasattr(known[one[1]], one[2])]
    assert not missing


@pytest.fixture
def tried_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder where paths of the source tree are found and files may be written."""
    (tmp_path / "python").symlink_to(tree.ROOT / "python")
    monkeypatch.chdir(tmp_path)


def test_the_first_example_prints_what_the_readme_says(tmp_path: Path) -> None:
    """As a reader runs it. Other weights of Spark Nano may print another thought: then the README
    has to show that one."""
    run = subprocess.run(
        [sys.executable, "-c", blocks(README, "python")[0]],
        env=os.environ | {"MUSESPARK_CACHE": str(tmp_path)},  # where nothing is calibrated
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == blocks(README, "text")[0]


def test_examples_of_the_readme_run(tried_in: None) -> None:
    names: dict[str, object] = {}
    run = 0
    for code in blocks(README, "python"):
        if any(word in code for word in PLACEHOLDERS):
            continue
        try:
            exec(code, names)
        except musespark.MissingLibrary as error:
            pytest.skip(str(error))
        run += 1
    assert run >= 8
    assert names["found"].uses[0].answer == "sunny, 21 degrees in Paris"
    assert names["found"].content == "It says sunny, 21 degrees in Paris."
    parsed = names["model"].chat(names["told"], json_schema=names["schema"]).parsed
    assert parsed == {"name": "Ann", "age": 34, "city": "Oslo"}


def test_the_guide_to_agents_lists_what_results_and_events_are() -> None:
    rows = re.findall(r"^\| (`.+?) \|", text_of(tree.PACKAGE / "docs" / "agents.md"), re.MULTILINE)
    listed = {name for row in rows for name in SPAN.findall(row)}
    made = {event.__name__ for event in events.ActEvent.__subclasses__()}
    has = {name for name in dir(ActResult) if not name.startswith("_")}
    assert made | {field.name for field in dataclasses.fields(ActResult)} | has <= listed
    told = (events.ToolUse.__doc__ or "") + (ActResult.__doc__ or "")
    assert {"done", "dry_run", "limit", "context", "cancelled"} <= listed & {*_quoted(told)}


def _quoted(text: str) -> list[str]:
    return re.findall(r"``(\w+)``", text)


# --- The command line --------------------------------------------------------------------------


def command_lines(path: Path) -> list[str]:
    """What follows ``musespark`` where a command is shown, comments left out."""
    found = re.findall(r"(?<![\w/.-])musespark +([a-z][^`\n]*)", "\n".join(blocks(path, "")))
    for span in SPAN.findall(prose(path)):
        found += re.findall(r"^musespark ([a-z].*)", span)
    return [line.split(" #")[0].split("  ")[0] for line in found]


def options_of_commands() -> dict[str, set[str]]:
    (commands,) = (action for action in build_parser()._actions if isinstance(action.choices, dict))
    return {
        name: {option for action in parser._actions for option in action.option_strings}
        for name, parser in commands.choices.items()
        if isinstance(parser, argparse.ArgumentParser)
    }


def test_commands_and_their_options_exist() -> None:
    options, seen, wrong = options_of_commands(), set(), []
    for path in PAGES:
        for line in command_lines(path):
            command, *rest = shlex.split(line)
            seen.add(command)
            if command not in COMMANDS:
                wrong.append(f"{where(path)}: musespark {line}")
            elif command == "lab":
                wrong += [
                    f"{where(path)}: musespark {line}" for one in rest[:1] if one not in STEPS
                ]
            else:
                given = {word for word in rest if re.match(r"--?[a-z]", word)}
                if unknown := given - options[command]:
                    wrong.append(f"{where(path)}: musespark {line}: {sorted(unknown)}")
    assert not wrong, "\n".join(wrong)
    assert seen == set(COMMANDS), "a command that no page shows"


# --- Links and paths ---------------------------------------------------------------------------

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them; none stands twice."""
    titles = re.findall(r"^#+ +(.+)$", prose(path), re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.replace(" ", "-") for title in kept}


@pytest.mark.parametrize("path", LINKED, ids=where)
def test_links_lead_somewhere(path: Path) -> None:
    wrong = []
    for link in LINK.findall(SPAN.sub("", prose(path))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.is_file() or not target.is_relative_to(tree.ROOT):
            wrong.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target):
            wrong.append(f"{link}: no such heading")
    assert not wrong, f"{where(path)}: {wrong}"


def test_every_guide_is_reached_from_the_readme_and_the_index() -> None:
    index = tree.PACKAGE / "docs" / "README.md"
    for page in (README, index):
        reached = {
            (page.parent / link.split("#")[0]).resolve() for link in LINK.findall(prose(page))
        }
        assert set(GUIDES) - {index} <= reached, where(page)


@pytest.mark.parametrize("path", PAGES, ids=where)
def test_scripts_notebooks_and_tests_that_are_named_exist(path: Path) -> None:
    named = re.findall(r"\b(?:benchmarks|notebooks|tests|csrc)/[\w./*-]*\w", text_of(path))
    missing = [name for name in named if not list(tree.ROOT.glob(name))]
    assert not missing
