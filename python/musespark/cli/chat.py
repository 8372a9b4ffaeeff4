"""``musespark chat``: a conversation in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from pathlib import Path
from typing import Any

from musespark.cli import common, passphrase
from musespark.errors import Error, InvalidRequest, SavedWithoutCache
from musespark.options import AGGREGATES, CONTEMPLATING, MODES
from musespark.results import Delta
from musespark.thinking.effort import ALL_EFFORTS
from musespark.thought_cache import THOUGHT_CACHES, THOUGHT_OPTIONS

HELP = """\
/help            this text
/effort LEVEL    none, minimal, low, medium, high or xhigh: how long to think
/thoughts        show or hide the model's thoughts
/image FILE      show an image with the next message
/system TEXT     start again with this system message
/reset           forget the conversation
/stats           tokens and speed of the last answer
/quit            leave (also Ctrl-D)
End a line with \\ to go on in the next one; \"\"\" opens and closes a block of lines.
Ctrl-C stops the answer being written."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("question", nargs="?", help="ask this one question, answer and leave")
    common.add_model_arguments(parser)
    common.add_adapter_argument(parser)
    common.add_drafter_argument(parser)
    common.add_sampling_arguments(parser)
    common.add_grammar_argument(parser)
    parser.add_argument("--mode", default="auto", choices=MODES, help="whether to think first")
    parser.add_argument("--json", action="store_true", help="with a question: the whole result")
    parser.add_argument("--system", help="system message")
    parser.add_argument(
        "--session", metavar="FILE", help="go on from this file if it is there, and save there"
    )
    passphrase.add_arguments(parser)
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="show it with the first message (repeatable): PNG, JPEG, WebP, GIF or BMP",
    )
    parser.add_argument("--effort", choices=ALL_EFFORTS, help="how long to think")
    parser.add_argument(
        "--thinking-budget", type=int, metavar="N", help="thought tokens of an answer at most"
    )
    parser.add_argument(
        "--max-total-tokens",
        type=int,
        metavar="N",
        help="thought and answer together at most (-n beside it: the answer alone)",
    )
    parser.add_argument(
        "--begin", metavar="TEXT", help="with a question: how the answer begins; the model goes on"
    )
    parser.add_argument(
        "--agents",
        type=int,
        metavar="N",
        help="with a question: so many answer at once, and one answer is made of theirs",
    )
    parser.add_argument(
        "--aggregate", choices=AGGREGATES, help="with --agents: how (default: vote)"
    )
    parser.add_argument("--no-thoughts", action="store_true", help="hide thoughts")
    parser.add_argument(
        "--thought-cache",
        choices=THOUGHT_CACHES,
        help="what becomes of the keys and values of a thought that has ended",
    )
    parser.add_argument(
        "--thought-cache-tokens",
        type=int,
        metavar="N",
        help="how much of a thought under way is remembered, in tokens",
    )


def _history() -> None:
    """Line editing and a history file, where Python has readline and the folder is writable."""
    try:
        import readline
    except ImportError:
        return
    import atexit

    from musespark.weights.cache import cache_folder

    path = cache_folder() / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            readline.read_history_file(path)
    except OSError as error:
        print(f"no history: {error}", file=sys.stderr)
        return
    readline.set_history_length(1000)
    atexit.register(_keep_history, readline, path)


def _keep_history(readline: Any, path: Path) -> None:
    with contextlib.suppress(OSError):  # the conversation is over; nobody is left to tell
        readline.write_history_file(path)


def read_message(prompt: str) -> str:
    """One message: a line, lines joined by a trailing backslash, or a triple-quoted block.

    The end of the input ends a message that is under way too.
    """
    more = "… " if prompt else ""
    line = input(prompt)
    block = line.startswith('"""')
    lines = [line[3:] if block else line]
    try:
        while not lines[-1].endswith('"""') if block else lines[-1].endswith("\\"):
            if not block:
                lines[-1] = lines[-1][:-1]
            lines.append(input(more))
    except EOFError:
        pass
    return "\n".join(lines).removesuffix('"""' if block else "").strip()


