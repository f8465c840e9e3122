"""Model cards: a ``README.md`` in a student's folder that says what it is and how good it is.

The front matter is Hugging Face's; under ``sad`` it also says how transcripts were rendered in
training, so that whoever evaluates the folder does the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sad_components.export.manifest import TRANSFORM_KEYS, is_export, read_manifest
from sad_components.models.checkpoint import CARD_FILE, CONFIG_FILE, load_hf_config
from sad_components.models.quantized import quantized_scheme
from sad_components.training.durable import write_atomically

UNKNOWN = "unknown"
#: Where the training data's licence is known: name -> licence.
SHIPPED_LICENCES = {
    "shipped:household/": "BSD-3-Clause; the wording of observations is ALFWorld's (MIT)",
}
#: What only this licence's text says -> its name on the hub.
_LICENCE_TEXTS = (
    (r"Apache License\s+Version 2\.0", "apache-2.0"),
    (r"to\s+any\s+person\s+obtaining\s+a\s+copy\s+of\s+this\s+software\s+and\s+associated", "mit"),
    (r"Neither\s+the\s+names?\s+of", "bsd-3-clause"),
    (r"Redistribution\s+and\s+use\s+in\s+source\s+and\s+binary\s+forms", "bsd-2-clause"),
    (r"LLAMA 2 COMMUNITY", "llama2"),
    (r"LLAMA 3\.1 COMMUNITY", "llama3.1"),
    (r"LLAMA 3\.2 COMMUNITY", "llama3.2"),
    (r"LLAMA 3 COMMUNITY", "llama3"),
)
_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
_FRONT = re.compile(r"\A---\n(.*?\n)---\n", re.S)
#: Columns of the held-out table: figure, heading, format.
_COLUMNS = (
    ("kl_reason", "KL reason (nats/token)", "{:.3f}"),
    ("kl_act", "KL act (nats/token)", "{:.3f}"),
    ("ce", "CE (nats/token)", "{:.3f}"),
    ("action_match", "action match", "{:.1%}"),
    ("entropy", "entropy (nats/token)", "{:.3f}"),
)
_USAGE = "## How to run"
_RUNTIMES = {
    "executorch": "ExecuTorch (`model.pte`)",
    "gguf": "llama.cpp (`model.gguf`)",
}
_ROWS = {"before": "student before", "after": "student after", "teacher": "teacher"}


def front_matter(folder: str | Path) -> dict[str, Any]:
    """The front matter of a folder's ``README.md``; empty where there is none that can be read."""
    path = Path(folder) / CARD_FILE
    try:
        found = _FRONT.match(path.read_text(encoding="utf-8"))
        content = yaml.safe_load(found[1]) if found else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def transform_of(folder: str | Path) -> dict[str, Any]:
    """Keyword arguments of ``SpanTokenizer`` with which a student was trained; empty if unknown.

    Args:
        folder: a student with a card of ours, or an exported one.
    """
    if is_export(folder):
        return dict(read_manifest(folder, verify=False).transform)
    own = front_matter(folder).get("sad")
    found = own.get("transform") if isinstance(own, dict) else None
    return dict(found) if isinstance(found, dict) else {}


def transform_options(folder: str | Path, style: str | None = None) -> dict[str, Any]:
    """How a student is shown transcripts: as ``style``, else as its folder says, else as chat.

    Args:
        folder: see :func:`transform_of`.
        style: ``chat`` or ``plain`` where somebody knows better.
    """
    known = {k: v for k, v in transform_of(folder).items() if k in TRANSFORM_KEYS}
    return {"style": "chat", **(known if style in (None, known.get("style")) else {"style": style})}


def licence_of(folder: str | Path | None) -> str:
    """The licence of a model's weights as its folder states it, else ``unknown``.

    Asked in this order: the card's front matter, ``config.json``'s ``license``, a LICENSE file of
    a well-known licence.
    """
    if folder is None or not Path(folder).is_dir():
        return UNKNOWN
    stated = front_matter(folder).get("license")
    if isinstance(stated, str) and stated.strip():
        return stated.strip()
    config = Path(folder) / "config.json"
    if config.is_file():
        text = config.read_text(encoding="utf-8", errors="replace")
        if found := re.search(r'"license"\s*:\s*"([^"]+)"', text):
            return found[1]
    for name in _LICENCE_FILES:
        if (Path(folder) / name).is_file():
            text = (Path(folder) / name).read_text(encoding="utf-8", errors="replace")
            return next((known for sign, known in _LICENCE_TEXTS if re.search(sign, text)), UNKNOWN)
    return UNKNOWN


