"""The teacher, written down once: what it says about every supervised token, and how to read it."""

from sad_components.training.teacher_cache.cached import CachedTeacher
from sad_components.training.teacher_cache.codecs import (
    HiddenCodec,
    SampledCodec,
    TopKCodec,
    make_codec,
)
from sad_components.training.teacher_cache.errors import CacheError
from sad_components.training.teacher_cache.sources import LiveSource, supervision
from sad_components.training.teacher_cache.writer import CacheWriter

__all__ = [
    "CacheError",
    "CacheWriter",
    "CachedTeacher",
    "HiddenCodec",
    "LiveSource",
    "SampledCodec",
    "TopKCodec",
    "make_codec",
    "supervision",
]
