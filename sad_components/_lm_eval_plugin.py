"""Makes ``sad`` a model that lm-eval knows: ``lm_eval run --model sad --model_args pretrained=..``.

lm-eval 0.4.13 has no entry points: a model is known once somebody has registered it. This module
does, when ``lm_eval.models`` (which registers lm-eval's own) has loaded; the model's class is
imported when it is asked for. Standard library only: ``_tune_plugin`` installs it while
``import torch`` runs. ``docs/lm_eval.md`` describes it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sad_components._module_hook import Report, after_loading

_MODELS, _REGISTRY = "lm_eval.models", "lm_eval.api.registry"
#: Name of the model -> where its class is.
MODELS = {"sad": "sad_components.lm_harness.model:SadLM"}
#: The folder of the task files, for ``--include_path``.
TASKS = Path(__file__).resolve().parent / "lm_harness" / "tasks"


def install(report: Report) -> None:
    """Registers the models now, or as soon as lm-eval has registered its own.

    Args:
        report: is told of a failure; nothing is raised.
    """
    after_loading(_MODELS, _register, report)


def _register(_: Any) -> None:
    # Not earlier: lm-eval registers its own models only where the registry is empty.
    registry = sys.modules[_REGISTRY].model_registry
    for name, path in MODELS.items():
        if name not in registry:
            registry.register(name, target=path)
