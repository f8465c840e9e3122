"""Switches of the student: what they do to values and gradients, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from tiny_models import TOKENS, distance, gradients, logits, tiny_llama
from torchtune.modules import TransformerSelfAttentionLayer

from sad_components.models.hidden import stop_at_hidden
from sad_components.models.last_layer import hidden_at
from sad_components.models.lora import add_lora_
from sad_components.models.quantized import SCHEMES, Scheme
from sad_components.training import fp8
from sad_components.training.activations import checkpoint_layers_, unwrapped_layers
from sad_components.training.switches import Switches, prepare_qat_

CPU = torch.device("cpu")


def read(device=CPU, dtype=torch.float32, **keys) -> Switches:
    return Switches.read(OmegaConf.create(keys), device, dtype)


def test_without_switches_nothing_changes():
    model = tiny_llama()
    before = list(model.named_modules())
    switches = read()
    assert switches.apply_(model) == []
    assert [m for _, m in model.named_modules()] == [m for _, m in before]
    with switches.offload(model):
        assert model(TOKENS).shape == (2, 20, 61)
    assert switches.write_quantized("nowhere", "nowhere") == []


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_checkpointed_gradients_are_the_same(dtype):
    plain, checkpointed = tiny_llama(dtype), tiny_llama(dtype)
    assert "runs again" in read(activation_checkpointing=True).apply_(checkpointed)[0]
    assert list(plain.state_dict()) == list(checkpointed.state_dict())
    expected, found = gradients(plain), gradients(checkpointed)
    assert all(
        torch.equal(expected[n.replace("_checkpoint_wrapped_module.", "")], g)
        for n, g in found.items()
    )


def test_checkpointed_layers_run_twice_also_the_last_at_chosen_positions():
    plain, checkpointed = (stop_at_hidden(tiny_llama()) for _ in range(2))
    read(activation_checkpointing=True).apply_(checkpointed)
    runs = []
    for layer in checkpointed.modules():
        if isinstance(layer, TransformerSelfAttentionLayer):
            layer.mlp.register_forward_pre_hook(lambda mlp, args: runs.append(len(args[0][0])))
    chosen = TOKENS % 3 == 0
    grads = []
    for model in (plain, checkpointed):
        hidden_at(model, TOKENS, chosen).pow(2).sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert sorted(runs) == sorted([20, 20, int(chosen.sum()), int(chosen.sum())])


def test_checkpointed_layers_can_be_unwrapped_for_a_while():
    plain, model = tiny_llama(), tiny_llama()
    checkpoint_layers_(model)
    names = [name for name, _ in plain.named_modules()]
    wrapped = [name for name, _ in model.named_modules()]
    with unwrapped_layers(model):
        assert [name for name, _ in model.named_modules()] == names
    assert [name for name, _ in model.named_modules()] == wrapped != names
    with unwrapped_layers(plain):
        assert [name for name, _ in plain.named_modules()] == names


@pytest.mark.parametrize("switch", [{"fp8": "rowwise"}, {"qat": "int4"}])
def test_parameters_stay_the_same_objects(switch):
    model = tiny_llama()
    before = dict(model.named_parameters())
    read(**switch).apply_(model)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


@pytest.mark.parametrize("name", SCHEMES)
def test_qat_rounds_and_lets_gradients_through(name):
    plain, rounded = tiny_llama(), tiny_llama()
    line = prepare_qat_(rounded, Scheme(name, 16))
    assert f"14 linear layers round as {name} in groups of 16" in line
    assert 0.01 < distance(logits(rounded), logits(plain)) < 0.3
    exact, found = gradients(plain), gradients(rounded)
    assert exact.keys() == found.keys()
    for key, gradient in found.items():
        assert gradient.abs().max() > 0
        assert distance(gradient, exact[key]) < 0.5, key


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fp8": "e4m3"}, "fp8 is null, tensorwise or rowwise; got 'e4m3'"),
        ({"fp8": True}, "fp8 is null, tensorwise or rowwise; got True"),
        ({"qat": "int3"}, "qat is null, 8da4w or int4; got 'int3'"),
        ({"fp8": "rowwise", "qat": "int4"}, "both replace the student's linear layers"),
        ({"qat_group_size": 32}, "qat_group_size is of qat, which is null"),
        ({"qat": "int4", "qat_group_size": 0}, "positive even integer; got 0"),
        ({"activation_checkpointing": "yes"}, "activation_checkpointing is true or false"),
        ({"activation_offloading": True}, r"from a GPU .* the device is cpu"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_read(keys, message):
    with pytest.raises(ValueError, match=message):
        read(**keys)


@pytest.mark.parametrize("keys", [{"fp8": "tensorwise"}, {"qat": "8da4w"}])
def test_fp64_is_refused(keys):
    with pytest.raises(ValueError, match="the run's dtype is float64: set dtype: fp32"):
        read(dtype=torch.float64, **keys)


@pytest.mark.parametrize("keys", [{"fp8": "tensorwise"}, {"qat": "8da4w"}, {"qat": "int4"}])
def test_adapters_are_refused(keys):
    with pytest.raises(ValueError, match="without adapters, or leave out"):
        read(**keys).apply_(add_lora_(tiny_llama(), ["q_proj"]))


def test_group_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"24 does not divide .* use one of \[8, 16, 32\]"):
        read(qat="int4", qat_group_size=24).apply_(tiny_llama())


def test_uncompiled_fp8_on_a_gpu_is_warned_of(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(fp8, "_try", lambda *args: None)
    cuda = torch.device("cuda")
    assert "slower than bf16" in read(cuda, fp8="rowwise").apply_(tiny_llama())[-1]
    assert len(read(cuda, fp8="rowwise", compile=True).apply_(tiny_llama())) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_offloaded_gradients_are_the_same():
    device = torch.device("cuda")
    plain, offloaded = (stop_at_hidden(tiny_llama().to(device)) for _ in range(2))
    switches = read(device, activation_offloading=True, activation_checkpointing=True)
    switches.apply_(offloaded)
    tokens, grads = TOKENS.to(device), []
    for model, used in ((plain, read(device)), (offloaded, switches)):
        around = used.offload(model)
        for _ in range(2):
            with around:
                hidden = hidden_at(model, tokens, tokens % 3 == 0)
            hidden.pow(2).sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
