"""The command line, as a user and as a script meet it: output, exit codes, closed pipes."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import musespark
from musespark.cli import COMMANDS, chat, common, main
from musespark.results import Delta
from support.bert_models import CASES as BERTS
from support.bert_models import folder_of as bert_folder
from support.chat_folder import chat_folder

FAST = ["--context", "256", "--threads", "1"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A tiny random llama as a Hugging Face folder."""
    return chat_folder(tmp_path / "model")


def run(*arguments: object, given: str = "", monkeypatch=None) -> int:
    """``main`` in this process, with ``given`` as its standard input."""
    if monkeypatch is not None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    return main([str(a) for a in arguments])


def command(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "musespark.cli", *arguments],
        capture_output=True, text=True, timeout=120, **options,
    )  # fmt: skip


# ---- generate --------------------------------------------------------------------------------


def test_generate_prints_prompt_and_continuation(capsys):
    with musespark.load(context=256, threads=1) as model:
        want = model.generate("Once upon a time", max_new_tokens=12).text
    assert run("generate", "Once upon a time", "-n", 12, *FAST) == 0
    out = capsys.readouterr()
    assert out.out == f"Once upon a time{want}\n"
    assert out.err == ""


def test_generate_json_is_one_object_with_what_was_asked(capsys, monkeypatch):
    arguments = ("generate", "-", "--json", "-n", 6, "-t", 0.9, "--top-k", 20, "--seed", 5)
    assert run(*arguments, *FAST, given="The fox", monkeypatch=monkeypatch) == 0
    result = json.loads(capsys.readouterr().out)
    with musespark.load(context=256, threads=1) as model:
        want = model.generate("The fox", max_new_tokens=6, temperature=0.9, top_k=20, seed=5)
    assert tuple(result["tokens"]) == want.tokens
    assert (result["seed"], result["finish_reason"]) == (5, "length")
    assert result["usage"]["completion_tokens"] == 6


def test_generate_stops_at_a_stop_string(capsys):
    assert run("generate", "Once upon a time", "-n", 40, "--stop", "e", "--json", *FAST) == 0
    result = json.loads(capsys.readouterr().out)
    assert "e" not in result["text"]
    assert result["finish_reason"] == "stop"


# ---- chat --------------------------------------------------------------------------------------


def test_piped_chat_answers_every_line(capsys, monkeypatch):
    lines = "What is 2 + 3?\n\n/stats\n/reset\nWhat is 2 + 3?\n/quit\nnever read\n"
    assert run("chat", "-n", 60, *FAST, given=lines, monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    first, after = out.split("tokens/s", 1)
    with musespark.load(context=256, threads=1) as model:
        want = model.chat("What is 2 + 3?", max_new_tokens=60)
    assert want.content in first
    assert want.content in after
    assert f"answer      {len(want.tokens)} tokens" in first
    assert "\x1b" not in out, "escape sequences outside a terminal"


def test_piped_chat_reports_errors_and_fails_at_the_end(capsys, monkeypatch):
    given = "/effort huge\n/nothing\n/image\n/thoughts\n/help\n"
    assert run("chat", *FAST, given=given, monkeypatch=monkeypatch) == 1
    out = capsys.readouterr()
    assert "effort: got 'huge'" in out.err
    assert "no command /nothing" in out.err
    assert "/image: got no file, as in: /image FILE" in out.err
    assert "thoughts hidden" in out.out
    assert chat.HELP in out.out


def test_agents_answer_a_question(capsys):
    asked = ("chat", "What is 2 + 3?", "--agents", 3, "--seed", 4, "-n", 60, *FAST)
    assert run(*asked) == 0
    told = capsys.readouterr()
    with musespark.load(context=256, threads=1) as model:
        given = {"mode": "contemplating", "n_agents": 3, "seed": 4, "max_new_tokens": 60}
        want = model.chat("What is 2 + 3?", **given)
    assert told.out == f"{want.reasoning}\n{want.content}\n"
    assert f"{want.answer!r}: {want.votes[want.answer]:g}" in told.err
    assert f"(3 agents, {want.stop_reason})" in told.err
    assert run(*asked, "--aggregate", "confidence", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["aggregate"] == "confidence" and len(result["agents"]) == 3


def test_a_session_beside_agents_is_made_or_stays_as_it_is(capsys, tmp_path):
    file = tmp_path / "new.session"
    asked = ("chat", "What is 2 + 3?", "--agents", 2, "-n", 9, "--session", file, *FAST)
    for how in ("new, without this turn", "unchanged"):
        assert run(*asked) == 0
        assert (
            f"{file}: {how}; a session keeps no turn of several agents" in capsys.readouterr().err
        )
    with musespark.load(context=256, threads=1) as model:
        assert model.resume(file).messages == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--agents", 3], "--agents: a question is needed"),
        (["x", "--agents", 0], "n_agents: got 0, allowed is an integer from 1 to 64"),
        (["x", "--agents", 3, "--mode", "instant"], "--mode: got instant, allowed with --agents"),
        (["x", "--agents", 3, "--begin", "y"], "--begin: got a beginning, allowed with --agents"),
        (["x", "--aggregate", "vote"], "--aggregate: got vote, allowed with --agents alone"),
    ],
)
def test_what_agents_do_not_do(capsys, arguments, says):
    assert run("chat", *arguments, *FAST) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "typed, message",
    [
        ("one\n", "one"),
        ("one\\\ntwo\n", "one\ntwo"),
        ('"""one\n\ntwo"""\n', "one\n\ntwo"),
        ('"""one"""\n', "one"),
        ('"""one\ntwo', "one\ntwo"),
        ("one\\\n", "one"),
    ],
)
def test_messages_over_several_lines(monkeypatch, typed, message):
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert chat.read_message("") == message


