"""lm-eval's tasks on one student or several, side by side; lm-eval's own result files.

Run: ``tune run recipes/evaluate_lm.py --config tiny/evaluate_lm``
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torchtune import config, training

from sad_components.data.shipped import resolve_folder
from sad_components.lm_harness.run import Settings, evaluate_student, format_students, quiet
from sad_components.models import save_student
from sad_components.training.config import ConfigError, build, check_counts, check_keys
from sad_components.training.durable import write_atomically
from sad_components.training.errors import explained

SUPPORTS_DISTRIBUTED = False

KEYS = ("students", "tasks", "include_path", "metadata", "num_fewshot", "limit", "batch_size")
KEYS += ("device", "apply_chat_template", "bootstrap_iters", "seed", "output_dir", "overwrite")
REQUIRED = ("students", "tasks", "output_dir")
#: Of a student: what is not passed on to lm-eval's model.
_OWN = ("model", "build", "tokenizer_dir")


class EvaluateLMRecipe:
    """Every student answers the same tasks; the table has a column for each.

    Args:
        cfg: see ``configs/tiny/evaluate_lm.yaml``, which explains every field.

    Raises:
        ConfigError: a key that nobody reads, no student or task, or results that would be lost.
    """

    def __init__(self, cfg: DictConfig) -> None:
        check_keys(cfg, KEYS, required=REQUIRED)
        check_counts(cfg, ("limit",) if cfg.get("limit") is not None else ())
        if not cfg.students or not cfg.tasks:
            raise ConfigError("students and tasks each name at least one; got none")
        self.cfg = cfg
        self.output_dir = Path(cfg.output_dir)
        plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)
        self.students: dict[str, dict[str, Any]] = plain["students"]
        for name, node in self.students.items():
            if not isinstance(node, dict) or ("pretrained" in node) == ("build" in node):
                raise ConfigError(
                    f"students.{name} names either a folder (pretrained: ..) or what to build "
                    f"(build: a model's node); got {node!r}"
                )
        chosen = {k: plain[k] for k in Settings.__dataclass_fields__ if plain.get(k) is not None}
        self.settings = Settings(**chosen)

    def setup(self) -> None:
        """Makes the folders of students that are built here.

        Raises:
            ConfigError: results that exist and would stand beside new ones.
        """
        found = sorted(self.output_dir.glob("*/results_*.json"))
        if found and not self.cfg.get("overwrite", False):
            raise ConfigError(
                f"{self.output_dir} holds results ({found[0].name}): choose another output_dir, "
                "or set overwrite=True, which puts new ones beside them"
            )
        quiet()
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        for name, node in self.students.items():
            if "build" in node:
                node["pretrained"] = str(self._build(name, node))

    def evaluate(self) -> dict[str, Any]:
        """Runs the tasks on every student, writes and prints; the results by student."""
        results = {}
        for name, node in self.students.items():
            arguments = {k: v for k, v in node.items() if k not in _OWN}
            arguments["pretrained"] = str(resolve_folder(arguments["pretrained"]))
            model = node.get("model", "sad")
            results[name], file = evaluate_student(
                model, arguments, self.settings, self.output_dir / name
            )
            print(f"{name}: --model {model}, results -> {file}")
        table = format_students(results)
        write_atomically(self.output_dir / "table.txt", table + "\n")
        print(f"\n{table}\n\ntable -> {self.output_dir / 'table.txt'}")
        return results

    def _build(self, name: str, node: dict[str, Any]) -> Path:
        """A student that lies in no folder yet (one cut out of a teacher, say), saved."""
        made = OmegaConf.create(node["build"])
        tokenizer = node.get("tokenizer_dir") or made.get("path")
        if tokenizer is None:
            raise ConfigError(
                f"students.{name}.build reads no folder, so that its tokenizer is not known: set "
                f"students.{name}.tokenizer_dir"
            )
        with training.set_default_dtype(training.get_dtype("fp32")):
            model = build(made, f"students.{name}.build")
        folder = self.output_dir / name / "student"
        return save_student(model, folder, resolve_folder(tokenizer))


@config.parse
def recipe_main(cfg: DictConfig) -> None:
    """Entry point: sets up and evaluates."""
    with explained("evaluate_lm"):
        recipe = EvaluateLMRecipe(cfg)
        recipe.setup()
        recipe.evaluate()


if __name__ == "__main__":
    sys.exit(recipe_main())
