"""A decoder to a ``.pte``: torch.export, XNNPACK's partitioner, ExecuTorch's program."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sad_components.export.decoder import ExportDecoder
from sad_components.export.requirements import require_executorch
from sad_components.export.student import METHOD


def lower(
    decoder: ExportDecoder, path: str | Path, prefill_tokens: int, constants: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes ``decoder`` as an ExecuTorch program with one method; what became of it.

    Args:
        decoder: with its caches.
        path: of the file.
        prefill_tokens: most tokens that one call reads, at least 2.
        constants: name -> value of further methods, which only return it.

    Returns:
        ``bytes`` of the file, ``delegated`` (parts that XNNPACK runs) and ``portable`` (operators
        outside of them, by name).

    Raises:
        ImportError: ExecuTorch is not set up.
        ValueError: ``prefill_tokens`` does not fit the cache.
    """
    require_executorch()
    if not 2 <= prefill_tokens <= decoder.max_seq_len:
        raise ValueError(
            f"prefill_tokens is from 2 to max_seq_len, {decoder.max_seq_len}; got {prefill_tokens}"
        )
    import executorch.kernels.quantized  # noqa: F401  registers the quantised embedding
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import (
        EdgeCompileConfig,
        ExecutorchBackendConfig,
        to_edge_transform_and_lower,
    )

    tokens = torch.zeros(1, min(4, prefill_tokens), dtype=torch.long)
    new = torch.export.Dim("new_tokens", min=1, max=prefill_tokens)
    with torch.no_grad(), _quiet(), _fewer_passes():
        program = torch.export.export(
            decoder,
            (tokens, torch.zeros(1, dtype=torch.long)),
            dynamic_shapes=({1: new}, None),
            strict=False,
        )
        edge = to_edge_transform_and_lower(
            {METHOD: program},
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
            constant_methods=dict(constants),
        )
        counted = _operators(edge.exported_program(METHOD).graph_module)
        made = edge.to_executorch(ExecutorchBackendConfig(do_quant_fusion_and_const_prop=True))
    with open(path, "wb") as handle:
        made.write_to_file(handle)
    return {"bytes": Path(path).stat().st_size, **counted}


def _operators(graph: torch.fx.GraphModule) -> dict[str, Any]:
    portable: dict[str, int] = {}
    delegated = 0
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        name = str(node.target)
        if "executorch_call_delegate" in name:
            delegated += 1
        elif "getitem" not in name:
            portable[name] = portable.get(name, 0) + 1
    return {"delegated": delegated, "portable": portable}


#: Passes of XNNPACK's backend over every part, for operators that no decoder here has; each
#: interprets the whole part again, and together they are half of the time that lowering takes.
_NOT_NEEDED = (
    "ConvertToUpsampleBilinear2d",
    "ConvertToSDPAPass",
    "FuseBatchNormPass",
    "DecomposeBatchNorm",
    "DecomposeConcatenate",
    "InsertPadQDQPass",
    "Conv1dUnsqueezePass",
    "PReLUReshapePass",
)


@contextmanager
def _fewer_passes() -> Iterator[None]:
    """Without :data:`_NOT_NEEDED`; every program is compared with eager afterwards."""
    from executorch.backends.xnnpack import xnnpack_preprocess

    manager = xnnpack_preprocess.XNNPACKPassManager

    def chosen(program: Any, passes: list[Any] | None = None) -> Any:
        made = manager(program, passes)
        made.passes = [p for p in made.passes if p.__name__ not in _NOT_NEEDED]
        return made

    xnnpack_preprocess.XNNPACKPassManager = chosen
    gc.collect()
    gc.freeze()  # torch's own objects need not be looked at again and again
    try:
        yield
    finally:
        gc.unfreeze()
        xnnpack_preprocess.XNNPACKPassManager = manager


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of export's internals, which no user can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
