"""Checkpoints that are whole or not there, whatever stops the process that writes them."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from sad_components.training import checkpoints as module
from sad_components.training import durable
from sad_components.training.checkpoints import Checkpoints, CheckpointWriter, copied
from sad_components.training.config import ConfigError


def save(checkpoints: Checkpoints, step: int, text: str = "weights", **options) -> None:
    def write_weights(folder: Path) -> None:
        (folder / "student").mkdir()
        (folder / "student" / "model").write_text(text)

    checkpoints.save(step, {"step": step, "tensor": torch.ones(2)}, write_weights, **options)


def weights(folder: Path) -> str:
    return (folder / "student" / "model").read_text()


def steps(checkpoints: Checkpoints) -> list[int]:
    return [int(path.name[5:13]) for path in checkpoints.all()]


def test_everything_is_on_the_disk_before_the_name_and_the_name_after(tmp_path, monkeypatch):
    done = []
    fsync, rename = os.fsync, os.replace

    def noted_fsync(descriptor):
        done.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noted_rename(source, target):
        done.append(("rename", str(target)))
        rename(source, target)

    monkeypatch.setattr(durable.os, "fsync", noted_fsync)
    monkeypatch.setattr(durable.os, "replace", noted_rename)
    tmp_path = tmp_path / "new" / "run"
    save(Checkpoints(tmp_path), 1)
    place = tmp_path / "checkpoints" / "step_00000001"
    named = done.index(("rename", str(place)))
    aside = place.with_name("." + place.name)
    content = [aside / path.relative_to(place) for path in place.rglob("*")]
    assert len(content) == 4
    for path in (aside, *content):
        assert ("sync", str(path)) in done[:named], path
    assert ("sync", str(place.parent)) in done[named:]
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        assert ("sync", str(folder)) in done[:named]


class Crash(BaseException):
    """The process ends here: nothing after it runs."""


def crash_at(monkeypatch, number: int) -> list[int]:
    """Lets the process end at its ``number``-th change of the disk; a list that counts them."""
    count = [0]
    real = {"replace": os.replace, "rmtree": shutil.rmtree, "fsync": os.fsync}

    def changing(name):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] == number:
                if name == "rmtree" and Path(args[0]).is_dir():  # half of it is gone
                    for file in list(Path(args[0]).rglob("*.pt")):
                        file.unlink()
                raise Crash
            return real[name](*args, **kwargs)

        return call

    monkeypatch.setattr(durable.os, "replace", changing("replace"))
    monkeypatch.setattr(durable.os, "fsync", changing("fsync"))
    monkeypatch.setattr(module.shutil, "rmtree", changing("rmtree"))
    return count


@pytest.mark.parametrize("saved", [2, 3], ids=["replaced", "new"])
def test_a_crash_at_any_moment_leaves_a_whole_newest_checkpoint(tmp_path, monkeypatch, saved):
    number, crashed = 0, True
    while crashed:
        number += 1
        root = tmp_path / str(number)
        for step in (1, 2):
            save(Checkpoints(root), step, "before")
        with monkeypatch.context() as patch:
            crash_at(patch, number)
            try:
                save(Checkpoints(root), saved, "after")
                crashed = False
            except Crash:
                pass
        left = Checkpoints(root)
        for cleaned in (False, True):
            if cleaned:
                left.remove_leftovers()
                assert {p.name for p in left.path.iterdir()} == {p.name for p in left.all()}
            folder, state = left.load()
            assert (folder.name[:13], weights(folder), state["step"]) in (
                ("step_00000002", "before", 2),
                (f"step_{saved:08d}", "after", saved),
            )
    assert number > 12
    assert weights(left.load()[0]) == "after"


def test_names_of_other_things_are_no_checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    for name in ("step_2", "step_00000009.tmp", "step_new", ".step_00000003"):
        (checkpoints.path / name).mkdir()
    shutil.copytree(checkpoints.all()[0], checkpoints.path / "step_00000004.replaced")
    assert steps(checkpoints)[-1] == 4
    checkpoints.remove_leftovers()
    assert (checkpoints.path / "step_00000004").is_dir()
    assert not (checkpoints.path / ".step_00000003").exists()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("manifest.json", "no readable manifest.json"),
        ("student/model", "student/model is missing"),
        ("state.pt", "state.pt is not what was written"),
    ],
)
def test_damaged_newest_checkpoint_is_named_with_the_one_before(tmp_path, name, damage):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 2)
    file = checkpoints.path / "step_00000002" / name
    if name == "state.pt":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    expected = rf"step_00000002 is damaged \({damage}.*one before is .*step_00000001: move"
    with pytest.raises(ConfigError, match=expected):
        checkpoints.load()
    shutil.rmtree(checkpoints.path / "step_00000002")
    assert checkpoints.load()[1]["step"] == 1


def test_a_protected_checkpoint_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 6):
        save(checkpoints, step, protected=2 if step > 1 else None)
    assert steps(checkpoints) == [2, 4, 5]
    save(checkpoints, 6, protected=6)
    assert steps(checkpoints) == [5, 6]


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, "No space"), RuntimeError("disk"), SafetensorError("I/O error")],
)
def test_whatever_reports_a_full_disk_the_last_good_one_stays(tmp_path, failure):
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1)

    def fail(folder: Path) -> None:
        (folder / "model").write_text("half")
        raise failure

    with pytest.raises(OSError, match=r"last good one is .*step_00000001"):
        checkpoints.save(2, {"step": 2}, fail)
    assert [path.name for path in checkpoints.path.iterdir()] == ["step_00000001"]
    assert checkpoints.load()[1]["step"] == 1


# -- in the background ------------------------------------------------------------------------


class Weights:
    """A value that training changes, and a door that its writer waits at."""

    def __init__(self) -> None:
        self.value = torch.zeros(2)
        self.door = threading.Event()

    def snapshot(self, *, copy: bool):
        value = self.value.clone() if copy else self.value

        def write(folder: Path) -> None:
            assert self.door.wait(10)
            torch.save(value, folder / "value.pt")

        return write


def test_the_thread_writes_what_was_there_when_it_was_asked(tmp_path):
    checkpoints, current = Checkpoints(tmp_path), Weights()
    writer = CheckpointWriter(checkpoints, background=True)
    state = {"optimizer": {"state": {0: torch.ones(2)}, "steps": [1, (2, None)]}}
    writer.save(1, state, current.snapshot)
    current.value += 7
    state["optimizer"]["state"][0] += 7
    assert checkpoints.all() == []
    current.door.set()
    writer.wait()
    folder, loaded = checkpoints.load()
    assert torch.load(folder / "value.pt").tolist() == [0, 0]
    assert loaded["optimizer"]["state"][0].tolist() == [1, 1]
    assert loaded["optimizer"]["steps"] == [1, (2, None)]
    writer.close()


def test_the_next_save_waits_for_the_one_before(tmp_path):
    checkpoints, current = Checkpoints(tmp_path), Weights()
    writer = CheckpointWriter(checkpoints, background=True)
    writer.save(1, {}, current.snapshot)
    opener = threading.Timer(0.2, current.door.set)
    opener.start()
    writer.save(2, {}, current.snapshot)
    assert 1 in steps(checkpoints)
    writer.close()
    assert steps(checkpoints) == [1, 2]


@pytest.mark.parametrize("then", ["save", "close"])
def test_an_error_of_the_thread_is_raised(tmp_path, then):
    def fail(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    writer = CheckpointWriter(Checkpoints(tmp_path), background=True)
    writer.save(1, {}, lambda *, copy: fail)
    with pytest.raises(OSError, match="checkpoint of step 1 was not saved"):
        writer.close() if then == "close" else writer.save(2, {}, lambda *, copy: fail)
    writer.close()


def test_without_a_thread_nothing_is_copied(tmp_path):
    asked = []

    def snapshot(*, copy: bool):
        asked.append(copy)
        return lambda folder: (folder / "model").write_text("now")

    CheckpointWriter(Checkpoints(tmp_path)).save(1, {}, snapshot)
    assert asked == [False]
    assert steps(Checkpoints(tmp_path)) == [1]


def test_copies_share_no_memory():
    value = {"a": [torch.ones(1, requires_grad=True)], "b": (1, "text")}
    copy = copied(value)
    copy["a"][0] += 1
    assert value["a"][0].item() == 1
    assert not copy["a"][0].requires_grad
    assert copy["b"] == (1, "text")
