"""The thread pool under ThreadSanitizer: a C++ program built here, without Python in it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FLAGS = ["-std=c++20", "-O1", "-g1", "-fsanitize=thread", "-pthread"]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A compiler whose ThreadSanitizer works on this machine."""
    if os.environ.get("MUSESPARK_TEST_SANITIZED"):
        pytest.skip("one sanitizer at a time: AddressSanitizer is loaded")
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found is None:
        pytest.skip("no C++ compiler on the path")
    program = tmp_path_factory.mktemp("tsan") / "empty"
    source = program.with_suffix(".cc")
    source.write_text("int main() { return 0; }\n")
    built = subprocess.run([found, *FLAGS, source, "-o", program], capture_output=True)
    if built.returncode != 0 or subprocess.run([program], capture_output=True).returncode != 0:
        pytest.skip("ThreadSanitizer does not work with this compiler and kernel")
    return found


def build_and_run(compiler: str, repository: Path, pool: Path, program: Path) -> tuple[int, str]:
    stress = repository / "tests/cpp/thread_pool_stress.cc"
    command = [compiler, *FLAGS, f"-I{repository / 'csrc'}", stress, pool, "-o", program]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    result = subprocess.run([program], capture_output=True, text=True, timeout=120)
    return result.returncode, result.stderr


def test_the_pool_has_no_races(compiler: str, repository: Path, tmp_path: Path) -> None:
    pool = repository / "csrc/base/thread_pool.cc"
    code, report = build_and_run(compiler, repository, pool, tmp_path / "stress")
    assert code == 0, report


def test_a_planted_race_is_found(compiler: str, repository: Path, tmp_path: Path) -> None:
    """A worker that writes one of the job's fields after it has left the job."""
    source = (repository / "csrc/base/thread_pool.cc").read_text()
    good = "    work(worker);\n    leave();\n"
    assert source.count(good) == 1
    pool = tmp_path / "planted.cc"
    pool.write_text(source.replace(good, good + "    failure = nullptr;\n"))
    code, report = build_and_run(compiler, repository, pool, tmp_path / "stress")
    assert code != 0
    assert "data race" in report
