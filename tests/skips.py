"""In CI (environment variable CI=true) a skipped test is a failure, unless its reason is listed here.

A pytest plugin, registered by conftest.py. A skip that nobody looks at is how a test dies unnoticed.
"""

import os

import pytest


ALLOWED_REASONS = (
    "no GPU",
    "flash attention is not installed",
)


def _fail_unless_allowed(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not reason.startswith(ALLOWED_REASONS):
        report.outcome = "failed"
        report.longrepr = (
            f"{report.nodeid} was skipped in CI: {reason!r}. Reasons allowed there begin with one of "
            f"{', '.join(ALLOWED_REASONS)}. Install what the test needs, or add the reason to tests/skips.py."
        )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport():
    report = yield
    _fail_unless_allowed(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report():
    report = yield
    _fail_unless_allowed(report)
    return report
