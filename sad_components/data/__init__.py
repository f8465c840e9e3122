"""From trajectories to batches: rendering, tokens with their spans, datasets, collation."""
