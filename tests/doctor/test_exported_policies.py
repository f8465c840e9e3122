"""Which configs need ExecuTorch."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from sad_components.doctor import checks


@pytest.mark.parametrize(
    ("kind", "needs"), [("executorch", True), ("gguf", False), ("damaged", True), (None, True)]
)
def test_a_gguf_that_plays_needs_no_executorch(tmp_path, monkeypatch, kind, needs):
    policy = {"_component_": "sad_components.evaluation.policies.exported_policy"}
    cfg = OmegaConf.create({"policies": {"student": {**policy, "path": str(tmp_path)}}})

    def read(path, verify):
        if kind in ("damaged", None):
            raise ValueError("no manifest")
        return OmegaConf.create({"kind": kind})

    monkeypatch.setattr(checks, "read_manifest", read)
    assert checks._needs_executorch(cfg) is needs
