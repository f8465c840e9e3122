"""Puts ``recipes/`` and ``configs/`` into the package when a wheel is built.

They lie at the top of the repository as in torchtune, but a top-level package ``recipes`` would
overwrite torchtune's own. An editable install needs no copy: the plugin finds the checkout.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

#: Folder -> the files in it that a wheel holds as ``sad_components/_<folder>``.
REMAPPED = {"recipes": "*.py", "configs": "**/*.yaml"}


class BuildWithRecipes(build_py):
    """``build_py`` that also copies the remapped folders."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._remapped_files().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target, preserve_mode=False)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        copies = [] if self.editable_mode else list(self._remapped_files().values())
        return super().get_outputs(include_bytecode) + copies

    def _remapped_files(self) -> dict[str, str]:
        """Source path -> path in the build folder."""
        package = Path(self.build_lib) / "sad_components"
        return {
            str(file): str(package / f"_{file}")
            for folder, pattern in REMAPPED.items()
            for file in sorted(Path(folder).glob(pattern))
        }


setup(cmdclass={"build_py": BuildWithRecipes})
