"""How big teacher and student are, and which sizes a student can have."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torchtune.modules import TransformerDecoder

from sad_components.models.family import Family
from sad_components.models.widths import Unit


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder whose layers are alike.

    Args:
        layers: blocks.
        heads: query heads of a layer.
        kv_heads: key/value heads of a layer.
        head_dim: width of a head.
        ffn: neurons of an MLP.
        width: channels of the residual stream.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    width: int

    def of(self, unit: Unit) -> int:
        """Number of ``unit``."""
        return getattr(self, unit.value)


@dataclass(frozen=True)
class Sizes:
    """What is asked of a student; None: what follows from the others, or else the teacher's."""

    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    ffn: int | None = None
    width: int | None = None


def shape_of(model: TransformerDecoder) -> Shape:
    """The sizes of ``model``, which may be on the meta device."""
    attention, mlp = model.layers[0].attn, model.layers[0].mlp
    return Shape(
        layers=len(model.layers),
        heads=attention.num_heads,
        kv_heads=attention.num_kv_heads,
        head_dim=attention.head_dim,
        ffn=mlp.w1.weight.shape[0],
        width=attention.embed_dim,
    )


def student_shape(teacher: Shape, sizes: Sizes, family: Family) -> Shape:
    """The sizes of a student, where ``family`` allows them.

    Query heads that are not named follow the key/value heads (whole groups go), and the other way
    round where each query head has its own or where the groups can stay.

    Raises:
        ValueError: more or fewer units than there are to keep, units that the family keeps, or
            sizes that do not divide as its attention needs.
    """
    asked = {name: value for name, value in vars(sizes).items() if value is not None}
    for name, value in asked.items():
        if not 1 <= value <= getattr(teacher, name):
            raise ValueError(
                f"the teacher has {name.replace('_', ' ')} {getattr(teacher, name)}: a student "
                f"keeps 1 to {getattr(teacher, name)}, not {value}"
            )
    _check_prunable(teacher, asked, family)
    student = replace(teacher, **{**asked, **_heads(teacher, sizes)})
    _check_groups(teacher, student)
    _check_width(student, family)
    return student


def _check_prunable(teacher: Shape, asked: dict[str, int], family: Family) -> None:
    prunable = {unit.value for unit in (family.widths.keys if family.widths else ())}
    for name, value in asked.items():
        if name != "layers" and value != getattr(teacher, name) and name not in prunable:
            can = ", ".join(["layers", *sorted(prunable)])
            raise ValueError(
                f"the {family.model_type} family can be pruned in {can}, not in {name} (its "
                "Family.widths says so); leave that option out"
            )


def _heads(teacher: Shape, sizes: Sizes) -> dict[str, int]:
    group = teacher.heads // teacher.kv_heads
    if sizes.heads is None and sizes.kv_heads is not None:
        return {"heads": sizes.kv_heads * group}
    if sizes.heads is not None and sizes.kv_heads is None and group == 1:
        return {"kv_heads": sizes.heads}
    return {}


def _check_groups(teacher: Shape, student: Shape) -> None:
    group = teacher.heads // teacher.kv_heads
    if student.heads % student.kv_heads or student.heads > group * student.kv_heads:
        fitting = [student.kv_heads * n for n in range(1, group + 1)]
        raise ValueError(
            f"heads must be a multiple of kv heads, at most {group} for each as in the teacher; "
            f"got heads {student.heads} and kv heads {student.kv_heads}: ask for heads "
            f"{' or '.join(map(str, fitting))}, or for other kv heads"
        )


def _check_width(student: Shape, family: Family) -> None:
    widths = family.widths
    if widths is None or Unit.HEAD not in widths.keys:
        return
    whole = student.heads * student.head_dim
    if widths.head_dim_key is None and student.width != whole:
        raise ValueError(
            f"in the {family.model_type} family the width is heads x {student.head_dim}; got heads "
            f"{student.heads} and width {student.width}: ask for width {whole} as well"
        )
    if student.width % student.heads:
        below = student.width // student.heads * student.heads
        raise ValueError(
            f"width must be a multiple of heads; got width {student.width} and heads "
            f"{student.heads}: ask for width {below or student.heads}, or for other heads"
        )
