"""Structured Agent Distillation for torchtune.

This module is imported while ``import torch`` runs (the plugin's entry point lives in this
package), so it must import nothing heavy: standard library only.
"""

__version__ = "0.1.0"
