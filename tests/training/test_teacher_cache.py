"""The cache: what it stores, what it refuses, and that it equals the live teacher."""

from __future__ import annotations

import json
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sad_components.data.batch import collate
from sad_components.data.transform import TokenizedTrajectory
from sad_components.loss import Head, HiddenRows, LossSpec, SpanLoss, StructuredKDLoss, TopKRows
from sad_components.loss.functional import forward_kl
from sad_components.loss.teacher_rows import bucket_logits
from sad_components.models import from_scratch
from sad_components.models.hidden import head_of, stop_at_hidden
from sad_components.spans import SpanKind
from sad_components.training.teacher_cache import (
    CachedTeacher,
    CacheError,
    CacheWriter,
    HiddenCodec,
    LiveSource,
    SampledCodec,
    TopKCodec,
    report,
    shards,
    supervision,
)
from sad_components.training.teacher_cache.packing import IdSets, pack_bits, unpack_bits
from sad_components.training.teachers import LiveTeacher

VOCAB = 128
AGENT = supervision([SpanKind.REASON, SpanKind.ACT])
TOKENIZER = SimpleNamespace(chat_template=None, fingerprint="tok", vocab_size=VOCAB)


def model(seed: int, layers: int = 2):
    config = dict(model_type="llama", vocab_size=VOCAB, hidden_size=32, intermediate_size=64)
    config |= dict(num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1)
    config |= dict(max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=1e4)
    net = from_scratch({**config, "tie_word_embeddings": True}, seed=seed, dtype=torch.float32)
    net.tok_embeddings.weight.data *= 55  # so sharp that a few tokens hold the mass
    for layer in net.layers:
        layer.mlp.w2.weight.data *= 60  # .. and not only the one that was read
    return net


def make_rows(count: int = 7, seed: int = 0) -> list[TokenizedTrajectory]:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        n = int(rng.integers(8, 24))
        kinds = rng.integers(0, 4, n).astype(np.int8)
        kinds[-1] = SpanKind.ACT
        steps = np.arange(n) // 4
        rows.append(
            TokenizedTrajectory(rng.integers(0, VOCAB, n), kinds, steps, kinds == 9, id=f"row{i}")
        )
    return rows


ROWS = make_rows()


def make_codec(mode: str, teacher: LiveTeacher, **options):
    if mode == "hidden":
        return HiddenCodec(32, "float32", teacher.head)
    return {"topk": TopKCodec, "sampled": SampledCodec}[mode](k=64, vocab_size=VOCAB, **options)


def source_of(mode: str = "topk", seed: int = 1, **options) -> LiveSource:
    teacher = LiveTeacher(model(seed))
    codec = make_codec(mode, teacher, **options)
    device = torch.device("cpu")
    return LiveSource(
        teacher,
        codec,
        AGENT,
        pad_id=0,
        batch_size=1,
        device=device,
        weights={"teacher": f"seed {seed}"},
    )


def writer_of(root, source, rows=ROWS, rank=0, world=1, **settings) -> CacheWriter:
    codec = source.codec.settings()
    settings = {
        **{"vocab_size": VOCAB, "head": {"scale": 1.0, "softcap": None}, "codec": codec},
        **{"settings": codec, "chat_template": "none", "tokenizer": "tok"},
        **{"spans": {"supervise": ["reason", "act"]}, **source.fingerprint(), **settings},
    }
    return CacheWriter(
        root, source, {"train": rows}, settings, rows_per_shard=3, rank=rank, world=world
    )


def write(root, mode: str = "topk", **options) -> LiveSource:
    source = source_of(mode, **options)
    writer = writer_of(root, source)
    if mode == "hidden":
        shards.write_head(root, source.codec.head)
    writer.write()
    writer.finish()
    return source


