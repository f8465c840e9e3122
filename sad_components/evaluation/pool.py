"""Several copies of an environment, in this process or in workers that may fail or hang.

A worker that does not answer in time is killed and replaced. What its other copies were doing is
restored by replay, so that one hung episode costs no other.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from sad_components.envs import Environment, make_environment


class Request(NamedTuple):
    """One call: ``reset``, ``step``, ``admissible`` or ``expert_turn`` of a copy.

    Args:
        slot: which copy, 0-based.
        method: what to call.
        arguments: positional arguments.
    """

    slot: int
    method: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A call without a result.

    Args:
        kind: ``error`` (it raised), ``hung`` (no answer in time) or ``died`` (so did its process).
        why: for a person.
    """

    kind: str
    why: str


class Started(NamedTuple):
    """What a reset tells.

    Args:
        first_message: opens the transcript.
        sentence: the task in words.
        about: ``Environment.describe()``.
    """

    first_message: Any
    sentence: str
    about: dict[str, Any]


def serve(env: Environment, method: str, arguments: tuple[Any, ...]) -> Any:
    """The result of a request to one environment."""
    if method == "reset":
        observation = env.reset(*arguments)
        return Started(env.first_message(observation), env.task_sentence, env.describe())
    return getattr(env, method)(*arguments)


class EnvironmentPool:
    """Copies of one environment, called together.

    Args:
        name: of the environment (``make_environment``).
        options: its keyword arguments.
        slots: how many copies, made when first used.
        workers: processes; 0 plays in this process, where a hung environment cannot be stopped.
        timeout: seconds that a call may take in a worker (the first call, which starts the
            process, gets ``START_SECONDS`` more).

    Raises:
        ValueError: no slot, a negative number of workers, or a timeout that is not positive.
    """

    START_SECONDS = 120.0

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any] | None = None,
        slots: int = 1,
        workers: int = 0,
        timeout: float = 60.0,
    ) -> None:
        if slots < 1 or workers < 0 or timeout <= 0:
            raise ValueError(
                "a pool needs at least one slot, no negative number of workers and a positive "
                f"timeout; got slots={slots}, workers={workers}, timeout={timeout}"
            )
        self._name, self._options = name, dict(options or {})
        self.slots, self._timeout = slots, timeout
        self.env = make_environment(name, **self._options)
        self._copies: dict[int, Environment] = {0: self.env} if not workers else {}
        self._workers = [
            _Worker(name, self._options) for _ in range(min(workers, slots) if workers else 0)
        ]
        self._history: dict[int, tuple[str, list[str]]] = {}

    def call(self, requests: Sequence[Request]) -> list[Any]:
        """The results in the order of the requests; a :class:`Failure` where there is none.

        Args:
            requests: at most one per slot.
        """
        if not self._workers:
            results = [self._call_here(request) for request in requests]
        else:
            results = self._call_workers(requests)
        for request, result in zip(requests, results, strict=True):
            self._remember(request, result)
        return results

    def close(self) -> None:
        """Stops the workers and closes the environments."""
        for worker in self._workers:
            worker.stop()
        for env in {id(env): env for env in (*self._copies.values(), self.env)}.values():
            env.close()

    def __enter__(self) -> EnvironmentPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call_here(self, request: Request) -> Any:
        try:
            if request.slot not in self._copies:
                self._copies[request.slot] = make_environment(self._name, **self._options)
            return serve(self._copies[request.slot], request.method, request.arguments)
        except Exception as error:  # one episode's failure is that episode's result
            return Failure("error", _short(error))

    def _call_workers(self, requests: Sequence[Request]) -> list[Any]:
        by_worker: dict[int, list[Request]] = {}
        for request in requests:
            by_worker.setdefault(request.slot % len(self._workers), []).append(request)
        for number, own in by_worker.items():
            self._workers[number].send(own)
        results: dict[Request, Any] = {}
        for number, own in by_worker.items():
            results.update(self._receive(number, own))
        return [results[request] for request in requests]

    def _receive(self, number: int, requests: list[Request]) -> dict[Request, Any]:
        worker, results = self._workers[number], {}
        for position, request in enumerate(requests):
            answer = worker.receive(self._timeout + worker.extra_seconds(self.START_SECONDS))
            results[request] = answer
            if not isinstance(answer, Failure) or answer.kind == "error":
                continue
            worker.stop()
            self._workers[number] = _Worker(self._name, self._options)
            self._restore(number, without=request.slot)
            rest = requests[position + 1 :]
            self._workers[number].send(rest)
            results.update(self._receive(number, rest))
            break
        return results

    def _restore(self, number: int, without: int) -> None:
        """Replays in a new worker what the old one's other copies had played."""
        lost = [
            Request(slot, "restore", (task, list(actions)))
            for slot, (task, actions) in self._history.items()
            if slot % len(self._workers) == number and slot != without
        ]
        worker = self._workers[number]
        worker.send(lost)
        for _ in lost:
            seconds = self._timeout + worker.extra_seconds(self.START_SECONDS)
            answer = worker.receive(seconds)
            if isinstance(answer, Failure) and answer.kind != "error":
                return  # it fails again: the calls that wait for it will say so

    def _remember(self, request: Request, result: Any) -> None:
        if isinstance(result, Failure):
            self._history.pop(request.slot, None)
        elif request.method == "reset":
            self._history[request.slot] = (request.arguments[0], [])
        elif request.method == "step":
            self._history[request.slot][1].append(request.arguments[0])


@dataclass
class _Worker:
    """A process that holds environments; it dies with its pipe."""

    name: str
    options: dict[str, Any]
    _process: Any = None
    _pipe: Connection | None = None
    _fresh: bool = field(default=True)

    def send(self, requests: Sequence[Request]) -> None:
        if not requests:
            return
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, far = context.Pipe()
            self._process = context.Process(
                target=_serve_forever, args=(far, self.name, self.options), daemon=True
            )
            self._process.start()
            far.close()
        assert self._pipe is not None
        try:
            self._pipe.send(list(requests))
        except OSError:
            pass  # the process is dead: receive finds the pipe closed

    def extra_seconds(self, start_seconds: float) -> float:
        return start_seconds if self._fresh else 0.0

    def receive(self, seconds: float) -> Any:
        """The next result, or the failure to give one."""
        assert self._pipe is not None
        try:
            if not self._pipe.poll(seconds):
                return Failure("hung", f"no answer in {seconds:g} s")
            self._fresh = False
            return self._pipe.recv()
        except (EOFError, OSError):
            return Failure("died", "the environment's process ended")

    def stop(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process, self._pipe = None, None


def _serve_forever(pipe: Connection, name: str, options: dict[str, Any]) -> None:
    copies: dict[int, Environment] = {}
    while True:
        try:
            requests = pipe.recv()
        except (EOFError, OSError):
            return
        for slot, method, arguments in requests:
            try:
                if slot not in copies:
                    copies[slot] = make_environment(name, **options)
                result = serve(copies[slot], method, arguments)
            except Exception as error:
                result = Failure("error", _short(error))
            pipe.send(result)


def _short(error: BaseException) -> str:
    line = "".join(traceback.format_exception_only(error)).strip()
    return " ".join(line.split())[:300]
