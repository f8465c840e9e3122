"""A tiny random ``LlamaForCausalLM`` (grouped queries, tied embeddings) and its folder."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


@pytest.fixture
def tiny_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.2,  # far from zero, so that a wrong row order cannot hide
    )


@pytest.fixture
def tiny_llama(tiny_config) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config).eval()


@pytest.fixture
def tiny_folder(tiny_llama, tmp_path):
    """A folder in Hugging Face format, written by transformers itself."""
    folder = tmp_path / "tiny"
    tiny_llama.save_pretrained(folder)
    words = {f"w{i}": i for i in range(97)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="w1", eos_token="w2", pad_token="w0"
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 97, (3, 29), generator=torch.Generator().manual_seed(1))
