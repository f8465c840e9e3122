"""From trajectories to batches: rendering, tokens with their spans, datasets, collation."""

from sad_components.data.batch import Batch, collate, collate_packed
from sad_components.data.batching import Batching
from sad_components.data.dataset import DataReport, TrajectoryDataset
from sad_components.data.order import StepOrder
from sad_components.data.shipped import resolve_source
from sad_components.data.tokenizers import HFTokenizer, OffsetTokenizer
from sad_components.data.transform import SpanTokenizer, TokenizedTrajectory

__all__ = [
    "Batch",
    "Batching",
    "DataReport",
    "HFTokenizer",
    "OffsetTokenizer",
    "SpanTokenizer",
    "StepOrder",
    "TokenizedTrajectory",
    "TrajectoryDataset",
    "collate",
    "collate_packed",
    "resolve_source",
]
