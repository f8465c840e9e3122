"""GPT-2's and OPT's tokenizers, small: the same ids as transformers, the first token once."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sad_components.data import HFTokenizer, SpanTokenizer
from sad_components.data.rendering import render_plain
from sad_components.data.shipped import resolve_source
from sad_components.formats import get_format
from sad_components.formats.registry import segment
from sad_components.trajectory import read_jsonl

TRAJECTORIES = list(read_jsonl(resolve_source("shipped:household/heldout")))[:4]
TEXT = render_plain(
    TRAJECTORIES[0].messages,
    segment(TRAJECTORIES[0]),
    get_format(TRAJECTORIES[0].format or "react").dialect,
).text
#: Tokens as the published tokenizers have them: first the control tokens, by id.
GPT2 = {"control": ["<|endoftext|>"], "bos": "<|endoftext|>", "pad": None}
OPT = {"control": ["<s>", "<pad>", "</s>"], "bos": "</s>", "pad": "<pad>"}


@pytest.fixture(params=[GPT2, OPT], ids=["gpt2", "opt"])
def family(request):
    return request.param


@pytest.fixture
def folder(family, tmp_path):
    """A byte-level BPE trained here; OPT's writes </s> in front of every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=family["control"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    bos = family["bos"]
    if family is OPT:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=bos, pad_token=family["pad"]
    ).save_pretrained(tmp_path)
    return tmp_path


def test_ids_are_transformers_and_bos_comes_once(folder, family):
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    ours = HFTokenizer(str(folder))
    bos = theirs.convert_tokens_to_ids(family["bos"])
    assert (ours.bos_id, ours.eos_id) == (bos, bos)
    assert bos == (2 if family is OPT else 0)
    assert ours.pad_id == (1 if family is OPT else 0)
    plain = theirs(TEXT, add_special_tokens=False).input_ids
    assert ours.encode_text(TEXT)[0] == plain
    assert theirs(TEXT).input_ids == ([bos, *plain] if family is OPT else plain)
    row = SpanTokenizer(ours, style="plain").rows(TRAJECTORIES[0])[0]
    assert row.tokens.tolist() == [bos, *plain]
    bare = SpanTokenizer(ours, style="plain", add_bos=False).rows(TRAJECTORIES[0])[0]
    assert bare.tokens.tolist() == plain


def test_control_tokens_in_content_are_text(folder, family):
    ours = HFTokenizer(str(folder))
    ids, _ = ours.encode_text(f"say {family['bos']} now")
    assert ours.bos_id not in ids
    assert ours.decode(ids) == f"say {family['bos']} now"


def test_files_without_tokenizer_json_are_named(folder):
    (folder / "tokenizer.json").rename(folder / "other.json")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        HFTokenizer(str(folder))
