"""The class of our trajectory tasks: lm-eval's, with a stop of each document's own."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from lm_eval.api.task import ConfigurableTask


class TurnTask(ConfigurableTask):
    """A task over :func:`~sad_components.lm_harness.documents.turns`.

    Args:
        config: content of the task's YAML file. ``doc_until``: the field of a document that holds
            the texts at which its generation ends.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        own = dict(config)
        own.pop("class", None)
        self._until_field = own.pop("doc_until", None)
        super().__init__(config=own)

    def construct_requests(self, doc: dict, ctx: Any, **kwargs: Any) -> Any:
        """As lm-eval's, but refuses a chat template: the documents are rendered already.

        Raises:
            ValueError: a chat template or few-shot examples were asked for.
        """
        if kwargs.get("apply_chat_template") or ctx != self.doc_to_text(doc):
            raise ValueError(
                f"{self.task_name} renders whole trajectories as the model was trained, chat "
                "template included; it takes no --apply_chat_template, --system_instruction or "
                "--num_fewshot: leave them out, or run this task by itself"
            )
        requests = super().construct_requests(doc, ctx, **kwargs)
        if self._until_field is not None:
            context, settings = requests.arguments
            requests.arguments = (context, {**deepcopy(settings), "until": doc[self._until_field]})
        return requests
