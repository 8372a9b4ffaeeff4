"""``musespark chat --session`` under a passphrase: where it comes from, and that it is kept."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import subprocess
import sys

import pytest

import musespark
from musespark import encrypted_file
from musespark.cli import main, passphrase
from musespark.errors import InvalidRequest, MissingLibrary

pytest.importorskip("cryptography")

WORD = "correct hörse"
CHAT = ["chat", "--json", "-n", "5", "--context", "256", "--threads", "1", "--mode", "instant"]


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """scrypt with N = 2; nothing given, and nobody at the terminal."""
    monkeypatch.setattr(encrypted_file, "_LOG_N", 1)
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(passphrase.VARIABLE, raising=False)
    monkeypatch.setattr(getpass, "getpass", lambda *_: pytest.fail("somebody was asked"))


def typed(monkeypatch, *words: str) -> list[str]:
    """Words typed one after the other; what was asked."""
    asked, left = [], iter(words)

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return next(left)

    monkeypatch.setattr(getpass, "getpass", ask)
    return asked


def arguments(*given: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--session")
    passphrase.add_arguments(parser)
    return parser.parse_args([str(a) for a in given])


def wanted(*given: object) -> str | None:
    return passphrase.for_session(arguments(*given))


@pytest.fixture
def files(tmp_path):
    """What passphrase.for_session tells apart: no file, one that begins as encrypted, another."""
    for name, data in (("secret", encrypted_file.MAGIC + b"..."), ("plain", b"MUSESESS...")):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "word").write_bytes(f"{WORD}\nsecond line\n".encode())
    return {name: tmp_path / name for name in ("new", "secret", "plain", "word")}


def test_a_conversation_is_kept_encrypted_and_gone_on_with(tmp_path, monkeypatch, capsys):
    path = tmp_path / "s"
    asked = typed(monkeypatch, WORD, WORD, WORD, "wrong")
    assert main([*CHAT, "My name is Ada Lovelace.", "--session", str(path), "--encrypt"]) == 0
    assert asked == [f"Passphrase of {path}: ", "The same again: "]
    assert b"Lovelace" not in path.read_bytes() and path.read_bytes()[:8] == encrypted_file.MAGIC
    capsys.readouterr()
    assert main([*CHAT, "And yours?", "--session", str(path)]) == 0  # the file says that it is
    assert json.loads(capsys.readouterr().out)["usage"]["cached_tokens"] > 10
    assert len(asked) == 3
    whole = path.read_bytes()
    assert main([*CHAT, "x", "--session", str(path)]) == 1
    assert "the passphrase is another one" in capsys.readouterr().err
    assert path.read_bytes() == whole
    with musespark.load(context=256, threads=1) as model:
        said = [m["content"] for m in model.resume(path, passphrase=WORD).messages]
    assert said[0::2] == ["My name is Ada Lovelace.", "And yours?"]


def test_it_comes_from_the_file_then_the_environment_then_the_terminal(files, monkeypatch):
    asked = typed(monkeypatch, "typed")
    monkeypatch.setenv(passphrase.VARIABLE, "of the environment")
    for name in ("new", "secret"):
        at = ("--session", files[name])
        assert wanted(*at, "--passphrase-file", files["word"]) == WORD
        assert wanted(*at) == wanted(*at, "--encrypt") == "of the environment"
    assert not asked
    monkeypatch.delenv(passphrase.VARIABLE)
    assert wanted("--session", files["secret"]) == "typed"
    assert len(asked) == 1


def test_where_nobody_wants_one_nobody_is_asked(files, monkeypatch):
    assert wanted() is None
    assert wanted("--session", files["new"]) is wanted("--session", files["plain"]) is None
    monkeypatch.setenv(passphrase.VARIABLE, "x")
    assert wanted() is wanted("--session", files["plain"]) is None  # a file stays what it is
    monkeypatch.setenv(passphrase.VARIABLE, "")
    assert wanted("--session", files["new"]) is None


def test_what_cannot_be_is_said(files, monkeypatch):
    def refused(message: str, *given: object) -> None:
        with pytest.raises(InvalidRequest, match=message) as caught:
            wanted(*given)
        assert WORD not in str(caught.value)

    refused("--encrypt: there is no file to encrypt; name one with --session", "--encrypt")
    refused("--passphrase-file: there is no file", "--passphrase-file", files["word"])
    refused("is not encrypted; leave it out", "--session", files["plain"], "--encrypt")
    typed(monkeypatch, WORD, WORD + " ", "")
    refused("the two are not the same", "--session", files["new"], "--encrypt")
    refused("empty str", "--session", files["secret"])
    at = ("--session", files["secret"], "--passphrase-file", files["word"])
    for data, message in (
        (b"", "the first line of .*word is empty"),
        (b"\nx", "the first line of .*word is empty"),
        (b"\xff\n", "word is not UTF-8"),
        (b"x" * 65537, "more than 65536 bytes"),
    ):
        files["word"].write_bytes(data)
        refused(message, *at)
    files["word"].write_bytes(b"x" * 65534 + b"\r\n")
    assert wanted(*at) == "x" * 65534
    files["word"].unlink()
    with pytest.raises(FileNotFoundError):
        wanted(*at)


def test_a_missing_library_is_told_before_anybody_types(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(MissingLibrary, match=r"musespark\[encrypt\]"):
        wanted("--session", files["secret"])


def test_without_a_terminal_standard_input_is_not_read_for_it(files):
    """Its lines are messages; getpass would take the first of them, and show it."""
    environment = {k: v for k, v in os.environ.items() if k != passphrase.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-m", "musespark.cli", "chat", "--session", str(files["secret"])],
        input="hello\n", capture_output=True, text=True, timeout=120, env=environment,
        start_new_session=True,  # no controlling terminal
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert "there is no terminal to ask at; give --passphrase-file, or" in done.stderr
    assert len(done.stderr.splitlines()) == 1
