"""Fixtures of the whole suite."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports huggingface_hub: no test reaches a network by accident.
os.environ["HF_HUB_OFFLINE"] = "1"

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

_CACHE = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """One packing cache for the whole run, its processes and the programs that it starts, so that
    nothing is written into the cache of who runs it, and nothing that lies there is read."""
    if not hasattr(config, "workerinput"):  # a worker of xdist has it from the process it is of
        config.stash[_CACHE] = tempfile.mkdtemp(prefix="musespark-tests-")
        os.environ["MUSESPARK_CACHE"] = config.stash[_CACHE]


def pytest_unconfigure(config: pytest.Config) -> None:
    if _CACHE in config.stash:
        shutil.rmtree(config.stash[_CACHE], ignore_errors=True)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real files beside the repository; without it a test skips, but fails in CI."""
    data = SHARED / "data"
    if not data.is_dir():
        message = "the real test files (../shared/data beside the repository) are not here"
        if os.environ.get("CI") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return data


@pytest.fixture(autouse=True, scope="session")
def nothing_calibrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests say themselves what is calibrated for Spark Nano: what is shipped for it ends thoughts
    that they look at."""
    from musespark.thinking import thresholds

    shipped = thresholds.SHIPPED
    thresholds.SHIPPED = tmp_path_factory.mktemp("calibrated") / "nothing.json"
    yield
    thresholds.SHIPPED = shipped
