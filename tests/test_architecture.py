"""The shape of the tree: which way arrows point, what stays sealed, what the documents promise.

The rules are those of csrc/README.md and python/musespark/README.md; this file reads includes,
imports, tables and object symbols and fails where the tree says something else.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from pathlib import Path

import pytest

from mutants import MUTANTS
from support import tree

LAYERS = {
    "base": set(),
    "formats": {"base"},
    "kernels": {"formats", "base"},
    "ops": {"kernels", "formats", "base"},
    "cache": {"kernels", "formats", "base"},
    "model": {"cache", "ops", "kernels", "formats", "base"},
    "decode": {"model", "cache", "ops", "kernels", "formats", "base"},
    "calibrate": {"model", "cache", "ops", "kernels", "formats", "base"},
    "linalg": {"base"},
}
GENERATED = {"build_info.h", "register_parts.inc"}
INTRINSICS = {"immintrin.h", "arm_neon.h"}


def where(path: Path, line: int = 0) -> str:
    return f"{path.relative_to(tree.ROOT)}{f':{line}' if line else ''}"


# --- C++: arrows -------------------------------------------------------------------------------


def test_cmake_lets_each_layer_see_only_the_layers_below() -> None:
    assert tree.cmake_layers() == LAYERS


def test_every_folder_of_csrc_is_a_layer_or_the_bindings() -> None:
    folders = {p.name for p in tree.CSRC.iterdir() if p.is_dir()}
    assert folders <= {*LAYERS, "bindings"}


def test_includes_point_down() -> None:
    wrong = []
    files = [p for layer in LAYERS for p in tree.cpp_files(layer)]
    for path in files:
        layer = path.relative_to(tree.CSRC).parts[0]
        for include in tree.includes(path):
            target = include.name.split("/")[0]
            if include.quoted and target not in LAYERS[layer] | {layer}:
                wrong.append(f'{where(path, include.line)}: "{include.name}"')
    assert len(files) > 20
    assert not wrong, "\n".join(wrong)


def test_included_files_exist() -> None:
    wrong = []
    for path in tree.cpp_files():
        for include in tree.includes(path):
            if include.quoted and include.name not in GENERATED:
                local = path.parent / include.name
                if not (tree.CSRC / include.name).is_file() and not local.is_file():
                    wrong.append(f'{where(path, include.line)}: "{include.name}"')
    assert not wrong, "\n".join(wrong)


def test_only_ops_calls_kernels() -> None:
    """Others may hand the dispatch table down to ops, but not reach into it."""
    use = re.compile(r"\bkernels(\(\))?(\.|->)\w+")
    files = {layer: list(tree.cpp_files(layer)) for layer in ("ops", "cache", "model", "decode")}
    assert any(use.search(path.read_text()) for path in files.pop("ops"))
    wrong = [
        f"{where(path)}: {match.group()}"
        for paths in files.values()
        for path in paths
        for match in use.finditer(path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


def test_pybind11_and_python_stay_in_the_bindings() -> None:
    wrong = [
        f"{where(path, include.line)}: <{include.name}>"
        for layer in LAYERS
        for path in tree.cpp_files(layer)
        for include in tree.includes(path)
        if include.name.startswith("pybind11") or include.name == "Python.h"
    ]
    assert not wrong, "\n".join(wrong)


# --- C++: kernels ------------------------------------------------------------------------------

SCALAR_SYSTEM = {"cmath", "cstdint", "cstddef", "cstring"}
SEALED_SYSTEM = INTRINSICS | {"cstdint", "cstddef", "stdint.h", "stddef.h"}


def kernel_files() -> list[Path]:
    """Every file of an operation's folder that is a kernel: scalar or made for a level."""
    return [
        p
        for p in tree.cpp_files("kernels")
        if p.suffix == ".cc"
        and p.parent != tree.KERNELS
        and (p.stem.endswith("scalar") or tree.isa_of(p))
    ]


def sealed_files() -> list[Path]:
    """Files compiled for an instruction set, in whatever layer."""
    return [p for p in tree.cpp_files() if p.suffix == ".cc" and tree.isa_of(p)]


