"""The `sad` command: help, dispatch and errors without a traceback."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from sad_components import cli


@pytest.fixture
def command(monkeypatch):
    """Registers `sad probe`, whose main is what the test gives."""

    def register(main):
        module = types.ModuleType("sad_probe")
        module.main = main
        monkeypatch.setitem(sys.modules, "sad_probe", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", cli.Command("sad_probe", "a probe"))

    return register


def raising(error):
    def main(argv):
        raise error

    return main


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert name in shown
        assert command.help in shown


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from sad_components.cli import main; main(['--help']);"
        "heavy = {'torch', 'torchtune', 'transformers', 'numpy', 'omegaconf'} & set(sys.modules);"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_describes_itself(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == 0
    assert f"usage: sad {name}" in capsys.readouterr().out


def test_a_command_gets_its_arguments_and_gives_the_exit_code(command):
    seen = []
    command(lambda argv: seen.append(argv) or 7)
    assert cli.main(["probe", "--flag", "x"]) == 7
    assert seen == [["--flag", "x"]]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("two\nlines"),
        FileNotFoundError(2, "No such file or directory", "two lines"),
        OSError(28, "No space left on device", "two lines"),
        ModuleNotFoundError("two lines"),
    ],
)
def test_an_error_of_the_user_is_one_line(command, capsys, error):
    command(raising(error))
    assert cli.main(["probe"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sad: error: ")
    assert "two lines" in err
    assert err.count("\n") == 1


def test_debug_mode_raises(command, monkeypatch):
    monkeypatch.setenv("SAD_DEBUG", "1")
    command(raising(ValueError("seen")))
    with pytest.raises(ValueError, match="seen"):
        cli.main(["probe"])


def test_a_bug_keeps_its_traceback(command):
    command(raising(TypeError("a bug")))
    with pytest.raises(TypeError):
        cli.main(["probe"])


def test_an_interrupt_is_not_an_error_of_the_program(command, capsys):
    command(raising(KeyboardInterrupt()))
    assert cli.main(["probe"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_an_unknown_command_names_the_known_ones(capsys):
    assert cli.main(["fetch-dmo"]) == 2
    assert "fetch-demo" in capsys.readouterr().err
