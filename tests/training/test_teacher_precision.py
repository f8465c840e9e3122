"""Teachers in less memory: smaller, near the exact one, and refused where they cannot run."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from tiny_models import LLAMA, distance, logits

from sad_components.training import teacher_precision
from sad_components.training.teacher_precision import PRECISIONS, build_teacher
from sad_components.training.teachers import LiveTeacher

CPU = torch.device("cpu")
NODE = OmegaConf.create(
    {"_component_": "sad_components.models.from_scratch", "config": LLAMA, "seed": 3}
)
#: Relative error of the logits that each may have, and bytes a weight that it takes at most.
LIMITS = {"bf16": (0.02, 2), "fp8": (0.06, 1.3), "int8": (0.02, 1.3), "nf4": (0.15, 0.6)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_near_the_exact_teacher_and_smaller(precision, dtype):
    exact, said = build_teacher(NODE, None, torch.float32, CPU)
    assert said == []
    teacher, lines = build_teacher(NODE, precision, dtype, CPU)
    error, size = LIMITS[precision]
    assert 1e-4 < distance(logits(teacher), logits(exact)) < error
    weights = sum(
        layer.weight.numel() for layer in teacher_precision.linear_layers(teacher).values()
    )
    assert teacher_precision._linear_bytes(teacher) <= size * weights
    assert precision in lines[0]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_runs_as_a_live_teacher_with_its_head_plain(precision):
    teacher, _ = build_teacher(NODE, precision, torch.float32, CPU)
    live = LiveTeacher(teacher)
    live.cut_vocab(50)
    assert live.head.weight_VD.shape == (50, 64)
    assert live.head.weight_VD.is_floating_point()
    assert live.num_parameters == sum(p.numel() for p in teacher.parameters())


def refused(precision, node=NODE, dtype=torch.float32) -> str:
    with pytest.raises(ValueError) as caught:
        build_teacher(node, precision, dtype, CPU)
    return str(caught.value)


def test_what_cannot_work_is_refused_with_the_reason():
    assert "teacher_precision is null, bf16, fp8, int8, nf4; got 'int3'" in refused("int3")
    assert "teacher is null" in refused("int8", node=None)
    assert "the run's dtype is float64" in refused("nf4", dtype=torch.float64)
    small = OmegaConf.merge(NODE, {"config": {"hidden_size": 24, "intermediate_size": 41}})
    assert "use teacher_precision: int8" in refused("nf4", node=small)


def test_a_cache_has_no_precision(monkeypatch):
    monkeypatch.setattr(teacher_precision, "build", lambda node, where: object())
    assert "reads what one has said: set teacher_precision: null" in refused("int8")


def test_what_the_device_cannot_run_is_refused_with_its_reason(monkeypatch):
    def lacks(*args, **kwargs):
        raise NotImplementedError("no kernel of\n this kind")

    monkeypatch.setattr(teacher_precision, "quantize_", lacks)
    for precision in ("fp8", "int8"):
        said = refused(precision)
        assert f"{precision} does not run on cpu here (no kernel of this kind)" in said
        assert "nf4" in said
