"""A policy plays tasks: many episodes at once, whose failures are results like others."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sad_components.evaluation.policies.base import EpisodeView, Policy, Turn
from sad_components.evaluation.pool import EnvironmentPool, Failure, Request, Started
from sad_components.evaluation.turns import TurnReader
from sad_components.trajectory import Message, Trajectory


class Job(NamedTuple):
    """An episode to play.

    Args:
        task: id of the task.
        seed: tells episodes of one task apart.
    """

    task: str
    seed: int = 0


@dataclass
class Episode:
    """An episode that was played.

    Args:
        trajectory: the transcript.
        job: which episode.
        steps: actions done.
        invalid_actions: actions that were not possible.
        parse_failures: turns without an action.
        tokens: tokens that the policy generated; 0 where nobody counts.
        seconds: of wall-clock time that fell to it: a round's time is shared by its episodes.
        failure: ``hung``, ``died``, ``error`` or ``policy`` when it could not be played to its end.
        why: the failure in words.
        actions: what was done, in order.
        extra_scores: what the environment reported beside the reward at the last step.
        truncated: it ran out of steps.
    """

    trajectory: Trajectory
    job: Job
    steps: int = 0
    invalid_actions: int = 0
    parse_failures: int = 0
    tokens: int = 0
    seconds: float = 0.0
    failure: str | None = None
    why: str = ""
    actions: list[str] = field(default_factory=list)
    extra_scores: dict[str, float] = field(default_factory=dict)
    truncated: bool = False

    @property
    def won(self) -> bool:
        """Whether the task was solved; a failed episode was not."""
        return bool(self.trajectory.success) and self.failure is None

    def summary(self) -> dict[str, Any]:
        """Figures of the episode, plain JSON."""
        return {
            "id": self.trajectory.id,
            "task": self.job.task,
            "seed": self.job.seed,
            "task_type": self.trajectory.meta.get("task_type"),
            "won": self.won,
            "score": self.trajectory.score,
            "steps": self.steps,
            "invalid_actions": self.invalid_actions,
            "parse_failures": self.parse_failures,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 4),
            "truncated": self.truncated,
            "extra_scores": self.extra_scores,
            "failure": self.failure,
            "why": self.why,
            "actions": self.actions,
        }


@dataclass
class _Live:
    """An episode being played."""

    number: int
    episode: Episode
    view: EpisodeView
    done: bool = False

    def fail(self, kind: str, why: str) -> None:
        self.episode.failure, self.episode.why, self.done = kind, why, True


def rollout(
    policy: Policy, pool: EnvironmentPool, jobs: Iterable[Job], seed: int = 0
) -> Iterator[Episode]:
    """Plays every job and yields the episodes in the order of the jobs.

    As many episodes are played at once as the pool has slots. What comes out does not depend on
    how many those are, if the policy's turns do not.

    Args:
        policy: who plays.
        pool: where.
        jobs: what, each (task, seed) once.
        seed: of everything random in the policy.
    """
    player = _Rollout(policy, pool, seed)
    waiting: dict[int, Episode] = {}
    wanted = 0
    for number, episode in player.play(jobs):
        waiting[number] = episode
        while wanted in waiting:
            yield waiting.pop(wanted)
            wanted += 1


class _Rollout:
    def __init__(self, policy: Policy, pool: EnvironmentPool, seed: int) -> None:
        self._policy, self._pool, self._seed = policy, pool, seed
        self._reader = TurnReader(pool.env.format)
        self._live: dict[int, _Live] = {}

    def play(self, jobs: Iterable[Job]) -> Iterator[tuple[int, Episode]]:
        queue = iter(enumerate(jobs))
        while True:
            started = time.perf_counter()
            self._start(queue)
            if not self._live:
                return
            playing = [live for live in self._live.values() if not live.done]
            if playing:
                self._round(playing)
            seconds = (time.perf_counter() - started) / len(self._live)
            for slot, live in list(self._live.items()):
                live.episode.seconds += seconds
                if live.done:
                    del self._live[slot]
                    yield live.number, live.episode

    def _start(self, queue: Iterator[tuple[int, Job]]) -> None:
        free = [slot for slot in range(self._pool.slots) if slot not in self._live]
        new = {slot: job for slot, job in zip(free, queue)}
        requests = [Request(slot, "reset", (job.task,)) for slot, (_, job) in new.items()]
        for (slot, (number, job)), result in zip(new.items(), self._pool.call(requests)):
            self._live[slot] = self._open(slot, number, job, result)

    def _open(self, slot: int, number: int, job: Job, result: Started | Failure) -> _Live:
        env = self._pool.env
        told = Started(Message("user", ""), "", {}) if isinstance(result, Failure) else result
        parts = [env.name, job.task, env.variant, f"s{job.seed}" if job.seed else ""]
        trajectory = Trajectory(
            [told.first_message],
            id="-".join(part for part in parts if part),
            env=env.name,
            task=told.sentence or None,
            success=False,
            score=0.0,
            teacher=self._policy.name,
            format=env.format,
            meta=dict(told.about),
        )
        rng = random.Random(f"{self._seed}:{job.task}:{job.seed}")
        view = EpisodeView(slot, job.task, env.format, trajectory.messages, rng)
        live = _Live(number, Episode(trajectory, job), view)
        if isinstance(result, Failure):
            live.fail(result.kind, result.why)
        return live

    def _round(self, playing: list[_Live]) -> None:
        """One turn of every episode."""
        self._ask(playing, "admissible")
        self._ask(playing, "expert_turn")
        playing = [live for live in playing if not live.done]
        turns = self._policy.act([live.view for live in playing])
        acting = []
        for live, turn in zip(playing, turns, strict=True):
            if turn.failure is not None:
                live.fail("policy", turn.failure)
            else:
                acting.append((live, self._say(live, turn)))
        requests = [Request(live.view.session, "step", (action,)) for live, action in acting]
        for (live, _), result in zip(acting, self._pool.call(requests)):
            if isinstance(result, Failure):
                live.fail(result.kind, result.why)
            else:
                self._answer(live, *result)

    def _ask(self, playing: list[_Live], method: str) -> None:
        if method not in self._policy.needs:
            return
        alive = [live for live in playing if not live.done]
        results = self._pool.call([Request(live.view.session, method) for live in alive])
        for live, result in zip(alive, results):
            if isinstance(result, Failure):
                live.fail(result.kind, result.why)
            elif method == "admissible":
                live.view.admissible = result
            else:
                live.view.expert = result

    def _say(self, live: _Live, turn: Turn) -> str:
        episode, parsed = live.episode, self._reader.read(turn.message.text)
        live.view.messages.append(turn.message)
        episode.tokens += turn.tokens
        episode.parse_failures += not parsed.parsed
        episode.actions.append(parsed.action)
        return parsed.action

    def _answer(
        self, live: _Live, observation: str, reward: float, done: bool, info: dict[str, Any]
    ) -> None:
        episode = live.episode
        live.view.messages.append(Message("user", observation))
        episode.steps += 1
        episode.invalid_actions += not info["valid"]
        episode.trajectory.score = (episode.trajectory.score or 0.0) + reward
        episode.trajectory.success = bool(info["won"])
        episode.extra_scores = dict(info.get("scores") or {})
        episode.truncated = bool(info["truncated"])
        live.done = done
