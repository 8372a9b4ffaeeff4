"""Where ``chat --session`` has a passphrase from: a file, the environment or the terminal."""

from __future__ import annotations

import argparse
import getpass
import os
import warnings
from pathlib import Path

from musespark.cli.common import text_given
from musespark.encrypted_file import check_library, check_passphrase, is_encrypted
from musespark.errors import InvalidRequest
from musespark.weights.files import MappedFile

VARIABLE = "MUSESPARK_PASSPHRASE"
_MOST_BYTES = 1 << 16  # of the file's first line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--encrypt",
        action="store_true",
        help="keep the session's file under a passphrase, which is asked for unless "
        f"--passphrase-file or {VARIABLE} has it (asked for too where the file is encrypted)",
    )
    parser.add_argument(
        "--passphrase-file", metavar="FILE", help="the passphrase is its first line; encrypts"
    )


def for_session(args: argparse.Namespace) -> str | None:
    """The passphrase of the session in ``args.session``; None where it is to be plain.

    A file that is there decides: it is written again as it was. InvalidRequest where a passphrase
    is asked for and there is no session, no terminal, a plain file, or two different answers;
    MissingLibrary.
    """
    asked = "--encrypt" if args.encrypt else "--passphrase-file" if args.passphrase_file else None
    if args.session is None:
        if asked is None:
            return None
        raise InvalidRequest(f"{asked}: there is no file to encrypt; name one with --session")
    path = Path(args.session)
    encrypted = _is_encrypted(path) if path.exists() else None
    if encrypted is None:
        wanted = asked is not None or bool(os.environ.get(VARIABLE))
    else:
        wanted = encrypted
        if asked is not None and not encrypted:
            raise InvalidRequest(f"{asked}: the session in {path} is not encrypted; leave it out")
    if not wanted:
        return None
    check_library()  # before anybody types
    passphrase = _given(args.passphrase_file)
    if passphrase is None:
        passphrase = _ask(path, new=encrypted is None)
    check_passphrase(passphrase)
    return passphrase


def _is_encrypted(path: Path) -> bool:
    file = MappedFile(path)
    try:
        return is_encrypted(file)
    finally:
        file.close()


def _given(name: str | None) -> str | None:
    """From the file, else from the environment."""
    if name is None:
        given = os.environ.get(VARIABLE)
        return text_given(given, VARIABLE) if given else None
    with open(name, "rb") as file:
        line = file.readline(_MOST_BYTES + 1)
    if len(line) > _MOST_BYTES:
        raise InvalidRequest(
            f"--passphrase-file: the first line of {name} has more than {_MOST_BYTES} bytes"
        )
    try:
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        passphrase = line.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"--passphrase-file: {name} is not UTF-8") from None
    if not passphrase:
        raise InvalidRequest(f"--passphrase-file: the first line of {name} is empty")
    return passphrase


def _ask(path: Path, *, new: bool) -> str:
    """At the terminal, of a new file twice."""
    with warnings.catch_warnings():  # getpass would read standard input, and show what is typed
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            passphrase = getpass.getpass(f"Passphrase of {path}: ")
            if new and getpass.getpass("The same again: ") != passphrase:
                raise InvalidRequest("passphrase: the two are not the same")
        except (getpass.GetPassWarning, EOFError):
            raise InvalidRequest(
                f"{path}: a passphrase is needed and there is no terminal to ask at; give "
                f"--passphrase-file, or {VARIABLE} in the environment"
            ) from None
    return passphrase
