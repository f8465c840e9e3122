"""Every family computes transformers' logits: whole rows, packed, padded, step by step.

The reference of a packed or padded row is transformers on each of its documents alone.
"""

from __future__ import annotations

import json

import pytest
import torch
from hf_families import CONFIGS, CONTEXT, VOCAB, reference, write_reference
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close
from torchtune import training
from transformers import AutoConfig, AutoModelForCausalLM

from sad_components.evaluation.decoding import CachedDecoder, Prefix
from sad_components.models import cut_student, from_pretrained, from_scratch, save_student
from sad_components.models.families import FAMILIES, family_of_model
from sad_components.models.hidden import head_of, restore_logits, stop_at_hidden
from sad_components.models.last_layer import hidden_at, saves_at

LENGTHS = (11, 18, 7)
CLOSE = {"atol": 1e-4, "rtol": 0}

pytestmark = pytest.mark.parametrize("name", list(CONFIGS))


@pytest.fixture
def folder(name, tmp_path):
    return write_reference(name, tmp_path / "reference")


@pytest.fixture
def theirs(name):
    return reference(name)


@pytest.fixture
def ours(folder):
    return from_pretrained(folder, dtype="fp32").eval()


@pytest.fixture
def documents() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(VOCAB, (length,), generator=generator) for length in LENGTHS]


@torch.no_grad()
def alone(theirs, documents: list[Tensor]) -> list[Tensor]:
    logits = [theirs(document[None]).logits[0] for document in documents]
    assert min(rows.std() for rows in logits) > 0.3, "too flat to tell anything"
    return logits


def causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


@torch.no_grad()
def test_whole_rows(ours, theirs):
    tokens = torch.randint(VOCAB, (3, CONTEXT), generator=torch.Generator().manual_seed(1))
    assert_close(ours(tokens), theirs(tokens).logits, **CLOSE)


@pytest.mark.parametrize("positions", ["given", "from the mask"])
@torch.no_grad()
def test_packed(ours, theirs, documents, positions, name):
    mask = torch.block_diag(*(causal(length) for length in LENGTHS))[None]
    given = {"mask": mask}
    if positions == "given":
        given["input_pos"] = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    logits = ours(torch.cat(documents)[None], **given)[0]
    assert_close(logits, torch.cat(alone(theirs, documents)), **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["given", "from the mask"])
@torch.no_grad()
def test_padded(ours, theirs, documents, side, positions, name):
    width = max(LENGTHS)
    tokens = torch.zeros(len(documents), width, dtype=torch.long)
    real = torch.zeros(len(documents), width, dtype=torch.bool)
    for row, document in enumerate(documents):
        where = slice(-len(document), None) if side == "left" else slice(len(document))
        tokens[row, where], real[row, where] = document, True
    mask = causal(width) & real[:, None] | torch.eye(width, dtype=torch.bool)
    given = {"mask": mask}
    if positions == "given":
        given["input_pos"] = (real.cumsum(1) - 1).clamp(min=0)
    logits = ours(tokens, **given)
    for row, expected in enumerate(alone(theirs, documents)):
        assert_close(logits[row, real[row]], expected, **CLOSE)


@torch.no_grad()
def test_step_by_step_with_torchtunes_cache(ours, theirs, documents):
    tokens = torch.stack([document[:7] for document in documents])
    expected = theirs(tokens).logits
    ours.setup_caches(batch_size=3, dtype=torch.float32, decoder_max_seq_len=9)
    seen = torch.ones(9, 9, dtype=torch.bool).tril()
    chunks = [range(4), range(4, 5), range(5, 6), range(6, 7)]
    for chunk in map(list, chunks):
        positions = torch.tensor(chunk).expand(3, -1)
        logits = ours(tokens[:, chunk], mask=seen[chunk].expand(3, -1, -1), input_pos=positions)
        assert_close(logits, expected[:, chunk], **CLOSE)


@torch.no_grad()
def test_step_by_step_left_padded(ours, theirs, documents):
    """As a batched generation does: prompts end together, positions differ."""
    width, limit = 8, 12
    prompts = [document[: 7 - row] for row, document in enumerate(documents)]
    pads = torch.tensor([width - len(prompt) for prompt in prompts])[:, None]
    tokens = torch.zeros(3, width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, -len(prompt) :] = prompt
    column = torch.arange(limit)
    seen = (column[:, None] >= column) & (column >= pads[..., None])
    seen |= torch.eye(limit, dtype=torch.bool)
    ours.setup_caches(batch_size=3, dtype=torch.float32, decoder_max_seq_len=limit)
    positions = (column - pads).clamp(min=0)
    logits = ours(tokens, mask=seen[:, :width], input_pos=positions[:, :width])[:, -1]
    for step in range(width, limit):
        expected = torch.stack([theirs(prompt[None]).logits[0, -1] for prompt in prompts])
        assert_close(logits, expected, **CLOSE)
        chosen = expected.argmax(-1)
        prompts = [torch.cat([p, token[None]]) for p, token in zip(prompts, chosen)]
        logits = ours(
            chosen[:, None], mask=seen[:, step : step + 1], input_pos=positions[:, step : step + 1]
        )[:, -1]


