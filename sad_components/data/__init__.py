"""From trajectories to batches: rendering, tokens with their spans, datasets, collation.

Names are imported when they are first used: what only cuts text (``sad spans``) needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sad_components.data.batch import Batch, blank, collate, collate_packed
    from sad_components.data.batching import Batching
    from sad_components.data.dataset import MixedDataset, TrajectoryDataset, dataset_type
    from sad_components.data.filters import Filters
    from sad_components.data.order import StepOrder
    from sad_components.data.report import DataReport, MixtureReport
    from sad_components.data.shipped import resolve_source
    from sad_components.data.tokenizers import HFTokenizer, OffsetTokenizer
    from sad_components.data.transform import SpanTokenizer, TokenizedTrajectory

_MODULE_OF = {
    "Batch": "batch",
    "Batching": "batching",
    "DataReport": "report",
    "Filters": "filters",
    "HFTokenizer": "tokenizers",
    "MixedDataset": "dataset",
    "MixtureReport": "report",
    "OffsetTokenizer": "tokenizers",
    "SpanTokenizer": "transform",
    "StepOrder": "order",
    "TokenizedTrajectory": "transform",
    "TrajectoryDataset": "dataset",
    "blank": "batch",
    "collate": "batch",
    "collate_packed": "batch",
    "dataset_type": "dataset",
    "resolve_source": "shipped",
}

__all__ = [
    "Batch",
    "Batching",
    "DataReport",
    "Filters",
    "HFTokenizer",
    "MixedDataset",
    "MixtureReport",
    "OffsetTokenizer",
    "SpanTokenizer",
    "StepOrder",
    "TokenizedTrajectory",
    "TrajectoryDataset",
    "blank",
    "collate",
    "collate_packed",
    "dataset_type",
    "resolve_source",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
