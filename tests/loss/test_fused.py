"""The fused loss against the plain one, in value, gradients and metrics."""

from __future__ import annotations

import doctest
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sad_components.loss import (
    FusedStructuredKDLoss,
    Head,
    HiddenRows,
    LossOutput,
    StructuredKDLoss,
    TopKRows,
    fused,
    projection,
)
from sad_components.loss.functional import DIVERGENCES

SHAPES = [(1, 2, 3, 3), (3, 31, 5, 8), (47, 123, 7, 5)]  # N, V, student's D, teacher's D
TOLERANCE = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-12},
    torch.float32: {"rtol": 1e-4, "atol": 1e-6},
    torch.bfloat16: {"rtol": 5e-2, "atol": 5e-3},
}


@dataclass
class Case:
    """Hidden states, heads and what belongs to them; the first three carry gradients."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    teacher: HiddenRows | TopKRows | None
    targets: Tensor
    kinds: Tensor
    branch: Tensor
    weights: Tensor
    head_options: dict[str, Any]

    @classmethod
    def make(
        cls,
        shape: tuple[int, int, int, int] = SHAPES[-1],
        dtype: torch.dtype = torch.float32,
        bias: bool = False,
        **head_options: Any,
    ) -> Case:
        n, v, d, d_t = shape
        g = torch.Generator().manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=g, dtype=torch.float64).to(dtype)

        teacher = HiddenRows(normal(n, d_t), Head(normal(v, d_t), normal(v) if bias else None))
        return cls(
            normal(n, d).requires_grad_(),
            normal(v, d).requires_grad_(),
            normal(v).requires_grad_() if bias else None,
            teacher,
            torch.randint(head_options.get("vocab_size", v), (n,), generator=g),
            torch.randint(4, (n,), generator=g),
            torch.rand(n, generator=g) < 0.3,
            torch.rand(n, generator=g) + 0.5,
            head_options,
        )

    @property
    def leaves(self) -> list[Tensor]:
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None]

    def run(self, loss: StructuredKDLoss, rows: slice = slice(None)) -> LossOutput:
        head = Head(self.weight, self.bias, **self.head_options)
        teacher = self.teacher
        if isinstance(teacher, HiddenRows):
            teacher = HiddenRows(teacher.hidden_ND[rows], teacher.head)
        elif teacher is not None:
            teacher = teacher[rows]
        return loss.from_hidden(
            HiddenRows(self.hidden[rows], head),
            teacher,
            self.targets[rows],
            self.kinds[rows],
            self.branch[rows],
            counts=loss.spec.count(self.kinds, self.branch),
            weights_N=self.weights[rows],
        )

    def gradients(self, loss: StructuredKDLoss, upstream: float = 1.0) -> list[Tensor]:
        out = self.run(loss).loss * upstream
        return list(torch.autograd.grad(out, [x for x in self.leaves if x.requires_grad]))


def assert_equal(case: Case, options: dict[str, Any], chunk: int | None = None) -> None:
    """Value, gradients (scaled, too) and metrics of both losses."""
    plain, fast = StructuredKDLoss(**options), FusedStructuredKDLoss(**options, chunk_tokens=chunk)
    tolerance = TOLERANCE[case.hidden.dtype]
    expected, got = case.run(plain), case.run(fast)
    torch.testing.assert_close(got.loss, expected.loss, **tolerance)
    assert got.sums.keys() == expected.sums.keys()
    for name, sums in expected.sums.items():
        torch.testing.assert_close(
            got.sums[name], sums, msg=lambda m, n=name: f"{n}: {m}", **tolerance
        )
    for upstream in (1.0, 3.0):
        for a, b in zip(case.gradients(fast, upstream), case.gradients(plain, upstream)):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, **tolerance)
    assert any(g.abs().sum() > 0 for g in case.gradients(fast)) or not case.leaves


@pytest.mark.parametrize("chunk", [1, 5, 1000, None])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_equals_the_plain_loss(name, shape, chunk):
    case = Case.make(shape)
    case.kinds[0] = 1
    assert_equal(case, {"reason": {"divergence": name}, "act": {"divergence": name}}, chunk)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_dtypes(name, dtype):
    case = Case.make(dtype=dtype, bias=True)
    options = {"reason": {"divergence": name, "ce": 0.2}, "act": {"divergence": name, "ce": 0.2}}
    assert_equal(case, options, 5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_kind_in_its_own_way(name):
    """Different divergences, temperatures and CE in one call: rows are sorted into segments."""
    options = {
        "reason": {"divergence": name, "temperature": 2.0, "ce": 0.5, "weight": 2.0},
        "act": {"divergence": name, "weight": 0.3, "beta": 0.2, "alpha": 0.4},
        "observation": {"divergence": None, "ce": 1.0},
        "normalize": "pooled",
    }
    assert_equal(Case.make(dtype=torch.float64, bias=True), options, 4)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_one_temperature_for_all(name):
    kind = {"divergence": name, "temperature": 3.0, "ce": 0.1}
    assert_equal(Case.make(), {"reason": kind, "act": kind, "branch": "own"}, 16)


@pytest.mark.parametrize(
    "head",
    [
        {"scale": 0.25},
        {"softcap": 2.0},
        {"scale": 2.0, "softcap": 3.0},
        {"vocab_size": 100},
        {"scale": 0.5, "softcap": 2.0, "vocab_size": 100},
    ],
    ids=str,
)
@pytest.mark.parametrize("bias", [False, True])
def test_heads(head, bias):
    case = Case.make(bias=bias, **head)
    if "vocab_size" in head:
        teacher = case.teacher.head
        case.teacher.head = Head(teacher.weight_VD, teacher.bias_V, vocab_size=100)
    case.teacher.head.softcap = 5.0
    assert_equal(case, {"reason": {"temperature": 2.0}, "act": {"divergence": "jsd", "ce": 0.3}}, 9)


def test_imitation_without_a_teacher():
    case = Case.make()
    case.teacher = None
    assert_equal(case, {kind: {"divergence": None, "ce": 1.0} for kind in ("reason", "act")}, 10)


def test_a_divergence_needs_its_teacher():
    case = Case.make()
    case.teacher = None
    with pytest.raises(ValueError, match="there is none; give a teacher"):
        case.run(FusedStructuredKDLoss())


def test_vocabularies_must_agree():
    case = Case.make(vocab_size=120)
    with pytest.raises(ValueError, match=r"one shape; got \(47, 120\) and \(47, 123\)"):
        case.run(FusedStructuredKDLoss())


def test_chunk_must_have_tokens():
    with pytest.raises(ValueError, match="chunk_tokens must be at least 1, or null; got 0"):
        FusedStructuredKDLoss(chunk_tokens=0)


def test_a_tied_head_gets_both_gradients():
    """The embedding's own use and the head's, through one parameter."""
    tokens, case = torch.arange(47) % 31, Case.make((47, 31, 5, 8))

    def gradient(loss: StructuredKDLoss) -> Tensor:
        embedding = nn.Embedding(31, 5)
        embedding.weight.data.copy_(case.weight.detach())
        case_tied = Case(**{**vars(case), "hidden": embedding(tokens), "weight": embedding.weight})
        case_tied.run(loss).loss.backward()
        return embedding.weight.grad

    torch.testing.assert_close(
        gradient(FusedStructuredKDLoss(chunk_tokens=10)), gradient(StructuredKDLoss())
    )


@pytest.mark.parametrize("frozen", ["weight", "hidden"])
def test_frozen_parts_get_no_gradient(frozen):
    case = Case.make()
    getattr(case, frozen).requires_grad_(False)
    assert_equal(case, {}, 10)


@pytest.mark.parametrize("options", [{}, {"reason": {"temperature": 2.0}}], ids=["one", "sorted"])
@pytest.mark.parametrize("n", [47, 0])
def test_nothing_supervised_is_zero_and_in_the_graph(options, n):
    case = Case.make((n, 31, 5, 8), bias=True)
    case.kinds = torch.zeros_like(case.kinds)
    out = case.run(FusedStructuredKDLoss(**options))
    out.loss.backward()
    assert out.loss.item() == 0
    assert out.sums["count"].sum() == 0
    for leaf in case.leaves:
        assert leaf.grad.shape == leaf.shape
        assert (leaf.grad == 0).all()


def test_accumulation_gives_the_gradient_of_one_batch():
    case = Case.make((48, 31, 5, 8))
    case.kinds[:12], case.kinds[12:24] = 1, 0
    loss = FusedStructuredKDLoss(act={"divergence": "reverse_kl"}, chunk_tokens=7)
    whole = case.gradients(loss)
    for start in range(0, 48, 12):
        case.run(loss, slice(start, start + 12)).loss.backward()
    for leaf, expected in zip(case.leaves, whole):
        torch.testing.assert_close(leaf.grad, expected, **TOLERANCE[torch.float32])


def test_a_frozen_head_costs_no_product_for_its_gradient(monkeypatch):
    """As below adapters: the embedding that is the head, too, has no gradient."""

    def never(*arguments):
        raise AssertionError("the weight's gradient was computed")

    case = Case.make(bias=True)
    loss = FusedStructuredKDLoss()
    expected = case.gradients(loss)[0]
    monkeypatch.setattr(fused._ChunkLoop, "_add_to_weight", never)
    case.weight.requires_grad_(False)
    case.bias.requires_grad_(False)
    assert torch.equal(case.gradients(loss)[0], expected)


def test_no_grad_does_no_gradient_work(monkeypatch):
    case, loss = Case.make(), FusedStructuredKDLoss(chunk_tokens=10)
    expected = case.run(loss)

    def fail(*_: object) -> None:
        raise AssertionError("gradient work in evaluation")

    monkeypatch.setattr(fused._ChunkLoop, "_accumulate", fail)
    monkeypatch.setattr(fused.Workspace, "store_gradient", fail)
    with torch.no_grad():
        out = case.run(loss)
    assert not out.loss.requires_grad
    torch.testing.assert_close(out.loss, expected.loss.detach())
    torch.testing.assert_close(out.sums, expected.sums)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradcheck(name):
    case = Case.make((4, 7, 3, 3), torch.float64, bias=True, scale=0.7, softcap=3.0)
    case.kinds = torch.tensor([0, 1, 1, 2])
    loss = FusedStructuredKDLoss(
        reason={"divergence": name, "temperature": 2.0, "ce": 0.3}, act={"divergence": name}
    )

    def value(*leaves: Tensor) -> Tensor:
        case.hidden, case.weight, case.bias = leaves
        return case.run(loss).loss

    assert torch.autograd.gradcheck(value, case.leaves)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_extreme_logits_stay_finite(name):
    case = Case.make()
    case.weight.data[::3] *= 1e4
    case.teacher.head.weight_VD[::5] *= -1e4
    kind = {"divergence": name, "ce": 0.1}
    loss = FusedStructuredKDLoss(reason=kind, act=kind, chunk_tokens=10)
    assert case.run(loss).loss.isfinite()
    assert all(g.isfinite().all() for g in case.gradients(loss))
    torch.testing.assert_close(
        case.run(loss).loss, case.run(StructuredKDLoss(reason=kind, act=kind)).loss
    )


def test_a_second_backward_needs_retain_graph_and_equals_the_first():
    case = Case.make()
    out = case.run(FusedStructuredKDLoss()).loss * 2
    first = torch.autograd.grad(out, case.leaves, retain_graph=True)
    second = torch.autograd.grad(out, case.leaves)
    for a, b in zip(first, second):
        torch.testing.assert_close(a, b)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(out, case.leaves)


def test_the_gradient_of_the_head_is_handed_on_without_a_copy():
    case = Case.make()
    out = case.run(FusedStructuredKDLoss(chunk_tokens=10)).loss
    saved = next(x for x in out.grad_fn.saved_tensors if x is not None and x.shape == (123, 7))
    address = saved.data_ptr()
    del saved
    out.backward()
    assert case.weight.grad.data_ptr() == address


@pytest.mark.parametrize("name", ["forward_kl", "jsd"])
def test_autocast(name):
    case, kind = Case.make(), {"divergence": name}
    exact = case.gradients(StructuredKDLoss(reason=kind, act=kind))
    with torch.autocast("cpu", torch.bfloat16):
        got = case.gradients(FusedStructuredKDLoss(reason=kind, act=kind, chunk_tokens=10))
    for a, b in zip(got, exact):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=5e-2, atol=2e-3)


def test_products_in_bf16(monkeypatch):
    """Where 16-bit products are fast they are used, and summed in fp32."""
    monkeypatch.setattr(projection, "_cpu_multiplies_bf16", lambda: True)
    case = Case.make(dtype=torch.bfloat16, bias=True, softcap=10.0)
    assert_equal(case, {"reason": {"temperature": 2.0}, "act": {"ce": 0.1}}, 10)


def test_inside_a_compiled_step():
    case = Case.make()
    plain, fast = StructuredKDLoss(), FusedStructuredKDLoss(chunk_tokens=10)
    layer = nn.Linear(7, 7)

    def step(loss: StructuredKDLoss) -> Tensor:
        rows = Case(**{**vars(case), "hidden": layer(case.hidden.detach())})
        return rows.run(loss).loss

    gradients = []
    for run in (torch.compile(lambda: step(fast), backend="aot_eager"), lambda: step(plain)):
        layer.zero_grad()
        run().backward()
        gradients.append(layer.weight.grad.clone())
    torch.testing.assert_close(*gradients, **TOLERANCE[torch.float32])


def test_the_chunk_is_stated_and_bounded_by_memory():
    assert "chunk_tokens=7" in repr(FusedStructuredKDLoss(chunk_tokens=7))
    assert "MiB of logits on CPU" in repr(FusedStructuredKDLoss())
    loss, cpu = FusedStructuredKDLoss(), torch.device("cpu")
    chunk = loss.chunk_size(128256, torch.float32, cpu)
    assert chunk * 1.5 * 128256 * 4 <= fused.chunk_bytes(cpu)
    assert loss.chunk_size(10**12, torch.float32, cpu) == 1


def test_never_more_than_a_chunk_of_logits():
    """No tensor in the loop is larger than a chunk, whatever the number of tokens."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else [out]:
                if isinstance(x, Tensor):
                    largest = max(largest, x.numel())
            return out

    case = Case.make((200, 123, 2, 2))
    with Watch():
        case.run(FusedStructuredKDLoss(chunk_tokens=20)).loss.backward()
    assert largest <= 20 * 123


