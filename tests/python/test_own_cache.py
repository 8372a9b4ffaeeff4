"""What a run of the tests packs: in a cache of its own, which is gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from musespark.weights.cache import cache_folder


def test_this_run_has_a_cache_of_its_own() -> None:
    assert cache_folder().parent == Path(tempfile.gettempdir())
    assert cache_folder().name.startswith("musespark-tests-")


def test_a_run_leaves_nothing_behind(repository: Path, tmp_path: Path) -> None:
    """Tests that took no fixture for it packed into the cache of who ran them."""
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    for folder in (home, temporary):
        folder.mkdir()
    (tmp_path / "user").mkdir()
    own = {"HOME": home, "TMPDIR": temporary, "MUSESPARK_CACHE": tmp_path / "user"}
    test = (
        repository / "tests/python/test_thinking.py::test_no_effort_where_a_template_always_thinks"
    )
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'made'}", "-n", "1"]
    environment = os.environ | {name: str(path) for name, path in own.items()}
    environment.pop("PYTEST_XDIST_WORKER", None)
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(test)],
        env=environment, cwd=repository, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
    left = [*home.rglob("*"), *temporary.rglob("*"), *(tmp_path / "user").rglob("*")]
    assert not left, left
