"""How good a student is: on held-out trajectories, and in its environment."""
