"""lm-eval: students as models, trajectories as tasks (``docs/lm_eval.md``)."""
