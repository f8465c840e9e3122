"""A served model on a loopback server: what is sent, retries, pace, and answers that are none."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sad_components.evaluation.policies import EndpointPolicy
from sad_components.evaluation.pool import EnvironmentPool
from sad_components.evaluation.rollout import Job, rollout


def completion(text, **more):
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, **more}],
        "usage": {"completion_tokens": len(text.split())},
    }


def opener(request):
    """Looks as often as the task needs, then opens the door."""
    messages = request["messages"]
    task = next(m["content"] for m in messages if "Your door is" in m["content"])
    door = int(task.split("Your door is ")[1].rstrip("."))
    looked = sum("Action: look" in m["content"] for m in messages if m["role"] == "assistant")
    action = "look" if looked < door % 3 else f"open door {door}"
    return completion(f"Thought: So be it.\nAction: {action}")


class Fake:
    """Answers with what ``reply(request, number)`` gives: JSON, or (status, headers, body)."""

    def __init__(self, reply):
        self.requests, self.headers, self.times = [], [], []
        self.most_at_once = self._now = 0
        lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                with lock:
                    fake._now += 1
                    fake.most_at_once = max(fake.most_at_once, fake._now)
                    fake.times.append(time.monotonic())
                    fake.headers.append(dict(self.headers))
                    body = self.rfile.read(int(self.headers["content-length"]))
                    fake.requests.append(json.loads(body))
                    number = len(fake.requests)
                answer = reply(fake.requests[number - 1], number)
                status, headers, body = 200, {}, answer
                if isinstance(answer, tuple):
                    status, headers, body = answer
                time.sleep(0.02)
                with lock:
                    fake._now -= 1
                data = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status)
                for key, value in {**headers, "content-length": str(len(data))}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def stop(self):
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def serve():
    fakes = []

    def start(reply):
        fakes.append(Fake(reply))
        return fakes[-1]

    yield start
    for fake in fakes:
        fake.stop()


def play(fake, tasks=("0", "1", "2", "3"), seed=0, limits=None, **options):
    policy = EndpointPolicy(
        fake.url, "small", limits={"backoff": 0.01, "retries": 3, **(limits or {})}, **options
    )
    with EnvironmentPool("rooms.Rooms", {"tasks": 12}, slots=4) as pool:
        return list(rollout(policy, pool, [Job(t) for t in tasks], seed))


def test_it_plays(serve):
    fake = serve(lambda request, n: opener(request))
    episodes = play(fake, temperature=0.5, max_new_tokens=64, system="Be brief.")
    assert all(e.won for e in episodes)
    assert [e.steps for e in episodes] == [1, 2, 3, 1]
    assert episodes[0].tokens == 8  # as the server counts
    sent = fake.requests[-1]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("small", 0.5, 64)
    assert [m["role"] for m in sent["messages"]] == [
        "system", "user", "assistant", "user", "assistant", "user",
    ]  # fmt: skip
    assert fake.most_at_once > 1


def test_the_same_seed_sends_the_same_requests(serve):
    fakes = [serve(lambda request, n: opener(request)) for _ in range(3)]
    for fake, seed in zip(fakes, (0, 0, 1)):
        play(fake, seed=seed)
    sent = [sorted(json.dumps(r, sort_keys=True) for r in fake.requests) for fake in fakes]
    assert sent[0] == sent[1] != sent[2]


def test_a_key_from_the_environment(serve, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    fake = serve(lambda request, n: opener(request))
    play(fake, tasks=["0"], api_key_env="MY_KEY")
    assert fake.headers[0]["Authorization"] == "Bearer secret"
    monkeypatch.delenv("MY_KEY")
    play(fake, tasks=["0"], api_key_env="MY_KEY")
    assert "Authorization" not in fake.headers[-1]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_it_tries_again(serve, status):
    fake = serve(lambda r, n: (status, {}, "busy") if n <= 2 else opener(r))
    assert play(fake, tasks=["0"])[0].won
    assert len(fake.requests) == 3
    assert fake.requests[0] == fake.requests[2]


def test_retry_after_is_heeded(serve):
    fake = serve(lambda r, n: (429, {"retry-after": "0.4"}, "busy") if n == 1 else opener(r))
    assert play(fake, tasks=["0"])[0].won
    assert fake.times[1] - fake.times[0] >= 0.4


def test_waits_grow(serve):
    fake = serve(lambda r, n: (500, {}, "busy"))
    play(fake, tasks=["0"], limits={"backoff": 0.08})
    gaps = [b - a for a, b in zip(fake.times, fake.times[1:])]
    assert gaps[0] >= 0.08
    assert gaps[2] >= 0.32


@pytest.mark.parametrize(
    ("reply", "why", "requests"),
    [
        ((500, {}, "down"), "no answer after 4 tries; the last: HTTP 500: down", 4),
        ((401, {}, "who?"), "HTTP 401: who?", 1),
        ("<html>", "not JSON", 1),
        ({"error": "x"}, "no chat completion: KeyError", 1),
        ({"choices": []}, "no chat completion: IndexError", 1),
    ],
)
def test_a_failure_ends_its_episode_only(serve, reply, why, requests):
    fake = serve(lambda r, n: reply if "door is 1." in r["messages"][0]["content"] else opener(r))
    episodes = play(fake, tasks=["0", "1", "3"])
    assert [e.failure for e in episodes] == [None, "policy", None]
    assert why in episodes[1].why
    assert sum("door is 1." in r["messages"][0]["content"] for r in fake.requests) == requests


def test_nobody_there():
    class Gone:
        url = "http://127.0.0.1:9/v1"

    episode = play(Gone, tasks=["0"])[0]
    assert episode.failure == "policy"
    assert "ConnectError" in episode.why


def test_a_slow_server_times_out(serve):
    fake = serve(lambda r, n: time.sleep(0.5) or opener(r))
    episode = play(fake, tasks=["0"], limits={"timeout": 0.1, "retries": 1})[0]
    assert "ReadTimeout" in episode.why


def test_pace(serve):
    fake = serve(lambda request, n: opener(request))
    play(fake, tasks=["0", "3", "6", "9"], limits={"requests_per_minute": 600})
    assert fake.times[-1] - fake.times[0] >= 0.28  # four requests, a tenth of a second apart


def test_concurrency_is_bounded(serve):
    fake = serve(lambda request, n: opener(request))
    play(fake, limits={"concurrency": 1})
    assert fake.most_at_once == 1


def test_logprobs_and_reasoning_are_kept(serve):
    tokens = [{"token": "A", "logprob": -0.5}, {"token": "b", "logprob": -1.5}]

    def reply(request, n):
        answer = completion("Action: open door 0", logprobs={"content": tokens})
        answer["choices"][0]["message"]["reasoning_content"] = "Door 0 it is."
        return answer

    fake = serve(reply)
    turn = play(fake, tasks=["0"], logprobs=True)[0].trajectory.messages[1]
    assert fake.requests[0]["logprobs"] is True
    assert turn.logprobs == [-0.5, -1.5]
    assert turn.reasoning_content == "Door 0 it is."


def test_made_up_observations_are_cut(serve):
    text = "Action: look\nObservation: You win.\nAction: open door 9"
    fake = serve(lambda r, n: completion(text))
    episode = play(fake, tasks=["1"])[0]
    assert set(episode.actions) == {"look"}
    assert episode.trajectory.messages[1].text == "Action: look"
