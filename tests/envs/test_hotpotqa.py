"""Search, Lookup, Finish, and answers scored as the official script scores them."""

import json
import os
from pathlib import Path

import pytest

from sad_components.envs import EpisodeOver, NoSuchTask, make_environment
from sad_components.envs.hotpotqa import answer_f1, exact_match, load_questions, normalize_answer

QUESTIONS = load_questions()


@pytest.fixture
def env():
    env = make_environment("hotpotqa")
    env.reset("sad-hp-01")
    return env


def gold(env, task):
    env.reset(task)
    while True:
        turn = env.expert_turn().text
        result = env.step(turn.split("Action: ")[1])
        if result.done:
            return result


def test_gold_script_answers_every_shipped_question(env):
    results = [gold(env, task) for task in env.tasks()]
    assert len(results) == 12
    assert all(r.reward == 1.0 and r.info["won"] for r in results)
    assert all(r.info["scores"] == {"f1": 1.0} for r in results)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.id)
def test_shipped_questions_can_be_answered_from_their_paragraphs(question):
    assert 3 <= len(question.paragraphs) <= 5
    assert set(question.supporting) <= set(question.paragraphs)
    text = " ".join(s for t in question.supporting for s in question.paragraphs[t]).lower()
    assert (
        question.answer in ("yes", "no")
        or question.answer.lower() in text + " ".join(question.supporting).lower()
    )


def test_search_shows_a_page(env):
    assert env.step("Search[ LIND  lantern]").observation == (
        "The Lind lantern is a storm lamp with a double glass. It was invented by Tobias Lind, "
        "a coppersmith. It burns for nine hours on one filling."
    )


def test_search_for_what_is_not_there_names_what_is(env):
    result = env.step("Search[Tobias Lindt]")
    assert result.observation.startswith("Could not find Tobias Lindt. Similar: ['Tobias Lind'")
    assert result.info["valid"]


def test_lookup_goes_on_from_hit_to_hit(env):
    assert not env.step("Lookup[it]").info["valid"]
    env.step("Search[Lind lantern]")
    first, second, third = (env.step("Lookup[lind]").observation for _ in range(3))
    assert first == "(Result 1 / 2) The Lind lantern is a storm lamp with a double glass."
    assert second == "(Result 2 / 2) It was invented by Tobias Lind, a coppersmith."
    assert third == "No more results."
    assert env.step("Lookup[nine]").observation.startswith("(Result 1 / 1)")
    assert env.step("Lookup[]").observation == "No more results."


@pytest.mark.parametrize(
    ("answer", "reward", "f1"),
    [
        ("the Orrin Valley.", 1.0, 1.0),
        ("Orrin", 0.0, 2 / 3),
        ("yes", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_finish(env, answer, reward, f1):
    result = env.step(f"Finish[{answer}]")
    assert (result.reward, result.done, result.info["won"]) == (reward, True, bool(reward))
    assert result.info["scores"]["f1"] == pytest.approx(f1)
    with pytest.raises(EpisodeOver):
        env.step("Search[x]")


@pytest.mark.parametrize("action", ["", "Search", "Search Lind", "Buy[x]", "Finish", "search[x"])
def test_what_is_no_action(env, action):
    result = env.step(action)
    assert not result.info["valid"]
    assert result.observation.startswith("Invalid action")


def test_out_of_steps(env):
    for _ in range(7):
        assert not env.step("Search[x]").done
    assert env.step("Search[x]").info["truncated"]


def test_restore_replays(env):
    actions = ["Search[Lind lantern]", "Lookup[lind]"]
    assert env.restore("sad-hp-01", actions).startswith("(Result 1 / 2)")
    assert env.step("Lookup[lind]").observation.startswith("(Result 2 / 2)")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  cat", "cat"),
        ("A.N. Other", "other"),  # punctuation goes first: "an" is an article then
        ("an-other", "another"),
        ("Theatre", "theatre"),
        ("«x»", "«x»"),
        ("  ", ""),
    ],
)
def test_normalisation(text, wanted):
    assert normalize_answer(text) == wanted


@pytest.mark.parametrize(
    ("ours", "theirs", "match", "f1"),
    [
        ("yes", "yes", True, 1.0),
        ("yes", "yes it is", False, 0.0),
        ("no answer", "noanswer", False, 0.0),
        ("the the", "a", True, 0.0),  # both empty: the same, but without a word in common
        ("red red blue", "red green", False, 0.4),
        ("Yes!", "yes", True, 1.0),
    ],
)
def test_official_scores(ours, theirs, match, f1):
    assert exact_match(ours, theirs) is match
    assert answer_f1(ours, theirs) == pytest.approx(f1)


def test_both_shapes_of_rows(tmp_path):
    rows = [
        {"_id": "a", "question": "q", "answer": "x", "context": [["T", ["x."]]]},
        {
            "id": "b",
            "question": "q",
            "answer": "x",
            "context": {"title": ["T", "U"], "sentences": [["x."], ["y.", "z."]]},
            "supporting_facts": {"title": ["U", "U", "T"], "sent_id": [0, 1, 0]},
        },
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = load_questions(path)
    assert first.paragraphs == {"T": ("x.",)}
    assert second.supporting == ("U", "T")
    assert second.paragraphs["U"] == ("y.", "z.")


def test_a_datasets_folder(tmp_path):
    row = QUESTIONS[0]
    data = {"id": row.id, "question": row.question, "answer": row.answer, "type": row.kind}
    data["context"] = {
        "title": list(row.paragraphs),
        "sentences": [list(s) for s in row.paragraphs.values()],
    }
    folder = tmp_path / "hotpot"
    folder.mkdir()
    (folder / "validation.jsonl").write_text(json.dumps(data) + "\n")
    loaded = load_questions(f"datasets:{folder}")
    assert loaded[0].paragraphs == dict(row.paragraphs)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": "q", "answer": "a"}, r"q\.jsonl:1: .*no 'context' here"),
        ({"question": "q", "answer": "a", "context": ["x"]}, r"pairs"),
        (None, "holds no question"),
    ],
)
def test_rows_that_are_no_questions(tmp_path, line, message):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(line) + "\n" if line else "")
    with pytest.raises(ValueError, match=message):
        load_questions(path)


def test_unknown_tasks(env):
    with pytest.raises(NoSuchTask, match=r"hotpotqa has no task 'x'; it has 12: sad-hp-01"):
        env.reset("x")
    with pytest.raises(NoSuchTask, match="cannot give 13"):
        env.tasks(13)
    assert env.tasks(3, seed=11) == ["sad-hp-12", "sad-hp-01", "sad-hp-02"]


def test_gold_script_on_real_questions():
    folder = os.environ.get("SAD_CORPORA")
    if not folder:
        pytest.skip("SAD_CORPORA is not set")
    env = make_environment("hotpotqa", source=str(Path(folder) / "hotpotqa_context.jsonl"))
    assert all(gold(env, task).reward == 1.0 for task in env.tasks())
