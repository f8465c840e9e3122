"""Environments an agent plays in, one package each; their engines are optional extras."""