def test_a_kernel_includes_its_contract_formats_shared_text_and_intrinsics_only() -> None:
    wrong = []
    for path in kernel_files():
        operation = path.parent.name
        system = SEALED_SYSTEM if tree.isa_of(path) else SCALAR_SYSTEM
        allowed = (f"kernels/{operation}/", "kernels/detail/", "kernels/entries.h", "formats/")
        if not tree.isa_of(path):
            allowed = (*allowed, "base/half.h")
        for include in tree.includes(path):
            if include.quoted and not include.name.startswith(allowed):
                wrong.append(f'{where(path, include.line)}: "{include.name}"')
            if not include.quoted and include.name not in system:
                wrong.append(f"{where(path, include.line)}: <{include.name}>")
    assert len(kernel_files()) >= 3
    assert not wrong, "\n".join(wrong)


def test_sealed_files_reach_no_other_header() -> None:
    wrong = []
    for path in sealed_files():
        for name, by in tree.included_closure(path).items():
            ours = (tree.CSRC / name).is_file()
            if ours and not name.startswith(("kernels/", "formats/")):
                wrong.append(f'{where(path)} reaches "{name}" through {where(by)}')
            if not ours and name not in SEALED_SYSTEM:
                wrong.append(f"{where(path)} reaches <{name}> through {where(by)}")
    assert not wrong, "\n".join(wrong)


def host_compiler() -> tuple[str, str]:
    """(compiler, architecture as in cmake/Isa.cmake), or a skip with the reason; fails in CI."""
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None or shutil.which("nm") is None:
        message = "no C++ compiler and nm on the path"
        if os.environ.get("CI") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return compiler, arch


@pytest.mark.parametrize("path", sealed_files(), ids=where)
def test_sealed_objects_have_no_weak_symbol(path: Path, tmp_path: Path) -> None:
    compiler, arch = host_compiler()
    nm = "nm"
    level = tree.isa_of(path) or ""
    if level not in tree.isa_flags()[arch]:
        arch = next(other for other, levels in tree.isa_flags().items() if level in levels)
        compiler, nm = f"{arch}-linux-gnu-g++", f"{arch}-linux-gnu-nm"
        if shutil.which(compiler) is None or shutil.which(nm) is None:
            pytest.skip(f"{path.name} is built on {arch}, and there is no {compiler}")
    flags = tree.isa_flags()[arch][level]
    assert tree.weak_symbols(path, flags, tmp_path, compiler, nm) == []


def test_an_unsealed_file_would_be_found(tmp_path: Path) -> None:
    compiler, _ = host_compiler()
    planted = tmp_path / "planted.cc"
    planted.write_text(
        "#include <vector>\n"
        "int sum(const std::vector<int>& v) { int s = 0; for (int x : v) s += x; return s; }\n"
    )
    assert tree.weak_symbols(planted, [], tmp_path, compiler) != []


# --- C++: the support table --------------------------------------------------------------------


def test_support_table_and_dispatch_table_agree() -> None:
    tables = tree.dispatch_tables()
    columns, rows = tree.markdown_table(tree.KERNELS / "README.md", "entry")
    assert columns == ["entry", "folder", *tables], "columns: entry, folder, levels best first"
    assert list(tables)[-1] == "scalar"
    assert {row["entry"] for row in rows} == set(tables["scalar"])
    for row in rows:
        for level, table in tables.items():
            assert row[level] == table[row["entry"]], f"{row['entry']} at {level}"


def test_support_table_and_files_agree() -> None:
    """Each kernel named has a file that defines it; each kernel file defines one that is named."""
    entries_h = (tree.KERNELS / "entries.h").read_text(encoding="utf-8")
    _, rows = tree.markdown_table(tree.KERNELS / "README.md", "entry")
    levels = [*tree.ISA_LEVELS, "scalar"]
    for row in rows:
        for level in {row[name] for name in row if name in levels}:
            name = f"{row['entry']}_{level}"
            files = [p for p in kernel_files() if p.parent.name == row["folder"]]
            files = [p for p in files if (tree.isa_of(p) or "scalar") == level]
            texts = [p.read_text(encoding="utf-8") for p in files]
            assert any(re.search(rf"\b{name}\b\s*[(=]", t) for t in texts), (
                f"no file defines {name}"
            )
            assert re.search(rf"\b{name}\b", entries_h), f"entries.h does not declare {name}"
    for path in kernel_files():
        level = tree.isa_of(path) or "scalar"
        named = re.findall(rf"\b(\w+_{level})\b\s*[(=]", path.read_text(encoding="utf-8"))
        assert any(re.search(rf"\b{name}\b", entries_h) for name in named), (
            f"{where(path)} defines nothing that entries.h declares"
        )


