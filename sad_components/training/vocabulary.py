"""Student, teacher and tokenizer must mean the same token by the same id."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sad_components.data.tokenizers import HFTokenizer, OffsetTokenizer

#: Cut and numbered differently by any two tokenizers that were trained apart.
_PROBE = "Thought: héllo, the drawer 12 is closed.\nAction: open drawer 12\n"


def shared_vocab_size(student: int, teacher: int | None, tokenizer: int) -> int:
    """How many token ids both models give a probability to.

    Embeddings of one family are padded to different sizes; ids past the smaller one are padding
    and get no probability mass.

    Args:
        student: rows of the student's output projection.
        teacher: the teacher's; None without a teacher.
        tokenizer: ids the tokenizer knows, added tokens included.

    Raises:
        ValueError: a model has fewer rows than the tokenizer has ids, so the vocabularies really
            differ.
    """
    for name, size in (("student", student), ("teacher", teacher)):
        if size is not None and size < tokenizer:
            other = "" if teacher is None else f" (student {student}, teacher {teacher})"
            raise ValueError(
                f"{name} vocab {size} < tokenizer vocab {tokenizer}{other}: a KL needs one shared "
                "vocabulary. Take a student of the teacher's family, or cut one from the teacher "
                "(sad_components.models.cut_student)"
            )
    return student if teacher is None else min(student, teacher)


def check_tokenizers(tokenizer: OffsetTokenizer, folders: Iterable[Path | None]) -> None:
    """Raises ``ValueError`` if a model was made for another tokenizer than the run's.

    Vocabularies may be equally large and still mean other tokens by their ids: a folder that
    comes with a tokenizer is asked for the ids of a text.

    Args:
        tokenizer: of the run.
        folders: of the models, in Hugging Face format; None, or one without ``tokenizer.json``,
            says nothing.
    """
    expected = list(tokenizer.encode_text(_PROBE)[0])
    for folder in dict.fromkeys(folders):
        if folder is None or not (folder / "tokenizer.json").is_file():
            continue
        if list(HFTokenizer(str(folder)).encode_text(_PROBE)[0]) != expected:
            raise ValueError(
                f"{folder} holds a tokenizer that gives a text other ids than the config's "
                "tokenizer: its model knows other tokens by them, and a KL needs one shared "
                "vocabulary. Name the tokenizer that teacher and student have in common, or take a "
                "student of the teacher's family"
            )


def other_templates(tokenizer: OffsetTokenizer, folders: Iterable[Path | None]) -> list[str]:
    """For people: models that know chat turns written in another way than the run writes them.

    Args:
        tokenizer: of the run.
        folders: of the models; as for :func:`check_tokenizers`.
    """
    own = getattr(tokenizer, "chat_template", None)
    return [
        f"{folder} has another chat template: its model sees turns as it never saw them"
        for folder in dict.fromkeys(folders)
        if folder is not None
        and (folder / "tokenizer.json").is_file()
        and HFTokenizer(str(folder)).chat_template not in (None, own)
    ]
