"""Looking at transcript files: ``sad spans``, ``sad stats``, ``sad convert``."""
