from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from sad_components.training import interrupts
from sad_components.training.interrupts import Interrupt


@pytest.fixture
def listening():
    made = []

    def make(**options) -> Interrupt:
        made.append(Interrupt(**options))
        made[-1].listen()
        return made[-1]

    yield make
    for interrupt in reversed(made):
        interrupt.restore()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_is_noted_and_handlers_come_back(listening, number):
    before = signal.getsignal(number)
    interrupt = listening()
    os.kill(os.getpid(), number)
    assert interrupt.received == number
    assert interrupt.exit_code == 128 + number
    assert interrupt.name == number.name
    interrupt.restore()
    assert signal.getsignal(number) is before


def test_process_that_heard_of_anothers_signal_ends_like_it(listening):
    assert listening().exit_code == 143


def test_signals_do_what_they_always_do_before_listening():
    before = signal.getsignal(signal.SIGINT)
    Interrupt()
    assert signal.getsignal(signal.SIGINT) is before


SECOND = """
import os, signal, sys
from sad_components.training.interrupts import Interrupt
Interrupt().listen()
os.kill(os.getpid(), signal.SIGTERM)
print("went on", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
print("went on again", flush=True)
"""


def test_second_signal_ends_the_process_at_once():
    done = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True)
    assert done.stdout == "went on\n"
    assert done.returncode == -signal.SIGTERM


def test_launcher_passing_the_signal_on_is_no_second_one(listening, monkeypatch):
    interrupt = listening(launched=True)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert interrupt.received == signal.SIGTERM
    ended = []
    monkeypatch.setattr(interrupts.os, "kill", lambda *args: ended.append(args))
    now = time.monotonic()
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: now + 4)
    signal.raise_signal(signal.SIGTERM)
    assert ended == [(os.getpid(), signal.SIGTERM)]
