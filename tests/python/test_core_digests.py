"""What the core computes is the same on AArch64 (under qemu-user) and x86-64, at every level.

tests/cpp/digests prints a digest of each case, after holding every level against scalar, bit for
bit; tests/golden/core_digests.txt is what x86-64 printed. Where a change of bits is meant, make it
anew: ``cmake --build build/<tag> --target core_digests``, then run the program into the file.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.core_programs import absent, build, package_folder

pytestmark = pytest.mark.timeout(600)  # the first test builds the core, about a minute

CROSS = "aarch64-linux-gnu"
ON_ARM = platform.machine() in {"aarch64", "arm64"}


@dataclass
class Result:
    code: int
    levels: list[str]
    digests: list[str]
    errors: list[str]


def digests(command: list, *arguments: str, isa: str | None = None) -> Result:
    env = {name: value for name, value in os.environ.items() if name != "MUSESPARK_ISA"}
    if isa is not None:
        env["MUSESPARK_ISA"] = isa
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=250, env=env
    )
    first, *errors = done.stderr.splitlines() or [""]
    assert first.startswith("levels: "), done.stderr
    return Result(done.returncode, first.split()[1:], done.stdout.splitlines(), errors)


@pytest.fixture(scope="module")
def golden(repository: Path) -> list[str]:
    return (repository / "tests/golden/core_digests.txt").read_text().splitlines()


@pytest.fixture(scope="module", autouse=True)
def plain_build() -> None:
    if os.environ.get("MUSESPARK_TEST_SANITIZED"):
        pytest.skip("the sanitizer's libraries are loaded into every program started here")


@pytest.fixture(scope="module")
def arm64(repository: Path) -> list:
    """The command that runs core_digests of AArch64, without the processor's name."""
    if ON_ARM:
        pytest.skip("this is AArch64: the other test runs the program")
    for name in (f"{CROSS}-g++", "qemu-aarch64"):
        if shutil.which(name) is None:
            absent(f"no {name} on the path (.ci/system-packages)")
    toolchain = repository / f"cmake/toolchains/{CROSS}.cmake"
    option = f"-DCMAKE_TOOLCHAIN_FILE={toolchain}"
    program = build("core_digests", repository, repository / "build/aarch64", option)
    return ["qemu-aarch64", "-L", f"/usr/{CROSS}", program]


def on(command: list, processor: str) -> list:
    listed = subprocess.run([command[0], "-cpu", "help"], capture_output=True, text=True).stdout
    if processor not in listed.split():
        pytest.skip(f"this qemu knows no {processor}")
    return [command[0], "-cpu", processor, *command[1:]]


@pytest.mark.slow
def test_arm64_computes_what_x86_64_does(arm64: list, golden: list[str]) -> None:
    result = digests(on(arm64, "max"))
    assert result.levels == ["i8mm", "neon", "scalar"]
    assert (result.code, result.errors) == (0, [])
    assert len(result.digests) > 300
    assert result.digests == golden


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processor", "levels"),
    [("neoverse-n1", ["neon", "scalar"]), ("cortex-a72", ["scalar"])],
)
def test_a_processor_without_the_extensions_uses_the_levels_it_has(
    arm64: list, golden: list[str], processor: str, levels: list[str]
) -> None:
    result = digests(on(arm64, processor), "forward")
    assert result.levels == levels
    assert result.digests == [line for line in golden if line.startswith("forward/")]


@pytest.mark.slow
@pytest.mark.parametrize("level", ["neon", "scalar"])
def test_a_forced_level_gives_the_same_forward_steps(
    arm64: list, golden: list[str], level: str
) -> None:
    result = digests(on(arm64, "max"), "forward", isa=level)
    assert result.levels[0] == level
    assert result.digests == [line for line in golden if line.startswith("forward/")]


@pytest.mark.slow
def test_a_planted_difference_is_found(arm64: list) -> None:
    result = digests(on(arm64, "max"), "--plant", "rowwise")
    assert result.code == 1
    assert any("at i8mm" in line for line in result.errors)
    assert any("at neon" in line for line in result.errors)


@pytest.mark.slow
def test_this_machine_computes_what_the_golden_file_says(
    repository: Path, golden: list[str]
) -> None:
    command = [build("core_digests", repository, package_folder(repository))]
    result = digests(command)
    assert (result.code, result.errors) == (0, [])
    assert result.digests == golden
    for level in result.levels:
        forced = digests(command, "forward", isa=level)
        assert forced.digests == [line for line in golden if line.startswith("forward/")], level
