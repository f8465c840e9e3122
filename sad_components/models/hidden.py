"""A torchtune decoder that stops at its last hidden state, and its head beside it."""

from __future__ import annotations

from types import MethodType

from torch import Tensor, nn
from torchtune.modules import TiedLinear, TransformerDecoder

from sad_components.loss.hidden import Head


def stop_at_hidden(model: TransformerDecoder) -> TransformerDecoder:
    """Makes ``model(tokens)`` return the normed last hidden state [B, S, D] instead of logits.

    Only this instance changes: its ``unembed`` leaves out the projection, which the loss applies
    to the tokens that it reads. Undo with :func:`restore_logits`.

    Raises:
        ValueError: the model has no ``unembed`` (no torchtune ``TransformerDecoder``).
    """
    if not hasattr(model, "unembed"):
        raise ValueError(
            "a structured loss reads hidden states of a torchtune TransformerDecoder; got "
            f"{type(model).__name__}, which has no 'unembed'"
        )
    model.unembed = MethodType(_normed, model)
    return model


def restore_logits(model: TransformerDecoder) -> TransformerDecoder:
    """Undoes :func:`stop_at_hidden`."""
    model.__dict__.pop("unembed", None)
    return model


def _normed(self: TransformerDecoder, hidden_BSD: Tensor) -> Tensor:
    return self.norm(hidden_BSD)


def head_of(model: TransformerDecoder, vocab_size: int | None = None) -> Head:
    """The model's output projection.

    Args:
        model: a torchtune decoder with a linear or tied output.
        vocab_size: cut the vocabulary to this many tokens (padded embeddings).

    Raises:
        ValueError: an output that is no plain projection.
    """
    output = model.output
    if isinstance(output, TiedLinear):
        return Head(output.tied_module.weight, vocab_size=vocab_size)
    if isinstance(output, nn.Linear):
        return Head(output.weight, output.bias, vocab_size=vocab_size)
    if hasattr(output, "adapter_params"):
        raise ValueError(
            "the losses read the output projection itself, so it can have no adapter: set "
            "apply_lora_to_output: false"
        )
    raise ValueError(
        f"the output must be a Linear or TiedLinear projection; got {type(output).__name__}"
    )


def num_parameters(model: nn.Module) -> int:
    """Parameters of a model; a tied output counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def vocab_size_of(model: TransformerDecoder) -> int:
    """Rows of the output projection."""
    return head_of(model).weight_VD.shape[0]
