"""Runs the distillation recipe in the test's own process, in the current folder."""

from __future__ import annotations

from typing import Any

from loading import load_module
from omegaconf import DictConfig


def set_up_recipe(cfg: DictConfig) -> Any:
    """The recipe object of ``cfg``, ready to train; whoever takes it calls ``cleanup``."""
    recipe = load_module("recipes/structured_kd.py").StructuredKDRecipe(cfg)
    recipe.setup(cfg)
    return recipe


def run_recipe(cfg: DictConfig) -> Any:
    """A whole run; the recipe object afterwards."""
    recipe = load_module("recipes/structured_kd.py").StructuredKDRecipe(cfg)
    try:
        recipe.setup(cfg)
        recipe.train()
    finally:
        recipe.cleanup()
    return recipe