def student_card(
    summary: Mapping[str, Any],
    *,
    title: str,
    evaluation: Mapping[str, Any] | None = None,
    data_licence: str | None = None,
    folder: str | Path | None = None,
) -> str:
    """The card of a run's student.

    Args:
        summary: the run's ``summary.json``.
        title: heading.
        evaluation: of ``evaluate_agent``'s ``results.json`` the entry of the policy that the
            student is, with ``environment`` beside it; None where it was not played.
        data_licence: of the trajectories; None: what is known of shipped ones, else unknown.
        folder: whose card it is: how it is loaded depends on what lies there.
    """
    config = summary["config"]
    transform = dict(config.get("transform") or {})
    base = _base_folder(config)
    licence = licence_of(base)
    head = {
        "license": licence,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["structured-agent-distillation", "torchtune", "agent"],
        "sad": {"transform": transform},
    }
    parts = [
        f"# {title}",
        "An agent's language model, trained with "
        "[torchtune-sad](https://arxiv.org/abs/2505.13820) (Structured Agent Distillation).",
        *_models(config, summary, base, licence),
        *_data(config, summary.get("data") or {}, data_licence),
        *_method(config, summary),
        *_numbers(summary.get("heldout") or {}, evaluation, config.get("qat")),
        *_usage(transform, folder, own_words=base is None),
        "## Versions",
        _bullets(f"{name}: {value}" for name, value in (summary.get("versions") or {}).items()),
    ]
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def export_card(
    student_dir: str | Path, name: str, row: Mapping[str, Any], folder: str | Path | None = None
) -> str:
    """The card of an export: the student's own, with what the export is and how it compares.

    Args:
        student_dir: folder of the student; one without a card gives a short one.
        name: of the export.
        row: its figures as ``recipes/export_student.py`` measures them: ``runtime``, ``bytes``,
            ``error`` and ``error_own`` (relative, of logits), ``greedy_equal``, ``not_run``, ..
        folder: of the export; None: one that is loaded as the student is.
    """
    path = Path(student_dir) / CARD_FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not _FRONT.match(text):
        front = yaml.safe_dump({"license": licence_of(student_dir)})
        text = f"---\n{front}---\n\n# {Path(student_dir).resolve().name}\n{text}"
    before, usage, rest = text.partition(_USAGE)
    section = f"## Export\n\n{_bullets(_export_lines(name, row))}\n\n"
    _, _, versions = rest.partition("## Versions")
    if row["runtime"] == "eager" and not _is_quantised(folder):
        return before.rstrip() + f"\n\n{section}{usage}{rest}"
    if row["runtime"] == "eager":
        how = "\n\n".join(_usage(transform_of(student_dir), folder)) + "\n"
    else:
        how = (
            f"{_USAGE}\n\nIt runs in {_RUNTIMES[row['runtime']]}; `manifest.json` says how prompts "
            "are written and which tokens end a turn.\n\n```console\nsad chat <this folder>\n```\n"
        )
    tail = f"\n## Versions{versions}" if versions else ""
    return before.rstrip() + f"\n\n{section}{how}{tail}"


def write_card(folder: str | Path, text: str) -> Path:
    """Writes the card into a student's folder, replacing an older one as a whole; its path.

    Args:
        folder: exists.
        text: of :func:`student_card`.
    """
    path = Path(folder) / CARD_FILE
    write_atomically(path, text)
    return path


def write_run_cards(
    run: str | Path, summary: Mapping[str, Any], title: str | None = None, **known: Any
) -> list[str]:
    """Writes the cards of a finished run's student, and of its quantised version if there is one.

    Args:
        run: the run's ``output_dir``.
        summary: its ``summary.json``.
        title: heading; None: the run's name.
        known: ``evaluation`` (of the student) and ``data_licence``, as for :func:`student_card`.

    Returns:
        Lines that say where.
    """
    lines = []
    for name in ("student", "quantized"):
        folder = Path(run) / name
        if folder.is_dir():
            own = {k: v for k, v in known.items() if name == "student" or k != "evaluation"}
            heading = title or Path(run).resolve().name
            text = student_card(summary, title=heading, folder=folder, **own)
            lines.append(f"card: {write_card(folder, text)}")
    return lines


