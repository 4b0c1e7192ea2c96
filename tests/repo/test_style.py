"""Rules of style that the linter does not know."""

import ast
import re
import runpy

import pytest

from tests.repo.tree import PACKAGE, ROOT, name, parse, python_files, text_files


MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70
SHAPELESS_NAMES = {"common.py", "helpers.py", "misc.py", "util.py", "utils.py"}
MACHINE_PATH = re.compile(r"(?<![\w.:/~}])/(?:work|tmp|home|root|Users)/\w+")
SOURCES = python_files("hf_vitfm", "recipes", "benchmarks", "tests")


def long_functions(tree: ast.Module) -> list[str]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    return [f"{function}: {length} lines" for function, length in lengths.items() if length > MAX_FUNCTION_LINES]


def prints(tree: ast.Module) -> list[int]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def asserts(tree: ast.Module) -> list[int]:
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_and_functions_are_short_and_named_for_what_they_hold(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{name(path)} has {lines} lines; split it by purpose"
    assert long_functions(parse(path)) == []
    assert path.name not in SHAPELESS_NAMES, "name the file for what it holds"


@pytest.mark.parametrize("path", python_files("hf_vitfm"), ids=name)
def test_package_raises_and_logs_rather_than_asserts_and_prints(path):
    tree = parse(path)
    assert asserts(tree) == [], "raise a ValueError or TypeError that says what to do"
    if path.relative_to(PACKAGE).parts[0] != "cli":
        assert prints(tree) == [], "use logging; only cli/ prints"


@pytest.mark.parametrize("path", text_files(), ids=name)
def test_no_path_of_somebodys_machine(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [f"{number}: {line}" for number, line in enumerate(lines, 1) if MACHINE_PATH.search(line)] == []


def test_rules_find_what_they_are_for():
    body = "    x = 1\n"
    assert long_functions(ast.parse("def f():\n" + body * MAX_FUNCTION_LINES)) == ["f: 71 lines"]
    assert long_functions(ast.parse("def f():\n" + body * (MAX_FUNCTION_LINES - 1))) == []
    assert prints(ast.parse("x = 1\nprint(x)")) == [2]
    assert asserts(ast.parse("def f(x):\n    assert x")) == [2]
    assert MACHINE_PATH.search("see " + "/".join(["", "home", "ada", "model.safetensors"]))
    assert not MACHINE_PATH.search("https://example.com/home/page or ~/work/model or data/tmp/x")


def test_changelog_begins_with_this_version():
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == runpy.run_path(str(PACKAGE / "version.py"))["__version__"]
