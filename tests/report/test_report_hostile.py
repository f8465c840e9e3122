"""Text of any origin neither runs in the report nor breaks it."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from report_runs import episode, json_lines, policy_figures, training_run

from sad_components.report.command import main
from sad_components.report.text import clean, one_line, shorten

ATTACKS = [
    "<script>alert(1)</script>",
    "</pre></details></style><img src=x onerror=alert(1)>",
    "\"><svg onload=alert(1)> ' {{ 7*7 }} {% raw %}",
    "<!-- --> ]]> &lt;script&gt; <style>*{display:none}</style>",
    "\x1b[31m\x1b]0;title\x07 \x00\x08\x7f\x85 bell",
    "\u202eright to left\u2066 \u200bzero width",
    "lone \ud800 surrogate \udfff",
    "$\\frac{1}{0}$ \\input $ _{^",
    "Observation: Thought: <|im_end|> </s> <think>",
    "e\u0301" * 400 + "long " * 40_000,
    "",
]
EVERYTHING = " ".join(ATTACKS[:9])
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "nav"),
    *("section", "h1", "h2", "p", "a", "b", "br", "code", "span", "div", "ul", "li", "pre"),
    *("figure", "figcaption", "img", "table", "thead", "tbody", "tr", "th", "td"),
    *("details", "summary", "progress"),
}
ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "class", "id", "href", "src", "alt"),
    *("scope", "tabindex", "role", "aria-label", "aria-hidden", "max", "value", "open"),
}


class Checked(HTMLParser):
    """Fails at whatever the template itself does not write; keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        assert tag in TAGS, tag
        for key, value in attrs:
            assert key in ATTRIBUTES, (tag, key)
            if key in ("src", "href"):
                assert value.startswith(("data:image/svg+xml;base64,", "#")), value[:80]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data[:80]}")

    def handle_data(self, data):
        self.text += data


def check(html: str) -> Checked:
    parser = Checked()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    allowed = {"\n", "\t"}
    assert not {c for c in html if ord(c) < 32 and c not in allowed}
    assert not set(html) & set("\x7f\x85\u200b\u202e\u2066\ud800")
    return parser


def hostile_runs(folder, attack: str):
    """Runs in which every text that a file can hold is ``attack``."""
    training = training_run(
        folder / "kd", dtype=attack, finished=attack, versions={"torch": attack}
    )
    rows = [{"step": n, "loss": 1.0 * n, attack: 1.0, f"heldout_{attack}": 2.0} for n in (1, 2)]
    json_lines(training / "metrics.jsonl", rows)
    policies = {}
    for name in ("teacher", "student"):
        episodes = [episode(attack, name == "teacher", [attack, name], attack)]
        json_lines(folder / "eval" / name / "episodes.jsonl", episodes)
        parts = [{"type": "text", "text": attack}]
        messages = [
            {"role": "system", "content": attack, "name": attack},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": f"Thought: {attack}\nAction: {attack}"},
            {"role": "user", "content": attack},
            {"role": "assistant", "content": attack, "reasoning_content": attack},
        ]
        record = {"id": f"room-{attack}", "task": attack, "format": "react", "messages": messages}
        json_lines(folder / "eval" / name / "trajectories.jsonl", [record])
        more = {"reasoning_unit": attack, "failed": {attack: 1}, "parameters": 100 + len(name)}
        policies[name] = policy_figures(episodes, **more)
    policies[attack] = {**policies["student"], "reasoning_unit": [attack]}
    comparisons = [{"a": attack, "b": attack, "success_difference": attack}]
    results = {"environment": {"name": attack}, "policies": policies, "comparisons": comparisons}
    (folder / "eval" / "results.json").write_text(json.dumps(results))
    return training, folder / "eval"


@pytest.mark.parametrize("attack", [EVERYTHING, *ATTACKS[9:]], ids=["all", "long", "empty"])
def test_hostile_text_in_every_field(tmp_path, attack):
    out = tmp_path / "out"
    runs = hostile_runs(tmp_path, attack)
    assert main([*map(str, runs), "--out", str(out)]) == 0
    page = (out / "index.html").read_text(encoding="utf-8")
    text = check(page).text
    assert len(page) < 4_000_000
    if attack == EVERYTHING:
        assert "<script>alert(1)</script>" in text
        assert "␛[31m" in text
        assert "⟨U+202E⟩" in text
        assert "{{ 7*7 }}" in text


def test_a_hostile_name_of_a_folder(tmp_path):
    folder = tmp_path / "<img src=x onerror=alert(1)>\x1b[2J$\\alpha$\u202e"
    out = tmp_path / "out"
    assert main([str(training_run(folder)), "--out", str(out)]) == 0
    assert "<img src=x onerror=alert(1)>␛[2J" in check((out / "index.html").read_text()).text


@pytest.mark.parametrize("junk", [None, True, [], {}, "x", -1, 1e300, 10**400, float("nan")])
def test_values_of_another_kind(tmp_path, junk):
    """Every value of every file replaced by something that it should not be."""
    training = training_run(tmp_path / "kd", **dict.fromkeys(("data", "versions", "seed"), junk))
    summary = json.loads((training / "summary.json").read_text())
    after = {"kl_reason": junk, "action_match": junk, "kl_by_step": [junk, {"step": junk}]}
    summary["heldout"]["after"] = after
    summary["parameters"] = {"student": junk, "teacher": 5}
    (training / "summary.json").write_text(json.dumps(summary))
    json_lines(training / "metrics.jsonl", [{"step": junk, "loss": 1}, {"step": 1, "loss": junk}])
    names = (
        "success",
        "by_task_type",
        "steps",
        "reasoning_length",
        "failed",
        "heldout",
        "thoughts",
    )
    figures = dict.fromkeys((*names, "parameters", "reasoning_unit"), junk)
    policies = {"teacher": figures, "student": figures, "other": junk}
    good = episode("a", True, ["go"])
    for name in ("teacher", "student"):
        rows = [good, *({**good, key: junk} for key in good)]
        json_lines(tmp_path / "eval" / name / "episodes.jsonl", rows)
        message = {"role": "assistant", "content": [{"text": junk}]}
        records = [{"id": "room-a", "format": "react", "messages": [message], "task": junk}]
        json_lines(tmp_path / "eval" / name / "trajectories.jsonl", records)
    results = {
        "environment": junk,
        "policies": policies,
        "comparisons": [junk, {"a": "x", "b": "y"}],
    }
    (tmp_path / "eval" / "results.json").write_text(json.dumps(results))
    out = tmp_path / "out"
    assert main([str(training), str(tmp_path / "eval"), "--out", str(out)]) == 0
    check((out / "index.html").read_text(encoding="utf-8"))


def test_text_helpers():
    assert clean("a\r\nb\u2028c") == "a␍\nb\nc"
    assert shorten("abcdef", 3) == "abc… [3 more characters]"
    assert shorten("abc", 3) == "abc"
    assert one_line("a" * 100, 10) == "a" * 9 + "…"
    assert one_line(None) == "None"
