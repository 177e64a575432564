"""Where the answers stand in what a foreign template wrote: for a template that is none of our families.

The idea: an answer begins where the prompt that the template itself writes for it ends, and ends with the first of the model's
end tokens behind that. So every answer costs two more renderings of the conversation, one up to it and one in which the turn
behind it says something else, which shows where that turn's words begin: an end token behind that place belongs to somebody else.

Templates that show a turn differently once more turns follow (thoughts that are left out behind the next question) have
answers whose prompt is not what stands in front of them. Those are not learned: the model never says them in that place.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gangpao.text.templates.call_format import common_start

Messages = Sequence[Mapping[str, Any]]
Render = Callable[[Messages, bool], str]  # messages, whether a prompt for an answer is wanted -> text

_OTHER = "\U0010fffd"  # what no conversation says


def answer_spans(
    render: Render, messages: Messages, ends: Sequence[str], learned: int = 0
) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation, and the beginning and end of the answers in it from message `learned` on.

    ends: texts of the tokens that end an answer; none of them may occur in a content. A last answer that ends in none of them
    goes to the end of the text. Raises ValueError where an earlier one does, or no answer is found.
    """
    text = render(messages, False)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or i < learned:
            continue
        start = _start(render, messages[:i], text) if i else None
        if start is None:
            continue
        last = i + 1 == len(messages)
        limit = len(text) if last else _words_of(render, messages, i + 1, text)
        found = [at + len(end) for end in ends if (at := text.find(end, start, limit)) >= 0]
        if not found and not last:
            raise ValueError(
                "the chat template ends its answers in no token of the model, so it cannot be learned where to stop"
            )
        spans.append((start, min(found) if found else len(text.rstrip())))
    if not spans:
        raise ValueError("the chat template does not write the answers behind the prompts that it makes for them")
    return text, spans


def _start(render: Render, before: Messages, text: str) -> int | None:
    """Where the answer to these messages begins, None where the template wrote something else in front of it."""
    prompt = render(before, True)
    if text.startswith(prompt):
        return len(prompt)
    # The prompt may end in what only an answer of another kind goes on from: the mark that opens a thought.
    return len(common_start(text, prompt)) if text.startswith(render(before, False)) else None


def _words_of(render: Render, messages: Messages, i: int, text: str) -> int:
    """Where the words of message i begin in the text."""
    changed = [*messages]
    changed[i] = {**messages[i], "content": _OTHER}
    return len(common_start(text, render(changed, False)))
