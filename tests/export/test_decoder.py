"""The decoder that is exported gives the model's own logits, however the tokens arrive."""

from __future__ import annotations

import pytest
import torch
from exports import needs_executorch, write_student
from hf_families import CONFIGS
from tiny_models import distance

from sad_components.export.decoder import ExportDecoder
from sad_components.export.variants import Variant, exported_variant, prepare, untie_
from sad_components.models import from_pretrained, from_scratch
from sad_components.models.quantized import Scheme, quantize_folder

pytestmark = needs_executorch


@torch.no_grad()
def read(decoder: ExportDecoder, ids: list[int], cuts: list[int]) -> torch.Tensor:
    parts = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)])]
    starts = [0, *cuts]
    out = [decoder(torch.tensor([p]), torch.tensor([s]))[0] for p, s in zip(parts, starts)]
    return torch.cat(out)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_in_any_pieces(name):
    """Prefill, prefill in pieces, token by token: rotary and learned positions, groups, norms."""
    model = from_scratch(CONFIGS[name], seed=2, std=0.2).eval()
    ids = torch.randint(0, 97, (24,), generator=torch.Generator().manual_seed(3)).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0]
    decoder = ExportDecoder(model, 32)
    for cuts in ([], [7], [1, 2, 9], list(range(1, 24))):
        assert distance(read(decoder, ids, cuts), expected) < 2e-6


def test_what_was_read_later_is_forgotten_when_going_back():
    decoder = ExportDecoder(from_scratch(CONFIGS["llama2"], seed=2, std=0.2), 32)
    first = read(decoder, [5, 6, 7, 8, 9], [3])
    read(decoder, [1, 2, 3, 4, 5, 6, 7, 8], [])
    assert torch.equal(read(decoder, [5, 6, 7, 8, 9], [3]), first)


def test_refuses_what_it_cannot_cache():
    model = from_scratch(CONFIGS["llama2"])
    with pytest.raises(ValueError, match="at most the model's context, 64; got 65"):
        ExportDecoder(model, 65)
    with pytest.raises(ValueError, match=r"exported from fp32 models; this one has torch.bfloat16"):
        ExportDecoder(from_scratch(CONFIGS["llama2"], dtype="bf16"), 32)

    class Mine(type(model.layers[0].attn)):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model.layers[0].attn.__class__ = Mine
    with pytest.raises(ValueError, match="Mine cannot be exported: a static cache is known for"):
        ExportDecoder(model, 32)


@pytest.mark.parametrize("scheme", ["int4", "int8_weight_only", "int4_weight_only"])
def test_silently_wrong_schemes_are_refused_with_their_reason(scheme):
    for key in ("scheme", "head"):
        with pytest.raises(ValueError, match=f"{key}: {scheme} .* wrong numbers and no error"):
            Variant(**{key: scheme})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "8da2w"}, "scheme of a .pte is null or one of 8da4w, 8da8w; got '8da2w'"),
        ({"embedding": "int3"}, "embedding is null or one of int8, int4; got 'int3'"),
        ({"group_size": 0}, "group_size must be a positive even integer"),
    ],
)
def test_other_variants_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Variant(**options)


def test_a_tied_head_becomes_a_matrix_of_its_own():
    model = from_scratch(CONFIGS["smollm2"], std=0.2).eval()
    ids = torch.arange(9)[None]
    with torch.no_grad():
        before = model(ids)
        assert torch.equal(untie_(model)(ids), before)
    assert model.output.weight.data_ptr() != model.tok_embeddings.weight.data_ptr()


def test_a_student_quantised_in_training_keeps_its_rounding(tmp_path):
    """What QAT rounded is exported as it is; only head and embedding are quantised anew."""
    student = write_student(tmp_path / "student")
    quantized = quantize_folder(student, tmp_path / "quantized", Scheme("8da4w", 32))
    chosen = exported_variant(quantized, Variant(head="8da8w"))
    assert (chosen.scheme, chosen.group_size, chosen.head) == ("8da4w", 32, "8da8w")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        own = prepare(quantized, Variant(None))(ids)
        again = prepare(student, Variant("8da4w"))(ids)
        plain = from_pretrained(student).eval()(ids)
    assert torch.equal(own, again)
    assert 1e-3 < distance(own, plain) < 0.5
    with pytest.raises(ValueError, match="quantised by 8da4w; it cannot become 8da8w"):
        exported_variant(quantized, Variant("8da8w"))


def test_groups_must_divide(tmp_path):
    student = write_student(tmp_path / "student")
    with pytest.raises(ValueError, match="group size of 48 does not divide the 64 inputs"):
        prepare(student, Variant(group_size=48, head="8da4w"))
    with pytest.raises(ValueError, match="group size of 48 does not divide the embedding's width"):
        prepare(student, Variant(group_size=48, embedding="int4"))