def learn(teacher, student, loss: StructuredKDLoss, rows=ROWS, batch_size: int = 1):
    """Summed loss and the student's gradient over the rows."""
    student.zero_grad()
    total = 0.0
    spec = loss.spec
    counts = torch.ones(4, dtype=torch.float64)
    for start in range(0, len(rows), batch_size):
        batch = collate(rows[start : start + batch_size], 0, spec)
        chosen = spec.supervised(batch.span_ids_BS)
        hidden = HiddenRows(student(batch.tokens_BS)[chosen], head_of(student))
        out = loss.from_hidden(
            hidden,
            teacher.rows(batch, chosen),
            batch.targets_BS[chosen],
            batch.span_ids_BS[chosen],
            counts=counts,
        )
        out.loss.backward()
        total += float(out.loss)
    return total, torch.cat([p.grad.flatten() for p in student.parameters()])


def cosine(a, b) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def test_bits_and_id_sets_survive_packing():
    rng = np.random.default_rng(0)
    for bits in (1, 6, 9, 13):
        values = rng.integers(0, 1 << bits, (5, 7))
        assert (unpack_bits(pack_bits(values, bits), 7, bits) == values).all()
    for vocab, k in ((49152, 64), (128256, 64), (100, 64), (65, 64), (7, 3)):
        ids = np.sort(rng.integers(0, vocab, (50, k)), axis=1)  # repeats included
        ids[0], ids[1] = vocab - 1, 0
        sets = IdSets(k, vocab)
        packed = sets.encode(ids)
        assert packed.shape[1] == sets.bytes_per_token
        assert (sets.decode(packed) == ids).all()


def test_size_per_token_at_k_64():
    logits = torch.randn(3, 49152)
    for bits, limit in ((8, 160), (5, 140)):
        parts = TopKCodec(64, 49152, bits=bits).encode(logits, logits, torch.Generator())
        assert sum(p.nbytes for p in parts.values()) / 3 <= limit
    parts = SampledCodec(64, 49152).encode(logits, logits, torch.Generator())
    assert sum(p.nbytes for p in parts.values()) / 3 <= 140
    wide = TopKCodec(64, 128256)
    parts = wide.encode(torch.empty(0), torch.randn(1, 128256), torch.Generator())
    assert sum(p.nbytes for p in parts.values()) <= 200


@pytest.mark.parametrize("bits", [6, 8, 12])
def test_top_k_comes_back_within_the_width_of_a_code(bits):
    torch.manual_seed(0)
    logits = torch.randn(40, 1000) * 4
    codec = TopKCodec(32, 1000, temperatures=(2.0,), bits=bits)
    exact = TopKRows.from_logits(logits, 32, (1.0, 2.0))
    stored = codec.decode(codec.encode(logits, logits, torch.Generator()))
    assert (stored.ids_NK[:, 0] == exact.ids_NK[:, 0]).all()
    for t in (1.0, 2.0):
        p, q = (dense(rows, t) for rows in (exact, stored))
        torch.testing.assert_close(q.sum(-1), torch.ones(40), atol=1e-5, rtol=0)
        # a code's width in probability is largest at p^(2/3) / 2^bits
        assert (p - q).abs().max() < 3 * 2.0**-bits
        assert (p * (p / q).log()).nansum(-1).mean() < 4.0 ** (3 - bits)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_very_sharp_rows_keep_their_faint_tokens(temperature):
    """Logits that reach 60 nats down, heated: the stored divergence from itself stays tiny."""
    logits = torch.linspace(0, -60, 200).repeat(2, 1)
    codec = TopKCodec(64, 200, temperatures=(1.0, 4.0))
    exact = TopKRows.from_logits(logits, 64, (1.0, 4.0)).at(temperature)[0].sort().values
    stored = codec.decode(codec.encode(logits, logits, torch.Generator()))
    found = stored.at(temperature)[0].sort().values
    assert (exact.exp() * (exact - found)).sum() < 3e-4


