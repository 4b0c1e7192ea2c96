"""In CI a skip counts as a failure unless its reason is allowed; elsewhere it is a skip."""

import subprocess
import sys

import pytest

from tests.repo.tree import ROOT


SAMPLE = """
import pytest

@pytest.mark.skip(reason="no GPU")
def test_allowed(): ...

@pytest.mark.skip(reason="the moon is full")
def test_marked(): ...

def test_inside():
    pytest.importorskip("a_package_that_nobody_has")

@pytest.mark.xfail(strict=True, reason="known")
def test_expected_failure():
    raise ValueError
"""
SAMPLE_MODULE = 'import pytest\n\npytest.skip("the tide is low", allow_module_level=True)\n'


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", "1 failed, 1 skipped, 1 xfailed, 2 errors"), ("", "4 skipped, 1 xfailed")]
)
def test_skips_in_ci_and_elsewhere(tmp_path, monkeypatch, ci, outcome):
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    (tmp_path / "test_whole_module.py").write_text(SAMPLE_MODULE)
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", "pytest", "-p", "tests.skips", "--continue-on-collection-errors", "-q", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert f"\n{outcome} in " in done.stdout
    assert ("'the moon is full'" in done.stdout) == (ci == "true")
