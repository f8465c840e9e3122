"""The cache from a server: a local one that answers as vLLM does, from a tiny model."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from sad_components.data.batch import collate
from sad_components.data.transform import TokenizedTrajectory
from sad_components.loss import TopKRows
from sad_components.models import from_scratch
from sad_components.spans import SpanKind
from sad_components.training.teacher_cache import (
    CachedTeacher,
    CacheError,
    CacheWriter,
    HiddenCodec,
    TopKCodec,
    supervision,
)
from sad_components.training.teacher_cache.server import ServerSource, ServerTeacher

VOCAB, K = 64, 12
AGENT = supervision([SpanKind.REASON, SpanKind.ACT])


def tiny():
    config = dict(model_type="llama", vocab_size=VOCAB, hidden_size=16, intermediate_size=32)
    config |= dict(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    config |= dict(max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=1e4)
    net = from_scratch({**config, "tie_word_embeddings": True}, seed=3, dtype=torch.float32)
    net.tok_embeddings.weight.data *= 40
    return net.eval()


def make_rows(count: int = 5) -> list[TokenizedTrajectory]:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        n = int(rng.integers(6, 14))
        kinds = rng.integers(0, 3, n).astype(np.int8)
        kinds[-1] = SpanKind.ACT
        zeros = np.zeros(n, dtype=np.int64)
        rows.append(
            TokenizedTrajectory(rng.integers(0, VOCAB, n), kinds, zeros, zeros == 1, id=f"r{i}")
        )
    return rows


class FakeServer(ThreadingHTTPServer):
    """``/v1/completions`` with ``prompt_logprobs``; the first ``failures`` requests get 503."""

    def __init__(self, failures: int = 0, max_logprobs: int = 64) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.failures, self.max_logprobs = tiny(), failures, max_logprobs
        self.asked = self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked += 1
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            failing = server.asked <= server.failures
        if failing:
            status, answer = 503, {"error": "busy"}
        elif request["prompt_logprobs"] > server.max_logprobs:
            status, answer = 400, {"error": f"max_logprobs is {server.max_logprobs}"}
        else:
            status, answer = 200, self.score(request)
        with server.lock:
            server.at_once -= 1
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def score(self, request):
        tokens = torch.tensor([request["prompt"]])
        with torch.no_grad():
            log_p = self.server.model(tokens)[0].float().log_softmax(-1)
        scored: list = [None]
        for t in range(1, tokens.shape[1]):
            top = log_p[t - 1].topk(request["prompt_logprobs"])
            entry = {str(int(i)): {"logprob": float(p)} for p, i in zip(*top)}
            own = int(tokens[0, t])  # vLLM adds the prompt's own token, whatever its rank
            entry.setdefault(str(own), {"logprob": float(log_p[t - 1, own])})
            scored.append(entry)
        return {"choices": [{"text": "x", "prompt_logprobs": scored}]}

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(**options) -> FakeServer:
        servers.append(FakeServer(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def connect(server, **options) -> ServerTeacher:
    return ServerTeacher(server.url, "tiny", **{"backoff": 0.01, "concurrency": 3, **options})


def write(root, teacher: ServerTeacher, rows, k: int = K) -> None:
    source = ServerSource(teacher, TopKCodec(k, VOCAB, bits=16), AGENT)
    settings = {"codec": source.codec.settings(), "vocab_size": VOCAB, **source.fingerprint()}
    settings["spans"] = {"supervise": ["reason", "act"]}
    writer = CacheWriter(root, source, {"train": rows}, settings, rows_per_shard=2)
    writer.write()
    writer.finish()


def test_a_server_gives_what_the_model_itself_gives(tmp_path, serve):
    server, rows = serve(failures=2), make_rows()
    write(tmp_path, connect(server), rows)
    assert server.asked == len(rows) + 2
    assert 1 <= server.most_at_once <= 3
    batch = collate(rows, 0, AGENT)
    chosen = AGENT.supervised(batch.span_ids_BS)
    cached = CachedTeacher(tmp_path).rows(batch, chosen)
    with torch.no_grad():
        exact = TopKRows.from_logits(server.model(batch.tokens_BS)[chosen], K)
    for mine, theirs in zip(aligned(cached), aligned(exact)):
        torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=2e-3)


def aligned(rows: TopKRows):
    """Ids in ascending order, and the probabilities in that order with the tail."""
    order = rows.ids_NK.argsort(-1)
    masses = rows.at(1.0).exp()
    yield rows.ids_NK.gather(-1, order)
    yield torch.cat([masses[:, :-1].gather(-1, order), masses[:, -1:]], dim=-1)


def test_what_was_scored_before_a_failure_is_not_asked_again(tmp_path, serve):
    server, rows = serve(), make_rows()
    teacher = connect(server, concurrency=1, retries=0)
    source = ServerSource(teacher, TopKCodec(K, VOCAB, bits=16), AGENT)
    assert source.encode(rows[:1])[0].counts
    server.asked, server.failures = 0, 0

    original = teacher.prompt_logprobs

    def dying(tokens, k):
        if server.asked >= 3:
            raise CacheError("the server went away")
        return original(tokens, k)

    teacher.prompt_logprobs = dying
    with pytest.raises(CacheError, match="went away"):
        write(tmp_path, teacher, rows)
    assert server.asked == 3  # one shard of two rows is whole, of the next one row was scored
    write(tmp_path, connect(server), rows)
    assert server.asked == 3 + 3


def test_a_server_that_stays_away_ends_with_what_to_do(tmp_path, serve):
    server = serve(failures=100)
    with pytest.raises(CacheError, match=r"3 tries \(status 503.*run the recipe again"):
        write(tmp_path, connect(server, retries=2), make_rows(1))
    server.shutdown()
    server.server_close()
    with pytest.raises(CacheError, match="ConnectError"):
        write(tmp_path / "gone", connect(server, retries=1), make_rows(1))


def test_a_server_with_too_few_logprobs_is_not_retried(tmp_path, serve):
    server = serve(max_logprobs=5)
    with pytest.raises(CacheError, match=r"refused: status 400: .*max_logprobs is 5"):
        write(tmp_path, connect(server, concurrency=1), make_rows(1))
    assert server.asked == 1


def test_an_answer_without_scores_is_explained(serve):
    teacher = connect(serve())
    teacher._post = lambda request: {"choices": [{"text": "x"}]}
    with pytest.raises(CacheError, match="must return prompt_logprobs for each of the 3 tokens"):
        teacher.prompt_logprobs([1, 2, 3], 4)
    source = ServerSource(teacher, TopKCodec(2, VOCAB), AGENT)
    with pytest.raises(CacheError, match="gave none for token 7"):
        source._top({"1": {"logprob": -1.0}}, 7)
    with pytest.raises(CacheError, match="must name 2 tokens a position; got 1"):
        source._top({"7": {"logprob": -1.0}}, 7)
    with pytest.raises(CacheError, match="another vocabulary"):
        source._top({"7": {"logprob": -1.0}, "640": {"logprob": -2.0}}, 7)


@pytest.mark.parametrize(
    "codec", [TopKCodec(K, VOCAB, temperatures=(2.0,)), HiddenCodec(16, "float32")]
)
def test_modes_that_a_server_cannot_fill_are_refused(serve, codec):
    with pytest.raises(CacheError, match="temperature 1 only"):
        ServerSource(connect(serve()), codec, AGENT)
