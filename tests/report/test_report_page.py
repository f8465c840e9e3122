"""The page and the PNGs: what is on them, what is said to be missing, and that nothing loads."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from report_runs import json_lines, teacher_and_student, training_run

from sad_components import cli
from sad_components.report import style
from sad_components.report.command import main
from sad_components.spans import SpanKind
from sad_components.viewer import spans as viewer

PNG = b"\x89PNG\r\n"


class Page(HTMLParser):
    """Elements with their attributes, and the text of each section and caption."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: dict[str, str] = {}
        self._section = "header"
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self._section = dict(attrs)["id"]

    def handle_data(self, data):
        self.text[self._section] = self.text.get(self._section, "") + data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def make(tmp_path, *arguments) -> tuple[Page, set[str]]:
    """The page that the command writes, and the names of its PNGs."""
    out = tmp_path / "out"
    assert main([*map(str, arguments), "--out", str(out)]) == 0
    pngs = {path.name for path in (out / "figures").iterdir()}
    assert all((out / "figures" / name).read_bytes().startswith(PNG) for name in pngs)
    return Page((out / "index.html").read_text(encoding="utf-8")), pngs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training run and an evaluation of teacher and student."""
    folder = tmp_path_factory.mktemp("whole")
    return make(folder, training_run(folder / "kd"), teacher_and_student(folder / "eval"))


def test_figures_of_everything_that_is_there(whole):
    page, pngs = whole
    assert pngs == {
        *(f"train_{name}.png" for name in ("kl_reason", "kl_act", "ce_act", "action_match")),
        *(f"train_{name}.png" for name in ("loss", "lr", "tokens_per_s")),
        *("kl_by_step_reason.png", "kl_by_step_act.png", "success_by_task_type.png"),
        *("steps_per_episode.png", "won_within_steps.png", "reasoning_length.png"),
        *("thoughts.png", "seconds_per_step.png", "retention.png"),
    }
    assert len(page.all("img")) == len(pngs)


def test_alternative_texts_say_the_figures(whole):
    alts = [image["alt"] for image in whole[0].all("img")]
    assert any("kd from 5 at step 1 to 1.667 at step 3" in alt for alt in alts)
    assert any("teacher won 3 of 4; student won 2 of 4" in alt for alt in alts)
    assert any("kd after: 1 at step 1, 2 at step 2" in alt for alt in alts)


def test_tables_hold_the_figures(whole):
    text = whole[0].text
    assert "kd: student after1.5000.750" in text["training"].replace("\n", "")
    assert "4×" in text["training"]
    assert "50.0% [15.0%, 85.0%]" in text["agents"]
    assert "student − teacher" in text["agents"]
    assert "66.7% [20%, 113%]" in text["retention"]
    assert "teacher1.8" in text["behaviour"].replace("\n", "")  # 7 steps in 4 episodes


def test_episodes_are_side_by_side_with_the_divergence(whole):
    page, _ = whole
    text = page.text["episodes"]
    assert "4 of 4 episodes" in text
    assert text.index("only the teacher won, first divergent step 2") < text.index("neither won")
    assert "both won, the same actions" in text
    classes = [attributes.get("class") for attributes in page.all("pre")]
    assert {"piece reason", "piece act", "piece observation", "piece context"} <= set(classes)


def test_the_page_loads_nothing_and_runs_nothing(whole):
    page, _ = whole
    assert not page.all("script")
    for name, attributes in page.elements:
        for key, value in attributes.items():
            assert not key.startswith("on"), (name, key)
            assert key != "style"
            if key == "src":
                assert value.startswith("data:image/svg+xml;base64,")
            if key in ("href", "srcset"):
                assert value.startswith("#")
    assert "url(" not in page.html
    assert "@import" not in page.html


def test_the_policy_allows_this_style_and_no_other(whole):
    page, _ = whole
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    (css,) = re.findall(r"<style>(.*?)</style>", page.html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy
    assert "unsafe" not in policy


def test_colours_of_spans_are_those_of_the_viewer(whole):
    for kind in (SpanKind.REASON, SpanKind.ACT):
        colour = style.SPAN_COLOURS[kind]
        assert f"--{kind.label}: {colour}" in whole[0].html
        assert f".{kind.label} {{ background: {colour} }}" in viewer._CSS
    assert "--observation: #14692b" in whole[0].html
    assert ".observation { color: #14692b }" in viewer._CSS


def test_figures_follow_the_colour_scheme(whole):
    svg = base64.b64decode(whole[0].all("img")[0]["src"].partition(",")[2]).decode()
    assert "prefers-color-scheme:dark" in svg
    assert svg.count(style.INK) == 1  # once as the variable's light value
    assert "<!--" not in svg


def test_a_training_run_alone_says_how_to_get_the_rest(tmp_path):
    page, pngs = make(tmp_path, training_run(tmp_path / "kd", heldout={}, parameters={}))
    assert not {name for name in pngs if not name.startswith("train_")}
    assert "run recipes/evaluate_agent.py" in page.text["agents"]
    assert "No KL by step" in page.text["steps"]
    assert "No held-out scores" in page.text["training"]
    assert "Not known" in page.text["retention"]
    assert "No rollouts in these runs" in page.text["episodes"]


def test_policies_without_a_known_teacher(tmp_path, capsys):
    run = teacher_and_student(tmp_path / "run")
    (run / "teacher").rename(run / "a")
    results = (run / "results.json").read_text().replace('"teacher"', '"a"')
    (run / "results.json").write_text(re.sub(r', "parameters": \d+', "", results))
    page, _ = make(tmp_path, run, "--episodes", "3")
    assert "name one with --teacher" in page.text["episodes"]
    assert "No training run was given" in page.text["training"]
    page, _ = make(tmp_path, run, "--teacher", "a", "--episodes", "3")
    assert "3 of 4 episodes" in page.text["episodes"]
    page, _ = make(tmp_path, run, "--teacher", "a", "--episodes", "0")
    assert "as was asked for" in page.text["episodes"]
    capsys.readouterr()
    assert cli.main(["report", str(run), "--teacher", "b"]) == 2
    assert "--teacher names a policy of the runs (a, student)" in capsys.readouterr().err


def test_what_was_skipped_is_on_the_page_and_on_stderr(tmp_path, capsys):
    folder = training_run(tmp_path / "kd")
    json_lines(folder / "metrics.jsonl", [{"step": 1, "my_metric": 2}, {"step": 2, "my_metric": 1}])
    (tmp_path / "nothing").mkdir()
    page, _ = make(tmp_path, folder, tmp_path / "nothing")
    assert "nothing: skipped, no run" in page.text["notes"]
    assert "note: nothing: skipped" in capsys.readouterr().err
    assert "Metrics without a figure of their own: my_metric" in page.text["training"]
    assert "No training curves" in page.text["training"]


@pytest.mark.parametrize("count", ["-1", "51", "x"])
def test_a_number_of_episodes_out_of_range(tmp_path, count, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--episodes", count])
    assert "--episodes" in capsys.readouterr().err
