"""Makes the golden losses: of the tiny config's first steps, under each switch of the recipe.

    OMP_NUM_THREADS=1 python tests/golden/make_golden.py [NAME ..]

One file per switch in this folder, NAME.json: overrides of configs/tiny/structured_kd, losses of
the steps, versions. Without names all are made anew. tests/recipes/test_structured_kd_precision.py
trains each again and compares. Make them anew only for a change that is meant to change numbers,
and say in the commit which and why.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
#: Short rows, and weights of a size at which rounding shows in the loss.
COMMON = (
    *("heldout=null", "metric_logger=null", "clip_grad_norm=null", "dataset.limit=12"),
    *("transform.max_seq_len=384", "teacher.std=null", "student.std=null", "batch_size=2"),
)
_LORA = (
    "student._component_=sad_components.models.lora_from_scratch",
    "student.lora_attn_modules=[q_proj, k_proj, v_proj, output_proj]",
    *("student.apply_lora_to_mlp=true", "student.lora_alpha=64", "optimizer.lr=1.0e-2"),
)
SWITCHES = {
    "fp32": (),
    "bf16": ("dtype=bf16",),
    "fp8_tensorwise": ("fp8=tensorwise",),
    "fp8_rowwise": ("fp8=rowwise",),
    "qat_8da4w": ("qat=8da4w",),
    "qat_int4": ("qat=int4",),
    "activation_checkpointing": ("activation_checkpointing=true",),
    "packing": ("packing=true",),
    "compile": ("compile=true",),
    "teacher_bf16": ("teacher_precision=bf16",),
    "teacher_fp8": ("teacher_precision=fp8",),
    "teacher_int8": ("teacher_precision=int8",),
    "teacher_nf4": ("teacher_precision=nf4",),
    "lora": _LORA,
    "dora": (*_LORA, "student.use_dora=true"),
    "nf4_lora": (*_LORA, "student.quantize_base=true"),
}


def train(name: str, output_dir: str | Path, *more: str):
    """The recipe of a switch, trained in this process into ``output_dir``, and its losses.

    Args:
        name: of the switch.
        output_dir: where to.
        more: further overrides.
    """
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from omegaconf import OmegaConf
    from recipe_runs import run_recipe

    given = [*COMMON, *SWITCHES[name], f"output_dir={output_dir}", *more]
    tiny = OmegaConf.load(ROOT / "configs" / "tiny" / "structured_kd.yaml")
    cfg = OmegaConf.merge(tiny, OmegaConf.from_dotlist(given))
    recipe = run_recipe(cfg)
    lines = (Path(output_dir) / "metrics.jsonl").read_text().splitlines()
    return recipe, [json.loads(line)["loss"] for line in lines]


def main(names: list[str]) -> None:
    """Writes a file for each of ``names``, or for all."""
    import torch

    from sad_components.training.report import versions

    torch.set_num_threads(1)
    for name in names or SWITCHES:
        with tempfile.TemporaryDirectory() as folder:
            _, losses = train(name, Path(folder) / "run")
        record = {
            "overrides": [*COMMON, *SWITCHES[name]],
            "losses": [float(f"{loss:.7g}") for loss in losses],
            "versions": versions(),
        }
        (FOLDER / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        print(name, record["losses"], file=sys.stderr)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1:])
