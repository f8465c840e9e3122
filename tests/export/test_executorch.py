"""Programs in ExecuTorch's runtime: the numbers of eager, with a cache, and errors that name."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exports import QUANTISED, facts, needs_executorch, transcripts, write_student
from hf_families import CONFIGS
from tiny_models import distance

from sad_components.evaluation.decoding import FullDecoder, Prefix
from sad_components.evaluation.generation import Generator, Prompt
from sad_components.evaluation.policies import exported_policy
from sad_components.evaluation.policies.base import EpisodeView
from sad_components.export import ExportedStudent, load_exported, read_manifest, write_manifest
from sad_components.export.decoder import ExportDecoder
from sad_components.export.lowering import lower
from sad_components.export.variants import Variant, prepare, untie_
from sad_components.models import from_pretrained, from_scratch

pytestmark = needs_executorch


def ids_of(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 512, (length,), generator=generator).tolist()


@torch.no_grad()
def eager(model, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]))[0]


class TestNumbers:
    def test_fp32_is_eager(self, fp32, student):
        """70 tokens: five calls of 16 at most."""
        exported, model = ExportedStudent(fp32), from_pretrained(student).eval()
        ids = ids_of(70)
        assert distance(exported.sequence_logits(ids), eager(model, ids)) < 1e-5
        assert distance(exported.sequence_logits(ids, 33), eager(model, ids)[33:]) < 1e-5

    def test_8da4w_is_its_own_quantised_eager(self, quantised, shallow):
        exported, own = ExportedStudent(quantised), prepare(shallow, QUANTISED)
        ids = ids_of(70)
        found = exported.sequence_logits(ids)
        assert distance(found, eager(own, ids)) < 2e-2
        assert distance(found, eager(from_pretrained(shallow).eval(), ids)) > 2e-2

    def test_weights_are_packed(self, quantised, shallow):
        """All but the program itself, which is most of the file of a model this small."""
        weights = (shallow / "model.safetensors").stat().st_size
        assert (quantised / "model.pte").stat().st_size < weights

    @pytest.mark.parametrize("sessions", [1, 2, 5])
    def test_sequences_that_grow_side_by_side(self, fp32, student, sessions):
        """Each step adds a token to each; with fewer slots than sequences they are read anew."""
        exported = ExportedStudent(fp32, sessions=sessions)
        reference = FullDecoder(from_pretrained(student).eval())
        rows = [ids_of(length, length) for length in (20, 3, 11)]
        for step in range(4):
            asked = [Prefix(n, row + [step] * step) for n, row in enumerate(rows)]
            assert distance(exported.logits(asked), reference.logits(asked)) < 1e-5

    def test_a_session_that_goes_back(self, fp32, student):
        exported = ExportedStudent(fp32)
        reference = FullDecoder(from_pretrained(student).eval())
        for ids in (ids_of(40), [*ids_of(40)[:10], 7, 8], ids_of(12), ids_of(12)):
            asked = [Prefix(0, ids)]
            assert distance(exported.logits(asked), reference.logits(asked)) < 1e-5

    def test_decoding_reads_one_token_a_step(self, fp32):
        exported = ExportedStudent(fp32)
        calls = []
        slot = exported._slot(0)
        run = slot.method.execute
        slot.method.execute = lambda inputs: (calls.append(inputs[0].shape[1]), run(inputs))[1]
        ids = ids_of(20)
        for end in range(18, 21):
            exported.logits([Prefix(0, ids[:end])])
        assert calls == [16, 2, 1, 1]

    def test_too_long_is_refused(self, fp32):
        with pytest.raises(ValueError, match="reads 1 to 96 tokens; got a sequence of 97"):
            ExportedStudent(fp32).logits([Prefix(0, ids_of(97))])


class TestText:
    def test_greedy_text_is_eagers(self, fp32, student):
        exported = ExportedStudent(fp32)
        tokenizer = exported.tokenizer

        def write(model) -> list[list[int]]:
            generator = Generator(model, tokenizer, max_new_tokens=24)
            prompts = [
                Prompt(n, ids_of(9, n), random.Random(0), lambda _: None, frozenset())
                for n in range(2)
            ]
            return [g.token_ids for g in generator.generate(prompts)]

        assert write(exported) == write(FullDecoder(from_pretrained(student).eval()))

    def test_a_policy_plays_the_same_turns_with_any_number_of_sessions(self, fp32):
        def turns(sessions: int) -> list[str]:
            policy = exported_policy(str(fp32), sessions=sessions, max_new_tokens=6)
            views = []
            for n, trajectory in enumerate(transcripts(3)):
                opening = [trajectory.messages[0]]
                opening[0].content = opening[0].content[:60]
                views.append(EpisodeView(n, str(n), "react", opening, random.Random(n)))
            return [turn.message.text for turn in policy.act(views)]

        assert turns(1) == turns(3)
        assert any(turns(1))


class TestErrors:
    @pytest.fixture
    def copy(self, fp32, tmp_path) -> Path:
        self.known = read_manifest(fp32)
        return Path(shutil.copytree(fp32, tmp_path / "copy"))

    def described_anew(self, folder: Path, **changes) -> None:
        """A manifest that knows the files as they are now."""
        write_manifest(folder, replace(self.known, **changes))

    def test_a_damaged_program(self, copy):
        content = bytearray((copy / "model.pte").read_bytes())
        content[200] ^= 255
        (copy / "model.pte").write_bytes(bytes(content))
        with pytest.raises(ValueError, match=r"model.pte is not the file that was exported"):
            load_exported(copy)

    def test_another_file_as_program(self, copy):
        (copy / "model.pte").write_bytes(b"x" * (copy / "model.pte").stat().st_size)
        self.described_anew(copy)
        with pytest.raises(ValueError, match=r"model.pte is no program that ExecuTorch reads"):
            load_exported(copy)

    @pytest.mark.parametrize("key", ["max_seq_len", "prefill_tokens", "vocab_size"])
    def test_a_manifest_of_another_program(self, copy, key):
        self.described_anew(copy, **{key: 600})
        with pytest.raises(ValueError, match=rf"model.pte was exported with {key} \d+, but"):
            load_exported(copy)

    def test_another_tokenizer(self, copy):
        file = copy / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        tokenizer["model"]["merges"] = []
        file.write_text(json.dumps(tokenizer))
        with pytest.raises(ValueError, match=r"tokenizer.json has [\d,]+ bytes, but"):
            load_exported(copy)
        self.described_anew(copy)
        with pytest.raises(ValueError, match=r"tokenizer.json and the chat template beside it are"):
            load_exported(copy)

    def test_another_chat_template(self, copy):
        (copy / "chat_template.jinja").write_text("{{ messages }}")
        self.described_anew(copy)
        with pytest.raises(ValueError, match="chat template beside it are not those"):
            load_exported(copy)

    def test_sessions_and_kind(self, copy):
        with pytest.raises(ValueError, match="sessions must be at least 1; got 0"):
            ExportedStudent(copy, sessions=0)
        self.described_anew(copy, kind="gguf")
        with pytest.raises(ValueError, match="is of kind 'gguf'; this class runs executorch"):
            ExportedStudent(copy)


def test_cache_must_hold_what_is_read_at_once(tmp_path):
    decoder = ExportDecoder(from_scratch(CONFIGS["llama2"]), 8)
    with pytest.raises(ValueError, match="prefill_tokens is from 2 to max_seq_len, 8; got 9"):
        lower(decoder, tmp_path / "model.pte", 9, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "opt-350m", "llama3.2", "qwen2.5-0.5b", "qwen3-0.6b"])
def test_programs_of_every_family(name, tmp_path):
    """Rotary and learned positions, biases, norms of either kind, a projected embedding."""
    model = untie_(from_scratch(CONFIGS[name], seed=2, std=0.2).eval())
    ids = torch.randint(0, 97, (24,), generator=torch.Generator().manual_seed(3))[None]
    with torch.no_grad():
        expected = model(ids)
    lower(ExportDecoder(model, 32), tmp_path / "model.pte", 16, {})
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(tmp_path / "model.pte").load_method("forward")
    found = [method.execute([ids[:, :15], torch.tensor([0])])[0]]
    found += [method.execute([ids[:, n : n + 1], torch.tensor([n])])[0] for n in range(15, 24)]
    assert distance(torch.cat(found, 1), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        Variant("8da8w", head="8da8w"),
        Variant("8da4w", head="8da4w", embedding="int4"),
        Variant(embedding="int8"),
    ],
    ids=["8da8w", "8da4w-int4", "int8-embedding"],
)
def test_other_variants_are_their_own_eager(variant, tmp_path):
    from sad_components.export.writer import write_executorch

    student = write_student(tmp_path / "student")
    out = tmp_path / "out"
    out.mkdir()
    write_executorch(out, facts(student), variant, "v", max_seq_len=96, prefill_tokens=16)
    ids = ids_of(40)
    found = ExportedStudent(out).sequence_logits(ids)
    assert distance(found, eager(prepare(student, variant), ids)) < 2e-2
