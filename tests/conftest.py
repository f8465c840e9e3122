"""Settings of every test: offline, one thread for torch, and no silent skips on request."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import re
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
# Environments that tests name by dotted path; worker processes find them there too.
sys.path.insert(0, str(Path(__file__).with_name("support")))

EXPECTED_SKIPS = Path(__file__).with_name("expected_skips.txt")


class StrictSkips:
    """Fails the run if a test was skipped for a reason that ``expected_skips.txt`` lacks."""

    def __init__(self, expected: list[re.Pattern[str]]) -> None:
        self._expected = expected
        self.unexpected: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._check(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._check(report)

    def _check(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        _, _, reason = report.longrepr
        if not any(pattern.search(reason) for pattern in self._expected):
            self.unexpected.append(f"{report.nodeid}: {reason}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unexpected and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unexpected:
            terminalreporter.section(f"skips that {EXPECTED_SKIPS.name} does not list", red=True)
            for line in self.unexpected:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("SAD_STRICT_SKIPS") == "1":
        lines = EXPECTED_SKIPS.read_text(encoding="utf-8").splitlines()
        expected = [re.compile(line) for line in lines if line and not line.startswith("#")]
        config.pluginmanager.register(StrictSkips(expected), "strict-skips")
