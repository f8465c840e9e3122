"""A collection survives kills at any point: no episode lost, none twice."""

import json
import multiprocessing
import random
import time

import pytest

from sad_components.evaluation.collection import Collection, jobs_of, task_stream
from sad_components.evaluation.policies import ExpertPolicy
from sad_components.evaluation.pool import EnvironmentPool
from sad_components.evaluation.rollout import Job, rollout
from sad_components.trajectory import read_jsonl

SETTINGS = {"policy": "expert"}


def collect(path, episodes=60, pause=0.0, slots=3):
    """Plays on until the file holds so many episodes; every fourth episode is not kept."""
    collection = Collection(path, SETTINGS)
    with EnvironmentPool("rooms.Rooms", {"tasks": episodes * 2, "pause": pause}, slots) as pool:
        jobs = jobs_of(task_stream(pool.env), [0])
        jobs = (job for job in jobs if job not in collection.played)
        for episode in rollout(ExpertPolicy(), pool, jobs):
            collection.add(episode, keep=int(episode.job.task) % 4 != 3, tokens=7)
            if collection.kept >= episodes:
                break
    return collection


def wait_for_size(path, size, process, seconds=60):
    """Until the file holds ``size`` bytes or its writer is done: no clock places the kill."""
    end = time.monotonic() + seconds
    while process.is_alive() and time.monotonic() < end:
        if path.exists() and path.stat().st_size >= size:
            return
        time.sleep(0.001)


def test_killed_ten_times_at_random(tmp_path):
    path, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    context = multiprocessing.get_context("fork")
    rng = random.Random(5)
    sizes = [0]
    for _ in range(10):
        process = context.Process(target=collect, args=(path, 60, 0.004))
        process.start()
        wait_for_size(path, sizes[-1] + rng.randint(1, 500), process)
        process.kill()
        process.join()
        sizes.append(path.stat().st_size)
    assert len(set(sizes)) > 4, f"the kills must fall at different places; sizes {sizes}"
    done = collect(path)
    collect(whole)
    # a batch that was cut off may end in another order; nothing is lost, twice or different
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())
    ids = [t.id for t in read_jsonl(path)]
    assert len(ids) == len(set(ids)) == done.kept == 60


@pytest.mark.parametrize("cut", ["file", "journal", "both"])
@pytest.mark.parametrize("left", [0, 1, 40])
def test_a_line_cut_off_is_played_again(tmp_path, cut, left):
    path, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    collect(whole, 12)
    collection = collect(path, 8)
    for kind, file in (("file", path), ("journal", collection.journal_path)):
        if cut in (kind, "both"):
            data = file.read_bytes()
            last = data[:-1].rfind(b"\n") + 1
            file.write_bytes(data[: last + left])
    collect(path, 12)
    ids = [t.id for t in read_jsonl(path)]
    assert sorted(ids) == sorted(t.id for t in read_jsonl(whole))


def test_what_was_dropped_is_not_played_again(tmp_path):
    path = tmp_path / "out.jsonl"
    collect(path, 8)
    again = Collection(path, SETTINGS)
    assert Job("3") in again.played
    assert (again.kept, again.tokens) == (8, 8 * 7)


def test_failed_episodes_are_tried_again(tmp_path):
    path = tmp_path / "out.jsonl"
    with EnvironmentPool("rooms.Rooms", {"tasks": ["raises", "5"]}) as pool:
        collection = Collection(path, SETTINGS)
        for episode in rollout(ExpertPolicy(), pool, [Job("gone"), Job("5")]):
            collection.add(episode, episode.failure is None, 1)
    assert set(Collection(path, SETTINGS).played) == {Job("5")}
    assert "gone" in collection.journal_path.read_text()


def test_two_kinds_of_episodes_do_not_mix(tmp_path):
    path = tmp_path / "out.jsonl"
    collect(path, 2)
    with pytest.raises(ValueError, match=r"other settings \(policy\)"):
        Collection(path, {"policy": "random"})
    assert Collection(path, {"policy": "random"}, overwrite=True).kept == 0


def test_an_existing_file_is_not_continued_unasked(tmp_path):
    path = tmp_path / "out.jsonl"
    collect(path, 2)
    with pytest.raises(ValueError, match="resume=True to go on"):
        Collection(path, SETTINGS, resume=False)


def test_damage_is_not_passed_over(tmp_path):
    path = tmp_path / "out.jsonl"
    collect(path, 3)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:30], lines[2]]) + "\n")
    with pytest.raises(ValueError, match=r"out\.jsonl:2 is not JSON"):
        Collection(path, SETTINGS)


def test_every_line_is_a_record(tmp_path):
    path = tmp_path / "out.jsonl"
    collection = collect(path, 5)
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [
        e["id"] for e in collection.played.values() if e["kept"]
    ]


def test_endless_tasks_come_once_each():
    class Endless:
        def tasks(self, count=None, seed=0):
            from sad_components.envs import NoSuchTask

            if count is None:
                raise NoSuchTask("no end")
            return [str(n) for n in range(seed, seed + count)]

    stream = task_stream(Endless(), seed=4)
    assert [next(stream) for _ in range(100)] == [str(n) for n in range(4, 104)]
