"""Every format takes time proportional to the text, on texts made to provoke the opposite."""

from __future__ import annotations

import gc
import time
from functools import partial

import pytest
from loading import load_module

from sad_components.formats import get_format, list_formats
from sad_components.formats.registry import all_evidence, segment, to_trajectory
from sad_components.trajectory import TrajectoryError

BENCHMARK = load_module("benchmarks/bench_formats.py")
SEEDS, MORE_SEEDS, USUAL = BENCHMARK.SEEDS, BENCHMARK.MORE_SEEDS, BENCHMARK.USUAL
FORMATS = [f.name for f in list_formats() if f.name != "canonical"]


def attempt(name, text, as_chat):
    format = next(f for f in list_formats() if f.name == name)
    row = {"raw": text}
    if as_chat:
        row = {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
        }
    return _seconds(lambda: segment(to_trajectory(row, format)))


def _seconds(work):
    """Without garbage collection, whose time depends on what else the process holds."""
    gc.disable()
    start = time.process_time()
    try:
        work()
    except TrajectoryError:
        pass
    finally:
        gc.enable()
    return time.process_time() - start


@pytest.mark.parametrize("as_chat", [False, True], ids=["text", "chat"])
@pytest.mark.parametrize("name", FORMATS)
def test_eight_times_the_text_takes_far_less_than_64_times(name, as_chat):
    for label, seed in SEEDS.items():
        small = seed * (8_000 // len(seed))
        fast = min(attempt(name, small, as_chat) for _ in range(3))
        slow = min(attempt(name, small * 8, as_chat) for _ in range(2))
        assert slow < 24 * fast + 0.02, f"{label}: {fast:.4f} s, then {slow:.4f} s"


def _evidence_time(text):
    return _seconds(lambda: all_evidence({"raw": text}))


@pytest.mark.parametrize("name", USUAL)
def test_a_megabyte_of_usual_turns_takes_less_than_a_second(name):
    text = USUAL[name] * (1_000_000 // len(USUAL[name]))
    format = get_format(name)
    assert min(_seconds(lambda: format.segment_text(text)) for _ in range(2)) < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", USUAL)
def test_four_times_a_quarter_megabyte_of_anything_takes_about_four_times_as_long(name):
    format = get_format(name)
    for label, seed in {**SEEDS, **MORE_SEEDS}.items():
        small = seed * (250_000 // len(seed))
        fast, slow = (_seconds(partial(format.segment_text, text)) for text in (small, small * 4))
        assert slow < 8 * fast + 0.05, f"{label}: {fast:.4f} s, then {slow:.4f} s"
        assert slow < 4, f"{label}: {slow:.4f} s for a megabyte"


def test_evidence_is_linear_too():
    for label, seed in SEEDS.items():
        small = seed * (8_000 // len(seed))
        fast, slow = (min(_evidence_time(t) for _ in range(3)) for t in (small, small * 8))
        assert slow < 24 * fast + 0.02, f"{label}: {fast:.4f} s, then {slow:.4f} s"


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(name, enabled):
    format = get_format(name)
    try:
        (gc.enable if enabled else gc.disable)()
        format.segment_text(USUAL[name])
        assert gc.isenabled() is enabled
        with pytest.raises(TrajectoryError):
            format.segment_text("nothing to cut")
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


def test_no_garbage_is_collected_while_a_text_is_cut():
    collections = []
    gc.callbacks.append(lambda phase, info: collections.append(phase))
    try:
        get_format("react").segment_text(USUAL["react"] * 2000)
        while_cutting = len(collections)
    finally:
        gc.callbacks.pop()
    assert while_cutting == 0