def test_an_error_in_an_answer_leaves_no_dimmed_terminal(monkeypatch):
    class Failing:
        def __iter__(self):
            yield Delta("hm", "reasoning")
            raise musespark.Error("gone")

    class Conversation:
        def chat(self, *args, **kwargs):
            return Failing()

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    repl = chat.Repl.__new__(chat.Repl)
    repl.thoughts, repl.effort, repl.options, repl.session = True, None, {}, Conversation()
    repl.images = []
    with pytest.raises(musespark.Error, match="gone"):
        repl.say("x")
    style = common.Style(terminal)
    assert style.dim
    assert terminal.getvalue().rstrip().endswith(style.reset)


# ---- inspect, convert, doctor ------------------------------------------------------------------


def test_convert_then_inspect(folder, tmp_path, capsys):
    packed = tmp_path / "packed.safetensors"
    assert run("convert", folder, packed, "--quantize", "q8") == 0
    assert str(packed) in capsys.readouterr().out
    assert run("inspect", packed, "--verify", "--json", "--tensors") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["family"] == "llama"
    assert "q8" in {row["format"] for row in report["tensors"]}
    data = bytearray(packed.read_bytes())
    data[len(data) // 2] ^= 1
    packed.write_bytes(bytes(data))
    assert run("inspect", packed, "--verify") == 1
    assert "checksum" in capsys.readouterr().err


def test_convert_that_cannot_be_written_fails_and_leaves_nothing(folder, tmp_path, capsys):
    assert run("convert", folder, tmp_path / "nowhere" / "x.safetensors") == 1
    assert "nowhere" in capsys.readouterr().err
    assert run("convert", tmp_path / "missing", tmp_path / "x.safetensors") == 1
    assert "missing" in capsys.readouterr().err
    assert not list(tmp_path.glob("*x.safetensors*"))


def test_a_model_without_tokenizer_is_refused_by_name(folder, capsys):
    (folder / "tokenizer.json").unlink()
    assert run("generate", "x", "-m", folder, *FAST[2:]) == 1
    assert "tokenizer.json is missing" in capsys.readouterr().err


def test_inspect_shows_the_embedded_model(capsys):
    assert run("inspect") == 0
    out = capsys.readouterr().out
    assert re.search(r"^family +muse_glimmer$", out, re.MULTILINE)
    assert "layers.0" not in out


def test_doctor_says_what_was_chosen(capsys):
    assert run("doctor") == 0
    text = capsys.readouterr().out
    assert run("doctor", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    chosen = [level for level in report["instruction sets"] if level.endswith(": in use")]
    assert len(chosen) == 1
    assert chosen[0] in text
    for key in ("threads", "memory limit (cgroup)", "cache folder"):
        assert f"{key}: {report[key]}" in text
    assert "memory available: " in text  # which changes from call to call
    assert "blas" in report["build"]


# ---- bad arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["generate", "x", "--temperature", "-1"], "temperature: got -1.0"),
        (["generate", "x", "-n", "0"], "max_new_tokens: got 0"),
        (["generate", "x", "--threads", "0"], "threads"),
        (["generate", "x", "--context", "0"], "context: got 0"),
        (["generate", "x", "-m", "/nowhere/model"], "/nowhere/model"),
        (["bench", "-r", "0"], "at least 1"),
        (["inspect", "/dev/null"], "/dev/null"),
    ],
)
def test_wrong_values_exit_with_1_and_name_the_field(capsys, monkeypatch, arguments, message):
    assert run(*arguments, given="hello\n", monkeypatch=monkeypatch) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["generate"],
        ["generate", "x", "--kv", "kv9"],
        ["chat", "--bogus"],
        ["chat", "--effort", "x"],
    ],
)
def test_wrong_usage_exits_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: musespark" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "usage", "said"),
    [
        (["serve", "--nosuch"], "musespark serve", "unrecognized arguments: --nosuch\n"),
        (["serve", "--prot", "80"], "musespark serve", "--prot 80; is --port meant?\n"),
        (["chat", "--temprature=1"], "musespark chat", "=1; is --temperature meant?\n"),
        (["cache", "--bogus"], "musespark cache", "arguments: --bogus\n"),
        (["--nosuch", "doctor"], "musespark", "unrecognized arguments: --nosuch\n"),
    ],
)
def test_what_a_command_does_not_know_is_said_with_its_own_usage(capsys, arguments, usage, said):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith(f"usage: {usage} [-h]") and error.endswith(said)


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