def dense(rows: TopKRows, temperature: float) -> torch.Tensor:
    """Probabilities over 1000 ids and the tail."""
    masses = rows.at(temperature).exp()
    out = torch.zeros(len(masses), 1001).scatter(1, rows.ids_NK, masses[:, :-1])
    out[:, -1] = masses[:, -1]
    return out


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_hidden_states_give_the_live_loss_and_gradient(tmp_path, divergence, batch_size):
    """Bit-equal at the batch shape of caching; to rounding at another."""
    source = write(tmp_path, "hidden")
    kind = {"divergence": divergence, "temperature": 3.0}
    loss = StructuredKDLoss(reason=kind, act=kind, branch="own")
    student = stop_at_hidden(model(2, layers=1))
    live = learn(source.teacher, student, loss, batch_size=batch_size)
    cached = learn(CachedTeacher(tmp_path), student, loss, batch_size=batch_size)
    if batch_size == 1:
        assert cached[0] == live[0]
        assert torch.equal(cached[1], live[1])
    else:
        torch.testing.assert_close(cached[1], live[1], rtol=1e-4, atol=1e-4)


def test_top_k_gradient_is_near_the_live_one(tmp_path):
    source = write(tmp_path, "topk", temperatures=(1.0, 2.0))
    kind = {"temperature": 2.0}
    loss = StructuredKDLoss(reason=kind, act={}, branch="own")
    student = stop_at_hidden(model(2, layers=1))
    live, cached = (learn(t, student, loss) for t in (source.teacher, CachedTeacher(tmp_path)))
    assert cached[0] == pytest.approx(live[0], rel=0.02)
    assert cosine(cached[1], live[1]) > 0.999


def test_draws_give_the_forward_kl_and_its_gradient_on_average():
    """The mean of many caches errs far less than one of them, in masses and in value."""
    torch.manual_seed(0)
    codec = SampledCodec(k=12, vocab_size=VOCAB, draws=4)
    logits, student = torch.randn(1, VOCAB) * 2, torch.randn(1, VOCAB)
    generator = torch.Generator().manual_seed(0)
    shares, values = [], []
    for _ in range(600):
        rows = codec.decode(codec.encode(logits, logits, generator))
        assert len(set(rows.ids_NK[0].tolist())) == rows.ids_NK.shape[1]
        masses = rows.at(1.0)
        assert masses.exp().sum() == pytest.approx(1.0, abs=1e-5)
        shares.append(torch.zeros_like(student).scatter(1, rows.ids_NK, masses.exp()[:, :-1]))
        kl = forward_kl(bucket_logits(student, rows.ids_NK), masses)
        values.append(float(kl + rows.offsets[1.0]))
    mean, one, exact = torch.stack(shares).mean(0), shares[0], logits.softmax(-1)
    assert (mean - exact).norm() < 0.15 * (one - exact).norm()
    assert np.mean(values) == pytest.approx(float(forward_kl(student, logits)), rel=0.02)


def test_draws_keep_their_offsets_on_the_way_to_the_loss(tmp_path):
    source = write(tmp_path, "sampled")
    batch = collate(ROWS, 0, AGENT)
    rows = CachedTeacher(tmp_path).rows(batch, AGENT.supervised(batch.span_ids_BS))
    expected = torch.cat([e.parts["offsets_0"] for e in source.encode(ROWS)])
    assert torch.equal(rows.offsets[1.0], expected.float())


def test_draws_do_not_depend_on_the_order_of_rows():
    source = source_of("sampled", temperatures=(1.0, 2.0))
    forward, backward = source.encode(ROWS), source.encode(ROWS[::-1])[::-1]
    for a, b in zip(forward, backward):
        assert all(torch.equal(a.parts[name], b.parts[name]) for name in a.parts)


@pytest.mark.parametrize(
    ("mode", "loss", "message"),
    [
        ("sampled", SpanLoss("reverse_kl"), "forward_kl only.*mode topk gives.*mode hidden"),
        ("sampled", SpanLoss(temperature=2.0), "temperatures 1.0, but loss.act asks for 2.0"),
        ("topk", SpanLoss("jsd", temperature=2.0), "with mode hidden, which gives every one"),
    ],
)
def test_what_the_mode_cannot_give_is_refused_with_the_mode_that_can(tmp_path, mode, loss, message):
    write(tmp_path, mode)
    with pytest.raises(CacheError, match=message):
        CachedTeacher(tmp_path).check(LossSpec(act=loss, branch="own"), TOKENIZER, ROWS)