# --- Python: arrows ----------------------------------------------------------------------------

# The parts of the package from top to bottom: a part imports parts of a lower rank, or its own.
# Files at the top of the package are parts of their own name.
RANKS = {
    "__main__": 13,
    "cli": 12,
    "ray": 12,
    "server": 11,
    "lab": 11,
    "integrations": 11,
    "loading": 10,
    "model": 9,
    "session": 8,
    "memory": 7,
    "session_file": 6,
    "encrypted_file": 5,
    "transfers": 6,
    "prefix_store": 7,
    "prefix_folder": 6,
    "info": 6,
    "adapters": 6,
    "drafters": 7,
    "collectors": 6,
    "generation": 7,
    "assets": 6,
    "messages": 6,
    "calibration": 7,
    "prompts": 7,
    "requests": 8,
    "looking": 8,
    "scoring": 8,
    "steering": 8,
    "updating": 8,
    "batches": 8,
    "contemplating": 8,
    "agents": 7,
    "calls": 7,
    "tracing": 6,
    "images": 6,
    "thought_cache": 6,
    "turn_start": 7,
    "explaining": 7,
    "grammar": 6,
    "machine": 6,
    "thinking": 6,
    "encoder": 5,
    "engine": 5,
    "driver": 4,
    "sizes": 4,
    "text": 5,
    "vision": 5,
    "weights": 4,
    "families": 3,
    "vocab": 3,
    "nano": 2,
    "reference": 2,
    "_core": 1,
    "_linalg": 1,
    "events": 1,
    "untrusted": 1,
    "results": 1,
    "schema": 1,
    "calling": 1,
    "parts": 1,
    "options": 1,
    "errors": 0,
}
CORE_USERS = (
    "musespark.encoder",
    "musespark.engine",
    "musespark.sizes",
    "musespark.weights",
    "musespark.vision.resampling",
    "musespark.vision.tower",
)


def part_of(module: str) -> str | None:
    """The part an import of ours belongs to; None for the package itself and for other packages."""
    parts = module.split(".")
    return parts[1] if parts[0] == "musespark" and len(parts) > 1 else None


def test_python_imports_point_down() -> None:
    wrong = []
    for path in tree.python_files():
        importer = part_of(tree.module_name(path))
        if importer is None:
            continue
        for item in tree.imports(path):
            target = part_of(item.module)
            if target in RANKS and target != importer and RANKS[target] >= RANKS.get(importer, 0):
                wrong.append(f"{where(path, item.line)}: {item.module}")
    assert not wrong, "\n".join(wrong)


def test_every_part_of_the_package_has_a_rank() -> None:
    parts = {part_of(tree.module_name(p)) for p in tree.python_files()} - {None}
    assert parts <= set(RANKS), f"no rank for {parts - set(RANKS)}"


def test_only_the_engine_the_weights_and_the_image_preprocessing_touch_the_core() -> None:
    wrong = [
        f"{where(path, item.line)}: {item.module}"
        for path in tree.python_files()
        for item in tree.imports(path)
        if part_of(item.module) == "_core" and not tree.module_name(path).startswith(CORE_USERS)
    ]
    assert not wrong, "\n".join(wrong)


LAB_COMMANDS = tree.PACKAGE / "cli" / "lab.py", tree.PACKAGE / "cli" / "demo.py"


def test_nothing_but_its_commands_imports_the_lab_and_the_reference_imports_numpy_only() -> None:
    wrong = []
    for path in tree.python_files():
        part = part_of(tree.module_name(path))
        for item in tree.imports(path):
            if part_of(item.module) == "lab" and part != "lab" and path not in LAB_COMMANDS:
                wrong.append(f"{where(path, item.line)}: {item.module}")
            if part == "reference":
                root = item.module.split(".")[0]
                standard = {"__future__", "collections", "dataclasses", "math", "typing"}
                if root not in standard | {"numpy"} and part_of(item.module) != "reference":
                    wrong.append(f"{where(path, item.line)}: {item.module}")
    assert not wrong, "\n".join(wrong)


def test_the_package_imports_no_torch_outside_the_lab() -> None:
    heavy = {"torch", "transformers", "scipy", "pandas"}
    wrong = [
        f"{where(path, item.line)}: {item.module}"
        for path in tree.python_files()
        for item in tree.imports(path)
        if item.module.split(".")[0] in heavy and part_of(tree.module_name(path)) != "lab"
    ]
    assert not wrong, "\n".join(wrong)


