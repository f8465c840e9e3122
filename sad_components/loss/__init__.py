"""Structured losses: they know tensors, never a tokenizer."""

from sad_components.loss.hidden import Head, HiddenRows
from sad_components.loss.spec import LossSpec, SpanLoss
from sad_components.loss.structured import LossOutput, StructuredKDLoss

__all__ = ["Head", "HiddenRows", "LossOutput", "LossSpec", "SpanLoss", "StructuredKDLoss"]
