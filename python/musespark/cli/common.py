"""What several commands share: model arguments, sampling arguments, terminal style."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from musespark.errors import InvalidRequest
from musespark.grammar import MAX_CHARACTERS
from musespark.untrusted import read_small_file

# Option -> its type and what --help says; each is an option of Model.generate under the same name.
SAMPLING: dict[str, tuple[type, str]] = {
    "max_new_tokens": (int, "the most tokens to write (default: the model's, else the context)"),
    "temperature": (float, "0 is greedy (default: the model's, else greedy)"),
    "top_k": (int, "sample from the K most likely"),
    "top_p": (float, "sample from the most likely of this probability together"),
    "min_p": (float, "drop what is less likely than this share of the most likely"),
    "repetition_penalty": (float, "1 is none"),
    "presence_penalty": (float, "0 is none"),
    "frequency_penalty": (float, "0 is none"),
    "seed": (int, "repeat a run (each result names its seed)"),
    "deadline": (float, "seconds; what is there then is printed"),
}
_SHORT = {"max_new_tokens": ["-n"], "temperature": ["-t"]}
_TOLD = ("quantize auto", "the packing cache", "lock_memory", "huge_pages", "images")  # notes
_QUANTIZE = (
    "none: as stored; auto: what is quantized already keeps its precision, else q8 up to 50 "
    "million parameters and q4 above"
)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m",
        "--model",
        default=None,
        help="model folder, GGUF file, packed file or hub id (default: Spark Nano)",
    )
    add_quantize_argument(parser, "auto")
    parser.add_argument(
        "--kv",
        default="auto",
        choices=["auto", "f32", "kv8", "kv8v4", "kv4"],
        help="format of keys and values (default: auto, what the packed file says)",
    )
    parser.add_argument("--context", type=int, default=None, help="context limit in tokens")
    parser.add_argument("--threads", type=int, default=None, help="default: every core")
    add_mmproj_argument(parser)
    parser.add_argument(
        "--prefix-folder",
        metavar="FOLDER",
        help="keep there what prompts begin with, for later runs too (8 GiB at most)",
    )
    parser.add_argument(
        "--verify", action="store_true", help="check the packed file's checksums before running"
    )
    parser.add_argument(
        "--lock-memory", action="store_true", help="keep the weights in memory (mlock)"
    )
    parser.add_argument(
        "--huge-pages", action="store_true", help="copy the weights into huge pages"
    )


def add_quantize_argument(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--quantize",
        default=default,
        choices=["auto", "none", "q8", "q4"],
        help=f"{_QUANTIZE} (default: {default})",
    )


def add_mmproj_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mmproj",
        metavar="FILE",
        help="vision tower of a GGUF model, a path or hub id (default: the one beside it)",
    )
    parser.add_argument(
        "--no-mmproj",
        dest="mmproj",
        action="store_const",
        const=False,
        help="read a GGUF model's text alone",
    )


def add_adapter_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--adapter", metavar="PATH", help="folder of a LoRA adapter, as PEFT saves it"
    )


def add_drafter_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--drafter",
        metavar="SOURCE",
        help="block drafter made for the model, or a smaller model: the same tokens, sooner; own: "
        "the one that comes with the model",
    )


def add_grammar_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json-schema", metavar="FILE", help="JSON schema that the answer has to satisfy"
    )


def grammar_options(args: argparse.Namespace) -> dict[str, Any]:
    """The text of the schema, as an option of a request."""
    if args.json_schema is None:
        return {}
    data = read_small_file(Path(args.json_schema), MAX_CHARACTERS)
    try:
        return {"json_schema": data.decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"--json-schema: {args.json_schema}: not UTF-8 ({error})") from error


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    for name, (kind, text) in SAMPLING.items():
        flags = [*_SHORT.get(name, ()), "--" + name.replace("_", "-")]
        parser.add_argument(*flags, type=kind, default=None, help=text)


def load_model(args: argparse.Namespace, use: str | None, **remembered: Any) -> Any:
    """The model for a use (chat, generate, embed; None: any); what one should know of it on
    standard error. ``remembered``: options of :func:`musespark.load` on what it keeps."""
    from musespark.loading import load_for

    model = load_for(
        use,
        args.model,
        quantize=args.quantize,
        kv=args.kv,
        context=args.context,
        threads=args.threads,
        adapter=getattr(args, "adapter", None),
        mmproj=args.mmproj,
        drafter=getattr(args, "drafter", None),
        progress=None,
        verify=args.verify,
        lock_memory=args.lock_memory,
        huge_pages=args.huge_pages,
        prefix_folder=args.prefix_folder,
        **remembered,
    )
    for text in model.info.notes:
        if text.startswith(_TOLD):
            note(text)
    return model


def text_given(text: str, where: str) -> str:
    """A text from outside; InvalidRequest where its bytes were no UTF-8, as Python then has it
    with lone surrogates."""
    for index, char in enumerate(text):
        if "\udc80" <= char <= "\udcff":
            byte = ord(char) - 0xDC00
            raise InvalidRequest(f"{where}: not UTF-8 (byte 0x{byte:02x} at character {index})")
    return text


def check_files(paths: Sequence[str], what: str) -> None:
    """InvalidRequest for a path where there is no file, before a model is loaded for it."""
    for path in paths:
        if not Path(path).is_file():
            raise InvalidRequest(f"{what}: there is no file {path!r:.200}")


def check_target(path: str | None, what: str) -> None:
    """InvalidRequest where no file can be written, before anything is computed for it."""
    if path is None:
        return
    if not Path(path).parent.is_dir():
        raise InvalidRequest(f"{what}: there is no folder {Path(path).parent}")
    if Path(path).is_dir():
        raise InvalidRequest(f"{what}: {path} is a folder")


def standard_input(read: Callable[[], str], where: str) -> str:
    """What `read` reads from standard input, checked to be UTF-8."""
    try:
        return text_given(read(), where)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InvalidRequest(f"{where}: not UTF-8 (byte 0x{byte:02x})") from error


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}


# C0 but for newline and tab, DEL and C1: what moves the cursor, recolours or talks to a terminal.
_CONTROLS = [*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)]
_SHOWN = {code: f"\\x{code:02x}" for code in _CONTROLS}
_JSON_SHOWN = {code: f"\\u{code:04x}" for code in _CONTROLS if code >= 0x7F}


def harmless(text: str, stream: IO[str] | None = None) -> str:
    """``text`` as it may be written to ``stream`` (standard output): for a terminal, control
    characters are spelled out as ``\\x1b``, since a model or its file chose them, not the user.
    Newline and tab stay; a file or pipe gets the text as it is."""
    stream = sys.stdout if stream is None else stream
    return text.translate(_SHOWN) if stream.isatty() else text


def show(text: object = "", end: str = "\n") -> None:
    """Prints a :func:`harmless` line."""
    print(harmless(str(text)), end=end, flush=True)


def show_json(value: object, indent: int | None = None) -> None:
    """Prints JSON in which no control character stands as itself, for whoever reads it."""
    print(json.dumps(value, ensure_ascii=False, indent=indent).translate(_JSON_SHOWN))


def note(text: str) -> None:
    """What one should know, on standard error."""
    if sys.stderr is not None:
        print(harmless(text, sys.stderr), file=sys.stderr)


def report(error: Exception) -> None:
    """One line on standard error."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        named = error.filename is not None
        text = f"{os.fsdecode(error.filename)}: {error.strerror}" if named else error.strerror
    if sys.stderr is not None:
        print("error:", harmless(" ".join(text.split()), sys.stderr), file=sys.stderr)


