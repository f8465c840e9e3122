"""Settings of every test: offline, one thread for torch, and no silent skips on request."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)
# Environments that tests name by dotted path; worker processes find them there too.
sys.path.insert(0, str(Path(__file__).with_name("support")))

EXPECTED_SKIPS = Path(__file__).with_name("expected_skips.txt")


class StrictSkips:
    """Fails the run if a test was skipped for a reason that ``expected_skips.txt`` lacks."""

    def __init__(self, expected: list[re.Pattern[str]], config: pytest.Config) -> None:
        self._expected = expected
        self._worker = getattr(config, "workeroutput", None)
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
            line = f"{report.nodeid}: {reason}"
            self.unexpected += [line] if line not in self.unexpected else []

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A process of pytest-xdist ends: it alone knows of the modules that it skipped."""
        found = getattr(node, "workeroutput", {}).get("unexpected_skips", [])
        self.unexpected += [line for line in found if line not in self.unexpected]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._worker is not None:
            self._worker["unexpected_skips"] = self.unexpected
        elif self.unexpected and session.exitstatus == pytest.ExitCode.OK:
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
        config.pluginmanager.register(StrictSkips(expected, config), "strict-skips")