def _base_folder(config: Mapping[str, Any]) -> Path | None:
    """The folder whose weights the student began with."""
    path = (config.get("student") or {}).get("path")
    return None if path is None else Path(path)


def _models(
    config: Mapping[str, Any], summary: Mapping[str, Any], base: Path | None, licence: str
) -> list[str]:
    student, teacher = dict(config["student"]), dict(config.get("teacher") or {})
    counts = summary.get("parameters") or {}
    made = student.get("_component_", "").rpartition(".")[2]
    settings = {k: v for k, v in student.items() if k not in ("_component_", "path", "config")}
    how = ", ".join(f"{key} {value}" for key, value in settings.items())
    origin = f"weights of `{base}`" if base else "random weights"
    lines = [
        f"student: {_count(counts.get('student'))} parameters, {made} from {origin}"
        + (f" ({how})" if how else ""),
    ]
    if base:
        unstated = " (their folder states none)" if licence == UNKNOWN else ""
        lines.append(f"licence of the base weights: {licence}{unstated}")
    if teacher:
        where = teacher.get("path") or teacher.get("_component_", "").rpartition(".")[2]
        lines.append(f"teacher: `{where}`, {_count(counts.get('teacher'))} parameters")
    else:
        lines.append("teacher: none (trained on the trajectories' own tokens)")
    return ["## Models", _bullets(lines)]


def _data(config: Mapping[str, Any], report: Mapping[str, Any], licence: str | None) -> list[str]:
    lines = []
    for part in report.get("sources") or [report]:
        source = str(part.get("source") or (config.get("dataset") or {}).get("source"))
        tokens = ", ".join(f"{k} {n:,}" for k, n in (part.get("tokens") or {}).items())
        known = next((v for k, v in SHIPPED_LICENCES.items() if source.startswith(k)), UNKNOWN)
        lines.append(
            f"`{source}`: {_count(part.get('kept'))} of {_count(part.get('rows'))} records"
            + (f", tokens: {tokens}" if tokens else "")
            + f"; licence: {licence or known}"
        )
    heldout = config.get("heldout")
    if heldout:
        limit = heldout.get("limit")
        first = f" (the first {limit})" if limit else ""
        lines.append(f"held out: `{heldout.get('source') or 'several sources'}`{first}")
    return ["## Data", _bullets(lines)]


