"""Reads the source tree for the architecture test: files, includes, imports, tables, symbols."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "python" / "musespark"
KERNELS = CSRC / "kernels"
CPP_SUFFIXES = {".cc", ".h", ".inl"}
ISA_LEVELS = ("amx", "avx512vnni", "avxvnni", "avx2", "i8mm", "neon")


def tracked_files() -> list[Path]:
    """Files git knows or would add; every file outside build folders where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
    )
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        skipped = {"build", "dist", ".venv", "__pycache__"}
        paths = [p for p in ROOT.rglob("*") if not skipped & set(p.relative_to(ROOT).parts)]
    return sorted(path for path in paths if path.is_file())


def cpp_files(*folders: str) -> list[Path]:
    """C++ files of csrc, or of some of its folders."""
    starts = [CSRC / folder for folder in folders] or [CSRC]
    return sorted(p for start in starts for p in start.rglob("*") if p.suffix in CPP_SUFFIXES)


def python_files(folder: Path = PACKAGE) -> list[Path]:
    return sorted(folder.rglob("*.py"))


@dataclass(frozen=True)
class Include:
    """One #include line. ``quoted``: "x", else <x>."""

    line: int
    name: str
    quoted: bool


_INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def includes(path: Path) -> list[Include]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = _INCLUDE.match(line)
        if match:
            found.append(Include(number, match[2], match[1] == '"'))
    return found


def included_closure(path: Path) -> dict[str, Path]:
    """Everything a file includes, directly or not: name as written -> the file that includes it."""
    closure: dict[str, Path] = {}
    waiting = [path]
    while waiting:
        current = waiting.pop()
        for include in includes(current):
            if include.name not in closure:
                closure[include.name] = current
                inner = CSRC / include.name
                if include.quoted and inner.is_file():
                    waiting.append(inner)
    return closure


def isa_of(path: Path) -> str | None:
    """The level a C++ file is compiled for by the end of its name, as cmake/Isa.cmake has it."""
    for level in ISA_LEVELS:
        if path.stem == level or path.stem.endswith(f"_{level}"):
            return level
    return None


def isa_flags() -> dict[str, dict[str, list[str]]]:
    """Architecture -> level -> compiler flags, read from cmake/Isa.cmake."""
    text = (ROOT / "cmake" / "Isa.cmake").read_text(encoding="utf-8")
    sealed = re.search(r"set\(MUSESPARK_SEALED_FLAGS ([^)]*)\)", text)
    assert sealed, "Isa.cmake: no MUSESPARK_SEALED_FLAGS"
    table: dict[str, dict[str, list[str]]] = {}
    for arch, body in re.findall(r"set\(MUSESPARK_ISA_FLAGS_(\w+)(.*?)\)", text, re.DOTALL):
        table[arch] = {
            level: [*sealed[1].split(), *flags.split()]
            for level, flags in re.findall(r'"(\w+)=([^"]*)"', body)
        }
    return table


def cmake_layers() -> dict[str, set[str]]:
    """Layer -> the layers below it that CMake lets it see."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    return {
        words.split()[0]: set(words.split()[1:])
        for words in re.findall(r"^musespark_layer\(([^)]*)\)", text, re.MULTILINE)
    }


@dataclass(frozen=True)
class Import:
    """One imported module, absolute."""

    line: int
    module: str


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _absolute(path: Path, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def _type_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(path: Path) -> list[Import]:
    """Every import of a module that can happen; ``from package import name`` counts as package.name
    too, imports for the type checker alone do not."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    unreal = {id(inner) for node in ast.walk(tree) if _type_only(node) for inner in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if id(node) in unreal:
            continue
        if isinstance(node, ast.Import):
            found += [Import(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(path, node)
            found.append(Import(node.lineno, base))
            found += [Import(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def python_function_lengths(path: Path) -> Iterator[tuple[str, int]]:
    """(name, lines without docstring) of every function."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            start = node.body[0]
            docstring = 0
            if isinstance(start, ast.Expr) and isinstance(start.value, ast.Constant):
                docstring = (start.end_lineno or start.lineno) - start.lineno + 1
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1 - docstring


_NOT_A_FUNCTION = re.compile(
    r"^(namespace|struct|class|enum|union|extern|template|using|#|//|}|static_assert)\b"
)


def cpp_function_lengths(path: Path) -> Iterator[tuple[str, int]]:
    """(first line, lines) of every function at file level, in the layout clang-format gives:
    it starts in column 0 and its closing brace stands alone there."""
    start: int | None = None
    title = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("}"):
            if start is not None and line.rstrip() == "}":
                yield title, number - start + 1
            start = None
        elif line[:1].strip() and not line.startswith(("#", "/", "{", "}", ":")):
            if "(" in line and not _NOT_A_FUNCTION.match(line) and "=" not in line.split("(")[0]:
                start, title = number, line.strip()
            elif not line.rstrip().endswith((",", ")")):
                start = None


def markdown_table(path: Path, first_column: str) -> tuple[list[str], list[dict[str, str]]]:
    """The first table whose header row begins with that column: (columns, rows)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    cells = [[c.strip().strip("`") for c in line.strip().strip("|").split("|")] for line in lines]
    for number, (line, row) in enumerate(zip(lines, cells, strict=True)):
        if line.lstrip().startswith("|") and row[0] == first_column:
            rows = []
            for text, values in zip(lines[number + 2 :], cells[number + 2 :], strict=True):
                if not text.lstrip().startswith("|"):
                    break
                rows.append(dict(zip(row, values, strict=True)))
            return row, rows
    raise AssertionError(f"{path}: no table whose first column is {first_column!r}")


def dispatch_tables() -> dict[str, dict[str, str]]:
    """kTables of kernels/dispatch.cc: level -> entry -> the level whose kernel it names."""
    text = re.sub(r"//[^\n]*", "", (KERNELS / "dispatch.cc").read_text(encoding="utf-8"))
    body = re.search(r"kTables\[\]\s*=\s*\{(.*?)\n\};", text, re.DOTALL)
    assert body, "dispatch.cc: no kTables"
    levels = "|".join((*ISA_LEVELS, "scalar"))
    tables: dict[str, dict[str, str]] = {}
    for level, rest in re.findall(r"\{\s*Isa::(\w+),([^}]*)\}", body[1]):
        named = re.findall(rf"\b(\w+?)_({levels})\b", rest)
        assert len(named) == rest.count(",") + 1, f"{level}: an entry is not called <entry>_<level>"
        tables[level] = dict(named)
    return tables


def weak_symbols(
    path: Path, flags: list[str], folder: Path, compiler: str, nm: str = "nm"
) -> list[str]:
    """Symbols of a C++ file built at -O0 that a linker may merge with another object's."""
    target = folder / (path.stem + ".o")
    command = [compiler, "-std=c++20", "-O0", "-fPIC", "-ffp-contract=off", "-w", *flags]
    subprocess.run([*command, f"-I{CSRC}", "-c", path, "-o", target], check=True, timeout=300)
    listed = subprocess.run([nm, "-C", target], check=True, capture_output=True, text=True)
    kinds = re.compile(r"^[0-9a-f ]*\s([WwVvu])\s(.*)$", re.MULTILINE)
    return [name for _, name in kinds.findall(listed.stdout)]
