"""A checkpointer for torchtune's own recipes: folders of any known family."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torchtune.training import ADAPTER_KEY, MODEL_KEY

from sad_components.models.checkpoint import (
    TOKENIZER_FILES,
    load_hf_config,
    load_hf_folder,
    save_hf_folder,
)
from sad_components.models.families import family_of_config

_STATE = Path("recipe_state") / "recipe_state.pt"


class HFFolderCheckpointer:
    """Reads ``checkpoint_dir`` and writes ``output_dir/epoch_N``, each a model for transformers.

    torchtune's ``FullModelHFCheckpointer`` knows the families that torchtune has; this one knows
    those of :mod:`sad_components.models.families`, and ones registered there. The recipe's
    ``model`` is a builder of the size that the folder holds.

    Args:
        checkpoint_dir: folder in Hugging Face format.
        output_dir: where checkpoints go.
        should_load_recipe_state: whether to go on with the run in ``output_dir``; torchtune's
            recipes give their ``resume_from_checkpoint``.

    Raises:
        ValueError: the folder's config is not readable, or of an unknown family.
    """

    def __init__(
        self,
        checkpoint_dir: str | Path,
        output_dir: str | Path,
        should_load_recipe_state: bool = False,
    ) -> None:
        self._checkpoint_dir, self._output_dir = Path(checkpoint_dir), Path(output_dir)
        self._resumes = should_load_recipe_state
        self._config = load_hf_config(checkpoint_dir)
        self._family = family_of_config(self._config)

    def load_checkpoint(self) -> dict[str, Any]:
        """The weights under torchtune's names as ``model``, and on resuming what else was saved.

        A run with adapters goes on from the base weights and its adapters, any other from the
        weights of the epoch that the rest was saved with: there may be later ones, of a run that
        was whole or was stopped while it saved.

        Raises:
            ValueError: weights that are not readable, or nothing to resume.
        """
        epoch, state = self._recipe_state() if self._resumes else (None, {})
        resumed = self._resumes and ADAPTER_KEY not in state
        folder = self._epoch_folder(epoch) if resumed else self._checkpoint_dir
        if not folder.is_dir():
            raise ValueError(
                f"a resumed run needs the weights of its last epoch in {folder}, which is not "
                "there; put it back, or set resume_from_checkpoint: false to begin anew"
            )
        checkpoint = load_hf_folder(folder)
        return {**state, MODEL_KEY: self._family.to_tune(checkpoint.state_dict, self._config)}

    def save_checkpoint(
        self,
        state_dict: Mapping[str, Any],
        epoch: int,
        intermediate_checkpoint: bool = False,
        adapter_only: bool = False,
    ) -> None:
        """Writes the model, and between epochs what a recipe needs to go on.

        Args:
            state_dict: weights under torchtune's names as ``model``, adapters merged; and more.
            epoch: that has ended, from 0.
            intermediate_checkpoint: whether the run goes on after it.
            adapter_only: cannot be done: the folder holds a whole model.

        Raises:
            ValueError: ``adapter_only``, or an ``output_dir`` that holds other things.
        """
        if adapter_only:
            raise ValueError(
                "a folder in Hugging Face format holds a whole model; got adapters only: set "
                "save_adapter_weights_only: false, which merges them"
            )
        weights = state_dict[MODEL_KEY]
        config = {k: v for k, v in self._config.items() if k != "dtype"}  # transformers 5's name
        config["torch_dtype"] = str(next(iter(weights.values())).dtype).removeprefix("torch.")
        has_tokenizer = any((self._checkpoint_dir / name).is_file() for name in TOKENIZER_FILES)
        save_hf_folder(
            self._epoch_folder(epoch),
            self._family.to_hf(weights, self._config),
            config,
            self._checkpoint_dir if has_tokenizer else None,
        )
        if intermediate_checkpoint:
            state = {k: v for k, v in state_dict.items() if k != MODEL_KEY}
            file = self._output_dir / _STATE
            file.parent.mkdir(parents=True, exist_ok=True)
            aside = file.with_suffix(".writing")
            torch.save({"epoch": epoch, "state": state}, aside)
            os.replace(aside, file)

    def _recipe_state(self) -> tuple[int, dict[str, Any]]:
        """The epoch that ended when it was saved, and what the recipe asked to keep."""
        file = self._output_dir / _STATE
        if not file.is_file():
            raise ValueError(
                f"a resumed run needs {file}, which is written after every epoch but the last; "
                "set resume_from_checkpoint: false to begin anew"
            )
        saved = torch.load(file, map_location="cpu", weights_only=True)
        return saved["epoch"], saved["state"]

    def _epoch_folder(self, epoch: int) -> Path:
        return self._output_dir / f"epoch_{epoch}"