def stats(result: Any) -> str:
    """Tokens, speed and seed of an answer, as a table."""
    usage, timings = result.usage, result.timings
    rows = [
        ("prompt", f"{usage.prompt_tokens} tokens, {usage.cached_tokens} of them from memory"),
        ("answer", f"{usage.completion_tokens} tokens, {usage.reasoning_tokens} of them thought"),
        ("prefill", f"{timings.prefill_s:.3f} s"),
        ("first token", f"after {timings.first_token_s:.3f} s"),
        ("decode", f"{timings.decode_s:.3f} s, {result.tokens_per_second:.1f} tokens/s"),
        ("ended by", result.finish_reason),
        ("seed", str(result.seed)),
    ]
    return "\n".join(f"{name:<12}{value}" for name, value in rows)


class Repl:
    """The state of one terminal conversation and its commands."""

    def __init__(self, model: Any, args: argparse.Namespace, passphrase: str | None = None):
        self.model = model
        self.effort = args.effort
        self.options = {"mode": args.mode, **common.sampling_options(args)}
        self.options |= common.grammar_options(args)
        if args.thinking_budget is not None:
            self.options["thinking_token_budget"] = args.thinking_budget
        if args.max_total_tokens is not None:
            self.options["max_total_tokens"] = args.max_total_tokens
        self.thoughts = not args.no_thoughts
        self.file = None if args.session is None else Path(args.session)
        self.passphrase = passphrase
        cache = {name: getattr(args, name) for name in THOUGHT_OPTIONS}
        self.cache = {name: value for name, value in cache.items() if value is not None}
        own = {"system": args.system, **self.cache}
        if self.file is None or not self.file.exists():
            self.session = model.session(**own)
        elif given := [name for name, value in own.items() if value is not None]:
            option = given[0].replace("_", "-")
            raise InvalidRequest(
                f"--{option}: the session in {self.file} has its own; leave it out"
            )
        else:
            self.session = model.resume(self.file, passphrase=passphrase)
        self.last: Any = None
        self.images: list[str] = list(args.image)  # shown with the next message

    def __enter__(self) -> Repl:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.file is None:
            return
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", SavedWithoutCache)
            self.session.save(self.file, passphrase=self.passphrase)
        for warning in told:
            common.note(str(warning.message))

    def command(self, line: str) -> bool:
        """Run a slash command; False to leave."""
        name, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        if name in ("quit", "exit", "q"):
            return False
        if name == "effort":
            if rest not in ALL_EFFORTS:
                raise InvalidRequest(f"effort: got {rest!r}, allowed is one of {list(ALL_EFFORTS)}")
            self.effort = rest
        elif name == "thoughts":
            self.thoughts = not self.thoughts
            print("thoughts shown" if self.thoughts else "thoughts hidden")
        elif name == "system":
            self.session = self.model.session(system=rest or None, **self.cache)
        elif name == "reset":
            self.session = self.model.session(system=self.session.system, **self.cache)
        elif name == "image":
            if not rest:
                raise InvalidRequest("/image: got no file, as in: /image FILE")
            common.check_files([rest], "/image")
            self.images.append(rest)
        elif name == "stats":
            print("no answer yet" if self.last is None else stats(self.last))
        elif name in ("help", "?"):
            print(HELP)
        else:
            raise InvalidRequest(f"no command /{name}; /help lists them")
        return True

    def ask(self, text: str, **more: Any) -> Any:
        """The next turn of the conversation."""
        turn = self._shown(text)
        return self.session.chat(turn, reasoning_effort=self.effort, **self.options, **more)

    def _shown(self, text: str) -> dict[str, Any]:
        """The user's message, with the images that wait for it; they wait no longer, so that one
        that cannot be read is in nobody's way."""
        images = [{"type": "image", "image": path} for path in self.images]
        self.images = []
        content = [*images, {"type": "text", "text": text}] if images else text
        return {"role": "user", "content": content}

    def go_on(self, question: str, begun: str, **more: Any) -> Any:
        """An answer to `question`, of which the beginning is given; no part of the conversation."""
        turns = [self._shown(question), {"role": "assistant", "content": begun}]
        messages = [*self.session.messages, *turns]
        options = {"reasoning_effort": self.effort, **self.options, **self.cache, **more}
        return self.model.chat(messages, continue_final_message=True, **options)

    def contemplate(self, question: str, agents: int, aggregate: str | None) -> Any:
        """An answer made of those of several agents; no part of the conversation."""
        messages = [*self.session.messages, self._shown(question)]
        options = {**self.options, **self.cache, "mode": CONTEMPLATING}
        options |= {"n_agents": agents, "aggregate": aggregate, "reasoning_effort": self.effort}
        return self.model.chat(messages, **options)

    def show(self, result: Any) -> None:
        """What :meth:`contemplate` gives: the thought and the answer of who speaks, and the votes
        on standard error."""
        printer = common.ChannelPrinter(common.Style(), thoughts=self.thoughts)
        if result.reasoning:
            printer(Delta(result.reasoning, "reasoning"))
        printer(Delta(result.content))
        printer.finish()
        votes = ", ".join(f"{key!r:.60}: {weight:.3g}" for key, weight in result.votes.items())
        common.note(f"votes: {votes or 'none'} ({len(result.agents)} agents, {result.stop_reason})")

    def say(self, text: str, begun: str | None = None) -> None:
        """One turn, streamed; an interrupted turn is taken out of the conversation again."""
        printer = common.ChannelPrinter(common.Style(), thoughts=self.thoughts)
        waiting = self.images
        if begun is None:
            stream = self.ask(text, stream=True)
        else:
            stream = self.go_on(text, begun, stream=True)
            common.show(begun, end="")
        try:
            for delta in stream:
                printer(delta)
        except KeyboardInterrupt:
            stream.close()
            printer.finish()
            if not sys.stdin.isatty():  # Ctrl-C ends a script, not one of its answers
                raise
            print("(stopped; this turn is forgotten)", flush=True)
            self.images = waiting
            return
        except Error:
            printer.finish()  # no dimmed terminal behind an error
            raise
        printer.finish()
        self.last = stream.result
        if self.last.finish_reason != "stop":
            print(f"({self.last.finish_reason})", flush=True)


