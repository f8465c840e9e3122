"""The model ``sad`` of lm-eval: torchtune students, quantised ones, exported ones.

Answers equal those of lm-eval's own model ``hf`` on the same weights in the same dtype: texts are
encoded, cut and stopped by the same rules. docs/lm_eval.md says where they may differ.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import torch
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from tqdm import tqdm
from transformers import GenerationConfig

from sad_components.data.shipped import resolve_folder
from sad_components.evaluation.generation import Generator, Prompt
from sad_components.lm_harness.scoring import Reading, score
from sad_components.lm_harness.students import load_student, load_tokenizer

_log = logging.getLogger("lm_eval")

#: Positions (padding included) that are read together where batch_size is ``auto``.
AUTO_TOKENS = 8192
#: Of a generation request: what is understood beside the number of tokens.
_GENERATION_KEYS = {"until", "do_sample", "temperature", "max_gen_toks"}
#: Settings that say what happens anyway.
_NEUTRAL = {"top_p": (1, 1.0), "top_k": (0, 50), "num_beams": (1,), "use_cache": (True,)}


class SadLM(TemplateLM):
    """A student of this project as lm-eval asks it.

    Args:
        pretrained: its folder: Hugging Face format of any family known here (also quantised by
            this project), or an ExecuTorch export.
        tokenizer: folder of its tokenizer; None: ``pretrained``.
        dtype: of the weights: ``auto`` (as stored), ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu``, ``cuda``, ..; the CPU where there is no GPU.
        batch_size: sequences that are read together, or ``auto``: by their length.
        max_batch_size: most of them with ``auto``.
        max_length: longest sequence, in tokens; None: what the model reads at most.
        max_gen_toks: most tokens of a generated text, where a task does not say.
        add_bos_token: whether texts get a bos token; None: what the tokenizer does.
        prefix_token_id: stands before a text without context; None: bos, else eos.
        chat_template_args: further variables of the chat template.
        enable_thinking: one of them.
        seed: of sampled texts.

    Raises:
        ValueError: a folder that holds no student, or a setting that is none of its choices.
    """

    def __init__(
        self,
        pretrained: str,
        tokenizer: str | None = None,
        dtype: str | torch.dtype | None = "auto",
        device: str | None = "cuda",
        batch_size: int | str | None = 1,
        max_batch_size: int | None = 64,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        enable_thinking: bool | None = None,
        seed: int = 0,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise ValueError(
                f"--model sad takes no {', '.join(sorted(unknown))}; docs/lm_eval.md lists its "
                "arguments"
            )
        self._device = _device_of(device)
        self._student = load_student(resolve_folder(pretrained), dtype, self._device)
        folder = str(resolve_folder(tokenizer or pretrained))
        self.tokenizer = load_tokenizer(folder)
        self._batch_size, self._most = _batch_size_of(batch_size), max_batch_size or 64
        longest = self._student.max_length
        if max_length is not None and not 1 <= max_length <= longest:
            raise ValueError(f"max_length is 1 to {longest} for this model; got {max_length}")
        self._max_length = max_length or longest
        self._max_gen_toks = max_gen_toks
        self.add_bos_token, self._prefix_token_id = add_bos_token, prefix_token_id
        self._template_args = dict(chat_template_args or {})
        if enable_thinking is not None:
            self._template_args["enable_thinking"] = enable_thinking
        self._seed = seed
        self._stop_ids = self._ids_that_stop(folder)

    # -- what lm-eval asks about -----------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        if self._prefix_token_id is not None:
            return self._prefix_token_id
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        return self._max_gen_toks

    @property
    def batch_size(self) -> int | str:
        return self._batch_size

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's request caches."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """For the results file."""
        return {
            "model_num_parameters": self._student.parameters or -1,
            "model_dtype": self._student.dtype,
            "model_kind": self._student.kind,
            "max_length": self._max_length,
        }

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text, by the tokenizer's template; without its system turn if need be.

        Args:
            chat_history: turns with ``role`` and ``content``.
            add_generation_prompt: whether the answer begins after it; else the last turn goes on.
        """
        settings = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
            **self._template_args,
        }
        try:
            return self.tokenizer.apply_chat_template(chat_history, **settings)
        except jinja2.exceptions.TemplateError:
            _log.warning("the chat template takes no system turn: it is left out")
            kept = [turn for turn in chat_history if turn["role"] != "system"]
            return self.tokenizer.apply_chat_template(kept, **settings)

    # -- texts and tokens ----------------------------------------------------------------------

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids of a text, in which control tokens are read as such.

        Args:
            string: the text.
            add_special_tokens: whether bos comes before it; None: ``add_bos_token``, and never
                before a text that begins with it.
        """
        if add_special_tokens is None:
            prefix = self.tokenizer.decode(self.prefix_token_id)
            add_special_tokens = False if string.startswith(prefix) else self.add_bos_token
        if add_special_tokens is None:
            return self.tokenizer.encode(string)
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    # -- log-likelihoods -------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """Scores of continuations; what is too long is cut from the left of its context."""
        inputs = []
        for _, context, continuation in requests:
            self._check_room(len(continuation))
            whole = (context + continuation)[-(self.max_length + 1) :]
            inputs.append((whole[:-1], continuation))
        with tqdm(total=len(inputs), desc="Log-likelihoods", disable=disable_tqdm) as bar:
            scored = score(self._student.scorer, inputs, self._batches, bar.update)
        answers = [(found.logprob, found.is_greedy) for found in scored]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihoods of whole texts, in windows of ``max_length`` tokens."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            found = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [utils.make_disjoint_window(window) for window in found]
            windows += [(None, *pair) for pair in pairs]
            counts.append(len(pairs))
        scored = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        totals = [sum(next(scored)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _check_room(self, tokens: int) -> None:
        if not 1 <= tokens <= self.max_length:
            raise ValueError(
                f"a continuation has 1 to {self.max_length} tokens (max_length); got {tokens}"
            )

    def _batches(self, readings: Sequence[Reading]) -> Iterator[Sequence[Reading]]:
        """Readings that go together; they come longest first."""
        start = 0
        while start < len(readings):
            count = self._batch_size
            if isinstance(count, str):
                count = max(1, min(self._most, AUTO_TOKENS // len(readings[start].tokens)))
            yield readings[start : start + count]
            start += count

    # -- generation ----------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts behind contexts, each up to its first stop; contexts are cut from the left.

        Raises:
            ValueError: a generation setting that is not understood, or more tokens than fit.
        """
        out: list[str | None] = [None] * len(requests)
        groups: dict[tuple[int, float], list[tuple[int, Prompt]]] = {}
        for index, request in enumerate(requests):
            context, given = request.args
            until, most, temperature = self._settings(given)
            prompt = self._prompt(index, context, until, most)
            groups.setdefault((most, temperature), []).append((index, prompt))
        model = self._student.begin_generation()
        bar = tqdm(total=len(requests), desc="Generated texts", disable=disable_tqdm)
        try:
            for (most, temperature), asked in groups.items():
                generator = Generator(model, _Decoding(self), most, temperature)
                asked.sort(key=lambda pair: -len(pair[1].token_ids))
                for batch in self._generation_batches(asked, most):
                    for session, (_, prompt) in enumerate(batch):
                        prompt.session = session  # its place among the caches
                    written = generator.generate([prompt for _, prompt in batch])
                    for (index, _), text in zip(batch, written, strict=True):
                        out[index] = text.text
                        self.cache_hook.add_partial(
                            "generate_until", requests[index].args, text.text
                        )
                    bar.update(len(batch))
        finally:
            bar.close()
            self._student.end_generation()
        return [text or "" for text in out]

    def _settings(self, given: Mapping[str, Any]) -> tuple[list[str], int, float]:
        """Stops, most tokens and temperature (0: greedy) of a request."""
        settings = normalize_gen_kwargs(dict(given), self.max_gen_toks)
        foreign = {k: v for k, v in settings.items() if k not in _GENERATION_KEYS}
        odd = sorted(
            k for k, v in foreign.items() if v is not None and v not in _NEUTRAL.get(k, ())
        )
        if odd:
            raise ValueError(
                f"--model sad generates with until, max_gen_toks, do_sample and temperature; got "
                f"{', '.join(f'{key}={foreign[key]!r}' for key in odd)}: leave that out, or use "
                "--model hf"
            )
        eos = self.tok_decode([self.eot_token_id], skip_special_tokens=False)
        until = handle_stop_sequences(list(settings["until"]), eos=eos)
        temperature = settings.get("temperature", 0.0) if settings.get("do_sample") else 0.0
        return until, settings["max_gen_toks"], temperature

    def _prompt(self, index: int, context: str, until: Sequence[str], most: int) -> Prompt:
        if not 0 < most < self.max_length:
            raise ValueError(
                f"max_gen_toks is at least 1 and less than the model's {self.max_length} tokens; "
                f"got {most}"
            )
        tokens = self.tok_encode(context)[-(self.max_length - most) :]
        if not tokens:
            tokens = [self.prefix_token_id]
        known = (self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids)
        special = dict(zip(*known, strict=True))  # what is no token would be given unk's id
        stop_ids = self._stop_ids | {special[text] for text in until if text in special}

        def end(text: str) -> int | None:
            found = [at for stop in until if stop and (at := text.find(stop)) >= 0]
            return min(found, default=None)

        rng = random.Random(f"{self._seed}:{index}:{context}")
        return Prompt(index, tokens, rng, end, frozenset(stop_ids))

    def _generation_batches(
        self, asked: Sequence[tuple[int, Prompt]], most: int
    ) -> Iterator[Sequence[tuple[int, Prompt]]]:
        start = 0
        while start < len(asked):
            count = self._batch_size
            if isinstance(count, str):
                length = len(asked[start][1].token_ids) + most
                count = max(1, min(self._most, AUTO_TOKENS // length))
            count = min(count, self._student.sessions or count)
            yield asked[start : start + count]
            start += count

    def _ids_that_stop(self, folder: str) -> frozenset[int]:
        """The eos tokens of the tokenizer and of ``generation_config.json``."""
        found = {self.tokenizer.eos_token_id}
        try:
            eos = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
        except OSError:  # there is none
            eos = None
        found.update(eos if isinstance(eos, list) else [eos])
        return frozenset(token for token in found if token is not None)


class _Decoding:
    """What a generator needs of a tokenizer."""

    def __init__(self, model: SadLM) -> None:
        self.decode = model.tok_decode


def _device_of(name: str | None) -> torch.device:
    wanted = torch.device(name or "cpu")
    if wanted.type == "cuda" and not torch.cuda.is_available():
        _log.info("no GPU: the CPU is used instead of %s", name)
        return torch.device("cpu")
    return wanted


def _batch_size_of(given: int | str | None) -> int | str:
    text = str(1 if given is None else given)
    if text.split(":")[0] == "auto":
        return "auto"
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"batch_size is an integer of at least 1, or auto; got {given!r}")
    return int(text)
