"""Activation checkpointing: layers that run again in the backward pass, and their plain names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torchtune import training
from torchtune.modules import TransformerSelfAttentionLayer


def checkpoint_layers_(model: nn.Module) -> None:
    """Wraps every layer of a torchtune decoder, in place, so that it keeps its input only.

    Values and gradients stay what they were, and the names in ``state_dict``; the modules of a
    layer, and so its parameters' other names, move into the wrapper: :func:`unwrapped_layers`.
    """
    training.set_activation_checkpointing(model, {TransformerSelfAttentionLayer})


@contextmanager
def unwrapped_layers(model: nn.Module) -> Iterator[None]:
    """Inside the block ``model`` has the modules and names that it has without checkpointing.

    It is for reading and writing weights; a forward pass would not be checkpointed.

    Args:
        model: a decoder, after :func:`checkpoint_layers_` or not.
    """
    layers = model.layers
    plain = (
        x._checkpoint_wrapped_module if isinstance(x, CheckpointWrapper) else x for x in layers
    )
    model.layers = nn.ModuleList(plain)
    try:
        yield
    finally:
        model.layers = layers