def test_what_the_mode_gives_is_accepted(tmp_path):
    write(tmp_path / "h", "hidden")
    write(tmp_path / "k", "topk", temperatures=(2.0,))
    hot = LossSpec(act=SpanLoss("tvd", temperature=7.0), branch="own")
    CachedTeacher(tmp_path / "h").check(hot, TOKENIZER, ROWS)
    warm = LossSpec(act=SpanLoss("jsd", temperature=2.0), branch="own")
    CachedTeacher(tmp_path / "k").check(warm, TOKENIZER, ROWS[:2])


def test_a_kind_that_was_not_cached_is_refused(tmp_path):
    write(tmp_path)
    spec = LossSpec(act=SpanLoss(), observation=SpanLoss())
    with pytest.raises(CacheError, match="no tokens of the span kinds observation"):
        CachedTeacher(tmp_path).check(spec, TOKENIZER, ROWS)


def other(**changes) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(TOKENIZER), **changes})


@pytest.mark.parametrize(
    ("tokenizer", "rows", "part"),
    [
        (other(fingerprint="new"), ROWS, 'different tokenizer: "tok" there, "new" here'),
        (other(chat_template="{{ x }}"), ROWS, "different chat template"),
        (TOKENIZER, make_rows(2, seed=5), r"other data: 2 of 2 rows are not in it \(row0, row1"),
        (TOKENIZER, [ROWS[0].take(slice(0, 5))], "other data: 1 of 1"),
    ],
)
def test_a_mismatch_says_which_part_differs(tmp_path, tokenizer, rows, part):
    write(tmp_path)
    with pytest.raises(CacheError, match=part):
        CachedTeacher(tmp_path).check(AGENT, tokenizer, rows)


def test_other_spans_over_the_same_tokens_are_named(tmp_path):
    write(tmp_path)
    changed = ROWS[1].take(slice(None))
    changed.span_ids = np.where(changed.span_ids == 3, 0, changed.span_ids)
    with pytest.raises(CacheError, match=r"other spans: 1 of 2 rows .*row1"):
        CachedTeacher(tmp_path).check(AGENT, TOKENIZER, [ROWS[0], changed])


def test_a_folder_of_another_cache_is_not_written_into(tmp_path):
    write(tmp_path)
    with pytest.raises(
        CacheError, match=r"different teacher weights: \"seed 1\" there, \"seed 2\""
    ):
        writer_of(tmp_path, source_of(seed=2))
    with pytest.raises(CacheError, match=r"different data \(train\)"):
        writer_of(tmp_path, source_of(), rows=ROWS[:4])
    with pytest.raises(CacheError, match=r"different settings \(bits\): 8 there, 6 here"):
        writer_of(tmp_path, source_of(bits=6))


def test_weights_of_another_folder_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    writer = writer_of(tmp_path / "cache", source_of(), weights_files="0" * 32)
    writer.write()
    writer.finish()
    with pytest.raises(CacheError, match="different teacher weights"):
        CachedTeacher(tmp_path / "cache", weights=str(tmp_path))


@pytest.mark.parametrize("verify", ["full", "lazy"])
@pytest.mark.parametrize("where", [0.02, 0.5, 0.999])
def test_a_flipped_byte_is_found_and_named(tmp_path, verify, where):
    write(tmp_path)
    victim = tmp_path / shards.shard_path("train", 1)
    flip(victim, where)
    with pytest.raises(CacheError, match=r"train/shard_00001.safetensors is damaged: its SHA-256"):
        learn(CachedTeacher(tmp_path, verify=verify), stop_at_hidden(model(2)), loss_of_agent())


def loss_of_agent() -> StructuredKDLoss:
    return StructuredKDLoss(branch="own")