def test_a_sharded_head_is_gathered():
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    case = Case.make()
    loss = FusedStructuredKDLoss(chunk_tokens=10)
    expected = case.gradients(loss)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole = case.weight.detach()
        case.weight = distribute_tensor(whole, mesh, [Shard(0)]).requires_grad_()
        got = case.gradients(loss)
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(got[0], expected[0])
    torch.testing.assert_close(got[1].to_local(), expected[1])


def test_docstring_examples():
    result = doctest.testmod(fused)
    assert result.attempted > 0
    assert result.failed == 0


def test_room_of_one_call_is_the_next_ones_on_a_cpu():
    loss = FusedStructuredKDLoss()
    rows = HiddenRows(torch.randn(6, 4), Head(torch.randn(5, 4)))
    kinds, targets = torch.ones(6, dtype=torch.long), torch.arange(6) % 5

    def room(n):
        part = HiddenRows(rows.hidden_ND[:n], rows.head)
        loss.from_hidden(part, part, targets[:n], kinds[:n], counts=loss.spec.count(kinds[:n]))
        return {name: t.data_ptr() for name, t in loss._room._kept.items()}

    assert room(6) == room(2) == room(6)
    other = HiddenRows(rows.hidden_ND.double(), Head(rows.head.weight_VD.double()))
    out = loss.from_hidden(other, other, targets, kinds, counts=loss.spec.count(kinds))
    assert out.loss.dtype == torch.float64


