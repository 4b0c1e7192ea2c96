"""`import hf_vitfm` is quick and silent, and every public name can be had."""

import subprocess
import sys

import pytest

import hf_vitfm
from tests.repo.tree import ROOT


HEAVY = ("datasets", "evaluate", "timm", "open_clip", "matplotlib", "sklearn", "pandas")


def run_python(code: str) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_import_loads_no_heavy_library_and_says_nothing():
    # transformers imports torchao where it is installed, which has warnings of its own.
    block = "import sys; sys.modules['torchao'] = None; "
    done = run_python(f"{block}import hf_vitfm; print([name for name in {HEAVY} if name in sys.modules])")
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_public_names_resolve_without_optional_libraries():
    block = "".join(f"sys.modules[{name!r}] = None; " for name in ("datasets", "evaluate", "timm", "open_clip"))
    run_python(f"import sys; {block}import hf_vitfm; [getattr(hf_vitfm, name) for name in hf_vitfm.__all__]")


def test_public_names_are_sorted():
    assert list(hf_vitfm.__all__) == sorted(hf_vitfm.__all__)


@pytest.mark.parametrize("public_name", hf_vitfm.__all__)
def test_public_name_resolves(public_name):
    assert getattr(hf_vitfm, public_name) is not None
    assert public_name in dir(hf_vitfm)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        hf_vitfm.no_such_name  # noqa: B018