def _method(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    loss = dict(config.get("loss") or {})
    name = str(loss.pop("_component_", "")).rpartition(".")[2]
    spans = {k: loss.pop(k) for k in ("reason", "act", "observation", "context") if k in loss}
    lines = [f"loss: {name}"]
    for kind, settings in spans.items():
        shown = ", ".join(f"{k} {v}" for k, v in (settings or {}).items())
        lines.append(f"{kind}: {shown or 'left out'}")
    lines += [f"{key}: {value}" for key, value in loss.items()]
    optimizer = dict(config.get("optimizer") or {})
    kind = str(optimizer.pop("_component_", "")).rpartition(".")[2]
    rows = config.get("batch_size", 1) * config.get("gradient_accumulation_steps", 1)
    lines += [
        f"optimizer: {kind}, " + ", ".join(f"{k} {v}" for k, v in optimizer.items()),
        f"{summary.get('steps')} steps of {rows * summary.get('world_size', 1)} rows, "
        f"{summary.get('dtype')}, seed {summary.get('seed')}, "
        f"{summary.get('world_size', 1)} process(es)",
    ]
    return ["## Method", _bullets(lines)]


def _numbers(
    heldout: Mapping[str, Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
    rounding: str | None = None,
) -> list[str]:
    parts = ["## Numbers"]
    rows = {label: heldout[name] for name, label in _ROWS.items() if name in heldout}
    columns = [c for c in _COLUMNS if any(row.get(c[0]) is not None for row in rows.values())]
    if rows and columns:
        table = [
            f"| held-out trajectories | {' | '.join(heading for _, heading, _ in columns)} |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for label, row in rows.items():
            cells = ("-" if row.get(k) is None else f.format(row[k]) for k, _, f in columns)
            table.append(f"| {label} | {' | '.join(cells)} |")
        parts.append("\n".join(table))
        rounded = f" Measured with the rounding of {rounding}." if rounding else ""
        parts.append(f"Teacher-forced, on tokens of the agent; KL against the teacher.{rounded}")
    if evaluation is not None:
        parts.append(_played(evaluation))
    if len(parts) == 1:
        parts.append("Not evaluated.")
    return parts


def _played(evaluation: Mapping[str, Any]) -> str:
    won = evaluation["success"]
    environment = evaluation.get("environment") or {}
    lines = [
        f"success in {environment.get('name', 'the environment')}: {won['rate']:.1%} "
        f"[{won['low']:.1%}, {won['high']:.1%}] (95 % Wilson), {won['won']} of {won['episodes']} "
        "episodes, greedy unless its config says otherwise"
    ]
    for key, label in (("steps", "agent steps per episode"), ("reasoning_length", "reasoning")):
        if evaluation.get(key) is not None:
            unit = f" {evaluation.get('reasoning_unit')} per step" if label == "reasoning" else ""
            lines.append(f"{label}: {evaluation[key]:.1f}{unit}")
    accuracy = (evaluation.get("heldout") or {}).get("step_accuracy")
    if accuracy is not None:
        lines.append(f"step accuracy on held-out trajectories: {accuracy:.1%}")
    return _bullets(lines)


def _export_lines(name: str, row: Mapping[str, Any]) -> list[str]:
    lines = [f"{name}: {row['bytes'] / 1e6:.1f} MB of weights, runtime {row['runtime']}"]
    if row.get("error") is not None:
        lines.append(
            f"relative error of its logits against the student in fp32: {row['error']:.1e}"
        )
    if row.get("error_own") is not None:
        lines.append(f"against the eager model with the same numbers: {row['error_own']:.1e}")
    if row.get("greedy_equal") is not None:
        equal = "equal to" if row["greedy_equal"] else "not equal to"
        lines.append(f"greedy texts of the probe: {equal} the student's")
    if row.get("not_run"):
        lines.append(f"written, not run where it was made: {row['not_run']}")
    return lines


def _is_quantised(folder: str | Path | None) -> bool:
    if folder is None or not (Path(folder) / CONFIG_FILE).is_file():
        return False
    return quantized_scheme(load_hf_config(folder)) is not None


def _loading(folder: str | Path | None, own_words: bool) -> str:
    """Python that loads a folder's model and tokenizer."""
    if _is_quantised(folder):
        return (
            "from sad_components.data import HFTokenizer\n"
            "from sad_components.models.quantized import load_quantized\n\n"
            'model = load_quantized("<this folder>")  # its linear layers are quantised\n'
            'tokenizer = HFTokenizer("<this folder>")'
        )
    # AutoTokenizer cuts words by the rule of the architecture, whatever tokenizer.json says
    tokenizer = "PreTrainedTokenizerFast" if own_words else "AutoTokenizer"
    return (
        f"from transformers import AutoModelForCausalLM, {tokenizer}\n\n"
        'model = AutoModelForCausalLM.from_pretrained("<this folder>")\n'
        f'tokenizer = {tokenizer}.from_pretrained("<this folder>")'
    )


def _usage(
    transform: Mapping[str, Any], folder: str | Path | None, own_words: bool = False
) -> list[str]:
    style = transform.get("style", "chat")
    note = (
        "Transcripts were rendered by the tokenizer's chat template."
        if style == "chat"
        else "Transcripts were rendered as plain text (Thought / Action / Observation), without a "
        "chat template: prompt it so."
    )
    return [
        _USAGE,
        note,
        f"```python\n{_loading(folder, own_words)}\n```",
        "```console\n"
        "tune run recipes/evaluate_agent.py --config my_evaluation.yaml   # plays an environment\n"
        "sad lm-eval run --model sad --model_args pretrained=<this folder> "
        "--tasks sad_span_ppl\n"
        "```",
    ]


def _bullets(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _count(number: Any) -> str:
    return UNKNOWN if number is None else f"{number:,}"
