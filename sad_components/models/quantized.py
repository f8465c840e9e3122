"""Models with 4-bit linear weights, in folders that reload without pickle.

A folder holds ``config.json`` (Hugging Face's, and under ``quantization_config`` the scheme),
the tokenizer, and ``model.safetensors`` with torchtune's names. A quantised weight [out, in] is
three tensors there: ``.packed`` (uint8 [out, in / 2]: two values a byte, each with 8 added, the
even column in the low bits), ``.scale`` and ``.zero_point`` ([out, in / group_size]); its value is
``(q - zero_point) * scale``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from math import gcd
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization import (
    Int8DynamicActivationIntxWeightConfig,
    IntxUnpackedToInt8Tensor,
    IntxWeightOnlyConfig,
    PerGroup,
    quantize_,
)
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    IntxUnpackedToInt8TensorActivationQuantization as Activations,
)
from torchtune.modules import TransformerDecoder

from sad_components.models.checkpoint import (
    TOKENIZER_FILES,
    load_hf_config,
    load_hf_folder,
    save_hf_folder,
)
from sad_components.models.families import build_decoder
from sad_components.models.linear_layers import check_no_adapters, linear_layers
from sad_components.models.pretrained import fill_, from_pretrained
from sad_components.models.torchao_folders import METHOD as _TORCHAO
from sad_components.models.torchao_folders import load_torchao_folder

SCHEMES = ("8da4w", "int4")
_KEY, _METHOD = "quantization_config", "sad_int4_groups"
_DTYPES = (torch.float32, torch.bfloat16)
_PACKED, _SCALE, _ZERO_POINT = ".packed", ".scale", ".zero_point"


@dataclass(frozen=True)
class Scheme:
    """How the linear layers of a model are quantised, all but the output head.

    Args:
        name: ``int4`` (weights only), or ``8da4w``: int4 weights, and inputs as int8 with a scale
            for every token, found when it comes.
        group_size: weights of a row that share a scale; even, and divides every layer's inputs.

    Raises:
        ValueError: another name, or a group size that is not a positive even integer.
    """

    name: str
    group_size: int = 32

    def __post_init__(self) -> None:
        if self.name not in SCHEMES:
            raise ValueError(f"a scheme is one of {', '.join(SCHEMES)}; got {self.name!r}")
        size = self.group_size
        if not isinstance(size, int) or isinstance(size, bool) or size < 2 or size % 2:
            raise ValueError(f"group_size must be a positive even integer; got {size!r}")

    def torchao_config(self) -> AOBaseConfig:
        """The scheme in torchao's terms: of the quantised model, and a base of ``QATConfig``."""
        grouped = PerGroup(self.group_size)
        if self.name == "int4":
            return IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=grouped)
        return Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4, weight_granularity=grouped
        )

    def check(self, model: nn.Module) -> dict[str, nn.Linear]:
        """The linear layers to quantise.

        Raises:
            ValueError: adapters, no linear layer, another dtype than fp32 and bf16, or inputs
                that the group size does not divide.
        """
        check_no_adapters(model, self.name)
        layers = linear_layers(model)
        if not layers:
            raise ValueError(f"{self.name} quantises nn.Linear layers; this model has none")
        dtypes = {layer.weight.dtype for layer in layers.values()}
        if not dtypes <= set(_DTYPES):
            raise ValueError(
                f"{self.name} quantises weights in fp32 or bf16; got {', '.join(map(str, dtypes))}:"
                " set dtype: fp32"
            )
        odd = [name for name, layer in layers.items() if layer.in_features % self.group_size]
        if odd:
            common = reduce(gcd, (layer.in_features for layer in layers.values()))
            would_do = [size for size in range(8, common + 1, 2) if common % size == 0][:8]
            remedy = f"use one of {would_do}" if would_do else "no group size of 8 or more does"
            raise ValueError(
                f"a group size of {self.group_size} does not divide the inputs of {len(odd)} of "
                f"{len(layers)} linear layers ({odd[0]}: {layers[odd[0]].in_features}); {remedy}"
            )
        return layers


def quantize_linears_(model: TransformerDecoder, scheme: Scheme) -> TransformerDecoder:
    """``model`` with quantised linear weights, in place; it cannot be trained any more.

    Args:
        model: a decoder without adapters, in fp32 or bf16.
        scheme: what the weights become.

    Raises:
        ValueError: see :meth:`Scheme.check`.
    """
    layers = scheme.check(model)
    quantize_(model, scheme.torchao_config(), filter_fn=lambda _, name: name in layers)
    return model.requires_grad_(False)


def quantize_folder(
    path: str | Path,
    out_dir: str | Path,
    scheme: Scheme,
    device: torch.device | None = None,
    tokenizer_dir: str | Path | None = None,
) -> Path:
    """Writes the quantised version of a model in Hugging Face format; its path.

    Args:
        path: folder of the model; its weights stay in the dtype they have where they are not
            quantised.
        out_dir: the folder to make or replace; :func:`load_quantized` reads it.
        scheme: what the linear weights become.
        device: where it is quantised; None: the CPU.
        tokenizer_dir: whose tokenizer is copied; None: the model's folder's, if it has one.

    Raises:
        ValueError: see :func:`from_pretrained`, :meth:`Scheme.check` and ``save_hf_folder``.
    """
    config = load_hf_config(path)
    model = from_pretrained(path, dtype=_stored_dtype(config), device=device or "cpu")
    quantize_linears_(model, scheme)
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        tensors.update(_packed(name, value) if _is_quantized(value) else {name: value})
    described = {"quant_method": _METHOD, **asdict(scheme)}
    if tokenizer_dir is None and any((Path(path) / name).is_file() for name in TOKENIZER_FILES):
        tokenizer_dir = path
    return save_hf_folder(out_dir, tensors, {**config, _KEY: described}, tokenizer_dir)


