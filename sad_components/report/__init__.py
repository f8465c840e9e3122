"""``sad report``: what runs have left, as one self-contained page and its figures as PNGs."""