def test_cached_decoder_on_ragged_sequences(ours, theirs, documents):
    cached = CachedDecoder(ours, prefill_tokens=16)
    for shorter in (6, 5, 1, 0):
        sequences = [document[: len(document) - shorter].tolist() for document in documents]
        got = cached.logits([Prefix(i, ids) for i, ids in enumerate(sequences)])
        rows = alone(theirs, [torch.tensor(ids) for ids in sequences])
        assert_close(got, torch.stack([logits[-1] for logits in rows]), **CLOSE)


def test_hidden_states_at_chosen_positions_give_the_logits(ours, theirs, documents):
    tokens = torch.stack([document[:7] for document in documents])
    chosen = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(3)) < 0.4
    chosen[:, 5] = True
    with torch.no_grad():
        expected = theirs(tokens).logits[chosen]
        logits = head_of(ours).logits(hidden_at(stop_at_hidden(ours), tokens, chosen))
        assert_close(logits, expected, **CLOSE)
        assert_close(restore_logits(ours)(tokens)[chosen], expected, **CLOSE)


def test_last_layer_saves_what_it_can(ours, name):
    # the norms behind OPT 350M's residual sums are no torchtune layer
    assert saves_at(ours) == ("nothing" if name == "opt-350m" else "queries and mlp")


def test_gradients_reach_every_parameter(ours, documents):
    ours(documents[0][None]).logsumexp(-1).sum().backward()
    for parameter, values in ours.named_parameters():
        assert values.grad is not None, parameter
        # a bias of the keys shifts all of a query's scores alike: its gradient is zero
        assert values.grad.abs().sum() > 0 or "k_proj.bias" in parameter, parameter


def test_compiled_layers(ours, theirs, documents, monkeypatch, name):
    if name not in {"gpt2", "opt-350m", "qwen3-8b"}:
        return  # layers of the same classes
    monkeypatch.setenv("TORCH_COMPILE_BACKEND", "aot_eager")
    training.compile_model(ours, verbose=False)
    with torch.no_grad():
        assert_close(ours(documents[0][None])[0], alone(theirs, documents[:1])[0], **CLOSE)


def test_conversion_there_and_back_is_bit_identical(theirs, name):
    config = theirs.config.to_dict()
    family = FAMILIES[config["model_type"]]
    tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    hf = {k: v for k, v in theirs.state_dict().items() if k not in tied}
    tune = family.to_tune(theirs.state_dict(), config)
    back = family.to_hf(tune, config)
    assert back.keys() == hf.keys()
    assert all(torch.equal(back[key], hf[key]) for key in hf)
    again = family.to_tune(back, config)
    assert again.keys() == tune.keys()
    assert all(torch.equal(again[key], tune[key]) for key in tune)
    assert all(tensor.is_contiguous() for tensor in again.values())


def test_saved_folder_is_transformers_own(ours, folder, tmp_path):
    """Same config, same weights to the bit, same class."""
    saved = save_student(ours, tmp_path / "saved", tokenizer_dir=None)
    weights, expected = (load_file(path / "model.safetensors") for path in (saved, folder))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    configs = [AutoConfig.from_pretrained(path).to_dict() for path in (saved, folder)]
    for config in configs:
        for key in ("bos_token_id", "eos_token_id", "pad_token_id", "_name_or_path"):
            config.pop(key, None)
    assert configs[0] == configs[1]


def test_cut_student_is_the_reference_without_the_other_layers(folder, theirs, tmp_path):
    student = cut_student(folder, layers=[0, 2], dtype="fp32", dropout=0.0)
    stack = next(m for m in theirs.modules() if isinstance(m, nn.ModuleList))
    del stack[1]
    tokens = torch.randint(VOCAB, (2, 20), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = theirs(tokens, use_cache=False).logits
        assert_close(student(tokens), expected, **CLOSE)
        saved = AutoModelForCausalLM.from_pretrained(save_student(student, tmp_path / "cut"))
        assert_close(saved.eval()(tokens).logits, expected, **CLOSE)


def test_random_model_of_a_config(name, folder):
    first, same, other = (from_scratch(folder, seed=seed) for seed in (1, 1, 2))
    tokens = torch.arange(9)[None]
    assert torch.equal(first.eval()(tokens), same.eval()(tokens))
    assert not torch.equal(first(tokens), other.eval()(tokens))
    assert family_of_model(first).model_type == CONFIGS[name]["model_type"]


def test_sizes_that_are_missing_are_named(name, folder):
    config = json.loads((folder / "config.json").read_text())
    del config["vocab_size"]
    with pytest.raises(ValueError, match="must set vocab_size"):
        from_scratch(config)
