"""Several runs of the recipe, one after another, in the processes that torchrun started.

    torchrun --nproc_per_node 2 tests/support/many_runs.py one.yaml two.yaml

Starting Python and loading the libraries takes most of a small run's time.
"""

from __future__ import annotations

import sys

from omegaconf import OmegaConf
from recipe_runs import run_recipe

if __name__ == "__main__":
    for path in sys.argv[1:]:
        run_recipe(OmegaConf.load(path))