def test_notebooks_import_the_public_package_only() -> None:
    wrong = []
    for path in sorted((tree.ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and re.search(r"musespark(\.\w+)*\._|_core", source):
                wrong.append(f"{where(path)}: {source[:60]!r}")
    assert not wrong, "\n".join(wrong)


# --- Sizes -------------------------------------------------------------------------------------

# Files and functions beyond the soft limits, each with its reason.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}


def test_files_stay_readable() -> None:
    limits = [(p, 400 if "kernels" in p.parts else 500) for p in tree.cpp_files()]
    limits += [(p, 500) for p in tree.python_files()]
    wrong = []
    for path, limit in limits:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > limit and where(path) not in LONG_FILES:
            wrong.append(f"{where(path)}: {lines} lines, limit {limit}")
    assert not wrong, "\n".join(wrong)


def test_functions_stay_readable() -> None:
    lengths = [(p, *f) for p in tree.cpp_files() for f in tree.cpp_function_lengths(p)]
    assert len(lengths) > 50
    lengths += [(p, *f) for p in tree.python_files() for f in tree.python_function_lengths(p)]
    wrong = [
        f"{where(path)}: {name}: {lines} lines, limit 60"
        for path, name, lines in lengths
        if lines > 60 and f"{where(path)}: {name}" not in LONG_FUNCTIONS
    ]
    assert not wrong, "\n".join(wrong)


# --- Documents and stray text ------------------------------------------------------------------


def listed_names(readme: Path) -> set[str]:
    """What a map lists: the first code span of each bullet point at the line's start."""
    return set(re.findall(r"^- `([^`]+)`", readme.read_text(encoding="utf-8"), re.MULTILINE))


def test_the_map_of_csrc_lists_its_folders() -> None:
    folders = {f"{p.name}/" for p in tree.CSRC.iterdir() if p.is_dir() and any(p.iterdir())}
    assert listed_names(tree.CSRC / "README.md") == folders


def test_the_map_of_the_package_lists_its_folders_and_modules() -> None:
    present = {
        f"{p.name}/" for p in tree.PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"
    }
    present |= {p.name for p in tree.PACKAGE.iterdir() if p.suffix in {".py", ".pyi"}}
    assert listed_names(tree.PACKAGE / "README.md") == present


PATH_IN_TEXT = re.compile(
    r"`((?:csrc|python|tests|benchmarks|notebooks|cmake|\.ci)/[\w./*-]+)`",
)


def test_paths_named_in_documents_exist() -> None:
    wrong = []
    for path in tree.tracked_files():
        if path.suffix != ".md" or path.name == "CHANGELOG.md":
            continue
        for name in PATH_IN_TEXT.findall(path.read_text(encoding="utf-8")):
            if not list(tree.ROOT.glob(name.rstrip("/"))):
                wrong.append(f"{where(path)}: `{name}`")
    assert not wrong, "\n".join(wrong)


def test_every_mutant_finds_what_it_changes() -> None:
    gone = [m.name for m in MUTANTS if m.old not in (tree.ROOT / m.file).read_text()]
    assert not gone, gone


# Written in pieces so that this file does not contain what it looks for.
STRAY = [
    r"(?<![\w.])/(?:root|home/\w+|Users/\w+|opt|work)/(?!\.)[\w.-]+",
    "py" + r"pi\.(?:org|python\.org)",
    "pythonhosted" + r"\.org",
    "(?:extra-)?index" + "-url",
    "conda\\." + "anaconda|npm" + "js|arti" + "factory",
    "TO" + "DO|FIX" + "ME|XX" + "X(?!\\w)",
]


@pytest.mark.parametrize("pattern", STRAY, ids=range(len(STRAY)))
def test_no_machine_path_registry_or_unfinished_note(pattern: str) -> None:
    wrong = []
    for path in tree.tracked_files():
        if path == Path(__file__).resolve():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path.suffix in {".json", ".ipynb"} and len(text) > 200_000:
            continue  # vocabularies
        for match in re.finditer(pattern, text):
            line = text.count("\n", 0, match.start()) + 1
            wrong.append(f"{where(path, line)}: {match[0]}")
    assert not wrong, "\n".join(wrong)
