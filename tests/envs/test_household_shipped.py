"""The shipped files are what the README says; always run, no engine needed."""

import re
from collections import Counter

import pytest

from sad_components.envs.household import TASK_TYPES, sample_game, shipped, split_of
from sad_components.envs.household.games import layout_fingerprint
from sad_components.trajectory import read_jsonl

FILES = {split: list(read_jsonl(shipped(split))) for split in ("train", "heldout")}
EPISODES = [trajectory for trajectories in FILES.values() for trajectory in trajectories]
TURN = re.compile(r"Thought: (?P<thought>[^\n]+)\nAction: (?P<action>[^\n]+)")


def turns(trajectory):
    """Every agent turn with its thought, action and the answer to it."""
    messages = trajectory.messages
    for index, message in enumerate(messages):
        if message.role == "assistant":
            match = TURN.fullmatch(message.text)
            assert match, f"{trajectory.id}: not a dense turn: {message.text!r}"
            yield message, match["thought"], match["action"], messages[index + 1].text


def test_counts_and_balance():
    assert {split: len(rows) for split, rows in FILES.items()} == {"train": 300, "heldout": 60}
    for rows in FILES.values():
        per_type = Counter(t.meta["task_type"] for t in rows)
        assert set(per_type) == set(TASK_TYPES)
        assert len(set(per_type.values())) == 1
    assert sum(shipped(split).stat().st_size for split in FILES) < 2_000_000


def test_ids_are_unique_and_episodes_won():
    assert len({t.id for t in EPISODES}) == len(EPISODES)
    assert all(t.success and t.score == 1.0 for t in EPISODES)
    assert all(t.format == "react" and t.env == "household" for t in EPISODES)


def test_splits_share_no_layout():
    layouts = {split: {t.meta["layout"] for t in rows} for split, rows in FILES.items()}
    assert not layouts["train"] & layouts["heldout"]
    assert all(split_of(x) == split for split, found in layouts.items() for x in found)


@pytest.mark.parametrize("trajectory", EPISODES[::40], ids=lambda t: t.id)
def test_games_can_be_made_again(trajectory):
    game = sample_game(trajectory.meta["seed"], trajectory.meta["split"])
    assert layout_fingerprint(game.layout) == trajectory.meta["layout"]
    assert game.task_type == trajectory.meta["task_type"]


def test_users_and_agent_take_turns():
    for trajectory in EPISODES:
        roles = [m.role for m in trajectory.messages]
        assert roles == ["user", *["assistant", "user"] * (len(roles) // 2)]
        assert f"Your task is to: {trajectory.task}." in trajectory.messages[0].text


def test_no_thought_contains_its_own_action():
    for trajectory in EPISODES:
        for _, thought, action, _ in turns(trajectory):
            assert action.lower() not in thought.lower(), trajectory.id


def test_weight_0_on_wrong_turns_only():
    wrong = 0
    for trajectory in EPISODES:
        seen = set()
        for message, _, action, answer in turns(trajectory):
            if message.weight == 0:
                wrong += 1
                assert answer == "Nothing happens." or action in seen, trajectory.id
            else:
                assert message.weight is None
                assert answer != "Nothing happens.", trajectory.id
            seen.add(action)
    assert wrong > 50


def test_share_of_episodes_with_a_wrong_turn():
    has_one = [any(m.weight == 0 for m in t.messages) for t in FILES["train"]]
    assert 0.18 < sum(has_one) / len(has_one) < 0.32


def test_heldout_turns_carry_the_acceptable_actions():
    sizes = Counter()
    for trajectory in FILES["heldout"]:
        for message, _, action, _ in turns(trajectory):
            if message.weight == 0:
                assert message.acceptable is None
            else:
                assert action in message.acceptable, trajectory.id
                sizes[len(message.acceptable)] += 1
    assert sizes[1] > 100
    assert sum(n for size, n in sizes.items() if size > 1) > 100


def test_training_records_stay_lean():
    assert all(m.acceptable is None for t in FILES["train"] for m in t.messages)


def test_thoughts_have_many_wordings():
    taking = [
        thought
        for trajectory in FILES["train"]
        for message, thought, action, _ in turns(trajectory)
        if action.startswith("take ") and message.weight is None
    ]
    stripped = Counter(re.sub(r"\ban? \w+|the \w+", "X", thought) for thought in taking)
    assert sum(count >= 20 for count in stripped.values()) >= 3


def test_transcripts_are_short():
    characters = [sum(len(m.text) for m in t.messages) for t in EPISODES]
    assert sum(characters) / len(characters) < 2_200
    assert max(characters) < 4_500


def test_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="one of train, heldout; got 'test'"):
        shipped("test")
