"""torchtune decoders out of Hugging Face folders, whole or cut, and back into them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn
from torchtune.modules import MultiHeadAttention, TransformerDecoder
from torchtune.training.precision import PRECISION_STR_TO_DTYPE

from sad_components.models.checkpoint import (
    CONFIG_FILE,
    load_hf_config,
    load_hf_folder,
    save_hf_folder,
)
from sad_components.models.families import (
    build_decoder,
    family_of_config,
    family_of_model,
    hf_config_of,
)
from sad_components.models.initialization import init_copying_, init_weights
from sad_components.models.lora import lora_version

_LAYER = re.compile(r"^layers\.(\d+)\.")
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def from_pretrained(
    path: str | Path,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    dropout: float | None = None,
    builder: str | None = None,
) -> TransformerDecoder:
    """The decoder stored in a folder in Hugging Face format, of any known family.

    Rotary tables stay in fp32 whatever ``dtype`` is.

    Args:
        path: the folder.
        dtype: of the parameters, a torch dtype or ``bf16``, ``fp32``, ..; ``None``: torch's
            default dtype.
        device: where it is built; ``None``: torch's default device.
        dropout: of every kind, in [0, 1]; ``None``: what the config says (0.1 in GPT-2's).
        builder: dotted path of a named size that the folder must hold, for example
            ``sad_components.models.gpt2.gpt2_1558m``; ``None``: whatever it holds.

    Raises:
        ValueError: the folder or its config is not readable, its weights do not fit it, or it
            holds another architecture than ``builder``.
    """
    if builder is not None:
        check_same_size(load_hf_config(path), builder, path)
    return build_from_hf_folder(path, dtype=dtype, device=device, dropout=dropout)[0]


def build_from_hf_folder(
    path: str | Path,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    dropout: float | None = None,
) -> tuple[TransformerDecoder, dict[str, Any]]:
    """As :func:`from_pretrained`, with the content of ``config.json``."""
    config, state_dict, _ = _load(path)
    model = _assemble(config, state_dict, dtype, device, path)
    return set_dropout_(model, dropout), config


def cut_student(
    path: str | Path,
    num_layers: int | None = None,
    layers: Sequence[int] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    dropout: float | None = None,
) -> TransformerDecoder:
    """A student with some of a teacher's layers, all its weights copied from the teacher.

    Args:
        path: the teacher's folder in Hugging Face format.
        num_layers: how many layers, evenly chosen by :func:`even_layers`.
        layers: which layers, 0-based and ascending; instead of ``num_layers``.
        dtype: see :func:`from_pretrained`.
        device: see :func:`from_pretrained`.
        dropout: see :func:`from_pretrained`.

    Raises:
        ValueError: both or neither of ``num_layers`` and ``layers``; layers that the teacher
            does not have, repeated or out of order; and what :func:`from_pretrained` raises.
    """
    if (num_layers is None) == (layers is None):
        raise ValueError(
            "a student is cut by exactly one of num_layers and layers; "
            f"got num_layers={num_layers}, layers={layers}"
        )
    config, state_dict, depth = _load(path)
    if num_layers is not None:
        kept = even_layers(depth, num_layers)
    else:
        kept = _checked_layers(depth, layers or [])
    position = {layer: new for new, layer in enumerate(kept)}
    student = {}
    for name, tensor in state_dict.items():
        match = _LAYER.match(name)
        if match is None:
            student[name] = tensor
        elif int(match[1]) in position:
            student[f"layers.{position[int(match[1])]}.{name[match.end() :]}"] = tensor
    config[family_of_config(config).layers_key] = len(kept)
    return set_dropout_(_assemble(config, student, dtype, device, path), dropout)


def even_layers(depth: int, num_layers: int) -> list[int]:
    """``num_layers`` of ``depth`` layers, evenly spaced, the first and the last among them.

    Layer ``i`` is ``i (depth - 1) / (num_layers - 1)`` rounded to the nearest integer, halves
    up; a single layer is the first.

    Raises:
        ValueError: fewer than one layer, or more than there are.

    >>> even_layers(30, 6)
    [0, 6, 12, 17, 23, 29]
    """
    if not 1 <= num_layers <= depth:
        raise ValueError(
            f"the teacher has {depth} layers: a cut keeps 1 to {depth}, not {num_layers}"
        )
    gaps = max(num_layers - 1, 1)
    return [(2 * i * (depth - 1) + gaps) // (2 * gaps) for i in range(num_layers)]


def from_scratch(
    config: str | Path | Mapping[str, Any],
    seed: int = 0,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    dropout: float | None = None,
    std: float | None = 0.02,
    init: str = "normal",
) -> TransformerDecoder:
    """A decoder with random weights that depend on ``seed`` (and ``std``, ``init``) alone.

    Args:
        config: content of a Hugging Face ``config.json``, or a folder that holds one.
        seed: of the weights.
        dtype: see :func:`from_pretrained`.
        device: see :func:`from_pretrained`.
        dropout: see :func:`from_pretrained`.
        std: of the weights; ``None``: by each matrix's inputs, see
            :func:`~sad_components.models.init_weights`.
        init: ``normal``, or ``copying``, which needs ``std: null``: heads that look things up in
            the text from the first step, see :func:`~sad_components.models.init_copying_`.

    Raises:
        ValueError: an unknown family, a config it cannot express, or an ``init`` that it cannot
            have.
    """
    if init not in ("normal", "copying") or (init == "copying" and std is not None):
        raise ValueError(
            "init is normal, or copying together with std: null (its sizes count on matrices "
            f"drawn by width); got init {init!r} and std {std}"
        )
    hf_config = load_hf_config(config) if isinstance(config, str | Path) else _plain(config)
    with torch.device("cpu"):
        model = init_weights(build_decoder(hf_config), seed, std)
        if init == "copying":
            init_copying_(model, seed)
    _cast_parameters(model, _as_dtype(dtype))
    set_dropout_(model, dropout)
    return model.to(torch.get_default_device() if device is None else device)


lora_from_pretrained = lora_version(from_pretrained)
lora_cut_student = lora_version(cut_student)
lora_from_scratch = lora_version(from_scratch)


def set_dropout_(model: TransformerDecoder, dropout: float | None) -> TransformerDecoder:
    """``model`` with every dropout, of attention weights too, set to ``dropout``; in place.

    Args:
        model: any decoder.
        dropout: in [0, 1]; ``None`` changes nothing.

    Raises:
        ValueError: another number.
    """
    if dropout is None:
        return model
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must be in [0, 1]; got {dropout}")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
        elif isinstance(module, MultiHeadAttention):
            module.attn_dropout = dropout
    return model


def named_size(builder: str) -> TransformerDecoder:
    """The decoder that a named size makes, on the meta device.

    Args:
        builder: dotted path of a function that needs no argument.

    Raises:
        ValueError: the path does not import, or the function makes no decoder.
    """
    module, _, name = builder.rpartition(".")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise ValueError(f"builder {builder!r} does not import: {error}") from error
    with torch.device("meta"):
        model = function()
    if not isinstance(model, TransformerDecoder):
        raise ValueError(f"builder {builder!r} makes a {type(model).__name__}, not a decoder")
    return model


def check_same_size(config: Mapping[str, Any], builder: str, path: str | Path) -> None:
    """Raises ``ValueError`` unless ``config`` has the parameters and heads of a named size.

    Args:
        config: content of a ``config.json``.
        builder: see :func:`named_size`.
        path: where the config lies, for the message.
    """
    with torch.device("meta"):
        found = build_decoder(config)
    differences = _differences(found, named_size(builder))
    if differences:
        raise ValueError(
            f"{path} does not hold the architecture of builder {builder}: "
            f"{'; '.join(differences[:4])}. Name the size that the folder holds, or take the "
            "builder out of the config"
        )


def _differences(found: TransformerDecoder, named: TransformerDecoder) -> list[str]:
    """What tells two architectures apart: parameters and their shapes, then heads."""
    sizes = [{k: tuple(p.shape) for k, p in m.named_parameters()} for m in (found, named)]
    names = sorted(set(sizes[0]) | set(sizes[1]))
    out = [
        f"{name} is {sizes[0].get(name, 'missing')}, the builder's {sizes[1].get(name, 'missing')}"
        for name in names
        if sizes[0].get(name) != sizes[1].get(name)
    ]
    heads = [(m.layers[0].attn.num_heads, m.layers[0].attn.num_kv_heads) for m in (found, named)]
    if heads[0] != heads[1]:
        out.append(f"heads (queries, keys) are {heads[0]}, the builder's {heads[1]}")
    return out


def save_student(
    model: nn.Module,
    out_dir: str | Path,
    tokenizer_dir: str | Path | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Writes ``model`` as a folder in Hugging Face format that transformers loads; its path.

    The config is read from the model's own modules, so that a student built by any means can be
    saved; what they do not say comes from the config it was built from, where there is one. See
    :func:`sad_components.models.checkpoint.save_hf_folder` for what happens to an older
    checkpoint there.

    Args:
        model: a decoder of a known family.
        out_dir: the folder to make or replace.
        tokenizer_dir: folder whose tokenizer files are copied; the ids of its special tokens go
            into the config where it has a ``config.json``.
        state_dict: the full weights under torchtune's names, where the model's own are sharded.

    Raises:
        ValueError: no family has the structure of ``model``; and see ``save_hf_folder``.
    """
    return student_writer(model, tokenizer_dir, state_dict)(Path(out_dir))


def student_writer(
    model: nn.Module,
    tokenizer_dir: str | Path | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> Callable[[Path], Path]:
    """:func:`save_student` in two parts: what it returns writes, and looks at ``model`` no more.

    Args:
        model, tokenizer_dir, state_dict: as for ``save_student``; the tensors are not copied.
    """
    family = family_of_model(model)
    weights = model.state_dict() if state_dict is None else state_dict
    config = hf_config_of(model)
    config.update(dict.fromkeys(_TOKEN_IDS))
    if tokenizer_dir is not None and (Path(tokenizer_dir) / CONFIG_FILE).is_file():
        reference = load_hf_config(tokenizer_dir)
        config.update({key: reference.get(key) for key in _TOKEN_IDS})
    config["torch_dtype"] = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    tensors = family.to_hf(weights, config)
    return lambda out_dir: save_hf_folder(out_dir, tensors, config, tokenizer_dir)


def _load(path: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], int]:
    """A folder's config, its weights under torchtune's names, and its number of layers."""
    checkpoint = load_hf_folder(path)
    family = family_of_config(checkpoint.config)
    with torch.device("meta"):  # refuses a config that the family cannot express
        depth = len(family.build(checkpoint.config).layers)
    return checkpoint.config, family.to_tune(checkpoint.state_dict, checkpoint.config), depth


def _assemble(
    config: Mapping[str, Any],
    state_dict: Mapping[str, torch.Tensor],
    dtype: str | torch.dtype | None,
    device: str | torch.device | None,
    path: str | Path,
) -> TransformerDecoder:
    """The decoder of ``config`` holding copies of ``state_dict``, never initialised twice."""
    target = torch.get_default_device() if device is None else torch.device(device)
    with torch.device("meta"):
        model = build_decoder(config)
    tensors = {k: v.to(target, _as_dtype(dtype), copy=True) for k, v in state_dict.items()}
    return fill_(model, tensors, target, path)


def fill_(
    model: TransformerDecoder,
    tensors: Mapping[str, torch.Tensor],
    target: torch.device,
    path: str | Path,
) -> TransformerDecoder:
    """Gives a decoder that was built on the meta device its weights, and its rotary tables.

    Args:
        model: on the meta device; changed in place.
        tensors: its weights by name, on ``target``; they become the parameters themselves.
        target: where the tables are built.
        path: where the weights come from, for messages.

    Raises:
        ValueError: the weights are not those of ``model``.
    """
    try:
        model.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit its {CONFIG_FILE}: {error}") from error
    with target:
        for module in model.modules():
            rope_init = getattr(module, "rope_init", None)
            if callable(rope_init):
                rope_init()
    return model


def _checked_layers(depth: int, layers: Sequence[int]) -> list[int]:
    kept = list(layers)
    ascending = all(a < b for a, b in pairwise(kept))
    if not kept or not ascending or kept[0] < 0 or kept[-1] >= depth:
        raise ValueError(
            f"layers must be ascending, each once, from 0 to {depth - 1} (the teacher has {depth} "
            f"layers); got {kept}"
        )
    return kept


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping as JSON knows it, also out of a YAML file."""
    if OmegaConf.is_config(config):
        return OmegaConf.to_container(config, resolve=True)
    return dict(config)


def _cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _as_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.get_default_dtype()
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in PRECISION_STR_TO_DTYPE:
        raise ValueError(f"dtype must be one of {sorted(PRECISION_STR_TO_DTYPE)}; got {dtype!r}")
    return PRECISION_STR_TO_DTYPE[dtype]
