"""Student, teacher and tokenizer must mean the same token by the same id."""

from __future__ import annotations


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
