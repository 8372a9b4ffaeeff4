"""The package as it is installed: a quick import, lazy names, types, its data files."""

import ast
import importlib.metadata
import importlib.resources
import inspect
import subprocess
import sys

import pytest

import musespark
from musespark import _core


def python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return result.stdout.strip()


def test_import_is_quick_and_pulls_in_nothing_large() -> None:
    """Processor time, not wall time: a busy machine must not fail this. The best of three."""
    code = (
        "import sys, time; start = time.process_time(); import musespark;"
        "spent = time.process_time() - start;"
        "large = {'numpy', 'jinja2', 'tokenizers', 'safetensors', 'huggingface_hub', 'asyncio'};"
        "print(spent, *(large & set(sys.modules)))"
    )
    runs = [python(code).split() for _ in range(3)]
    assert all(len(run) == 1 for run in runs), f"imported: {runs[0][1:]}"
    assert min(float(run[0]) for run in runs) < 0.150


@pytest.mark.parametrize("name", musespark.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(musespark, name) is not None
    assert name in dir(musespark)


def test_unknown_names_raise() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = musespark.lode


def test_public_errors_derive_from_error() -> None:
    for name in musespark.__all__:
        value = getattr(musespark, name)
        if inspect.isclass(value) and issubclass(value, Exception):
            assert issubclass(value, (musespark.Error, Warning))


def test_version_is_that_of_the_distribution() -> None:
    assert importlib.metadata.version("musespark") == musespark.__version__


@pytest.mark.parametrize(
    "name", ["py.typed", "_core.pyi", "nano/config.json", "server/page/index.html"]
)
def test_data_files_are_installed(name: str) -> None:
    assert importlib.resources.files("musespark").joinpath(name).is_file()


def stub_names() -> dict[str, set[str] | None]:
    """Names of the stub: classes with their methods, functions and constants with None."""
    text = importlib.resources.files("musespark").joinpath("_core.pyi").read_text(encoding="utf-8")
    names: dict[str, set[str] | None] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef):
            names[node.name] = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            names[node.name] = None
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = None
    return names


def test_the_stub_names_what_the_extension_has() -> None:
    actual = {name for name in dir(_core) if not name.startswith("_")}
    stub = stub_names()
    assert set(stub) == actual
    for name, methods in stub.items():
        if methods is not None:
            public = {m for m in dir(getattr(_core, name)) if not m.startswith("_")}
            assert methods - {"__init__"} == public, name
