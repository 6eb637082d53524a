"""The command line: quick help, and one clear line for every mistake."""

import errno
import os
import subprocess
import sys

import pytest
from mmgen_tokenizers.errors import UserError

from mmgen.cli import main as cli
from mmgen.cli.parsing import existing

VERBS = sorted(cli.VERBS)


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


def error(capsys, *arguments: str) -> str:
    """The one line on stderr of a command that must exit with 2."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and not captured.out
    return lines[0]


def test_help_is_quick_and_imports_no_jax():
    code = "import sys; from mmgen.cli.main import main; main(['--help']); assert not {'jax', 'numpy'} & set(sys.modules)"
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    seconds = sum(os.times()[2:4]) - sum(before[2:4])  # of the processor: other tests run beside
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in VERBS)
    assert seconds < 1  # 0.07 s on an idle machine


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        run(verb, "--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"usage: mmgen {verb}" in text and "example:\n" in text and f"  mmgen {verb}" in text


def test_help_of_every_verb_imports_no_jax():
    code = (
        "import sys\nfrom mmgen.cli.main import VERBS, main\n"
        "for verb in VERBS:\n    try: main([verb, '--help'])\n    except SystemExit: pass\nassert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("mmgen 0.")


def test_without_a_verb_the_verbs_are_shown(capsys):
    assert run() == 0
    assert "mmgen sample" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smaple"], "there is no verb 'smaple': mmgen quickstart, train, preflight, tokenize, sample, evaluate, report, edit"),
        (["smaple"], "Did you mean 'sample'?"),
        (["info", ".", "--verbos"], "mmgen info does not know --verbos."),
        (["sample", ".", "--guidence", "3"], "Did you mean '--guidance'?"),
        (["sample", ".", "--temperature", "warm"], "argument --temperature: invalid float value: 'warm'"),
        (["sample"], "the following arguments are required: RUN"),
        (["sample", "--prompt", "a", "."], "RUN: write it first, for --prompt, --label, --best-at take all words"),
        (["tokenize", ".", "--data", "shapes"], "the following arguments are required: --out (mmgen tokenize --help"),
        (["sample", ".", "--prompt", "a", "--label", "1"], "not allowed with argument"),
        (["tokenize", ".", "--out", "x"], "one of the arguments --data --llamagen-codes is required"),
        (["train", "nowhere/experiment.py"], "there is no nowhere/experiment.py"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message, capsys):
    assert message in error(capsys, *arguments)


@pytest.mark.parametrize("verb", ["sample", "export", "info"])
def test_a_mistyped_path_is_answered_with_the_nearest(verb, tmp_path, capsys):
    (tmp_path / "generator" / "deep").mkdir(parents=True)
    more = ["--out", "x"] if verb == "export" else []
    assert "Did you mean 'generator'?" in error(capsys, verb, str(tmp_path / "genertor"), *more)
    deep = error(capsys, verb, str(tmp_path / "genertor" / "deep"), *more)
    assert f"({tmp_path / 'genertor'} is missing). Did you mean 'generator'?" in deep


def test_existing_gives_back_what_is_there(tmp_path):
    assert existing(str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match="there is no"):
        existing(str(tmp_path / "a" / "b" / "c"))


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (UserError("two\nlines"), 2, "error: two lines\n"),
        (OSError(errno.ENOSPC, "No space left", "/runs/x/y.safetensors"), 2, "error: the disk is full: free space for /runs/x"),
        (ValueError("RESOURCE_EXHAUSTED: No space left on device"), 2, "error: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2, "error: Permission denied: /root/x\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_failures_become_exit_codes(failure, code, message, monkeypatch, capsys):
    def fail(arguments):
        raise failure

    monkeypatch.setattr(cli, "run", fail)
    assert run("info", ".") == code
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("name", ["mmgen", "mmgen_tokenizers"])
def test_the_package_is_the_command(name):
    done = subprocess.run([sys.executable, "-m", name, "smaple"], capture_output=True, text=True)
    assert done.returncode == 2 and "there is no verb 'smaple'" in done.stderr


@pytest.mark.parametrize("module", ["mmgen.cli.main", "mmgen_tokenizers.cli"])
def test_nobody_reads_on(module):
    """As `mmgen ... | head` does."""
    code = f"import sys; from {module} import main; sys.exit(main(['--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    def fail(arguments):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(cli, "run", fail)
    with pytest.raises(ZeroDivisionError):
        run("info", ".")
