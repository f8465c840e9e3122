"""Whether ExecuTorch is here, and how it gets here: it is no dependency that pip can resolve."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

#: The version that everything was tested with: earlier ones fail at run time on torch 2.13.
EXECUTORCH = "1.4.1"
#: Sets ExecuTorch up; executorch.txt of the repository holds the same.
INSTALL = f"pip install --no-deps executorch=={EXECUTORCH} flatbuffers ruamel.yaml tabulate"
_NEEDED = ("executorch", "flatbuffers", "ruamel.yaml", "tabulate")


def executorch_problems() -> list[str]:
    """What keeps ExecuTorch from working here, a clause each; empty when nothing does."""
    problems = []
    for package in _NEEDED:
        try:
            found = version(package)
        except PackageNotFoundError:
            problems.append(f"{package} is not installed")
            continue
        if package == "executorch" and found != EXECUTORCH:
            problems.append(f"executorch is {found}, but {EXECUTORCH} is what was tested")
    return problems


def require_executorch() -> None:
    """Raises ``ImportError`` with the command that mends it unless ExecuTorch can be used."""
    problems = executorch_problems()
    if problems:
        raise ImportError(
            f"a .pte is made and run by ExecuTorch: {'; '.join(problems)}. Set it up with "
            f"`{INSTALL}` (--no-deps: it demands a torchao that breaks torchtune; `make test` in a "
            "checkout does it)"
        )
