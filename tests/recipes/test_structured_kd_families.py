"""The recipe end to end on pairs of other families: from scratch, and on SmolLM2's real weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from recipe_runs import run_recipe
from transformers import AutoModelForCausalLM

from sad_components.models import from_pretrained

CONFIGS = Path(__file__).parents[2] / "configs"
_GPT2 = {
    **{"model_type": "gpt2", "vocab_size": 512, "n_positions": 1024, "n_embd": 64, "n_head": 4},
    **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
_OPT = {
    **{"model_type": "opt", "vocab_size": 512, "hidden_size": 64, "ffn_dim": 128, "dropout": 0.0},
    **{"num_attention_heads": 4, "max_position_embeddings": 1024},
}
#: Of OPT 350M: the embeddings are narrower, and norms stand behind the sums.
_OPT_350M = {**_OPT, "word_embed_proj_dim": 32, "do_layer_norm_before": False}
_SMOLLM2 = {
    **{"model_type": "llama", "vocab_size": 512, "hidden_size": 72, "intermediate_size": 192},
    **{"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 1024},
    **{"rms_norm_eps": 1e-5, "rope_theta": 100_000.0, "tie_word_embeddings": True},
}
#: Settings of a teacher, and what its config calls the number of layers.
PAIRS = {
    "gpt2": (_GPT2, "n_layer"),
    "opt": (_OPT, "num_hidden_layers"),
    "opt-350m": (_OPT_350M, "num_hidden_layers"),
    "smollm2": (_SMOLLM2, "num_hidden_layers"),
}


def run(cfg: DictConfig) -> dict:
    """A whole run; its summary."""
    run_recipe(cfg)
    return json.loads((Path(cfg.output_dir) / "summary.json").read_text())


def check_student(folder: Path, vocab: int) -> None:
    """What was written computes in transformers what it computes here."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.arange(3, 40)[None] % vocab
    with torch.no_grad():
        expected = theirs(tokens).logits
        torch.testing.assert_close(
            from_pretrained(folder, dtype="fp32").eval()(tokens), expected, atol=3e-4, rtol=0
        )


@pytest.mark.parametrize("name", list(PAIRS))
def test_a_pair_from_scratch(name):
    shape, layers = PAIRS[name]
    cfg = OmegaConf.load(CONFIGS / "tiny" / "structured_kd.yaml")
    cfg.teacher.config = {**shape, layers: 4}
    cfg.student.config = {**shape, layers: 2}
    cfg.dataset.limit, cfg.heldout.limit = 16, 3
    cfg.epochs, cfg.eval_every_n_steps, cfg.metric_logger = 2, None, None
    summary = run(cfg)
    before, after = (summary["heldout"][when] for when in ("before", "after"))
    assert after["kl_reason"] < 0.8 * before["kl_reason"]
    assert after["kl_act"] < 0.8 * before["kl_act"]
    check_student(Path(cfg.output_dir) / "student", 512)


@pytest.mark.slow
@pytest.mark.skipif("SAD_DEMO_DIR" not in os.environ, reason="SAD_DEMO_DIR is not set")
def test_smollm2_and_fifteen_of_its_layers(tmp_path):
    """The quickstart's config, shortened, on the published weights."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "SmolLM2-135M-Instruct").symlink_to(
        Path(os.environ["SAD_DEMO_DIR"]).resolve()
    )
    cfg = OmegaConf.load(CONFIGS / "smollm2" / "135M_to_15layers_structured_kd.yaml")
    cfg.dtype, cfg.max_steps, cfg.heldout.limit, cfg.metric_logger = "fp32", 6, 2, None
    summary = run(cfg)
    assert summary["parameters"]["teacher"] == 134_515_008
    before, after = (summary["heldout"][when] for when in ("before", "after"))
    assert after["kl_reason"] < before["kl_reason"]
    assert after["kl_act"] < before["kl_act"]
    check_student(Path(cfg.output_dir) / "student", 49_152)
