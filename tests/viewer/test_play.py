"""`sad play`: an episode in the terminal, whoever plays, whatever an observation says."""

import pytest
from exports import needs_executorch, write_student

from sad_components import cli
from sad_components.models.quantized import Scheme, quantize_folder
from sad_components.viewer import play


def run(capsys, *arguments):
    code = cli.main(["play", *arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_the_expert_wins(capsys):
    code, out, _ = run(capsys, "rooms.Rooms", "--task", "2")
    assert code == 0
    assert out.startswith("rooms · 2 · expert\n    context│ Reply with one action.")
    assert "     reason│ Thought: I look first." in out
    assert "        act│ Action: open door 2" in out
    assert "observation│ You win." in out
    assert out.endswith("won · 3 steps · score 1\n")


def test_options_reach_the_environment(capsys):
    option = ["--option", "max_steps=2", "--option", "observation=Dark."]
    code, out, _ = run(capsys, "rooms.Rooms", "--task", "2", *option)
    assert code == 1
    assert "Dark. Your door is 2." in out
    assert out.endswith("out of steps · 2 steps · score 0\n")


def test_random_by_seed(capsys):
    runs = [
        run(capsys, "rooms.Rooms", "--policy", "random", "--task", "1", "--seed", seed)[1]
        for seed in ("0", "0", "1")
    ]
    assert runs[0] == runs[1] != runs[2]


def test_a_person(capsys, monkeypatch):
    typed = iter(["look", "open door 1"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    code, out, _ = run(capsys, "rooms.Rooms", "--policy", "human", "--seed", "1")
    assert (code, out.splitlines()[-1]) == (0, "won · 2 steps · score 1")

    def end(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    code, out, _ = run(capsys, "rooms.Rooms", "--policy", "human")
    assert (code, out.splitlines()[-1]) == (1, "stopped: the input has ended")


@pytest.mark.parametrize("text", ["\x1b[2J\x1b]0;gone\x07", "\x9b2J", "[bold red]x[/]", "a\rb"])
def test_observations_do_not_drive_the_terminal(capsys, text):
    _, out, _ = run(capsys, "rooms.Rooms", "--option", f"observation={text}")
    assert not set(out) & {"\x1b", "\x07", "\x9b", "\r"}
    assert ("[bold red]x[/]" in out) is text.startswith("[bold")


@pytest.mark.parametrize("colours", [True, False])
def test_colours_where_there_are_some(capsys, monkeypatch, colours):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR" if colours else "NO_COLOR", "1")
    _, out, _ = run(capsys, "rooms.Rooms", "--task", "1")
    assert ("\x1b[" in out) is colours
    assert ("reason│" in out) is not colours


def test_a_model_from_a_folder(capsys, tmp_path):
    """A student as it was trained, and a quantised one."""
    student = write_student(tmp_path / "student", max_position_embeddings=2048)
    quantized = quantize_folder(student, tmp_path / "quantized", Scheme("8da4w", 32))
    for folder in (student, quantized):
        arguments = ["--model", str(folder), "--option", "max_steps=1"]
        code, out, _ = run(capsys, "rooms.Rooms", *arguments)
        assert code == 1
        assert out.endswith("out of steps · 1 steps · score 0\n")


@needs_executorch
def test_an_exported_student_plays(capsys, fp32_long):
    arguments = ["--model", str(fp32_long), "--option", "max_steps=1"]
    code, out, _ = run(capsys, "rooms.Rooms", *arguments)
    assert code == 1
    assert out.endswith("out of steps · 1 steps · score 0\n")
    code, _, err = run(capsys, "rooms.Rooms", *arguments, "--style", "chat")
    assert code == 2
    assert "was exported for plain style; got chat" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no environment 'nowhere'"),
        (["rooms.Rooms", "--task", "99"], "rooms has no task '99'"),
        (["rooms.Rooms", "--endpoint", "http://x"], "--endpoint needs --model"),
    ],
)
def test_errors_are_one_line(capsys, arguments, message):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_an_option_without_a_value():
    with pytest.raises(SystemExit):
        play.main(["rooms.Rooms", "--option", "x"])
