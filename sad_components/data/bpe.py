"""Trains a small byte-level BPE tokenizer, for models made from scratch on one environment."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from sad_components.data.rendering import render_plain
from sad_components.formats import detect, get_format
from sad_components.formats.registry import segment
from sad_components.trajectory import Trajectory

BOS, EOS, TURN, TURN_END = "<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


#: How GPT-2 cuts text into words, which merges do not leave.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train_bpe(
    trajectories: Iterable[Trajectory],
    vocab_size: int,
    out_dir: str | Path,
    *,
    digits: bool = True,
    numbered: Sequence[str] = (),
) -> Path:
    """Writes a tokenizer folder (``tokenizer.json``, ``tokenizer_config.json``, ChatML template).

    Args:
        trajectories: whose plain renderings are learnt from.
        vocab_size: ids in all, at least 260 (256 bytes and 4 control tokens).
        out_dir: the folder to write.
        digits: split numbers into single digits, each a token of its own. Without it `` 12`` may
            become one token, blank included, which suits text with few different numbers.
        numbered: names that may become one token with the number behind them, `` cabinet 2``;
            needs ``digits=False``.

    Returns:
        The folder.

    Raises:
        ValueError: too small a vocabulary, or numbered names whose digits are split.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    control = [EOS, BOS, TURN, TURN_END]
    if vocab_size < 256 + len(control):
        raise ValueError(f"vocab_size must be at least {256 + len(control)}; got {vocab_size}")
    if numbered and digits:
        raise ValueError(
            f"numbered names ({', '.join(numbered)}) need whole numbers, but digits are split; "
            "set digits=False (--whole-numbers)"
        )
    tokenizer = Tokenizer(models.BPE())
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if numbered:
        names = "|".join(map(re.escape, numbered))
        cut = Regex(rf" ?(?:{names}) \p{{N}}+(?!\p{{L}})|{_WORDS}")
        steps = [
            pre_tokenizers.Split(cut, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    if digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=control,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_plain_text(t) for t in trajectories), trainer)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": TURN_END,
        "pad_token": EOS,
        "chat_template": CHATML,
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return out


def _plain_text(trajectory: Trajectory) -> str:
    format = (
        get_format(trajectory.format) if trajectory.format else detect([trajectory.to_dict()])[0]
    )
    return render_plain(trajectory.messages, segment(trajectory), format.dialect).text
