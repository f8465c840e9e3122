"""A decoder that runs as a part of itself for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torchtune.modules import TransformerDecoder

from sad_components.models.hidden import restore_logits, stop_at_hidden


@contextmanager
def only_layers(model: TransformerDecoder, layers: Sequence[int]) -> Iterator[None]:
    """Inside the block, ``model`` has these of its layers only."""
    whole = model.layers
    model.layers = nn.ModuleList(whole[i] for i in layers)
    try:
        yield
    finally:
        model.layers = whole


@contextmanager
def at_rest(model: TransformerDecoder) -> Iterator[None]:
    """Inside the block, ``model`` is in eval mode and returns normed hidden states, no logits."""
    training, stopped = model.training, "unembed" in vars(model)
    stop_at_hidden(model.eval())
    try:
        yield
    finally:
        model.train(training)
        if not stopped:
            restore_logits(model)


@contextmanager
def showing_inputs(model: TransformerDecoder) -> Iterator[None]:
    """Inside the block, ``model`` returns a list: the input of each layer, then its output."""
    before = model.output_hidden_states
    model.output_hidden_states = list(range(len(model.layers)))
    try:
        yield
    finally:
        model.output_hidden_states = before
