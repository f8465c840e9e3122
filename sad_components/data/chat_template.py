"""A tokenizer's Jinja chat template as a function from messages to text."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from sad_components.trajectory import TrajectoryError

#: ``apply(messages, add_generation_prompt) -> text``: a chat template as a function.
ApplyTemplate = Callable[[list[dict[str, Any]], bool], str]


def compile_template(source: str, variables: dict[str, Any] | None = None) -> ApplyTemplate:
    """Compiles a chat template in Jinja's sandbox.

    Args:
        source: Jinja source, as in ``tokenizer_config.json``.
        variables: what the template may read besides the messages (``bos_token``, ``tools``, ..).

    Returns:
        ``apply(messages, add_generation_prompt) -> text``.

    Raises:
        ValueError: the template is not valid Jinja.
        TrajectoryError: by what is returned: the template refuses the conversation (its own
            message is passed on), or fails on it.
    """
    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TrajectoryError(f"the chat template refused the conversation: {message}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = template_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda fmt: datetime.now().strftime(fmt)
    try:
        template = environment.from_string(source)
    except TemplateError as error:
        raise ValueError(f"the chat template is not valid Jinja: {error}") from None
    known = {"tools": None, "documents": None, **(variables or {})}

    def apply(messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        if not messages and not add_generation_prompt:
            return ""
        try:
            return template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **known
            )
        except TrajectoryError:
            raise
        except Exception as error:  # a template runs whatever code it likes on the conversation
            raise TrajectoryError(
                f"the chat template failed on the conversation: {error or type(error).__name__}; "
                "mend the record, or use another chat_template or style: plain"
            ) from None

    return apply


def template_json(value: Any, indent: int | None = None, **_: Any) -> str:
    """What the ``tojson`` filter of chat templates writes: JSON with every character as it is."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
