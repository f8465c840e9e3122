"""A tiny random decoder and the tokenizer that the package ships."""

from __future__ import annotations

import pytest

from sad_components.data.tokenizers import HFTokenizer
from sad_components.models import from_scratch

TINY = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1.0e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="session")
def tokenizer():
    return HFTokenizer("shipped:household/tokenizer")


@pytest.fixture
def tiny_model():
    return from_scratch(TINY, seed=3).eval()
