"""Imports inside the package point to lower layers only, and models/ stands alone, as the Hub's remote code must."""

import ast
import re
import sys

import pytest

from tests.repo.tree import PACKAGE, name, parse, python_files


LAYERS = (  # from the bottom up; members of one layer do not know each other
    {"models"},
    {"data", "conversion", "cards"},
    {"evaluation", "explain"},
    {"training"},
    {"hub"},
    {"cli"},
)
LAYER_OF = {member: number for number, members in enumerate(LAYERS) for member in members}
ALLOWED_IN_MODELS = {"torch", "transformers"} | set(sys.stdlib_module_names)
STRICT = "huggingface_hub.dataclasses"  # the home of `strict`, which configs need; it comes with transformers


def imported_modules(tree: ast.Module, package: str) -> list[str]:
    """The absolute dotted names that a module of `package` imports, wherever in the file: hf_vitfm.data.transforms."""
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            modules += [f"{base}.{alias.name}" for alias in node.names] if base == "hf_vitfm" else [base]
    return modules


def upward_imports(tree: ast.Module, package: str) -> list[str]:
    """Imports from inside hf_vitfm that the layering forbids to a module of `package` (hf_vitfm.data, say)."""
    member = package.split(".")[1]
    forbidden = []
    for module in imported_modules(tree, package):
        parts = module.split(".")
        if parts[0] != "hf_vitfm" or parts[1:2] in ([member], ["version"]):
            continue
        target = LAYER_OF.get(parts[1]) if len(parts) > 1 else None
        if target is None or target >= LAYER_OF[member]:
            forbidden.append(module)
    return forbidden


def foreign_imports(tree: ast.Module) -> list[str]:
    """Imports that a file of models/ may not have: it goes to the Hub alone with its siblings."""
    forbidden = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            forbidden += [a.name for a in node.names if a.name.split(".")[0] not in ALLOWED_IN_MODELS]
        elif isinstance(node, ast.ImportFrom):
            sibling = node.level == 1 and node.module is not None and "." not in node.module
            library = node.level == 0 and (node.module.split(".")[0] in ALLOWED_IN_MODELS or node.module == STRICT)
            if not sibling and not library:
                forbidden.append("." * node.level + (node.module or ""))
    return forbidden


def siblings(tree: ast.Module) -> set[str]:
    return {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1}


def package_of(path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).parent.parts)


MODULES = [path for path in python_files("hf_vitfm") if path.parent != PACKAGE]
MODELS = [path for path in MODULES if path.parent == PACKAGE / "models"]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_point_down(path):
    member = path.relative_to(PACKAGE).parts[0]
    assert member in LAYER_OF, f"{member}/ has no layer; give it a place in LAYERS"
    assert upward_imports(parse(path), package_of(path)) == []


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("hf_vitfm.models", "from hf_vitfm.data import transforms"),
        ("hf_vitfm.data", "from ..conversion import detect"),
        ("hf_vitfm.data", "def lazy():\n    import hf_vitfm.training.trainers"),
        ("hf_vitfm.evaluation", "from hf_vitfm.explain.capture import capture"),
        ("hf_vitfm.evaluation", "from .. import training"),
        ("hf_vitfm.training", "from hf_vitfm import ViTModel"),
        ("hf_vitfm.training", "import hf_vitfm"),
    ],
)
def test_upward_import_is_found(package, line):
    assert len(upward_imports(ast.parse(line), package)) == 1


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("hf_vitfm.data", "from .transforms import build_transform"),
        ("hf_vitfm.training", "from hf_vitfm.evaluation.metrics import top_k"),
        ("hf_vitfm.cards", "from hf_vitfm.version import __version__"),
        ("hf_vitfm.cli", "from ..hub.push import push_to_hub"),
        ("hf_vitfm.data", "import datasets"),
    ],
)
def test_downward_import_is_allowed(package, line):
    assert upward_imports(ast.parse(line), package) == []


@pytest.mark.parametrize("path", MODELS, ids=name)
def test_models_import_only_torch_transformers_and_siblings(path):
    assert foreign_imports(parse(path)) == []


@pytest.mark.parametrize("path", MODELS, ids=name)
def test_remote_code_scanner_sees_the_imports_of_models(path):
    # The scanner that copies code to the Hub reads text by regular expression, docstrings included.
    from transformers.dynamic_module_utils import get_relative_imports

    assert set(get_relative_imports(path)) == siblings(parse(path))


@pytest.mark.parametrize(
    "line",
    [
        "import numpy",
        "from safetensors.torch import load_file",
        "import hf_vitfm",
        "from . import modeling_encoder",
        "from ..data import x",
        "from .a.b import c",
    ],
)
def test_foreign_import_is_found(line):
    assert len(foreign_imports(ast.parse(f"import math\nfrom .modeling_encoder import Encoder\n{line}"))) == 1


def test_models_are_flat():
    assert MODELS, "hf_vitfm/models holds no module"
    assert [path for path in python_files("hf_vitfm/models") if path not in MODELS] == []


def test_there_is_one_attention_class():
    classes = [
        f"{name(path)}: {node.name}"
        for path in python_files("hf_vitfm")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ClassDef) and re.search("Attention", node.name)
    ]
    assert len(classes) == 1 and classes[0].startswith("hf_vitfm/models/modeling_encoder.py"), classes


@pytest.mark.parametrize("path", [path for path in MODELS if path.name.startswith("configuration_")], ids=name)
def test_configurations_do_not_postpone_annotations(path):
    # `from __future__ import annotations` silently switches off transformers' type checks of a config's fields.
    futures = [n for n in ast.walk(parse(path)) if isinstance(n, ast.ImportFrom) and n.module == "__future__"]
    assert futures == []
