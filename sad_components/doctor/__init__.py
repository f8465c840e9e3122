"""``sad doctor``: what is wrong with a config, and whether it fits, before anything is loaded."""
