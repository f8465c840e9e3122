"""Which layers a shallower student keeps.

Shape legend: B = 1 row, S positions, N chosen positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchtune.modules import TransformerDecoder

from sad_components.loss import Head
from sad_components.loss.functional import forward_kl
from sad_components.models import even_layers
from sad_components.models.hidden import head_of
from sad_components.pruning.importance import Rows, measure
from sad_components.pruning.parts import at_rest, only_layers, showing_inputs

#: Ways that look at the number of layers alone.
BY_PLACE = ("even", "first", "last", "first-last")
#: Ways that look at data.
BY_DATA = ("influence", "influence-again", "kl")
#: Positions whose student logits are held at once; the teacher's are held for a whole row.
_CHUNK = 256


@dataclass(frozen=True)
class Depth:
    """Layers to keep, and how that was decided.

    Args:
        layers: those kept, 0-based and ascending.
        dropped: the others in the order in which they went, each with the figure that decided:
            its block influence, or the KL (nats/token) of the model without it and those before;
            None where place alone decided.
    """

    layers: list[int]
    dropped: list[tuple[int, float | None]]


def layers_by_place(how: str, depth: int, num_layers: int) -> Depth:
    """``num_layers`` of ``depth`` layers: evenly, the first, the last, or half of each.

    Args:
        how: one of :data:`BY_PLACE`; ``first-last`` takes one more of the first if odd.
        depth: layers there are.
        num_layers: layers to keep, 1 to ``depth``.
    """
    first = {"first": num_layers, "last": 0, "first-last": (num_layers + 1) // 2}
    if how == "even":
        layers = even_layers(depth, num_layers)
    else:
        behind = range(depth - (num_layers - first[how]), depth)
        layers = [*range(first[how]), *behind]
    return Depth(layers, [(i, None) for i in range(depth) if i not in layers])


def layers_by_influence(influence: Sequence[float], num_layers: int) -> Depth:
    """Drops the layers of least block influence (ShortGPT, arXiv 2403.03853), measured once.

    Args:
        influence: of each layer.
        num_layers: layers to keep; of equal layers the earlier goes first.
    """
    order = sorted(range(len(influence)), key=lambda i: influence[i])
    dropped = order[: len(order) - num_layers]
    return Depth(sorted(set(order) - set(dropped)), [(i, float(influence[i])) for i in dropped])


def layers_by_influence_again(model: TransformerDecoder, rows: Rows, num_layers: int) -> Depth:
    """As :func:`layers_by_influence`, measured again after every layer that went.

    Args:
        model: the teacher; as it was afterwards.
        rows: what to measure on.
        num_layers: layers to keep.
    """
    kept, dropped = list(range(len(model.layers))), []
    while len(kept) > num_layers:
        with only_layers(model, kept):
            influence = measure(model, rows).influence.tolist()
        at = influence.index(min(influence))
        dropped.append((kept.pop(at), influence[at]))
    return Depth(kept, dropped)


@torch.no_grad()
def layers_by_kl(model: TransformerDecoder, rows: Rows, num_layers: int) -> Depth:
    """Drops, one after another, the layer without which the output's KL rises least (ours).

    The KL is that of the teacher's distributions from those of what is left of it, on average
    over the chosen positions. To find the next layer of n runs about n / 2 times the n layers.

    Args:
        model: the teacher; as it was afterwards.
        rows: what to measure on.
        num_layers: layers to keep.
    """
    batches = list(rows.batches(next(model.parameters()).device))
    kept, dropped = list(range(len(model.layers))), []
    with at_rest(model):
        teacher = [model(tokens_BS)[chosen_BS] for tokens_BS, chosen_BS in batches]
        while len(kept) > num_layers:
            with only_layers(model, kept):
                kls = _kl_without_each(model, batches, teacher)
            at = kls.index(min(kls))
            dropped.append((kept.pop(at), kls[at]))
    return Depth(kept, dropped)


def _kl_without_each(
    model: TransformerDecoder, batches: Sequence[tuple[Tensor, Tensor]], teacher: Sequence[Tensor]
) -> list[float]:
    """The mean KL (nats/token) without each of the layers, from the teacher's hidden states."""
    head, layers = head_of(model), list(model.layers)
    sums = torch.zeros(len(layers), dtype=torch.float64)
    for (tokens_BS, chosen_BS), teacher_ND in zip(batches, teacher):
        with showing_inputs(model):
            *inputs, _ = model(tokens_BS)
        teacher_NV = head.logits(teacher_ND)
        for index, hidden_BSD in enumerate(inputs):
            for layer in layers[index + 1 :]:
                hidden_BSD = layer(hidden_BSD)
            student_ND = model.norm(hidden_BSD[chosen_BS])
            sums[index] += _kl_sum(head, student_ND, teacher_NV)
    return (sums / sum(map(len, teacher))).tolist()


def _kl_sum(head: Head, student_ND: Tensor, teacher_NV: Tensor) -> float:
    parts = zip(student_ND.split(_CHUNK), teacher_NV.split(_CHUNK))
    kls = (forward_kl(head.logits(student_ND), part_NV) for student_ND, part_NV in parts)
    return sum(float(kl.double().sum()) for kl in kls)