def test_help_leaves_names_as_they_are(capsys):
    for name, says in (("mcp", "Answer an agent as an MCP server"), ("serve", "OpenAI's and Anth")):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert says in capsys.readouterr().out


# ---- as a process ------------------------------------------------------------------------------


def test_a_process_gives_output_error_and_status():
    done = command("generate", "-", "-n", "3", *FAST, input="Once")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Once")
    failed = command("generate", "x", "--seed", "-1", *FAST)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("error: seed: got -1")
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("arguments", [["inspect", "--json"], ["generate", "Once", "-n", "20"]])
def test_a_closed_pipe_is_no_error(arguments):
    """Written at once (generate), or only when everything is flushed at the end (inspect)."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "musespark.cli", *arguments],
            stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


# ---- terminals ---------------------------------------------------------------------------------

HOSTILE = "a\x1b[2Jb\x9b31m\x07\r\x7f\tc\nd é"
SHOWN = "a\\x1b[2Jb\\x9b31m\\x07\\x0d\\x7f\tc\nd é"


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def reconfigure(self, **kwargs):
        pass


class Pipe(Terminal):
    def isatty(self):
        return False


class Says:
    """A model whose every answer is HOSTILE."""

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def generate(self, prompt, *, stream=False, **options):
        return (
            iter([Delta(HOSTILE)]) if stream else musespark.results.Completion(HOSTILE, (), 0, "")
        )


def out_of(monkeypatch, stream, *arguments) -> str:
    monkeypatch.setattr(sys, "stdout", stream)
    assert main([str(a) for a in arguments]) == 0
    return stream.getvalue()


def test_what_a_model_writes_cannot_steer_the_terminal(monkeypatch):
    monkeypatch.setattr(common, "load_model", lambda args, use: Says())
    assert out_of(monkeypatch, Terminal(), "generate", ">") == f">{SHOWN}\n"
    assert out_of(monkeypatch, Pipe(), "generate", ">") == f">{HOSTILE}\n"
    text = out_of(monkeypatch, Terminal(), "generate", ">", "--json")
    assert json.loads(text)["text"] == HOSTILE
    assert not set(text) & set("\x1b\x9b\x7f\x07\r")


@pytest.mark.parametrize("channel", ["content", "reasoning", "tool"])
def test_streamed_channels_cannot_steer_the_terminal(monkeypatch, channel):
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    printer = common.ChannelPrinter(common.Style(terminal), terminal)
    printer(Delta(HOSTILE, channel))
    printer.finish()
    assert terminal.getvalue() == f"{SHOWN}\n"


def test_what_a_file_says_cannot_steer_the_terminal(monkeypatch):
    report = {"notes": [HOSTILE], "family": HOSTILE, "formats": {HOSTILE: 1}, "bytes": 2048}
    report |= {"memory": None, "tensors": []}
    monkeypatch.setattr("musespark.inspect", lambda *a, **k: dict(report))
    text = out_of(monkeypatch, Terminal(), "inspect")
    assert text.count(SHOWN) == 3 and "bytes    2.0 KiB" in text
    assert json.loads(out_of(monkeypatch, Terminal(), "inspect", "--json"))["notes"] == [HOSTILE]


def test_errors_are_one_harmless_line(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    common.report(musespark.Error("two\nlines \x1b[31m"))
    common.report(PermissionError(13, "Permission denied", b"/a"))
    assert terminal.getvalue() == "error: two lines \\x1b[31m\nerror: /a: Permission denied\n"


# ---- odd surroundings --------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line_and_1():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "musespark.cli", "inspect"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=120,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_an_encoding_without_the_characters_spells_them_out():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = command("generate", "é", "-n", "1", *FAST, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("\\xe9")


def test_ctrl_c_ends_a_piped_chat():
    """It once ended the answer only, and went on with the next line."""
    process = subprocess.Popen(
        [sys.executable, "-c",
         "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
         "from musespark.cli import main; sys.exit(main(sys.argv[1:]))",
         "chat", "-n", "100", *FAST],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("What is 23 + 45?\n" * 2000)
    process.stdin.flush()
    process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in err


# ---- questions, signals, texts that are none ---------------------------------------------------


def test_one_question_is_answered_and_left(capsys, monkeypatch):
    assert run("chat", "What is 2 + 3?", "--effort", "low", *FAST) == 0
    assert capsys.readouterr().out.strip()
    assert run("chat", "What is 2 + 3?", "--json", "--mode", "instant", "--seed", 5, *FAST) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["reasoning"], report["seed"]) == ("", 5)
    assert run("chat", "--json", *FAST) == 1
    assert "a question is needed" in capsys.readouterr().err


def test_thought_and_answer_together_have_a_limit(capsys):
    question = ("chat", "What is 2 + 3?", "--json", "--mode", "thinking")
    assert run(*question, "--max-total-tokens", 9, *FAST) == 0
    assert json.loads(capsys.readouterr().out)["usage"]["completion_tokens"] <= 9
    assert run(*question, "--max-total-tokens", 0, *FAST) == 1
    assert "max_total_tokens: got 0" in capsys.readouterr().err


def test_every_sampling_option_reaches_the_model(capsys):
    options = ["--repetition-penalty", "1.1", "--presence-penalty", "0.5", "--deadline", "60"]
    options += ["--frequency-penalty", "0.5", "--logprobs", "2", "-n", "3", "--json"]
    assert run("generate", "Once", *options, *FAST) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["logprobs"]) == 3 and len(report["logprobs"][0]["top"]) == 2
    for flag, field in (("--presence-penalty", "presence_penalty"), ("--deadline", "deadline")):
        assert run("generate", "Once", flag, "-1000", *FAST) == 1
        assert f"{field}: got -1000" in capsys.readouterr().err


def test_stats_are_a_table():
    with musespark.load(context=256, threads=1) as model:
        text = chat.stats(model.generate("Once", max_new_tokens=3, seed=9))
    assert re.search(r"^answer +3 tokens, 0 of them thought$", text, re.M)
    assert re.search(r"^seed +9$", text, re.M) and "Usage(" not in text


@pytest.mark.parametrize("arguments", [["generate", "-", "-n", "1"], ["chat"]])
def test_bytes_that_are_no_text_are_called_so(arguments):
    for encoding in ("utf-8:strict", "utf-8:surrogateescape"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        ended = subprocess.run(
            [sys.executable, "-m", "musespark", *arguments, *FAST],
            input=b"ab\xff\n", capture_output=True, timeout=120, env=environment,
        )  # fmt: skip
        assert ended.returncode == 1
        assert b"standard input: not UTF-8 (byte 0xff" in ended.stderr


def test_an_argument_that_is_no_text_is_called_so(capsys):
    assert run("generate", "ab\udcff", *FAST) == 1
    assert "prompt: not UTF-8 (byte 0xff at character 2)" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["", "/nowhere/model", "./nowhere"])
def test_a_mistyped_path_is_no_such_folder(capsys, model):
    assert run("generate", "x", "-m", model) == 1
    assert "no such file or folder" in capsys.readouterr().err


def test_what_a_model_is_not_for_is_said_before_it_is_packed(own_cache, tmp_path, capsys):
    """A model of 708 MiB was packed, and then could not chat."""
    bare = chat_folder(tmp_path / "bare", template=None)
    encoder = bert_folder(tmp_path / "encoder", next(iter(BERTS)), 3)
    for command, source, what in (
        ("chat", bare, f"{bare} has no chat template and cannot chat; musespark generate needs"),
        ("chat", encoder, f"{encoder} is an embedding model"),
        ("generate", encoder, f"{encoder} is an embedding model"),
    ):
        assert run(command, "x", "-m", str(source)) == 1
        assert what in capsys.readouterr().err
        assert not own_cache.exists()
    musespark.load(bare).close()  # packed now; the answer is the same
    assert run("chat", "x", "-m", str(bare)) == 1
    assert "has no chat template" in capsys.readouterr().err


def test_embed_gives_a_line_for_each_text(tmp_path, capsys, monkeypatch):
    folder = bert_folder(tmp_path / "encoder", next(iter(BERTS)), 3)
    with musespark.load(folder, threads=1) as model:
        expected = model.embed(["ab c", "d"])
    capsys.readouterr()
    for arguments, given in ((["ab c", "d"], ""), ([], "ab c\nd\n")):
        assert run("embed", *arguments, "-m", folder, given=given, monkeypatch=monkeypatch) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["text"] for line in lines] == ["ab c", "d"]
        for line, row in zip(lines, expected, strict=True):
            assert line["embedding"] == row.tolist()
    assert run("embed", "x") == 1
    assert "Spark Nano, inside the package writes text; it gives no" in capsys.readouterr().err


def test_convert_says_what_auto_chose(folder, tmp_path, capsys):
    assert run("convert", folder, tmp_path / "out.safetensors", "--quantize", "auto") == 0
    assert ", q8, " in capsys.readouterr().out


# Where the suite runs in the background Python starts with Ctrl-C ignored.
HEAR_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
PACK_AND_WAIT = f"""{HEAR_CTRL_C}
import sys, time
from musespark.cli import main
from musespark.weights import loading
from musespark.weights.files import write_aside
def convert(source, destination, **options):
    with write_aside(__import__('pathlib').Path(destination)):
        print('packing', flush=True)
        for _ in range(600):  # one sleep is slept whole by a signal that comes right before it
            time.sleep(0.1)
import musespark
musespark.convert = convert
sys.exit(main(['convert', 'a', sys.argv[1]]))
"""


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_cleans_up(tmp_path, number, status):
    """SIGTERM left the partial file, under a hidden name, for ever."""
    process = subprocess.Popen(
        [sys.executable, "-c", PACK_AND_WAIT, str(tmp_path / "out.safetensors")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "packing\n"
    assert len(list(tmp_path.glob(".*.partial"))) == 1
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, list(tmp_path.glob(".*.partial"))) == (status, [])
    assert "Traceback" not in error


def test_ctrl_c_before_the_command_is_there_is_silent():
    """The launcher printed the traceback of whichever import it had come to."""
    text = HEAR_CTRL_C + "import musespark.__main__; signal.raise_signal(signal.SIGINT)"
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, b"")
