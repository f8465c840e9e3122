from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from sad_components.training.config import ConfigError, build, call, check_counts, check_keys
from sad_components.training.precision import resolve_device, resolve_dtype
from sad_components.training.vocabulary import shared_vocab_size


def node(**fields):
    return OmegaConf.create(fields)


def test_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match=r"'lerning_rate' \(did you mean 'learning_rate'\?\)"):
        check_keys(node(lerning_rate=1), ["learning_rate", "seed"])
    check_keys(node(seed=1), ["learning_rate", "seed"])


def test_builds_what_the_node_names():
    layer = build(node(_component_="torch.nn.Linear", in_features=3), "layer", out_features=2)
    assert layer.weight.shape == (2, 3)
    assert build(None, "layer") is None


def test_missing_key_is_named():
    for cfg in (node(seed=1), node(seed=1, loss=None), node(seed=1, loss={"_component_": None})):
        with pytest.raises(ConfigError, match="the config needs these keys: loss"):
            check_keys(cfg, ["loss", "seed"], required=["loss", "seed"])


def test_null_from_the_command_line_builds_nothing():
    """torchtune merges ``teacher=null`` as ``teacher._component_: null``."""
    assert build(node(_component_=None, in_features=3), "layer") is None


@pytest.mark.parametrize("value", [0, None, "two", 1.5, True])
def test_count_that_is_none_is_named(value):
    with pytest.raises(ConfigError, match=f"batch_size must be an integer >= 1; got {value!r}"):
        check_counts(node(batch_size=value), ["batch_size"])
    check_counts(node(batch_size=2), ["batch_size", "epochs"])


def test_argument_that_lacks_is_named():
    with pytest.raises(ConfigError, match=r"layer: torch.nn.Linear cannot .*'out_features'"):
        build(node(_component_="torch.nn.Linear", in_features=3), "layer")
    with pytest.raises(ConfigError, match=r"layer: Linear cannot .*'in_features'"):
        call(torch.nn.Linear, node(out_features=3), "layer")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"in_features": 3}, "layer needs a _component_"),
        ({"_component_": "Linear"}, "is a dotted path"),
        ({"_component_": "no.such.thing"}, "no module 'no.such'"),
        ({"_component_": "torch.nn.Linaer"}, r"torch.nn has no 'Linaer' \(did you mean 'Linear'"),
        ({"_component_": "torch.nn.Linear", "infeatures": 3}, "did you mean 'in_features'"),
    ],
)
def test_component_errors_say_what_to_write(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(node(**fields), "layer")


def test_component_that_misses_a_package_says_which(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_installed_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="No module named 'not_installed_here'"):
        build(node(_component_="needs_more.Thing"), "thing")


@pytest.mark.parametrize(
    ("name", "message"), [("xpu", "'xpu' is not there"), ("gpu", "'gpu' cannot be used")]
)
def test_device_that_is_not_there_is_an_error(name, message):
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=message):
        resolve_device(name)


def test_dtype_by_name():
    cpu = torch.device("cpu")
    assert resolve_dtype("bf16", cpu) is torch.bfloat16
    assert resolve_dtype("auto", cpu) in (torch.bfloat16, torch.float32)
    with pytest.raises(ValueError, match="dtype is auto"):
        resolve_dtype("int3", cpu)


def test_padded_vocabularies_share_the_smaller_one():
    assert shared_vocab_size(512, 640, 500) == 512
    assert shared_vocab_size(512, None, 500) == 512


def test_different_vocabularies_are_an_error_with_both_sizes():
    with pytest.raises(ValueError, match=r"student vocab 400 < tokenizer vocab 500.*teacher 640"):
        shared_vocab_size(400, 640, 500)
