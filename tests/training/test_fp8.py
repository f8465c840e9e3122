"""FP8 layers: close to the plain ones in value and gradient, and honest about what they are."""

from __future__ import annotations

import pytest
import torch
from tiny_models import distance, gradients, logits, tiny_llama
from torchao.float8.float8_linear import Float8Linear

from sad_components.models.linear_layers import linear_layers
from sad_components.models.lora import add_lora_
from sad_components.training import fp8
from sad_components.training.fp8 import RECIPES, use_fp8_

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_values_and_gradients_are_near_the_plain_models(recipe, dtype):
    plain, rounded = tiny_llama(dtype), tiny_llama(dtype)
    use_fp8_(rounded, recipe, CPU)
    assert list(plain.state_dict()) == list(rounded.state_dict())
    assert 1e-3 < distance(logits(rounded), logits(plain)) < 0.1
    exact = gradients(plain)
    for name, gradient in gradients(rounded).items():
        assert distance(gradient.float(), exact[name].float()) < 0.25, name


def test_lines_say_emulated_and_what_is_left_out():
    model = tiny_llama(intermediate_size=88)
    lines = use_fp8_(model, "rowwise", CPU)
    assert "rowwise, emulated (cpu has no FP8 product), 8 linear layers" in lines[0]
    assert "6 left out, with a dimension that is no multiple of 16" in lines[1]
    assert "layers.0.mlp.w1: [88, 64]" in lines[1]
    assert not isinstance(model.output, Float8Linear)
    assert not isinstance(model.layers[0].mlp.w1, Float8Linear)
    assert isinstance(model.layers[0].attn.q_proj, Float8Linear)


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_tokens_go_through(recipe):
    model = tiny_llama()
    use_fp8_(model, recipe, CPU)
    nothing = torch.zeros(1, 0, 64, requires_grad=True)
    out = model.layers[0].mlp(nothing)
    out.sum().backward()
    assert out.shape == (1, 0, 64)
    assert nothing.grad.shape == nothing.shape


@pytest.mark.parametrize(
    ("capability", "recipe", "there"),
    [
        ((8, 0), "tensorwise", False),
        ((8, 9), "tensorwise", True),
        ((8, 9), "rowwise", False),
        ((9, 0), "rowwise", True),
    ],
)
def test_a_gpu_multiplies_for_real_where_it_can(monkeypatch, capability, recipe, there):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    tried = []
    monkeypatch.setattr(fp8, "_try", lambda config, *rest: tried.append(rest))
    model = tiny_llama()
    lines = use_fp8_(model, recipe, torch.device("cuda"))
    assert ("real" if there else "emulated") in lines[0]
    config = model.layers[0].mlp.w1.config
    assert config.emulate is not there
    assert config.pad_inner_dim
    assert tried == ([(recipe, torch.device("cuda"), torch.float32)] if there else [])


@pytest.mark.parametrize("recipe", RECIPES)
def test_products_that_do_not_run_in_the_models_dtype_are_refused(recipe, monkeypatch):
    """A device that says it has FP8 is tried before anything is trained."""
    monkeypatch.setattr(fp8, "has_fp8", lambda device, recipe: True)
    emulated = fp8.replace(fp8.Float8LinearConfig.from_recipe_name(recipe), emulate=True)
    fp8._try(emulated, recipe, CPU, torch.bfloat16)

    def forward(self, input):
        raise RuntimeError("Only bf16\n outputs")

    monkeypatch.setattr(fp8._Linear, "forward", forward)
    message = rf"{recipe} does not run on cpu .* float32 \(Only bf16 outputs\); use dtype: bf16"
    with pytest.raises(ValueError, match=message):
        use_fp8_(tiny_llama(), recipe, CPU)


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="fp8 is null, tensorwise or rowwise; got 'e5m2'"):
        use_fp8_(tiny_llama(), "e5m2", CPU)
    with pytest.raises(ValueError, match="none of this model's 14 linear layers"):
        use_fp8_(tiny_llama(hidden_size=24, intermediate_size=40), "tensorwise", CPU)
    with pytest.raises(ValueError, match=r"fp8 replaces plain .* without adapters"):
        use_fp8_(add_lora_(tiny_llama(), ["q_proj"]), "tensorwise", CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("recipe", RECIPES)
def test_real_products_are_near_the_emulated(recipe, monkeypatch):
    device = torch.device("cuda")
    if not fp8.has_fp8(device, recipe):
        pytest.skip("needs a CUDA device with FP8 products")
    real, emulated = (tiny_llama("bf16").to(device) for _ in range(2))
    use_fp8_(real, recipe, device)
    monkeypatch.setattr(fp8, "has_fp8", lambda device, recipe: False)
    use_fp8_(emulated, recipe, device)
    hidden = torch.randn(1, 19, 64, dtype=torch.bfloat16, device=device)
    outs = []
    for model in (real, emulated):
        layer = linear_layers(model)["layers.0.mlp.w1"]
        layer(hidden).float().sum().backward()
        outs.append((layer(hidden).float(), layer.weight.grad.float()))
    assert distance(outs[0][0], outs[1][0]) < 0.02
    assert distance(outs[0][1], outs[1][1]) < 0.02
