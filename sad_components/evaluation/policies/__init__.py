"""Who plays: models here, exported or served, scripted experts, a model and its expert, chance."""

from sad_components.evaluation.policies.base import EpisodeView, Policy, Turn
from sad_components.evaluation.policies.corrected import CorrectedPolicy
from sad_components.evaluation.policies.endpoint import EndpointPolicy
from sad_components.evaluation.policies.exported import exported_policy
from sad_components.evaluation.policies.local import ModelPolicy, model_policy
from sad_components.evaluation.policies.scripted import ExpertPolicy, RandomPolicy, ScriptedPolicy

__all__ = [
    "CorrectedPolicy",
    "EndpointPolicy",
    "EpisodeView",
    "ExpertPolicy",
    "ModelPolicy",
    "Policy",
    "RandomPolicy",
    "ScriptedPolicy",
    "Turn",
    "exported_policy",
    "model_policy",
]
