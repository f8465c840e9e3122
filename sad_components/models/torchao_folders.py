"""Models with linear weights in one of torchao's formats, in folders that reload without pickle.

A quantised weight is a tensor made of tensors. ``model.safetensors`` holds those under the weight's
name and theirs (``layers.0.attn.q_proj.weight.qdata``); ``config.json`` names the scheme under
``quantization_config``. Reading quantises a layer of zeros by the same scheme, which gives the
structure, and puts the stored tensors in.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.dtypes import Int4CPULayout
from torchao.float8.inference import Float8MMConfig
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    PerAxis,
    PerTensor,
    quantize_,
)
from torchao.quantization.quantize_.workflows.float8.float8_tensor import (
    Float8Tensor,
    QuantizeTensorToFloat8Kwargs,
)
from torchtune.modules import TransformerDecoder

from sad_components.models.checkpoint import HFCheckpoint, save_hf_folder
from sad_components.models.families import build_decoder
from sad_components.models.linear_layers import check_no_adapters, linear_layers
from sad_components.models.pretrained import fill_

METHOD = "sad_torchao"
_FLOAT8 = torch.float8_e4m3fn


def _float8_dynamic(layer: nn.Linear) -> None:
    """What ``Float8DynamicActivationFloat8WeightConfig`` does where the GPU has such products."""
    kwargs = QuantizeTensorToFloat8Kwargs(_FLOAT8, PerTensor())
    weight = Float8Tensor.from_hp(
        layer.weight.detach(),
        float8_dtype=_FLOAT8,
        granularity=PerTensor(),
        mm_config=Float8MMConfig(use_fast_accum=True),
        act_quant_kwargs=kwargs,
    )
    layer.weight = nn.Parameter(weight, requires_grad=False)


def _by(config: Callable[[], AOBaseConfig]) -> Callable[[nn.Linear], None]:
    def quantize(layer: nn.Linear) -> None:
        quantize_(nn.ModuleDict({"layer": layer}), config(), filter_fn=lambda m, _: m is layer)

    return quantize


#: Scheme -> what quantises a linear layer in place. Version 1 of the int8 schemes is far more exact
#: in bf16 than version 2.
TORCHAO_SCHEMES: dict[str, Callable[[nn.Linear], None]] = {
    "float8_weight_only": _by(lambda: Float8WeightOnlyConfig(set_inductor_config=False)),
    "float8_dynamic": _float8_dynamic,
    "int8_weight_only": _by(lambda: Int8WeightOnlyConfig(version=1, set_inductor_config=False)),
    "int8_dynamic": _by(
        lambda: Int8DynamicActivationInt8WeightConfig(version=1, set_inductor_config=False)
    ),
    # the kernels of this layout are those that a CPU has
    "int4_weight_only": _by(
        lambda: Int4WeightOnlyConfig(
            group_size=32, version=1, layout=Int4CPULayout(), set_inductor_config=False
        )
    ),
    "8da8w": _by(
        lambda: Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int8, weight_granularity=PerAxis(0)
        )
    ),
}


def quantize_torchao_(model: TransformerDecoder, scheme: str) -> TransformerDecoder:
    """``model`` with its linear weights quantised, all but the output head's; in place.

    Args:
        model: a decoder without adapters; it cannot be trained any more.
        scheme: of :data:`TORCHAO_SCHEMES`.

    Raises:
        ValueError: no such scheme, adapters, no linear layer, or a layer that the scheme cannot
            quantise.
    """
    for name, layer in _layers(model, scheme).items():
        quantize_layer_(layer, scheme, name)
    return model.requires_grad_(False)


def quantize_layer_(layer: nn.Linear, scheme: str, name: str = "a layer") -> nn.Linear:
    """One linear layer, quantised in place.

    Raises:
        ValueError: the scheme cannot quantise a layer of this size.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # version 1 is meant
            TORCHAO_SCHEMES[scheme](layer)
    except (AssertionError, RuntimeError, NotImplementedError, ImportError) as error:
        raise ValueError(f"{scheme} cannot quantise {name} ({layer}): {error}") from error
    if not _parts(layer.weight):
        raise ValueError(
            f"{scheme} left {name} ({layer}) as it was: it quantises layers whose sides are "
            "multiples of 16 or 32, and more than 16"
        )
    return layer