class Style:
    """ANSI styles for a terminal; empty strings where the stream is none or NO_COLOR is set."""

    def __init__(self, stream: IO[str] | None = None):
        stream = sys.stdout if stream is None else stream
        on = stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.dim = "\x1b[2m" if on else ""
        self.bold = "\x1b[1m" if on else ""
        self.reset = "\x1b[0m" if on else ""


class ChannelPrinter:
    """Prints streamed deltas: thoughts dimmed, answers plain, tool calls in bold."""

    def __init__(self, style: Style, stream: IO[str] | None = None, *, thoughts: bool = True):
        self._style, self._thoughts = style, thoughts
        self._stream = sys.stdout if stream is None else stream
        self._channel = ""

    def __call__(self, delta: Any) -> None:
        if delta.channel == "reasoning" and not self._thoughts:
            return
        if delta.channel != self._channel:
            if self._channel:
                self._write(self._style.reset + "\n")
            opening = {"reasoning": self._style.dim, "tool": self._style.bold}
            self._write(opening.get(delta.channel, ""))
            self._channel = delta.channel
        self._write(harmless(delta.text, self._stream))

    def finish(self) -> None:
        self._write(self._style.reset + "\n")
        self._channel = ""

    def _write(self, text: str) -> None:
        if text:
            self._stream.write(text)
            self._stream.flush()


def peak_memory_bytes() -> int:
    """Peak resident memory of this process (ru_maxrss: KiB on Linux, bytes on macOS)."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
