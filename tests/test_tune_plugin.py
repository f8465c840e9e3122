"""The torchtune plugin: real `tune` commands on a small project, and its parts in process."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sad_components import _tune_plugin

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """\
import os
import sys

from omegaconf import OmegaConf

print(f"ran original, rank {os.environ.get('RANK')}, {OmegaConf.load(sys.argv[2]).name}")
"""
CONFIG = """\
# A config to test with.
#
# recipe: probe

name: original config
tokenizer:
  _component_: pathlib.Path
"""


@pytest.fixture(params=["wheel", "checkout"])
def project(request, tmp_path) -> Path:
    """A folder for PYTHONPATH whose `sad_components` holds just the plugin and two test files."""
    root = tmp_path / "project"
    package = root / "sad_components"
    package.mkdir(parents=True)
    for name in ("__init__.py", "_tune_plugin.py", "_module_hook.py", "_lm_eval_plugin.py"):
        shutil.copy(ROOT / "sad_components" / name, package)
    if request.param == "wheel":
        recipes, configs = package / "_recipes", package / "_configs"
    else:
        recipes, configs = root / "recipes", root / "configs"
        (root / "pyproject.toml").touch()
    (configs / "family").mkdir(parents=True)
    recipes.mkdir()
    (recipes / "probe.py").write_text(RECIPE)
    (recipes / "alone.py").write_text("SUPPORTS_DISTRIBUTED = False\n")
    (configs / "family" / "small_probe.yaml").write_text(CONFIG)
    (configs / "family" / "fragment.yaml").write_text("name: no header\n")
    return root


@pytest.fixture
def empty_folder(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def run(*command: str, project: Path | None = None, **extra: str) -> subprocess.CompletedProcess:
    """Runs a command in the current folder, with the project's plugin if one is given."""
    environment = {**os.environ, "SAD_PLUGIN_DEBUG": "1", "OMP_NUM_THREADS": "1", **extra}
    environment.pop("PYTHONPATH", None)
    if project is not None:
        environment["PYTHONPATH"] = str(project)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def tune(*arguments: str, project: Path) -> str:
    """Standard output of `tune <arguments>`, which has to succeed."""
    done = run(str(Path(sys.executable).with_name("tune")), *arguments, project=project)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def registry() -> ModuleType:
    """torchtune's registry module, a fresh one and without importing the rest of torchtune."""
    (folder,) = importlib.util.find_spec("torchtune").submodule_search_locations
    spec = importlib.util.spec_from_file_location("registry", f"{folder}/_recipe_registry.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def registered(registry, project, monkeypatch):
    """Fills the registry from the project, as if the process had been started with `argv`."""

    def register(*argv: str) -> dict:
        monkeypatch.setattr(_tune_plugin, "_PACKAGE", project / "sad_components")
        monkeypatch.setattr(sys, "argv", ["tune", *argv])
        _tune_plugin._register(registry)
        return {recipe.name: recipe for recipe in registry._ALL_RECIPES}

    return register


class TestRealCommands:
    """One process each: the entry point, torch's loading of it, and torchtune's own code."""

    @pytest.mark.parametrize("project", ["wheel"], indirect=True)
    def test_a_copied_recipe_wins_over_the_installed_one(self, project, empty_folder):
        tune("cp", "probe", "recipes/probe.py", "--make-parents", project=project)
        copy = empty_folder / "recipes" / "probe.py"
        copy.write_text(copy.read_text().replace("original,", "edited,"))
        config = "configs/family/small_probe.yaml"
        out = tune("run", "recipes/probe.py", "--config", config, project=project)
        assert "ran edited, rank None, original config" in out

    @pytest.mark.parametrize("project", ["wheel"], indirect=True)
    def test_two_processes(self, project, empty_folder):
        out = tune(
            *("run", "--nproc_per_node", "2", "probe", "--config", "family/small_probe"),
            project=project,
        )
        for rank in (0, 1):
            assert f"ran original, rank {rank}, original config" in out

    @pytest.mark.parametrize("project", ["checkout"], indirect=True)
    def test_validate_takes_a_name(self, project, empty_folder):
        assert "well-formed" in tune("validate", "family/small_probe", project=project)

    @pytest.mark.parametrize("project", ["checkout"], indirect=True)
    def test_ls_shows_each_name_once(self, project, empty_folder):
        rows = [line.split() for line in tune("ls", project=project).splitlines()]
        assert ["probe", "family/small_probe"] in rows
        assert ["alone", "<>"] in rows
        assert sum("probe" in name for row in rows for name in row) == 2


class TestRegistry:
    def test_names_and_paths_mean_the_same_entry(self, registered):
        entries = registered("ls")
        recipe = entries["probe"]
        (config,) = recipe.configs
        assert recipe.name == "probe"
        assert recipe.name == "recipes/probe.py"
        assert recipe.name != "probe.py"
        assert config.name == "family/small_probe"
        assert config.name == "configs/family/small_probe.yaml"
        assert "recipes/probe.py" in [r.name for r in entries.values()]

    def test_distributed_unless_the_source_says_otherwise(self, registered):
        entries = registered("ls")
        assert entries["probe"].supports_distributed
        assert not entries["alone"].supports_distributed

    def test_a_broken_copy_does_not_hide_the_other_recipes(self, registered, empty_folder):
        (empty_folder / "probe.py").write_text("def broken(:\n")
        assert {"probe", "alone"} <= set(registered("ls"))

    def test_registering_twice_adds_nothing(self, registered, registry):
        registered("ls")
        before = list(registry._ALL_RECIPES)
        registered("ls")
        assert list(registry._ALL_RECIPES) == before

    @pytest.mark.parametrize("place", ["recipes/probe.py", "probe.py"])
    def test_a_recipe_in_the_current_folder_wins(self, registered, empty_folder, place):
        copy = empty_folder / place
        copy.parent.mkdir(exist_ok=True)
        copy.write_text("SUPPORTS_DISTRIBUTED = False\n")
        recipe = registered("run", "probe", "--config", "x")["probe"]
        assert Path(recipe.file_path) == copy
        assert not recipe.supports_distributed

    @pytest.mark.parametrize(
        "place", ["configs/family/small_probe.yaml", "family/small_probe.yaml"]
    )
    def test_a_config_in_the_current_folder_wins(self, registered, empty_folder, place):
        copy = empty_folder / place
        copy.parent.mkdir(parents=True)
        copy.write_text("name: a copy\n")
        (config,) = registered("run")["probe"].configs
        assert Path(config.file_path) == copy

    def test_cp_brings_the_installed_file_back(self, registered, empty_folder):
        (empty_folder / "probe.py").write_text("an edited copy\n")
        assert Path(registered("cp")["probe"].file_path).read_text() == RECIPE

    def test_run_takes_a_path_that_torchtune_would_import(self, registered, empty_folder):
        mine = empty_folder / "recipes" / "mine.py"
        mine.parent.mkdir()
        mine.write_text("SUPPORTS_DISTRIBUTED = False\n")
        for argument in ("recipes/mine.py", "./recipes/mine.py", str(mine)):
            recipe = registered("run", argument, "--config", "x.yaml")[argument]
            assert Path(recipe.file_path) == mine
            assert not recipe.supports_distributed

    def test_validate_arguments_become_files(self, registered, empty_folder):
        registered("validate", "configs/family/small_probe.yaml")
        assert Path(sys.argv[2]).read_text() == CONFIG
        registered("validate", "mine.yaml")
        assert sys.argv[2] == "mine.yaml"


class TestInstall:
    def test_waits_for_the_registry_and_removes_itself(self):
        code = (
            "import sys, torch\n"
            "is_ours = lambda f: type(f).__name__ == 'ModuleHook'\n"
            "hooks = lambda: [f.name for f in sys.meta_path if is_ours(f)]\n"
            "before = hooks()\n"
            "from sad_components._tune_plugin import install; install()\n"
            "import importlib.util, torchtune\n"
            "importlib.util.find_spec('torchtune._recipe_registry')\n"
            "from torchtune._recipe_registry import get_all_recipes\n"
            "ours = [r for r in get_all_recipes() if type(r.name) is not str]\n"
            "print(*before, '/', *hooks(), '/', len(ours))\n"
        )
        done = run(sys.executable, "-c", code)
        recipes = len(list((ROOT / "recipes").glob("[!_]*.py")))
        (before, after, ours) = (part.split() for part in done.stdout.split("/"))
        assert sorted(before) == ["lm_eval.models", "torchtune._recipe_registry"], done.stderr
        assert after == ["lm_eval.models"], done.stderr
        assert ours == [str(recipes)], done.stderr

    def test_a_loaded_registry_is_extended_at_once(self, registry, project, monkeypatch):
        monkeypatch.setattr(_tune_plugin, "_PACKAGE", project / "sad_components")
        monkeypatch.setitem(sys.modules, "torchtune._recipe_registry", registry)
        _tune_plugin.install()
        assert "probe" in [recipe.name for recipe in registry.get_all_recipes()]

    @pytest.mark.parametrize("project", ["wheel"], indirect=True)
    def test_a_failure_does_not_break_torch_and_torchtune(self, project, empty_folder):
        for name in ("_recipes", "_configs"):
            shutil.rmtree(project / "sad_components" / name)
        code = "import torch; from torchtune._recipe_registry import get_all_recipes as g; g()[0]"
        done = run(sys.executable, "-c", code, project=project)
        assert done.returncode == 0, done.stderr
        assert "could not register" in done.stderr

    @pytest.mark.parametrize("debug", ["0", "1"])
    def test_a_failure_is_a_warning_in_debug_mode_only(
        self, monkeypatch, tmp_path, registry, recwarn, debug
    ):
        monkeypatch.setenv("SAD_PLUGIN_DEBUG", debug)
        monkeypatch.setattr(_tune_plugin, "_PACKAGE", tmp_path)
        monkeypatch.setitem(sys.modules, "torchtune._recipe_registry", registry)
        _tune_plugin.install()
        assert len(recwarn) == int(debug)

    @pytest.mark.parametrize("project", ["wheel"], indirect=True)
    def test_never_takes_torchtunes_recipes_for_ours(self, project, monkeypatch):
        shutil.rmtree(project / "sad_components" / "_recipes")
        (project / "recipes").mkdir()
        monkeypatch.setattr(_tune_plugin, "_PACKAGE", project / "sad_components")
        with pytest.raises(FileNotFoundError):
            _tune_plugin.project_folder("recipes")


CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.relative_to(ROOT).as_posix())
def test_every_config_names_a_recipe_and_validates(config):
    from omegaconf import OmegaConf
    from torchtune.config import validate

    recipe = _tune_plugin.recipe_of(config)
    assert recipe is not None, "the opening comments lack a line '# recipe: <name>'"
    assert (ROOT / "recipes" / f"{recipe}.py").is_file()
    validate(OmegaConf.load(config))
