"""Every command and every piece of code in the documents can be run as it is written."""

import contextlib
import functools
import io
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from hf_vitfm.cli.main import build_parser
from tests.repo.tree import ROOT


DOCUMENTS = ("README.md", "CONTRIBUTING.md", "recipes/README.md")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SCRIPTS = [file for folder in ("benchmarks", "model_cards", "recipes") for file in (ROOT / folder).rglob("*.py")]
KNOWN_COMMANDS = {"accelerate", "cd", "git", "hf-vitfm", "make", "pip", "pytest", "python", "ruff"}


def blocks(text: str, language: str) -> list[str]:
    return [body for tag, body in FENCE.findall(text) if tag == language]


def commands(text: str) -> Iterator[list[str]]:
    """The commands of all bash blocks, as words: one for each part of a line between ; && || and |."""
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if not set(word) <= set(";&|"):
                    words.append(word)
                elif words:
                    yield words
                    words = []


def program_and_arguments(words: list[str]) -> tuple[str, list[str]]:
    """`A=1 .venv/bin/python -m pytest -q` -> ("pytest", ["-q"])."""
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    program = re.sub(r"^python3?$", "python", words[0].rpartition("/")[2])
    if program == "python" and words[1:2] == ["-m"]:
        return words[2], words[3:]
    return program, words[1:]


def complaints(words: list[str]) -> list[str]:
    """What is wrong with a command: a program, a target, a file or an option that is not there."""
    program, arguments = program_and_arguments(words)
    if program not in KNOWN_COMMANDS:
        return [f"{program} is not among {sorted(KNOWN_COMMANDS)}; teach this test to check it"]
    wrong = []
    if program == "make":
        wrong += [f"no make target {word}" for word in arguments if "=" not in word and word not in make_targets()]
    if program == "hf-vitfm":
        wrong += refused_by_the_cli(arguments)
    files = [word for word in arguments if re.search(r"\w\.(py|ya?ml)$", word)]
    wrong += [f"no file {word}" for word in files if not (ROOT / word).is_file()]
    scripts = [word for word in files if word.endswith(".py")]
    if program in ("python", "accelerate") and scripts and not wrong:
        options = [
            word.partition("=")[0] for word in arguments[arguments.index(scripts[0]) :] if word.startswith("--")
        ]
        wrong += [f"{scripts[0]} has no option {word}" for word in options if word not in script_options(scripts[0])]
    return wrong


def refused_by_the_cli(arguments: list[str]) -> list[str]:
    with contextlib.redirect_stderr(io.StringIO()) as complaint:
        try:
            build_parser().parse_args(arguments)
        except SystemExit as stop:
            return [complaint.getvalue()] if stop.code else []
    return []


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@functools.cache
def script_options(script: str) -> set[str]:
    """What `python SCRIPT --help` names; run in this process, where the libraries are loaded already."""
    with as_program(ROOT / script, "--help"), contextlib.redirect_stdout(io.StringIO()) as printed:
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(sys.argv[0], run_name="__main__")
    assert not stop.value.code, f"{script} --help failed: {stop.value.code}"
    return set(re.findall(r"--\w[\w-]*", printed.getvalue()))


@contextlib.contextmanager
def as_program(script: Path, *arguments: str) -> Iterator[None]:
    """The interpreter as `PYTHONPATH=. python SCRIPT` finds it: scripts import those beside them, and no others."""
    path = [str(script.parent), str(ROOT)]
    path += [place for place in sys.path if place not in {str(file.parent) for file in SCRIPTS}]
    names = {file.stem for file in SCRIPTS}
    known = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    try:
        with mock.patch.dict(os.environ), mock.patch.multiple(sys, argv=[str(script), *arguments], path=path):
            yield
    finally:
        for name in names & sys.modules.keys():
            del sys.modules[name]
        sys.modules.update(known)


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_can_be_run(document):
    found = {shlex.join(words): complaints(words) for words in commands(read(document))}
    assert {command: wrong for command, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_compiles(document):
    for number, block in enumerate(blocks(read(document), "python"), 1):
        compile(block, f"{document}, block {number}", "exec")


def test_a_wrong_command_is_found():
    text = "```bash\nmake tset  # run\nA=1 python3 \\\n  no_script.py && nonsense; make help PYTHON=python3\n```\n"
    assert [complaints(words) for words in commands(text)] == [
        ["no make target tset"],
        ["no file no_script.py"],
        [f"nonsense is not among {sorted(KNOWN_COMMANDS)}; teach this test to check it"],
        [],
    ]


def test_a_wrong_option_is_found(monkeypatch):
    monkeypatch.setitem(globals(), "script_options", lambda script: {"--output_dir"})
    script = "tests/conftest.py"
    assert complaints(["python", script, "--output_dir", "x", "--output_dri=x"]) == [
        f"{script} has no option --output_dri"
    ]
    assert "unrecognized arguments: --top" in complaints(["hf-vitfm", "predict", "model", "folder", "--top", "3"])[0]
    assert complaints(["hf-vitfm", "predict", "model", "folder", "--top-k", "3"]) == []
    assert complaints(["accelerate", "launch", "--num_processes", "2", script, "--output_dir", "x"]) == []
