"""`sad chat`: any student answers, piece by piece, from arguments or from lines typed in."""

from __future__ import annotations

import io

import pytest
from exports import needs_executorch, write_student

from sad_components import cli
from sad_components.models.quantized import Scheme, quantize_folder
from sad_components.viewer.chat import Chat
from sad_components.viewer.play import CONTROLS
from sad_components.viewer.students import open_student


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "student"
    return write_student(folder, max_position_embeddings=256)


def run(capsys, *arguments):
    code = cli.main(["chat", *map(str, arguments)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_answers_the_prompts_and_ends(capsys, student):
    options = ["--style", "plain", "--temperature", "1", "--max-new-tokens", "5"]
    code, once, _ = run(capsys, student, *options, "--prompt", "Hello.")
    assert code == 0
    assert once.strip()
    _, twice, _ = run(capsys, student, *options, "--prompt", "Hello.", "--prompt", "More.")
    assert twice.startswith(once)
    assert len(twice) > len(once)


def test_lines_of_the_standard_input(capsys, student, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello.\n\nMore.\n"))
    options = ["--style", "plain", "--temperature", "1", "--max-new-tokens", "5"]
    code, typed, _ = run(capsys, student, *options)
    asked = run(capsys, student, *options, "--prompt", "Hello.", "--prompt", "More.")[1]
    assert code == 0
    assert typed == asked


def test_pieces_make_up_the_answer(student):
    opened, transform, _ = open_student(student, style="plain")
    chat = Chat(opened, transform, max_new_tokens=12, temperature=1.0)
    pieces: list[str] = []
    answer = chat.say("Hello.", pieces.append)
    assert len(pieces) > 1
    assert "".join(pieces) == answer.translate(CONTROLS)
    assert [m.role for m in chat.messages] == ["user", "assistant"]


def test_quantised_students_chat(capsys, student, tmp_path):
    folder = quantize_folder(student, tmp_path / "quantized", Scheme("8da4w", 32))
    options = ["--style", "plain", "--temperature", "1", "--max-new-tokens", "3"]
    code, out, _ = run(capsys, folder, *options, "--prompt", "Hi.")
    assert code == 0
    assert out.strip()


@needs_executorch
def test_an_exported_student_says_what_the_student_says(capsys, fp32_long):
    original = fp32_long.parent / "student"
    options = ["--max-new-tokens", "8", "--temperature", "1", "--prompt", "Hello."]
    exported = run(capsys, fp32_long, *options)
    assert exported[0] == 0
    assert exported[1] == run(capsys, original, "--style", "plain", *options)[1]
    code, _, err = run(capsys, fp32_long, "--tokenizer", str(original), *options)
    assert code == 2
    assert "brings its tokenizer: leave out --tokenizer" in err


def test_a_full_context_and_no_student(capsys, student, tmp_path):
    long = "word " * 300
    code, _, err = run(capsys, student, "--style", "plain", "--prompt", long)
    assert code == 2
    assert "and the student reads 256: begin anew" in err
    code, _, err = run(capsys, tmp_path / "nowhere", "--prompt", "Hello.")
    assert code == 2
    assert "nowhere" in err
