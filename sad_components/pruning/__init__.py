"""Students out of teachers: which layers, heads, neurons and channels to keep, and their folder."""
