"""A model on this machine plays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from torchtune import config

from sad_components.data.transform import SpanTokenizer
from sad_components.evaluation.decoding import CachedDecoder
from sad_components.evaluation.generation import Generation, Generator, Prompt, TextGenerator
from sad_components.evaluation.policies.base import EpisodeView, Turn
from sad_components.evaluation.prompts import PromptBuilder, TurnPrompt
from sad_components.evaluation.turns import TurnReader
from sad_components.trajectory import Message


@dataclass
class _Said:
    """What a session's tokens are so far."""

    messages: int
    text: str
    token_ids: list[int]


class ModelPolicy:
    """Lets a text generator write every turn.

    Args:
        generator: writes.
        transform: tokenizer and style in which the model was trained.
        constrain: actions come out of the admissible ones, where the environment lists them.
        name: what results call it.
    """

    def __init__(
        self,
        generator: TextGenerator,
        transform: SpanTokenizer,
        constrain: bool = False,
        name: str = "model",
    ) -> None:
        self.name = name
        self.needs = frozenset({"admissible"}) if constrain else frozenset()
        self.generator, self.transform = generator, transform
        self._said: dict[int, _Said] = {}

    def act(self, episodes: Sequence[EpisodeView]) -> list[Turn]:
        prompts = [self._prompt(view) for view in episodes]
        asked = [self._ask(view, prompt) for view, prompt in zip(episodes, prompts)]
        written = self.generator.generate(asked)
        return [self._turn(*each) for each in zip(episodes, prompts, written)]

    def _prompt(self, view: EpisodeView) -> TurnPrompt:
        builder = PromptBuilder(self.transform, view.format)
        said = self._said.get(view.session)
        if said is None or said.messages + 1 != len(view.messages):
            return builder.build(view.messages)  # another episode has taken the session
        return builder.build(view.messages, said.text, said.token_ids)

    def _ask(self, view: EpisodeView, prompt: TurnPrompt) -> Prompt:
        reader, tokenizer = TurnReader(view.format), self.generator.tokenizer
        stops = {tokenizer.special.get(prompt.stop), tokenizer.eos_id}
        by_text = "" if prompt.stop in tokenizer.special else prompt.stop
        choices = None
        if view.admissible is not None:
            choices = _Choices(reader, view.admissible, by_text)
        return Prompt(
            view.session,
            prompt.token_ids,
            view.rng,
            lambda text: reader.end(text, by_text),
            frozenset(token for token in stops if token is not None),
            choices,
        )

    def _turn(self, view: EpisodeView, prompt: TurnPrompt, written: Generation) -> Turn:
        if not written.token_ids:
            room = self.generator.max_seq_len
            return Turn(failure=f"the transcript fills the model's {room} tokens")
        stop = "" if prompt.stop in self.generator.tokenizer.special else prompt.stop
        message = Message(
            "assistant",
            written.text.removesuffix(stop),
            token_ids=written.token_ids,
            logprobs=written.logprobs,
            tokenizer_hash=self.generator.tokenizer.fingerprint,
        )
        self._remember(view, prompt, written)
        return Turn(message, len(written.token_ids))

    def _remember(self, view: EpisodeView, prompt: TurnPrompt, written: Generation) -> None:
        tokenizer = self.generator.tokenizer
        self._said.pop(view.session, None)
        if tokenizer.decode(written.token_ids) != written.text:
            return  # its last token says more than the turn: the turn is encoded anew
        known = prompt.text + written.text
        if written.token_ids[-1] == tokenizer.special.get(prompt.stop):
            known += prompt.stop
        ids = prompt.token_ids + written.token_ids
        self._said[view.session] = _Said(len(view.messages) + 1, known, ids)


class _Choices:
    """How a turn may go on so that its action is an admissible one."""

    def __init__(self, reader: TurnReader, admissible: Sequence[str], stop: str) -> None:
        self._reader = reader
        self._texts = [f" {action}{stop}" for action in admissible]

    def __call__(self, text: str) -> list[str] | None:
        so_far = self._reader.action_so_far(text)
        if so_far is None:
            return None
        return [t[len(so_far) :] for t in self._texts if t.startswith(so_far)] or None


def model_policy(
    model: Any,
    tokenizer: Any,
    transform: Mapping[str, Any] | None = None,
    *,
    temperature: float = 0.0,
    max_new_tokens: int = 128,
    constrain: bool = False,
    name: str = "model",
) -> ModelPolicy:
    """A policy of a torchtune decoder with a cache of keys and values.

    Args:
        model: a ``TransformerDecoder``, or a config of one (a mapping with ``_component_``); it is
            used until the policy is thrown away.
        tokenizer: of the model, anything that ``SpanTokenizer`` takes, or a config of one.
        transform: keyword arguments of ``SpanTokenizer`` with which the model was trained
            (``style: plain``, for example).
        temperature: 0 is greedy.
        max_new_tokens: most tokens of a turn.
        constrain: actions come out of the admissible ones, where the environment lists them.
        name: what results call it.
    """
    chosen = SpanTokenizer(made(tokenizer), **(transform or {}))
    decoder = CachedDecoder(made(model), chosen.tokenizer.vocab_size)
    generator = Generator(decoder, chosen.tokenizer, max_new_tokens, temperature)
    return ModelPolicy(generator, chosen, constrain, name)


def made(part: Any) -> Any:
    """The object itself, or the one that a config (a mapping with ``_component_``) describes."""
    return config.instantiate(OmegaConf.create(dict(part))) if isinstance(part, Mapping) else part