def load_quantized(
    path: str | Path, device: str | torch.device | None = None
) -> TransformerDecoder:
    """The quantised decoder in a folder of :func:`quantize_folder`, in the dtype it was made in.

    Its linear weights are torchao tensors, which ``torch.export`` takes; none can be trained.
    Folders of ``sad_components.models.torchao_folders`` are read, too.

    Args:
        path: the folder.
        device: where it is built; None: torch's default device.

    Raises:
        ValueError: the folder or its config is not readable, it holds no quantised model or
            another one than its config says.
    """
    checkpoint = load_hf_folder(path)
    config = dict(checkpoint.config)
    if isinstance(config.get(_KEY), Mapping) and config[_KEY].get("quant_method") == _TORCHAO:
        return load_torchao_folder(checkpoint, device, path)
    scheme = _scheme_of(config.pop(_KEY, None), path)
    with torch.device("meta"):
        model = build_decoder(config).requires_grad_(False)
    tensors, dtype = dict(checkpoint.state_dict), _stored_dtype(config)
    for name, layer in scheme.check(model).items():
        weight = f"{name}.weight"
        tensors[weight] = _unpacked(tensors, weight, layer, scheme, dtype, path)
    target = torch.get_default_device() if device is None else torch.device(device)
    parameters = {k: nn.Parameter(v.to(target), requires_grad=False) for k, v in tensors.items()}
    return fill_(model, parameters, target, path)


def quantized_scheme(config: Mapping[str, Any]) -> str | None:
    """Name of the scheme of a folder that was quantised here; None of any other folder.

    Args:
        config: content of its ``config.json``.
    """
    found = config.get(_KEY)
    ours = isinstance(found, Mapping) and found.get("quant_method") in (_METHOD, _TORCHAO)
    return str(found.get("name")) if ours else None


def _scheme_of(found: Any, path: str | Path) -> Scheme:
    if not isinstance(found, Mapping) or found.get("quant_method") != _METHOD:
        raise ValueError(
            f"{path} holds no model quantised here ({_KEY} with quant_method {_METHOD}); a plain "
            "one is read by sad_components.models.from_pretrained"
        )
    try:
        return Scheme(found.get("name"), found.get("group_size"))
    except ValueError as error:
        raise ValueError(f"{path}: {_KEY} of config.json: {error}") from error


def _is_quantized(value: Tensor) -> bool:
    return isinstance(value, IntxUnpackedToInt8Tensor)


def _packed(name: str, weight: IntxUnpackedToInt8Tensor) -> dict[str, Tensor]:
    shifted = (weight.qdata + 8).to(torch.uint8)
    return {
        name + _PACKED: shifted[:, 0::2] | (shifted[:, 1::2] << 4),
        name + _SCALE: weight.scale,
        name + _ZERO_POINT: weight.zero_point,
    }


def _unpacked(
    tensors: dict[str, Tensor],
    name: str,
    layer: nn.Linear,
    scheme: Scheme,
    dtype: torch.dtype,
    path: str | Path,
) -> IntxUnpackedToInt8Tensor:
    """The weight ``name`` out of its three tensors, which are taken out of ``tensors``."""
    out, inputs = layer.out_features, layer.in_features
    groups = (out, inputs // scheme.group_size)
    expected = {
        name + _PACKED: (torch.uint8, (out, inputs // 2)),
        name + _SCALE: (dtype, groups),
        name + _ZERO_POINT: (torch.int8, groups),
    }
    parts = []
    for key, (kind, shape) in expected.items():
        part = tensors.pop(key, None)
        if part is None or part.dtype != kind or tuple(part.shape) != shape:
            got = "nothing" if part is None else f"{part.dtype} {list(part.shape)}"
            raise ValueError(
                f"{path} must hold {key} as {kind} {list(shape)}; got {got}: quantise the model "
                "anew"
            )
        parts.append(part)
    packed, scale, zero_point = parts
    values = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1).to(torch.int8) - 8
    return IntxUnpackedToInt8Tensor(
        qdata=values,
        scale=scale,
        zero_point=zero_point,
        target_dtype=torch.int4,
        block_size=(1, scheme.group_size),
        dtype=dtype,
        activation_quantization=(
            Activations.INT8_ASYM_PER_TOKEN if scheme.name == "8da4w" else None
        ),
    )


def _stored_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """The dtype that a config says its weights have (transformers 5 has another key for it)."""
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    found = getattr(torch, str(name).removeprefix("torch."), None)
    if found not in _DTYPES:
        raise ValueError(
            f"quantised models are made of fp32 or bf16 weights; config.json says {name!r}: save "
            "the model in one of them"
        )
    return found
