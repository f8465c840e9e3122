"""Our families in torchtune's own recipes: weights in, trained, and out as transformers' folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchtune
from hf_families import CONFIGS, VOCAB, write_reference
from loading import load_module
from omegaconf import OmegaConf
from torch.testing import assert_close
from torchtune.config import instantiate
from transformers import AutoModelForCausalLM

from sad_components.models.families import build_decoder
from sad_components.training.checkpointer import HFFolderCheckpointer

RECIPES = Path(torchtune.__file__).parents[1] / "recipes"
TOKENS = torch.arange(40).reshape(2, 20) % VOCAB
DATA = """
class Tokenizer:
    pad_id = 0


class Rows:
    def __init__(self, tokenizer, packed):
        pass

    def __len__(self):
        return 4

    def __getitem__(self, index):
        row = [(7 * index + 3 * i) % 97 for i in range(20)]
        return {"tokens": row, "labels": list(row)}


def tiny(name, **changes):
    from hf_families import CONFIGS
    from sad_components.models.families import build_decoder

    return build_decoder({**CONFIGS[name], **changes})
"""
CFG = {
    "output_dir": "out",
    "model": {
        **{"_component_": "own_parts.tiny", "name": "gpt2"},
        **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    },
    "tokenizer": {"_component_": "own_parts.Tokenizer"},
    "dataset": {"_component_": "own_parts.Rows", "packed": False},
    "checkpointer": {
        "_component_": "sad_components.training.checkpointer.HFFolderCheckpointer",
        **{"checkpoint_dir": "base", "output_dir": "out"},
    },
    "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-3},
    "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
    "metric_logger": {
        "_component_": "torchtune.training.metric_logging.DiskLogger",
        "log_dir": "logs",
    },
    **{"device": "cpu", "dtype": "fp32", "seed": 1, "shuffle": False, "batch_size": 2},
    **{"epochs": 2, "max_steps_per_epoch": None, "gradient_accumulation_steps": 1},
    **{"optimizer_in_bwd": False, "compile": False, "log_every_n_steps": 1},
    **{"enable_activation_checkpointing": False, "enable_activation_offloading": False},
    **{"resume_from_checkpoint": False, "save_adapter_weights_only": False},
}


def tensors(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """What a config of torchtune's recipes names; in an empty folder."""
    (tmp_path / "own_parts.py").write_text(DATA)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_parts", None)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_what_was_read_is_written(name, tmp_path):
    folder = write_reference(name, tmp_path / "base")
    node = {**CFG["checkpointer"], "checkpoint_dir": str(folder), "output_dir": str(tmp_path)}
    checkpointer = instantiate(OmegaConf.create(node), should_load_recipe_state=False)
    loaded = checkpointer.load_checkpoint()
    model = build_decoder(CONFIGS[name])
    model.load_state_dict(loaded["model"])
    checkpointer.save_checkpoint({"model": model.state_dict()}, epoch=0)
    before, after = tensors(folder), tensors(tmp_path / "epoch_0")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    half = {key: value.bfloat16() for key, value in loaded["model"].items()}
    checkpointer.save_checkpoint({"model": half}, epoch=1)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "epoch_1").dtype == torch.bfloat16
    assert not (tmp_path / "recipe_state").exists()


def run_full(cfg):
    module = load_module(RECIPES / "full_finetune_single_device.py")
    recipe = module.FullFinetuneRecipeSingleDevice(cfg)
    recipe.setup(cfg)
    recipe.train()
    recipe.cleanup()
    return recipe


def test_torchtunes_recipe_trains_gpt2_and_goes_on_after_an_epoch(parts, tmp_path):
    write_reference("gpt2", tmp_path / "base")
    model = run_full(OmegaConf.create(CFG))._model.eval()
    theirs = AutoModelForCausalLM.from_pretrained("out/epoch_1").eval()
    model.set_num_output_chunks(0)
    with torch.no_grad():
        assert_close(model(TOKENS), theirs(TOKENS).logits, atol=1e-4, rtol=0)
    embeddings = [tensors(f)["transformer.wte.weight"] for f in ("base", "out/epoch_1")]
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-4

    whole = tensors("out/epoch_1")
    run_full(  # epoch_1 lies there, but the recipe's state is that after epoch_0
        OmegaConf.create({**CFG, "resume_from_checkpoint": True})
    )
    resumed = tensors("out/epoch_1")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_run_with_adapters_goes_on_from_the_base_weights(tmp_path):
    folder = write_reference("gpt2", tmp_path / "base")
    first = HFFolderCheckpointer(folder, tmp_path / "out")
    weights = first.load_checkpoint()["model"]
    merged = {key: value + 1 for key, value in weights.items()}
    state = {"model": merged, "adapter": {"a": torch.ones(2)}, "epochs_run": 1}
    first.save_checkpoint(state, epoch=0, intermediate_checkpoint=True)
    resumed = HFFolderCheckpointer(folder, tmp_path / "out", should_load_recipe_state=True)
    found = resumed.load_checkpoint()
    assert found["epochs_run"] == 1
    assert torch.equal(found["adapter"]["a"], torch.ones(2))
    assert all(torch.equal(found["model"][key], weights[key]) for key in weights)


def test_mistakes_are_explained(tmp_path):
    folder = write_reference("opt", tmp_path / "base")
    checkpointer = HFFolderCheckpointer(folder, tmp_path / "out", should_load_recipe_state=True)
    with pytest.raises(ValueError, match=r"recipe_state.pt, which is written after every epoch"):
        checkpointer.load_checkpoint()
    with pytest.raises(ValueError, match="save_adapter_weights_only: false"):
        checkpointer.save_checkpoint({"adapter": {}}, epoch=0, adapter_only=True)
    (tmp_path / "out" / "recipe_state").mkdir(parents=True)
    saved = {"epoch": 2, "state": {}}
    torch.save(saved, tmp_path / "out" / "recipe_state" / "recipe_state.pt")
    with pytest.raises(ValueError, match=r"weights of its last epoch in .*epoch_2"):
        checkpointer.load_checkpoint()
