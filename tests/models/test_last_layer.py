"""The last layer at chosen positions only: the same numbers, by less work."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torchtune import training
from torchtune.models.gemma2._component_builders import gemma2
from torchtune.models.qwen2 import lora_qwen2
from torchtune.modules import RMSNorm

from sad_components.models import last_layer
from sad_components.models.gpt2 import gpt2
from sad_components.models.hidden import stop_at_hidden
from sad_components.models.last_layer import hidden_at, saves_at
from sad_components.models.qwen3 import qwen3
from sad_components.models.smollm2 import smollm2

B, S, V = 3, 19, 61
SIZES = {"num_layers": 2, "num_heads": 6, "num_kv_heads": 2, "embed_dim": 48, "max_seq_len": 32}


def _smollm2() -> nn.Module:
    return smollm2(vocab_size=V, intermediate_dim=80, **SIZES)


def _normed_heads() -> nn.Module:
    """With norms of queries and keys."""
    model = _smollm2()
    for layer in model.layers:
        layer.attn.q_norm, layer.attn.k_norm = RMSNorm(8), RMSNorm(8)
    return model


def _qwen3() -> nn.Module:
    """With norms before the positions."""
    return qwen3(vocab_size=V, intermediate_dim=80, head_dim=8, **SIZES)


def _gpt2() -> nn.Module:
    """With learned positions."""
    return gpt2(vocab_size=V, num_layers=2, num_heads=6, embed_dim=48, max_seq_len=32)


def _qwen2_lora() -> nn.Module:
    """With biases and adapters."""
    return lora_qwen2(
        ["q_proj", "k_proj", "v_proj", "output_proj"],
        apply_lora_to_mlp=True,
        vocab_size=V,
        intermediate_dim=80,
        lora_rank=4,
        lora_alpha=8,
        **SIZES,
    )


def _gemma2() -> nn.Module:
    """With an attention of its own class, and norms that sum gradients in float32."""
    return gemma2(
        vocab_size=V, intermediate_dim=80, head_dim=8, hidden_capping_value=20.0,
        final_capping_value=30.0, sliding_window_size=8, query_pre_attn_scalar=8, **SIZES
    )  # fmt: skip


BUILDERS = [_smollm2, _normed_heads, _qwen3, _gpt2, _qwen2_lora, _gemma2]


def _double(build) -> nn.Module:
    """In float64, every parameter random (adapters start at zero, norms at one)."""
    torch.manual_seed(0)
    model = build().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return stop_at_hidden(model)


def _chosen(share: float = 0.4) -> Tensor:
    """Rows with unequal counts, one of them none."""
    chosen = torch.rand(B, S, generator=torch.Generator().manual_seed(1)) < share
    chosen[0, :5] = True
    chosen[1] = False
    return chosen


def _documents() -> dict[str, Tensor]:
    """Two documents a row, as packing gives them."""
    first = 7
    mask = torch.ones(S, S, dtype=torch.bool).tril()
    mask[first:, :first] = False
    positions = torch.cat([torch.arange(first), torch.arange(S - first)])
    return {"mask": mask.expand(B, S, S), "input_pos": positions.expand(B, S)}


def _arbitrary() -> dict[str, Tensor]:
    mask = torch.rand(B, S, S, generator=torch.Generator().manual_seed(2)) < 0.5
    return {"mask": mask | torch.eye(S, dtype=torch.bool)}


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(V, (B, S), generator=torch.Generator().manual_seed(3))


def _results(model: nn.Module, hidden) -> list[Tensor]:
    """What ``hidden`` gives and the gradients of a sum weighted at random."""
    model.zero_grad(set_to_none=False)
    out = hidden()
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(4), dtype=out.dtype)
    (out * weights).sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [out.detach(), *grads]


def _assert_same(ours: list[Tensor], plain: list[Tensor], atol: float = 1e-10) -> None:
    assert len(ours) == len(plain)
    for a, b in zip(ours, plain):
        torch.testing.assert_close(a, b, atol=atol, rtol=atol)


def _positions_of_last_mlp(model: nn.Module) -> list[int]:
    """Filled with how many positions each call of the last layer's MLP sees."""
    seen: list[int] = []
    mlp = last_layer._unwrapped(model.layers[-1]).mlp
    mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:-1].numel()))
    return seen


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("attention", [dict, _documents, _arbitrary])
def test_equals_the_plain_path_in_value_and_gradient(build, attention, tokens):
    model, chosen = _double(build), _chosen()
    given = attention()
    plain = _results(model, lambda: model(tokens, **given)[chosen])
    seen = _positions_of_last_mlp(model)
    ours = _results(model, lambda: hidden_at(model, tokens, chosen, **given))
    _assert_same(ours, plain, 1e-5 if build is _gemma2 else 1e-10)
    assert seen == [chosen.sum()]
    assert model(tokens).shape == (B, S, 48)  # other calls see nothing of it


