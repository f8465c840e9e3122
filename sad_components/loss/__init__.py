"""Structured losses: they know tensors, never a tokenizer."""

from sad_components.loss.fused import FusedStructuredKDLoss
from sad_components.loss.hidden import Head, HiddenRows
from sad_components.loss.spec import LossSpec, SpanLoss
from sad_components.loss.structured import LossOutput, StructuredKDLoss
from sad_components.loss.teacher_rows import TopKRows

__all__ = [
    "FusedStructuredKDLoss",
    "Head",
    "HiddenRows",
    "LossOutput",
    "LossSpec",
    "SpanLoss",
    "StructuredKDLoss",
    "TopKRows",
]