def test_scoring_in_inference_mode_does_not_spoil_the_room_for_training():
    loss, head = FusedStructuredKDLoss(), Head(torch.randn(5, 4))
    kinds, targets = torch.ones(6, dtype=torch.long), torch.arange(6) % 5
    teacher = HiddenRows(torch.randn(6, 4), head)
    counts = loss.spec.count(kinds)
    with torch.inference_mode():
        loss.from_hidden(teacher, teacher, targets, kinds, counts=counts)
    hidden = torch.randn(6, 4, requires_grad=True)
    student = HiddenRows(hidden, head)
    loss.from_hidden(student, teacher, targets, kinds, counts=counts).loss.backward()
    assert hidden.grad.abs().sum() > 0


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_no_chunk_waits_for_a_device(name, temperature, monkeypatch):
    """On the meta device, where reading any value on the host is an error, as on no real one."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())  # knows no meta
    way = {"divergence": name, "temperature": temperature}
    loss = FusedStructuredKDLoss(reason=way, act={**way, "weight": 0.5}, chunk_tokens=8)
    case = Case.make((47, 123, 7, 5), torch.bfloat16)
    given = (case.hidden, case.weight, case.teacher.hidden_ND, case.teacher.head.weight_VD)
    hidden, weight, other, others = (t.detach().to("meta") for t in given)
    student = HiddenRows(hidden.requires_grad_(), Head(weight.requires_grad_()))
    targets, kinds, branch = (t.to("meta") for t in (case.targets, case.kinds, case.branch))
    counts = loss.spec.count(case.kinds, case.branch).to("meta")
    teacher = HiddenRows(other, Head(others))
    out = loss.from_hidden(student, teacher, targets, kinds, branch, counts=counts)
    out.loss.backward()
    assert hidden.grad.shape == case.hidden.shape
    assert weight.grad.shape == case.weight.shape
    with pytest.raises(RuntimeError, match="meta"):
        float(out.loss.detach())