def save_torchao_folder(
    model: TransformerDecoder,
    scheme: str,
    config: Mapping[str, Any],
    out_dir: str | Path,
    tokenizer_dir: str | Path | None = None,
) -> Path:
    """Writes a model of :func:`quantize_torchao_`; its path.

    Args:
        model: quantised.
        scheme: by which.
        config: content of the ``config.json`` of the model that was quantised.
        out_dir: the folder to make or replace; ``sad_components.models.quantized.load_quantized``
            reads it.
        tokenizer_dir: whose tokenizer files are copied.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        tensors.update(_flat(value, name))
    described = {"quant_method": METHOD, "name": scheme}
    return save_hf_folder(
        out_dir, tensors, {**config, "quantization_config": described}, tokenizer_dir
    )


def load_torchao_folder(
    checkpoint: HFCheckpoint, device: str | torch.device | None, path: str | Path
) -> TransformerDecoder:
    """The decoder in a folder of :func:`save_torchao_folder`.

    Args:
        checkpoint: what the folder holds.
        device: where it is built; None: torch's default device.
        path: of the folder, for messages.

    Raises:
        ValueError: an unknown scheme, or other tensors than the scheme's.
    """
    config = dict(checkpoint.config)
    scheme = config.pop("quantization_config").get("name")
    tensors = dict(checkpoint.state_dict)
    with torch.device("meta"):
        model = build_decoder(config).requires_grad_(False)
    dtype = _float_dtype(tensors, path)
    for name, layer in _layers(model, scheme).items():
        weight = f"{name}.weight"
        zeros = nn.Linear(layer.in_features, layer.out_features, False, "cpu", dtype)
        nn.init.zeros_(zeros.weight)
        template = quantize_layer_(zeros, scheme, name).weight.data
        tensors[weight] = _filled(template, tensors, weight, path)
    target = torch.get_default_device() if device is None else torch.device(device)
    parameters = {k: nn.Parameter(v.to(target), requires_grad=False) for k, v in tensors.items()}
    return fill_(model, parameters, target, path)


def _layers(model: TransformerDecoder, scheme: Any) -> dict[str, nn.Linear]:
    if scheme not in TORCHAO_SCHEMES:
        raise ValueError(f"a scheme is one of {', '.join(TORCHAO_SCHEMES)}; got {scheme!r}")
    check_no_adapters(model, scheme)
    layers = linear_layers(model)
    if not layers:
        raise ValueError(f"{scheme} quantises nn.Linear layers; this model has none")
    return layers


def _parts(value: Tensor) -> list[str]:
    """Names of the tensors that a tensor is made of; none of a plain one."""
    inner = value.data if isinstance(value, nn.Parameter) else value
    flatten = getattr(inner, "__tensor_flatten__", None)
    return list(flatten()[0]) if callable(flatten) else []


def _flat(value: Tensor, name: str) -> dict[str, Tensor]:
    parts = _parts(value)
    if not parts:
        return {name: value}
    out: dict[str, Tensor] = {}
    for part in parts:
        out.update(_flat(getattr(value, part), f"{name}.{part}"))
    return out


def _filled(template: Tensor, tensors: dict[str, Tensor], name: str, path: str | Path) -> Tensor:
    """``template`` made of the stored tensors, which are taken out of ``tensors``."""
    parts = _parts(template)
    if not parts:
        found = tensors.pop(name, None)
        if found is None or found.dtype != template.dtype or found.shape != template.shape:
            got = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise ValueError(
                f"{path} must hold {name} as {template.dtype} {list(template.shape)}; got {got}: "
                "quantise the model anew"
            )
        return found
    inner = {
        part: _filled(getattr(template, part), tensors, f"{name}.{part}", path) for part in parts
    }
    context = template.__tensor_flatten__()[1]
    return type(template).__tensor_unflatten__(inner, context, template.size(), template.stride())


def _float_dtype(tensors: Mapping[str, Tensor], path: str | Path) -> torch.dtype:
    """The dtype of what is not quantised: that of the embedding."""
    embedding = tensors.get("tok_embeddings.weight")
    if embedding is None or embedding.dtype not in (torch.float32, torch.bfloat16):
        got = "nothing" if embedding is None else embedding.dtype
        raise ValueError(f"{path} must hold tok_embeddings.weight in fp32 or bf16; got {got}")
    return embedding.dtype
