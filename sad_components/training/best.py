"""The best checkpoint of a run by a held-out metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sad_components.training.config import ConfigError, check_keys

#: Held-out metrics that can name the best checkpoint: always, and with a teacher.
METRICS = ("ce", "ce_reason", "ce_act", "action_match")
TEACHER_METRICS = ("kl_reason", "kl_act", "top1_agreement")


class BestScore:
    """Follows one metric over a run's evaluations.

    Args:
        metric: its name in the held-out scores.
        mode: ``min`` or ``max``: which is better.
    """

    def __init__(self, metric: str, mode: str) -> None:
        self.metric, self.mode = metric, mode
        self.step: int | None = None
        self.value: float | None = None

    @classmethod
    def read(cls, cfg: DictConfig, *, has_teacher: bool) -> BestScore | None:
        """What ``keep_best`` of a config asks for; None for nothing.

        Raises:
            ConfigError: nothing is scored during training, or ``metric`` or ``mode`` is unknown.
        """
        asked = cfg.get("keep_best")
        if asked is None:
            return None
        if not OmegaConf.is_dict(asked):
            raise ConfigError(f"keep_best is a mapping of metric and mode; got {asked!r}")
        check_keys(asked, ("metric", "mode"), "keep_best", required=("metric", "mode"))
        if cfg.get("heldout") is None or not cfg.get("eval_every_n_steps"):
            raise ConfigError(
                "keep_best compares scores on held-out trajectories, but heldout or "
                "eval_every_n_steps is null: set both, or leave keep_best out"
            )
        known = (*METRICS, *(TEACHER_METRICS if has_teacher else ()))
        if asked.metric not in known:
            raise ConfigError(
                f"keep_best.metric is one of {', '.join(known)}"
                f"{'' if has_teacher else ' (without a teacher)'}; got {asked.metric!r}"
            )
        if asked.mode not in ("min", "max"):
            raise ConfigError(f"keep_best.mode is min or max; got {asked.mode!r}")
        return cls(asked.metric, asked.mode)

    def improved(self, step: int, scores: Mapping[str, Any]) -> bool:
        """Notes an evaluation; whether it is the best so far.

        Raises:
            ConfigError: the held-out rows give no such score.
        """
        if self.metric not in scores:
            raise ConfigError(
                f"keep_best needs {self.metric} of the held-out rows, but they have no tokens "
                f"that give it; they give {', '.join(k for k in scores if k in _ALL)}"
            )
        value = float(scores[self.metric])
        sign = 1 if self.mode == "min" else -1
        if math.isnan(value) or (self.value is not None and sign * value >= sign * self.value):
            return False
        self.step, self.value = step, value
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, and the summary shows."""
        return {key: getattr(self, key) for key in ("metric", "mode", "step", "value")}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from a checkpoint; one that followed another metric tells nothing."""
        if state and (state["metric"], state["mode"]) == (self.metric, self.mode):
            self.step, self.value = state["step"], state["value"]


_ALL = {*METRICS, *TEACHER_METRICS}
