"""Which units of a teacher a student keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sad_components.models.widths import Unit
from sad_components.pruning.depth import Depth
from sad_components.pruning.importance import Importance
from sad_components.pruning.shapes import Shape


@dataclass(frozen=True)
class Plan:
    """What to keep. Layers are numbered as in the teacher.

    Args:
        teacher: its sizes.
        student: its sizes.
        depth: the layers.
        kept: for each unit of which some go: indices (ascending, int64) by layer; channels, which
            all layers share, under layer -1.
        norm_scales: factor of each norm's scale, by the norm's name; 1 where none is named.
    """

    teacher: Shape
    student: Shape
    depth: Depth
    kept: Mapping[Unit, Mapping[int, Tensor]] = field(default_factory=dict)
    norm_scales: Mapping[str, float] = field(default_factory=dict)

    def indices(self, unit: Unit, layer: int) -> Tensor | None:
        """Units that a layer keeps; None for all."""
        by_layer = self.kept.get(unit)
        return None if by_layer is None else by_layer[-1 if unit is Unit.CHANNEL else layer]


def make_plan(teacher: Shape, student: Shape, depth: Depth, importance: Importance | None) -> Plan:
    """The plan that keeps the most important units of each layer (of equal ones the earlier).

    Query heads are chosen within their groups: the groups whose heads matter most stay, and of
    each the same number of heads.

    Args:
        teacher: its sizes.
        student: sizes that fit (:func:`~sad_components.pruning.shapes.student_shape`).
        depth: the layers to keep.
        importance: measured on the whole teacher; not needed where only layers go.
    """
    kept: dict[Unit, dict[int, Tensor]] = {}
    scales: dict[str, float] = {}
    if importance is None:
        return Plan(teacher, student, depth)
    if (student.heads, student.kv_heads) != (teacher.heads, teacher.kv_heads):
        chosen = {i: _heads(importance.heads[i], teacher, student) for i in depth.layers}
        kept[Unit.HEAD] = {i: heads for i, (heads, _) in chosen.items()}
        kept[Unit.KV_HEAD] = {i: groups for i, (_, groups) in chosen.items()}
    if student.ffn != teacher.ffn:
        kept[Unit.NEURON] = {i: best(importance.neurons[i], student.ffn) for i in depth.layers}
    if student.width != teacher.width:
        channels = best(importance.channels, student.width)
        kept[Unit.CHANNEL] = {-1: channels}
        scales = _norm_scales(importance.energy, channels)
    return Plan(teacher, student, depth, kept, scales)


def best(values: Tensor, number: int) -> Tensor:
    """Indices of the ``number`` largest of ``values``, ascending; of equal ones the earlier."""
    return values.argsort(descending=True, stable=True)[:number].sort().values


def _heads(importance_H: Tensor, teacher: Shape, student: Shape) -> tuple[Tensor, Tensor]:
    """Query heads, and the key/value heads they share."""
    size = student.heads // student.kv_heads
    groups = importance_H.unflatten(0, (teacher.kv_heads, -1))
    kept_groups = best(groups.topk(size, dim=1).values.sum(1), student.kv_heads)
    heads = [group * groups.shape[1] + best(groups[group], size) for group in kept_groups]
    return torch.cat(heads), kept_groups


def _norm_scales(energy: Mapping[str, Tensor], channels: Tensor) -> dict[str, float]:
    """Factors that give what stays the size it had (ours).

    An RMSNorm divides by the root of E / D, E being the sum of squares over D channels. Without
    the others' part of E, and with fewer channels, the rest would come out larger or smaller by
    sqrt(E_kept / E * D / D_kept): that is the factor, with the mean share measured on data.
    """
    ratio = {name: len(share) / len(channels) for name, share in energy.items()}
    return {n: float((share[channels].sum() * ratio[n]).sqrt()) for n, share in energy.items()}
