"""Small tokenizers trained on transcripts."""

import json

import pytest

from sad_components import cli
from sad_components.data import HFTokenizer
from sad_components.data.bpe import train_bpe
from sad_components.data.shipped import resolve_source
from sad_components.data.transform import SpanTokenizer
from sad_components.spans import SpanKind
from sad_components.trajectory import read_jsonl

SOURCE = resolve_source("shipped:household/heldout")


@pytest.fixture(scope="module")
def trajectories():
    return list(read_jsonl(SOURCE))


@pytest.fixture(scope="module")
def by_name(trajectories, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    train_bpe(trajectories, 512, folder / "digits")
    train_bpe(trajectories, 1024, folder / "numbers", digits=False)
    return {name: HFTokenizer(folder / name) for name in ("digits", "numbers")}


def pieces(tokenizer, text):
    return [tokenizer.decode([i]) for i in tokenizer.encode_text(text)[0]]


@pytest.mark.parametrize("name", ["digits", "numbers"])
def test_every_text_comes_back(by_name, name):
    for text in ["Action: go to cabinet 12\n", " 7 ämter, 世界?\r\n\t x3y ", "<|im_end|>"]:
        assert by_name[name].decode(by_name[name].encode_text(text)[0]) == text


def test_digits_stand_alone_unless_numbers_stay_whole(by_name):
    assert pieces(by_name["digits"], " cabinet 12")[-2:] == ["1", "2"]
    assert pieces(by_name["numbers"], " to cabinet 2\n") == [" to", " cabinet", " 2", "\n"]


def test_numbered_names_are_one_token(trajectories, tmp_path):
    names = ["cabinet", "drawer"]
    train_bpe(trajectories, 900, tmp_path, digits=False, numbered=names)
    tokenizer = HFTokenizer(tmp_path)
    expected = [" the", " cabinet 2", ".", " The", " cabinet", " is", " closed", "."]
    assert pieces(tokenizer, " the cabinet 2. The cabinet is closed.") == expected
    for text in ["cabinet 12a cabinet 2", "it's  a\n drawer 1,世界"]:
        assert tokenizer.decode(tokenizer.encode_text(text)[0]) == text
    with pytest.raises(ValueError, match="digits=False"):
        train_bpe(trajectories, 900, tmp_path, numbered=names)


def test_an_action_ends_with_a_newline_of_its_own(by_name, trajectories):
    row = SpanTokenizer(by_name["numbers"], style="plain").rows(trajectories[0])[0]
    act = [by_name["numbers"].decode([t]) for t in row.tokens[row.span_ids == SpanKind.ACT]]
    assert act[-1] == "\n"
    assert all("\n" not in piece or piece == "\n" for piece in act)


def test_command_writes_a_folder_and_keeps_an_older_one(tmp_path, capsys):
    argv = ["train-tokenizer", str(SOURCE), "--out", str(tmp_path / "t"), "--vocab-size", "400"]
    assert cli.main(argv) == 0
    assert "400 tokens" in capsys.readouterr().out
    vocabulary = json.loads((tmp_path / "t" / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(vocabulary) == 400
    assert cli.main(argv) == 2
    assert "exists and would be lost" in capsys.readouterr().err
    assert cli.main([*argv, "--overwrite", "--whole-numbers"]) == 0


def test_too_small_a_vocabulary_is_an_error(trajectories, tmp_path):
    with pytest.raises(ValueError, match="at least 260; got 100"):
        train_bpe(trajectories, 100, tmp_path)