def test_positions_given_once_for_all_rows(tokens):
    model, chosen = _double(_smollm2), _chosen()
    given = {"input_pos": torch.arange(3, 3 + S)}
    plain = _results(model, lambda: model(tokens, **given)[chosen])
    _assert_same(_results(model, lambda: hidden_at(model, tokens, chosen, **given)), plain)


@pytest.mark.parametrize("build", [_smollm2, _gemma2])
def test_nothing_chosen_keeps_the_graph(build, tokens):
    model = _double(build)
    out, *grads = _results(model, lambda: hidden_at(model, tokens, torch.zeros(B, S, dtype=bool)))
    assert out.shape == (0, 48)
    assert len(grads) == len(list(model.parameters()))
    assert all(torch.count_nonzero(g) == 0 for g in grads)


def test_nearly_everything_chosen_takes_the_plain_path(tokens):
    model = _double(_smollm2)
    seen = _positions_of_last_mlp(model)
    every = torch.ones(B, S, dtype=torch.bool)
    every[0, 0] = False
    assert torch.equal(hidden_at(model, tokens, every), model(tokens)[every])
    assert seen == [B * S, B * S]


def test_queries_are_projected_at_chosen_positions_only(tokens):
    model, chosen = _double(_smollm2), _chosen()
    shapes = []
    attn = model.layers[-1].attn
    attn.q_proj.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    hidden_at(model, tokens, chosen)
    assert shapes == [(B, int(chosen.sum(dim=1).max()), 48)]


def test_attention_that_is_not_causal(tokens):
    model, chosen = _double(_smollm2), _chosen()
    for layer in model.layers:
        layer.attn.is_causal = False
    plain = _results(model, lambda: model(tokens)[chosen])
    _assert_same(_results(model, lambda: hidden_at(model, tokens, chosen)), plain)


def test_activation_checkpointing_runs_the_layer_anew_at_the_same_positions(tokens):
    model, chosen = _double(_smollm2), _chosen()
    plain = _results(model, lambda: model(tokens)[chosen])
    for i, layer in enumerate(model.layers):
        model.layers[i] = checkpoint_wrapper(layer)
    seen = _positions_of_last_mlp(model)
    _assert_same(_results(model, lambda: hidden_at(model, tokens, chosen)), plain)
    assert seen == [chosen.sum()] * 2


def test_compiled_layers(tokens, monkeypatch):
    monkeypatch.setenv("TORCH_COMPILE_BACKEND", "aot_eager")
    model, chosen = _double(_smollm2), _chosen()
    plain = _results(model, lambda: model(tokens)[chosen])
    training.compile_model(model, verbose=False)
    for _ in range(2):
        _assert_same(_results(model, lambda: hidden_at(model, tokens, chosen)), plain)
    other = _chosen(0.2)
    assert torch.allclose(hidden_at(model, tokens, other), model(tokens)[other], atol=1e-10)


def test_a_copy_has_a_hook_of_its_own(tokens):
    model, chosen = _double(_smollm2), _chosen()
    ours = hidden_at(model, tokens, chosen)
    other = copy.deepcopy(model)
    with torch.no_grad():
        model.norm.scale.zero_()
        model.layers[-1].mlp.w1.weight.zero_()
    assert torch.equal(hidden_at(other, tokens, chosen), ours)


def test_says_what_it_saves():
    assert [saves_at(build()) for build in BUILDERS] == ["queries and mlp"] * 5 + ["mlp"]
    cached = _smollm2()
    cached.setup_caches(batch_size=1, dtype=torch.float32)
    assert saves_at(cached) == "nothing"
    assert saves_at(nn.Linear(2, 2)) == "nothing"


def test_another_kind_of_layer_takes_the_plain_path(tokens):
    class Doubled(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, *args, **kwargs) -> Tensor:
            return 2 * self.layer(*args, **kwargs)

    model, chosen = _double(_smollm2), _chosen()
    model.layers[-1] = Doubled(model.layers[-1])
    assert saves_at(model) == "nothing"
    assert torch.equal(hidden_at(model, tokens, chosen), model(tokens)[chosen])