def _answer(args: argparse.Namespace) -> int:
    """One question: its answer on standard output."""
    question = common.text_given(args.question, "question")
    begun = None if args.begin is None else common.text_given(args.begin, "--begin")
    secret = passphrase.for_session(args)
    with common.load_model(args, "chat") as model, Repl(model, args, secret) as repl:
        if args.agents is not None:
            result = repl.contemplate(question, args.agents, args.aggregate)
            if repl.file is not None:
                how = "unchanged" if repl.file.exists() else "new, without this turn"
                common.note(f"{repl.file}: {how}; a session keeps no turn of several agents")
            if not args.json:
                repl.show(result)
                return 0
        elif not args.json:
            repl.say(question, begun)
            return 0
        else:
            result = repl.ask(question) if begun is None else repl.go_on(question, begun)
        common.show_json(result.to_dict())
    return 0


def _check_agents(args: argparse.Namespace) -> None:
    """InvalidRequest for what is of agents and there are none, and for what they do not do."""
    if args.agents is None:
        if args.aggregate is not None:
            raise InvalidRequest(f"--aggregate: got {args.aggregate}, allowed with --agents alone")
        return
    if args.mode != "auto":
        raise InvalidRequest(f"--mode: got {args.mode}, allowed with --agents is auto")
    if args.begin is not None:
        raise InvalidRequest("--begin: got a beginning, allowed with --agents is none")


def run(args: argparse.Namespace) -> int:
    _check_agents(args)
    common.check_files(args.image, "--image")
    common.check_target(args.session, "--session")
    if args.question is not None:
        return _answer(args)
    if args.json:
        raise InvalidRequest("--json: a question is needed, as in: musespark chat --json QUESTION")
    if args.begin is not None:
        raise InvalidRequest("--begin: a question is needed, which the answer is to")
    if args.agents is not None:
        raise InvalidRequest("--agents: a question is needed, which they answer")
    if sys.stdin is None:
        raise InvalidRequest("standard input is closed; chat reads messages from it")
    secret = passphrase.for_session(args)
    interactive = sys.stdin.isatty()
    if interactive:
        _history()
    status = 0
    with common.load_model(args, "chat") as model, Repl(model, args, secret) as repl:
        if interactive:
            common.show(f"{model.info.source}: /help for commands, Ctrl-D to leave")
        while True:
            try:
                line = common.standard_input(
                    lambda: read_message("> " if interactive else ""), "standard input"
                )
            except EOFError:
                return status
            except KeyboardInterrupt:
                if not interactive:
                    raise
                print()
                continue
            if not line:
                continue
            try:
                if line.startswith("/"):
                    if not repl.command(line):
                        return status
                else:
                    repl.say(line)
            except Error as error:
                common.report(error)
                status = 0 if interactive else 1
            except KeyboardInterrupt:  # before an answer began
                if not interactive:
                    raise
                print()
