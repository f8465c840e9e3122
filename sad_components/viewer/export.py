"""``sad export``: writes a student for ExecuTorch and for torch, and compares what was written.

It runs recipes/export_student.py with a config made of these options.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sad_components.export.model_card import transform_options
from sad_components.export.variants import EMBEDDINGS, PTE_SCHEMES
from sad_components.models.checkpoint import load_hf_config
from sad_components.models.quantized import SCHEMES, quantized_scheme
from sad_components.models.torchao_folders import TORCHAO_SCHEMES
from sad_components.training.config import load_recipe

_PTE = ("fp32", *PTE_SCHEMES)
_GGUF = ("fp32", "fp16", "bf16", "q8_0")
_HF = ("plain", *SCHEMES, *TORCHAO_SCHEMES)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``sad export``; 0 when every export agrees with its eager model."""
    parser = _parser()
    args = parser.parse_args(argv)
    recipe = load_recipe("export_student").ExportStudentRecipe(config_of(args))
    recipe.setup()
    recipe.export()
    return 0


def config_of(args: argparse.Namespace) -> DictConfig:
    """The recipe's config that the options mean.

    Raises:
        ValueError: the source is neither a run nor a student.
    """
    source = Path(args.source)
    is_run = (source / "config.yaml").is_file() and not (source / "config.json").is_file()
    cfg: dict[str, Any] = {
        "run": str(source) if is_run else None,
        "student": None if is_run else str(source),
        "exports": {},
        "compare": {"rows": args.rows, "source": args.compare},
        "output_dir": args.out,
        "overwrite": args.overwrite,
    }
    own = quantized_scheme(load_hf_config(source / "student" if is_run else source))
    if not is_run:
        cfg["transform"] = transform_options(source, args.style)
        cfg["compare"]["source"] = args.compare or "shipped:household/heldout"
    elif args.style:
        raise ValueError(f"{source} is a run and knows its style: leave out --style")
    if args.tokenizer:
        tokenizer = {"_component_": "sad_components.data.HFTokenizer", "path": args.tokenizer}
        cfg["tokenizer"] = tokenizer
    for key in ("max_seq_len", "prefill_tokens", "threads", "reference"):
        if getattr(args, key) is not None:
            cfg[key] = getattr(args, key)
    for name in args.hf:
        scheme = None if name == "plain" else name
        cfg["exports"]["hf" if scheme is None else f"{name}_eager"] = {
            "kind": "hf",
            **({"scheme": scheme} if scheme else {}),
        }
    pte = args.pte
    if not (args.pte or args.hf or args.gguf):
        pte = ["fp32", "8da4w"] if own is None else [own]
    elif own is not None and set(pte) - {own}:
        raise ValueError(
            f"{source} is quantised by {own} and is exported as it is; got --pte {' '.join(pte)}: "
            "leave --pte out, or export the student that it was made of"
        )
    for name in pte:
        node: dict[str, Any] = {"kind": "executorch"}
        if name != "fp32":
            node |= {"scheme": name, "group_size": args.group_size}
        if name != "fp32" or own is not None:
            node["head"] = None if args.head == "fp32" else args.head
            node["embedding"] = None if args.embedding == "fp32" else args.embedding
        cfg["exports"][name] = node
    for name in args.gguf:
        cfg["exports"][f"gguf_{name}"] = {"kind": "gguf", "dtype": name}
    return OmegaConf.create(cfg)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sad export", description=__doc__)
    parser.add_argument("source", metavar="RUN", help="a training run's folder, or a student's")
    parser.add_argument("--out", required=True, metavar="DIR", help="gets a folder for each export")
    parser.add_argument(
        "--pte",
        nargs="*",
        default=[],
        choices=_PTE,
        metavar="VARIANT",
        help=f"ExecuTorch programs: {', '.join(_PTE)} (without any of the three: fp32 8da4w)",
    )
    parser.add_argument(
        "--hf",
        nargs="*",
        default=[],
        choices=_HF,
        metavar="SCHEME",
        help=f"folders for torch: {', '.join(_HF)}",
    )
    parser.add_argument(
        "--gguf",
        nargs="*",
        default=[],
        choices=_GGUF,
        metavar="DTYPE",
        help=f"files for llama.cpp: {', '.join(_GGUF)}",
    )
    parser.add_argument(
        "--head",
        choices=["fp32", *PTE_SCHEMES],
        default="8da8w",
        help="output head of quantised programs (8da8w)",
    )
    parser.add_argument(
        "--embedding",
        choices=["fp32", *EMBEDDINGS],
        default="int8",
        help="embedding of quantised programs (int8)",
    )
    parser.add_argument(
        "--group-size", type=int, default=32, metavar="N", help="of 8da4w weights (32)"
    )
    parser.add_argument("--max-seq-len", type=int, metavar="N", help="positions of the cache")
    parser.add_argument("--prefill-tokens", type=int, metavar="N", help="read at once (128)")
    parser.add_argument("--threads", type=int, metavar="N", help="to compute with")
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="where it is not in the student's folder"
    )
    parser.add_argument(
        "--style",
        choices=["chat", "plain"],
        help="of a student without a run (its card's, else chat)",
    )
    parser.add_argument("--compare", metavar="FILE", help="transcripts (the run's held-out ones)")
    parser.add_argument("--rows", type=int, default=4, metavar="N", help="of them are compared (4)")
    parser.add_argument("--reference", metavar="DIR", help="the fp32 student of a quantised one")
    parser.add_argument("--overwrite", action="store_true", help="replace exports that are there")
    return parser
