"""``sad doctor``: checks a config and estimates memory and time; nothing is loaded or written."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from sad_components.doctor.checks import Check, Doctor
from sad_components.doctor.config_file import read_config

_MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``sad doctor``; 0 if nothing fails, else 1."""
    args = _parser().parse_args(argv)
    file = read_config(args.config, args.overrides)
    memory = None if args.memory is None else int(args.memory * 1e9)
    found = Doctor(file, memory, args.nproc_per_node).checks()
    good = all(check.mark != "fail" for check in found)
    if args.json:
        checks = [check.to_dict() for check in found]
        print(json.dumps({"config": str(file.path), "ok": good, "checks": checks}, indent=2))
    else:
        print("\n".join(_table(found)))
        print("ready" if good else "not ready")
    return 0 if good else 1


def _table(found: Sequence[Check]) -> list[str]:
    width = max(len(check.name) for check in found)
    out = []
    for check in found:
        first, *rest = check.lines
        out.append(f"{_MARKS[check.mark]}  {check.name:<{width}}  {first}")
        out += [" " * (width + 8) + line for line in rest]
    return out


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sad doctor", description=__doc__)
    parser.add_argument("--config", required=True, metavar="PATH_OR_NAME")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for tune run")
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="judge for a machine with this much per process"
    )
    parser.add_argument(
        "--nproc_per_node", type=int, default=1, metavar="N", help="processes, as for tune run (1)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
