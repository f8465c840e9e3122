"""``sad spans``, ``sad stats`` and ``sad convert`` on a file with good and bad rows."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models

from sad_components.formats.registry import segment
from sad_components.spans import Span, SpanKind, check_cover
from sad_components.trajectory import read_jsonl
from sad_components.viewer import convert, spans, stats

REACT = "Question: q\nThought 1: a\nAction 1: Finish[b]\nObservation 1: Answer is CORRECT\n"
CHAT = [
    {"role": "user", "content": "the task"},
    {"role": "assistant", "content": "Thought: a\nAction: <b>go</b>"},
    {"role": "user", "content": "Action: evil \x1b[31m"},
    {"role": "assistant", "content": "Action: stop"},
]
LINES = [
    json.dumps({"raw": REACT}),
    "{not json",
    "",
    json.dumps({"messages": CHAT}),
    "[1, 2]",
    json.dumps({"raw": "Once upon a time."}),
    json.dumps({"messages": [{"role": "robot", "content": "x"}]}),
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mixed.jsonl"
    path.write_bytes("\n".join(LINES).encode() + b'\n{"raw": "\xff"}\n')
    return path


def test_json_gives_one_object_a_row(file, capsys):
    assert spans.main([str(file), "--json"]) == 0
    out, err = capsys.readouterr()
    items = [json.loads(line) for line in out.splitlines()]
    assert [item["row"] for item in items] == list(range(7))
    assert [item["format"] for item in items] == ["react", None, "react", None, None, None, None]
    for item in (items[0], items[2]):
        assert "".join(item["text"][s:e] for s, e, _, _ in item["spans"]) == item["text"]
        assert item["skipped"] is None
    assert items[0]["text"] == REACT
    assert [s[2:] for s in items[0]["spans"]] == [
        ["context", 0],
        ["reason", 1],
        ["act", 1],
        ["observation", 1],
    ]
    reasons = [items[i]["skipped"] for i in (1, 3, 4, 5, 6)]
    expected = ["line 2: not JSON", "line 5: a row is a JSON object; got list"]
    expected += ["line 6: no transcript format fits", "'robot'", "line 8: not UTF-8"]
    assert all(part in reason for part, reason in zip(expected, reasons, strict=True)), reasons
    assert "format auto: react fits" in err
    assert "2 rows cut, 5 skipped" in err


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_byte_order_mark_may_come_first(tmp_path, capsys, ending):
    path = tmp_path / f"marked.{ending}"
    path.write_bytes(b"\xef\xbb\xbf" + LINES[0].encode())
    assert spans.main([str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] is None


def test_the_shipped_file_has_a_name_and_a_missing_one_an_error(capsys):
    assert spans.main(["shipped:household/heldout", "--limit", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "react"
    with pytest.raises(SystemExit):
        spans.main(["nowhere.jsonl"])
    assert "no trajectory file 'nowhere.jsonl'" in capsys.readouterr().err


def test_terminal_view_shows_text_and_no_control_codes(file, capsys):
    assert spans.main([str(file), "--limit", "3"]) == 0
    out = capsys.readouterr().out
    assert "Thought 1: a" in out
    assert "row 1: skipped" in out
    assert "\x1b[31m" not in out


def test_html_is_escaped_and_whole(file, tmp_path):
    page = tmp_path / "page.html"
    assert spans.main([str(file), "--html", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;go&lt;/b&gt;" in text
    assert "<b>" not in text
    assert '<span class="reason branch" title="reason, step 1">' in text
    assert text.rstrip().endswith("</html>")
    assert "http" not in text, "the page must be self-contained"


def test_svg(file, tmp_path):
    assert spans.main([str(file), "--limit", "1", "--svg", str(tmp_path / "a.svg")]) == 0
    assert "<svg" in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_named_format_reports_what_does_not_fit(file, capsys):
    assert spans.main([str(file), "--json", "--format", "webshop"]) == 1
    items = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "no 'Action:' line" in items[0]["skipped"]
    with pytest.raises(ValueError, match="no transcript format 'nope'"):
        spans.main([str(file), "--format", "nope"])


def test_unreadable_and_empty_files(tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text("nothing\n")
    assert spans.main([str(path), "--json"]) == 1
    path.write_text("")
    assert spans.main([str(path), "--json"]) == 1
    assert "no readable row" in capsys.readouterr().err


def test_one_document_and_plain_text(tmp_path, capsys):
    document = {"trajectory": [{"action": "ls", "response": "```\nls\n```", "observation": "a"}]}
    (tmp_path / "run.traj").write_text(json.dumps(document, indent=1))
    (tmp_path / "log.txt").write_text(REACT)
    (tmp_path / "many.json").write_text(json.dumps([{"raw": REACT}, 5]))
    for name in ("run.traj", "log.txt", "many.json"):
        assert spans.main([str(tmp_path / name), "--json"]) == 0
    items = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [i["format"] for i in items] == ["sweagent", "react", "react", None]
    assert "item 1: a row is a JSON object" in items[3]["skipped"]


def test_stats(file, capsys):
    assert stats.main([str(file), "--json", "--alpha", "2", "--beta", "0"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["rows"], figures["cut"], sum(figures["skipped"].values())) == (7, 2, 5)
    assert (figures["steps"], figures["thoughts"], figures["actions"]) == (3, 2, 3)
    assert figures["actions_without_thought"] == 1
    assert figures["unit"] == "characters"
    reason = len("Thought 1: a\n") + len("Thought: a\n")
    assert figures["amount"]["reason"] == reason
    assert figures["complexity"]["mean"] == reason
    total = sum(figures["amount"].values())
    supervised = figures["amount"]["reason"] + figures["amount"]["act"]
    assert figures["supervised_fraction"] == round(supervised / total, 4)
    assert figures["formats"] == {"react": 2}
    assert stats.main([str(file)]) == 0
    assert "supervised fraction" in capsys.readouterr().out


def test_percentiles_stay_near_in_constant_memory(monkeypatch):
    monkeypatch.setattr(stats, "RESERVOIR", 500)
    lengths = stats.Distribution()
    for value in range(20_000):
        lengths.add(value)
    assert len(lengths._kept) == 500
    assert lengths.to_dict()["max"] == 19_999
    assert lengths.to_dict()["p50"] == pytest.approx(10_000, abs=1_500)


def test_convert_writes_records_that_cut_alike(file, tmp_path, capsys):
    out = tmp_path / "canonical.jsonl"
    assert convert.main([str(file), str(out)]) == 0
    assert "2 rows converted, 5 skipped" in capsys.readouterr().err
    flat, chat = read_jsonl(out)
    assert "".join(m.text for m in flat.messages) == REACT
    assert [m.text for m in chat.messages] == [m["content"] for m in CHAT]
    assert all(t.format == "react" for t in (flat, chat))
    assert spans.main([str(file), "--json"]) == 0
    first = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert spans.main([str(out), "--json"]) == 0
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(i["text"], i["spans"]) for i in again] == [
        (i["text"], i["spans"]) for i in first if i["skipped"] is None
    ]
    assert segment(flat)


def test_convert_writes_nothing_from_nothing(tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text("nothing\n")
    assert convert.main([str(path), str(tmp_path / "out.jsonl")]) == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_a_long_file_is_streamed(tmp_path, capsys):
    path = tmp_path / "long.jsonl"
    path.write_text((json.dumps({"raw": REACT}) + "\n") * 1_000)
    cutter = spans.Cutter(path)
    rows = cutter.rows()
    assert next(rows).row == 0
    with open(path, "a") as handle:  # a row that came later is seen: nothing was read ahead
        handle.write("\n".join(["{}"] * 5000))
    assert sum(1 for _ in rows) > 4_000


@pytest.fixture
def tokenizer_folder(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = models.BPE({c: i for i, c in enumerate(alphabet)}, [])
    tokenizer = Tokenizer(bytes_only)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def test_a_tokenizer_renders_chat_by_its_template_and_counts_tokens(file, tokenizer_folder, capsys):
    assert spans.main([str(file), "--json", "--tokenizer", str(tokenizer_folder)]) == 0
    items = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert items[0]["text"] == REACT
    assert items[2]["text"].startswith("[user]the task[end][assistant]Thought: a\n")
    learnt = [items[2]["text"][s:e] for s, e, kind, _ in items[2]["spans"] if kind == "reason"]
    assert learnt == ["Thought: a\n"]
    assert stats.main([str(file), "--json", "--tokenizer", str(tokenizer_folder)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["unit"] == "tokens"
    assert figures["amount"]["reason"] == len("Thought 1: a\n") + len("Thought: a\n")


def test_a_file_of_no_transcripts_is_reported_row_by_row(tmp_path, capsys):
    path = tmp_path / "table.jsonl"
    path.write_text('{"a": 1}\n' * 60 + json.dumps({"raw": REACT}) + "\n")
    assert spans.main([str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    items = [json.loads(line) for line in out.splitlines()]
    assert [item["skipped"] is None for item in items] == [False] * 60 + [True]
    assert "no transcript format fits" in items[0]["skipped"]
    assert "1 rows cut, 60 skipped" in err


@pytest.mark.parametrize(
    ("start", "remedy"),
    [(b"\x1f\x8b\x08", "gunzip"), (b"PK\x03\x04", "unzip"), (b"PAR1", "to_json")],
)
def test_files_of_other_kinds_name_the_remedy(tmp_path, start, remedy):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(start + b"....")
    with pytest.raises(ValueError, match=remedy):
        spans.main([str(path)])
    with pytest.raises(ValueError, match="folder"):
        stats.main([str(tmp_path)])


REWRITING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last or m.role != 'assistant' %}{{ m.content }}"
    "{% else %}{{ m.content.split('Action:')[-1] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_rewrites_earlier_turns_is_shown_turn_by_turn(tmp_path, capsys):
    vocabulary = {token: index for index, token in enumerate(["[UNK]", "<|im_end|>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {"chat_template": REWRITING, "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": CHAT}) + "\n")
    assert spans.main([str(path), "--json", "--tokenizer", str(tmp_path)]) == 0
    item = json.loads(capsys.readouterr().out)
    assert "2 renderings" in item["notes"][0]
    assert "on_rewrite: per_turn" in item["notes"][0]
    assert item["text"].count("the task") == 2
    check_cover(
        [Span(s, e, SpanKind.parse(k), n) for s, e, k, n in item["spans"]], len(item["text"])
    )
    agent = [item["text"][s:e] for s, e, kind, _ in item["spans"] if kind in ("reason", "act")]
    assert agent == ["Thought: a\n", "Action: <b>go</b><|im_end|>", "Action: stop<|im_end|>"]
    assert stats.main([str(path), "--tokenizer", str(tmp_path)]) == 0
