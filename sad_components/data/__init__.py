"""From trajectories to batches: rendering, tokens with their spans, datasets, collation."""

from sad_components.data.batch import Batch, collate, micro_batches
from sad_components.data.dataset import DataReport, TrajectoryDataset
from sad_components.data.order import StepOrder
from sad_components.data.shipped import resolve_source
from sad_components.data.tokenizers import HFTokenizer, OffsetTokenizer
from sad_components.data.transform import SpanTokenizer, TokenizedTrajectory

__all__ = [
    "Batch",
    "DataReport",
    "HFTokenizer",
    "OffsetTokenizer",
    "SpanTokenizer",
    "StepOrder",
    "TokenizedTrajectory",
    "TrajectoryDataset",
    "collate",
    "micro_batches",
    "resolve_source",
]
