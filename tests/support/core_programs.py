"""Programs of tests/cpp, built from the layers of the core."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def absent(message: str) -> None:
    """Skips; fails in CI, where .ci/system-packages puts it."""
    if os.environ.get("CI") == "1":
        pytest.fail(message)
    pytest.skip(message)


def tool(name: str) -> str:
    """A program of the virtual environment or the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found is None:
        absent(f"no {name} on the path")
    return str(found)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One test process at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def package_folder(repository: Path) -> Path:
    """The build folder of the package, where the layers lie compiled."""
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    folders = sorted((repository / "build").glob(f"{tag}-{tag}-*/CMakeCache.txt"))
    if not folders:
        pytest.skip("the package was not built from this source tree")
    return folders[0].parent


def build(target: str, source: Path, folder: Path, *options: str) -> Path:
    """The program `target`; `options` configure `folder` first, a build without bindings."""
    with locked(folder):
        if options:
            configure = [tool("cmake"), "-S", source, "-B", folder, "-G", "Ninja", *options]
            configure += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", "-DCMAKE_BUILD_TYPE=Release"]
            configure += ["-DMUSESPARK_BINDINGS=OFF"]
            _run(configure)
        _run([tool("cmake"), "--build", folder, "--target", target])
    return folder / target


def _run(command: list) -> None:
    # Without a compiler cache: one may be set up for the compiler of this machine alone.
    env = {k: v for k, v in os.environ.items() if k != "CMAKE_CXX_COMPILER_LAUNCHER"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, env=env)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
