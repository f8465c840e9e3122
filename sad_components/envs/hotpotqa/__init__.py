"""HotPotQA: Search, Lookup and Finish over each question's own paragraphs."""

from sad_components.envs.hotpotqa.environment import HotpotQAEnvironment
from sad_components.envs.hotpotqa.questions import Question, load_questions
from sad_components.envs.hotpotqa.scoring import answer_f1, exact_match, normalize_answer

__all__ = [
    "HotpotQAEnvironment",
    "Question",
    "answer_f1",
    "exact_match",
    "load_questions",
    "normalize_answer",
]
