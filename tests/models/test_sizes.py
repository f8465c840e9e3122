"""Published sizes: their parameter counts, ours and in transformers, on the meta device."""

from __future__ import annotations

import doctest
import inspect
import sys
from copy import deepcopy

import pytest
import torch
from torchtune.models.llama2 import llama2_7b, llama2_13b
from torchtune.models.llama3_1 import llama3_1_8b
from torchtune.models.llama3_2 import llama3_2_1b, llama3_2_3b
from torchtune.models.mistral import mistral_7b
from torchtune.models.qwen2_5 import (
    qwen2_5_0_5b,
    qwen2_5_1_5b_base,
    qwen2_5_3b,
    qwen2_5_7b_base,
)
from transformers import AutoConfig, AutoModelForCausalLM

from sad_components.models import gpt2, opt, qwen3, sizes, smollm2
from sad_components.models.families import build_decoder, hf_config_of
from sad_components.models.hidden import num_parameters

OURS = [
    (gpt2.gpt2_124m, 124_439_808),
    (gpt2.gpt2_355m, 354_823_168),
    (gpt2.gpt2_774m, 774_030_080),
    (gpt2.gpt2_1558m, 1_557_611_200),
    (opt.opt_125m, 125_239_296),
    (opt.opt_350m, 331_196_416),
    (opt.opt_1_3b, 1_315_758_080),
    (opt.opt_2_7b, 2_651_596_800),
    (opt.opt_6_7b, 6_658_473_984),
    (opt.opt_13b, 12_853_473_280),
    (qwen3.qwen3_0_6b, 596_049_920),
    (qwen3.qwen3_1_7b, 1_720_574_976),
    (qwen3.qwen3_4b, 4_022_468_096),
    (qwen3.qwen3_8b, 8_190_735_360),
    (smollm2.smollm2_135m, 134_515_008),
    (smollm2.smollm2_360m, 361_821_120),
    (smollm2.smollm2_1_7b, 1_711_376_384),
]
TORCHTUNES = [
    (llama2_7b, 6_738_415_616),
    (llama2_13b, 13_015_864_320),
    (llama3_1_8b, 8_030_261_248),
    (llama3_2_1b, 1_235_814_400),
    (llama3_2_3b, 3_212_749_824),
    (mistral_7b, 7_241_732_096),
    (qwen2_5_0_5b, 494_032_768),
    (qwen2_5_1_5b_base, 1_543_714_304),
    (qwen2_5_3b, 3_085_938_688),
    (qwen2_5_7b_base, 7_615_616_512),
]


@pytest.mark.parametrize(("builder", "parameters"), OURS + TORCHTUNES)
def test_parameters(builder, parameters):
    """The config read off a named size describes as many parameters, here and in transformers."""
    with torch.device("meta"):
        model = builder()
        config = hf_config_of(model)
        twin = build_decoder(config)
        # transformers writes into what it is given
        theirs = AutoConfig.for_model(**deepcopy(config))
        reference = AutoModelForCausalLM.from_config(theirs)
    assert num_parameters(model) == num_parameters(twin) == parameters
    assert num_parameters(reference) == parameters
    assert hf_config_of(twin) == config


@pytest.mark.parametrize("builder", [builder for builder, _ in OURS])
def test_students_of_a_size(builder):
    with torch.device("meta"):
        student = builder(num_layers=3, max_seq_len=128, attn_dropout=0.1)
    assert len(student.layers) == 3
    assert student.max_seq_len == 128
    assert student.layers[0].attn.attn_dropout == 0.1
    if builder.__module__.startswith(("sad_components.models.gpt2", "sad_components.models.opt")):
        with torch.device("meta"):
            assert builder(num_layers=1, dropout=0.2).layers[0].mlp_scale.p == 0.2


@pytest.mark.parametrize("builder", [builder for builder, _ in OURS])
def test_adapters_of_a_size(builder):
    package = inspect.getmodule(builder).__package__
    module = __import__(package, fromlist=["_"])
    lora = getattr(module, f"lora_{builder.__name__}")
    with torch.device("meta"):
        plain = builder(num_layers=2)
        model = lora(["q_proj", "v_proj"], apply_lora_to_mlp=True, lora_rank=4, num_layers=2)
    added = {k: v for k, v in model.named_parameters() if "lora" in k}
    mlps = 2 if model.layers[0].mlp.w3 is None else 3
    assert len(added) == 2 * 2 * (2 + mlps)
    assert num_parameters(model) - sum(p.numel() for p in added.values()) == num_parameters(plain)
    qlora = getattr(module, f"qlora_{builder.__name__}")
    assert inspect.signature(qlora).parameters["quantize_base"].default is True
    assert qlora.__name__ == f"qlora_{builder.__name__}"


@pytest.mark.parametrize(("builder", "parameters"), OURS)
def test_sizes_are_named_and_described(builder, parameters):
    """The function is what its dotted path says, and says what it takes."""
    assert getattr(sys.modules[builder.__module__], builder.__name__) is builder
    assert f"{parameters:,} parameters with all" in builder.__doc__
    arguments = inspect.signature(builder).parameters
    assert {"num_layers", "max_seq_len", "attn_dropout"} <= set(arguments)
    with pytest.raises(TypeError, match="embed_dim"):
        builder(embed_dim=8)


def test_examples_in_docstrings():
    result = doctest.testmod(sizes)
    assert result.attempted > 0
    assert result.failed == 0


def test_rotary_settings_of_the_sizes():
    with torch.device("meta"):
        assert hf_config_of(smollm2.smollm2_135m())["rope_theta"] == 100_000
        assert hf_config_of(smollm2.smollm2_1_7b())["rope_theta"] == 130_000
        llama = hf_config_of(llama3_2_1b())
    assert llama["rope_scaling"]["factor"] == 32
    assert llama["rope_scaling"]["original_max_position_embeddings"] == 8192