def flip(path, where: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    path.write_bytes(bytes(data))


def test_a_flipped_byte_in_records_or_head_is_found(tmp_path):
    write(tmp_path, "hidden")
    for name in ("train/shard_00002.json", "head.safetensors"):
        before = (tmp_path / name).read_bytes()
        flip(tmp_path / name, 0.5)
        with pytest.raises(CacheError, match=f"{name} is damaged"):
            CachedTeacher(tmp_path)
        (tmp_path / name).write_bytes(before)
    CachedTeacher(tmp_path)


def test_the_recipe_mends_damaged_and_missing_shards_only(tmp_path):
    write(tmp_path)
    before = contents(tmp_path)
    flip(tmp_path / shards.shard_path("train", 1), 0.9)
    os.remove(tmp_path / shards.shard_path("train", 2))
    kept = tmp_path / shards.shard_path("train", 0)
    untouched = kept.stat().st_mtime_ns
    write(tmp_path)
    assert contents(tmp_path) == before
    assert kept.stat().st_mtime_ns == untouched


def contents(root) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_ranks_write_what_one_process_writes(tmp_path):
    write(tmp_path / "one")
    writers = [writer_of(tmp_path / "two", source_of(), rank=r, world=2) for r in range(2)]
    for w in reversed(writers):
        w.write()
    for w in reversed(writers):
        w.finish()
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_ten_kills_at_random_moments_leave_the_same_cache(tmp_path):
    rows, rng = make_rows(90, seed=3), np.random.default_rng(1)
    write_rows(tmp_path / "whole", rows)
    seen = []
    while len(seen) < 10:
        child = os.fork()
        if child == 0:
            try:
                write_rows(tmp_path / "killed", rows, slow=True)
            finally:
                os._exit(0)
        wait_for_a_shard_more(tmp_path / "killed", than=seen[-1] if seen else 0)
        time.sleep(float(rng.uniform(0.0, 0.02)))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child was done before it was killed"
        seen.append(len(list((tmp_path / "killed").rglob("*.safetensors"))))
    assert seen == sorted(seen)  # what was finished stayed
    write_rows(tmp_path / "killed", rows)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def wait_for_a_shard_more(root, than: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(root.rglob("*.safetensors"))) <= than:
        assert time.monotonic() < deadline, "no shard was written in a minute"
        time.sleep(0.001)


def write_rows(root, rows, slow: bool = False) -> None:
    source = source_of("sampled")
    if slow:
        encode = source.encode
        source.encode = lambda part: (time.sleep(0.02), encode(part))[1]
    writer = writer_of(root, source, rows)
    writer.write()
    writer.finish()


def test_an_unfinished_cache_is_not_used(tmp_path):
    writer_of(tmp_path, source_of()).write()
    with pytest.raises(CacheError, match="unfinished"):
        CachedTeacher(tmp_path)
    with pytest.raises(CacheError, match="no teacher cache in"):
        CachedTeacher(tmp_path / "nowhere")


def test_prefetched_rows_equal_read_ones_and_stay_few(tmp_path):
    write(tmp_path)
    batch = collate(ROWS, 0, AGENT)
    chosen = AGENT.supervised(batch.span_ids_BS)
    ahead, plain = CachedTeacher(tmp_path, prefetch_rows=4), CachedTeacher(tmp_path, verify="off")
    ahead.prefetch(ROWS[:3])
    ahead.prefetch(ROWS[3:])
    assert len(ahead._ahead) <= 4
    a, b = ahead.rows(batch, chosen), plain.rows(batch, chosen)
    assert torch.equal(a.ids_NK, b.ids_NK)
    assert torch.equal(a.at(1.0), b.at(1.0))
    assert not {place.key for place in batch.places} & set(ahead._ahead)


@pytest.mark.parametrize("ahead", [True, False])
def test_reading_that_fails_is_named_wherever_it_happens(tmp_path, monkeypatch, ahead):
    write(tmp_path)
    batch = collate(ROWS[2:3], 0, AGENT)
    teacher = CachedTeacher(tmp_path)

    def fail(key):
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(teacher, "_read", fail)
    if ahead:
        teacher.prefetch(ROWS[2:3])
    where = "ahead, in the thread teacher-cache" if ahead else "at once"
    expected = rf"'row2' .* \({where}\) from .*safetensors: RuntimeError: the disk is gone"
    with pytest.raises(CacheError, match=expected):
        teacher.rows(batch, AGENT.supervised(batch.span_ids_BS))


def test_a_loss_of_one_kind_reads_its_tokens_only(tmp_path):
    source = write(tmp_path, "hidden")
    spec = LossSpec(reason=SpanLoss(), branch="own")
    rows = [r for r in ROWS if (r.span_ids[1:] == SpanKind.REASON).any()]
    for row in rows:
        batch = collate([row], 0, spec)
        chosen = spec.supervised(batch.span_ids_BS)
        live, cached = (t.rows(batch, chosen) for t in (source.teacher, CachedTeacher(tmp_path)))
        torch.testing.assert_close(cached.hidden_ND, live.hidden_ND, atol=1e-5, rtol=1e-5)


def test_entropy_is_the_teachers_own(tmp_path):
    source = write(tmp_path)
    stored = json.loads((tmp_path / shards.ENTROPY).read_text())
    batch = collate(ROWS[2:3], 0, AGENT)
    rows = source.teacher.rows(batch, AGENT.supervised(batch.span_ids_BS))
    log_p = rows.logits().log_softmax(-1)
    assert stored["row2"] == pytest.approx(float(-(log_p.exp() * log_p).sum(-1).mean()), rel=1e-4)
    entries = [shards.read_entry(tmp_path, shards.shard_path("train", i)) for i in range(3)]
    found = report.totals(tmp_path, entries)
    assert found["rows"] == len(ROWS)
    assert found["supervised_tokens"] == sum(int((r.labels[1:] != -100).sum()) for r in ROWS)


def test_report_compares_with_the_exact_divergence_and_warns_of_low_entropy(tmp_path):
    source = source_of("topk", temperatures=(1.0, 2.0))
    student = stop_at_hidden(model(2, layers=1))
    found = report.compare(source, student, head_of(student), ROWS[:3])
    assert {(r["divergence"], r["temperature"]) for r in found} >= {("jsd", 2.0), ("tvd", 1.0)}
    for record in found:
        if record["temperature"] == 1.0 and record["divergence"] == "forward_kl":
            assert abs(record["bias"]) < 0.01
            assert record["cosine"] > 0.999
    low = {"rows": 1, "supervised_tokens": 2, "bytes": 3, "bytes_per_token": 1.5}
    text = "\n".join(report.lines({**low, "entropy": {"reason": 0.5, "act": 0.01}}))
    assert "warning: below 0.02: on act every divergence is nearly a cross-entropy" in text


def test_padded_vocabularies_are_cut_like_the_live_teachers(tmp_path):
    write(tmp_path, "hidden")
    teacher = CachedTeacher(tmp_path)
    teacher.cut_vocab(100)
    batch = collate(ROWS[:1], 0, AGENT)
    assert teacher.rows(batch, AGENT.supervised(batch.span_ids_BS)).logits().shape[1] == 100
    write(tmp_path / "k")
    with pytest.raises(CacheError, match="holds probabilities of 128 token ids"):
        CachedTeacher(tmp_path / "k").cut_vocab(100)


def test_head_keeps_bias_and_softcap(tmp_path):
    source = source_of("hidden")
    source.codec.head = Head(torch.randn(VOCAB, 32), torch.randn(VOCAB), 0.5, 30.0)
    writer = writer_of(tmp_path, source, head={"scale": 0.5, "softcap": 30.0})
    shards.write_head(tmp_path, source.codec.head)
    writer.write()
    writer.finish()
    hidden = torch.randn(2, 32)
    cached = CachedTeacher(tmp_path).codec.head
    assert torch.equal(cached.logits(hidden), source.codec.head.logits(hidden))
