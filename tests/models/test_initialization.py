"""Weights a model starts with."""

import pytest
import torch

from sad_components.models import from_scratch

CONFIG = {
    "model_type": "qwen2",
    "vocab_size": 97,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def repeated(num_rows: int, length: int = 24) -> torch.Tensor:
    """Rows of random tokens, none twice, each row written twice."""
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randperm(97, generator=generator)[:length] for _ in range(num_rows)]
    return torch.stack([torch.cat([row, row]) for row in rows])


@torch.no_grad()
def attention_behind_the_first(model, tokens_BS) -> float:
    """How much of its attention the best head of the second layer pays, at a token's second
    occurrence, to what stood behind its first one."""
    half = tokens_BS.shape[1] // 2
    hidden_BSD = model.layers[0](model.tok_embeddings(tokens_BS))
    layer, (rows, length) = model.layers[1], tokens_BS.shape
    attention, hidden_BSD = layer.attn, layer.sa_norm(hidden_BSD)
    queries, keys = (
        attention.pos_embeddings(projection(hidden_BSD).view(rows, length, -1, attention.head_dim))
        for projection in (attention.q_proj, attention.k_proj)
    )
    keys = keys.repeat_interleave(queries.shape[2] // keys.shape[2], 2)
    scores = torch.einsum("bihd,bjhd->bhij", queries, keys) / attention.head_dim**0.5
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, float("-inf")).softmax(-1)
    second = torch.arange(half, length - 1)
    return float(weights[:, :, second, second - half + 1].mean((0, 2)).max())


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_copying_model_looks_behind_equal_tokens_before_any_training(kv_heads):
    config = {**CONFIG, "num_key_value_heads": kv_heads}
    tokens = repeated(16)
    copying = from_scratch(config, std=None, init="copying", dtype="fp32")
    normal = from_scratch(config, std=None, dtype="fp32")
    assert attention_behind_the_first(copying, tokens) > 0.3
    assert attention_behind_the_first(normal, tokens) < 0.06


def test_a_copying_model_depends_on_its_seed_alone():
    first, second, other = (
        from_scratch(CONFIG, seed=seed, std=None, init="copying").state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["layers.0.attn.q_proj.bias"], other["layers.0.attn.q_proj.bias"])


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({}, {"init": "copying"}, "together with std: null.*got init 'copying' and std 0.02"),
        ({}, {"init": "zeros", "std": None}, "init is normal, or copying"),
        ({"model_type": "llama"}, {"init": "copying", "std": None}, "model_type: qwen2"),
        ({"rope_theta": 1.5}, {"init": "copying", "std": None}, "Raise either"),
    ],
)
def test_what_cannot_be_is_refused(change, settings, message):
    with pytest.raises(ValueError, match=message):
        from_scratch({**CONFIG, **change}, **settings)
