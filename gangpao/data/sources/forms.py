"""Rows of other people's files as documents: texts, and the forms in which conversations are published.

    text       one key holds a text: `text`, or `content`
    messages   a list of turns: role and content (OpenAI, MiniCPM), or from and value (ShareGPT); `tools` and `system` beside it
    alpaca     instruction, input (or context) and output (or response); `system` and `history` beside them
    prompt     a question and its answer: prompt and completion, prompt and response, question and answer, input and output ...

The idea: `detect` looks at the first rows and says which form they have, so that nobody has to know these names; `parse` turns
one row into a document, or says in a few words why it is none, so that what is lost can be named.

A thought beside an answer (`reasoning_content`) stays beside it: whether a model has marks for it is for who renders to know.
Pairs of answers and answers with a label are in preferences.py, LLaMA-Factory's dataset_info.json in llama_factory.py.

Pictures of conversations are found by pictures.py and stand beside the turns.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gangpao.data.config import Form, Source
from gangpao.data.sources import pictures
from gangpao.data.sources.pictures import Reference

Turn = Mapping[str, Any]

LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "data")
TEXTS = ("text", "content")
QUESTIONS, CONTEXTS, _ANSWERS = ("instruction",), ("input", "context"), ("output", "response")
_PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "output"), ("prompt", "answer"), ("question", "answer"),
    ("question", "response"), ("query", "response"), ("query", "answer"), ("input", "output"),
)  # fmt: skip
_ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant", "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
_MARKED = re.compile(r"<(?:用户|User)>(.*?)<AI>(.*?)(?=<(?:用户|User)>|\Z)", re.S)
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.S)
_RESULT = re.compile(r"\A\s*<tool_response>\s*(.*?)\s*</tool_response>\s*\Z", re.S)


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or a conversation with the functions it may call. code: signs and spaces of the text are content.

    images: pictures of the conversation; what turns have a character for (pictures.mark), in the order of these.
    """

    text: str = ""
    messages: tuple[Turn, ...] = ()
    tools: tuple[Any, ...] = ()
    code: bool = False
    images: tuple[Reference, ...] = ()

    def contents(self) -> str:
        """Everything that is said, as one text: what filters and duplicates are about."""
        return "\n".join(said(turn) for turn in self.messages) if self.messages else self.text


class Malformed(NamedTuple):
    """A row that is no document: where it stands, why, and whether its bytes are the reason."""

    where: str
    why: str
    encoding: bool = False


class Detected(NamedTuple):
    """What rows look like: their form, the key of their text or list ("" where the form has fixed keys), words for a person."""

    form: Form
    key: str
    what: str


def said(turn: Turn) -> str:
    """What one turn says: its content, and its calls as JSON."""
    calls = turn.get("tool_calls")
    return str(turn["content"]) + (json.dumps(calls, ensure_ascii=False) if calls else "")


def keys_of(row: Any) -> str:
    """What a row has, short enough for a message."""
    if isinstance(row, dict):
        names = [str(key)[:30] for key in row]
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "no keys"
    return f"no keys: it is a {'list' if isinstance(row, list) else type(row).__name__}"


def detect(rows: Sequence[Any], only: Form = "auto") -> Detected | None:
    """The form that most of these rows have, `only` that one where it is named; None where it is less than half."""
    found = [detected for row in rows if (detected := _form_of(wrapped(row), only)) is not None]
    if not found or 2 * len(found) < len(rows):
        return None
    best = max(found, key=found.count)
    if best.form == "prompt" and best.what == "input, output":
        filled = [row for row in rows if isinstance(row, dict) and str(row.get("input") or "").strip()]
        if not filled:  # how MiniCPM's pretraining files write a text
            return Detected("text", "output", "a text under 'output', and every input is empty")
    return best


def parse(row: Any, source: Source) -> Document | str:
    """The document in a row of a source whose form is known, or why there is none."""
    row = wrapped(row)
    if not isinstance(row, dict):
        return f"is a {type(row).__name__}, not an object"
    if source.form == "alpaca":
        return _alpaca(row)
    if source.form == "prompt":
        return _pair(row)
    if source.form in ("messages", "sharegpt"):
        return _listed(row, source.messages)
    text = row.get(source.text)
    return Document(text) if isinstance(text, str) else f"has no text under {source.text!r:.40}"


def wrapped(row: Any) -> Any:
    """A row that is a bare list of turns, as one that has them under a key."""
    return {"messages": row} if isinstance(row, list) and row and all(isinstance(t, dict) for t in row) else row


def _form_of(row: Any, only: Form) -> Detected | None:
    if not isinstance(row, dict):
        return None
    if only in ("auto", "messages", "sharegpt"):
        for key in LISTS:
            turns = row.get(key)
            if isinstance(turns, list) and turns and (isinstance(turns[0], str) or _role(turns[0]) is not None):
                return Detected("messages", key, f"conversations under {key!r}")
    if only in ("auto", "alpaca") and first_text(row, QUESTIONS) is not None and first_text(row, _ANSWERS) is not None:
        names = [name for name in (*QUESTIONS, *CONTEXTS, *_ANSWERS) if name in row]
        return Detected("alpaca", "", ", ".join(names))
    if only in ("auto", "text"):
        for key in TEXTS:
            if isinstance(row.get(key), str):
                return Detected("text", key, f"a text under {key!r}")
    if only in ("auto", "prompt"):
        for pair in _PAIRS:
            if all(isinstance(row.get(key), str | list) for key in pair):
                return Detected("prompt", "", ", ".join(pair))
    return None


def first_text(row: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """What stands under the first of these keys that has a text."""
    return next((value for key in keys if isinstance(value := row.get(key), str)), None)


def _alpaca(row: Mapping[str, Any]) -> Document | str:
    answer = first_text(row, _ANSWERS)
    if first_text(row, QUESTIONS) is None or answer is None:
        return "has no instruction and output"
    asked = alpaca_prompt(row)
    return asked if isinstance(asked, str) else conversation(row, [*asked, answer])


def alpaca_prompt(row: Mapping[str, Any]) -> list[Any] | str:
    """The turns in front of an alpaca row's answer, as texts of user and assistant in turn, or what is wrong with them."""
    turns: list[Any] = []
    history = row.get("history")
    for pair in history if isinstance(history, list) else ():
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            return "has a history that is no list of pairs"
        turns += pair
    question, context = first_text(row, QUESTIONS), first_text(row, CONTEXTS)
    # One of the two may be empty: whichever says something is the question.
    return [*turns, "\n".join(text for text in (question, context) if text and text.strip())]


def _pair(row: Mapping[str, Any]) -> Document | str:
    for first, second in _PAIRS:
        question, answer = row.get(first), row.get(second)
        if isinstance(question, list) and isinstance(answer, list):
            return conversation(row, [*question, *answer])
        if not (isinstance(question, str) and isinstance(answer, str)):
            continue
        if not question.strip():
            return f"has an empty {first}"
        return conversation(row, [*question_turns(question), answer])
    return "has no question with an answer"


def question_turns(question: str) -> list[str]:
    """What a question holds: itself, or the turns that MiniCPM's marks tell apart in it."""
    marked = _MARKED.findall(question)
    return [text.strip() for pair in marked for text in pair][:-1] if marked else [question]


def _listed(row: Mapping[str, Any], key: str) -> Document | str:
    turns = row.get(key)
    if not isinstance(turns, list) or not turns:
        return f"has no list of turns under {key!r:.40}"
    return conversation(row, turns)


def conversation(row: Mapping[str, Any], given: Sequence[Any]) -> Document | str:
    """Turns (objects, or texts of user and assistant in turn) with what stands beside them in the row."""
    turns: list[Turn] = []
    seen = pictures.placed(row, given)
    if isinstance(seen, str):
        return seen
    for number, value in enumerate(seen.turns, 1):
        turn = _turn(
            {"role": "user" if number % 2 else "assistant", "content": value} if isinstance(value, str) else value
        )
        if isinstance(turn, str):
            return f"turn {number} {turn}"
        turns.append(turn)
    system = row.get("system")
    if isinstance(system, str) and system.strip() and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    if not any(turn["role"] == "assistant" for turn in turns):
        return "has no answer to learn from"
    tools = _decoded(row.get("tools"))
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        return "has tools that are no list of objects"
    return Document(messages=tuple(turns), tools=tuple(_tool(tool) for tool in tools or ()), images=seen.references)


def _role(turn: Any) -> str | None:
    name = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    return _ROLES.get(name) if isinstance(name, str) else None


def _turn(turn: Any) -> Turn | str:
    """A turn in our roles, with its calls, or what is wrong with it."""
    role = _role(turn)
    if role is None:
        name = turn.get("role", turn.get("from")) if isinstance(turn, dict) else turn
        return f"has the role {json.dumps(name, ensure_ascii=False, default=str):.40}"
    content = _content(turn.get("content", turn.get("value")))
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else None)
    if turn.get("from", turn.get("role")) == "function_call":
        calls, content = _decoded(content), ""
        calls = calls if isinstance(calls, list) else [calls]
    elif role == "assistant" and not calls and content and "<tool_call>" in content:
        calls = [_decoded(call) for call in _CALL.findall(content)]
        content = _CALL.sub("", content).strip() if calls else content
    elif role == "tool" and content and (result := _RESULT.match(content)):
        content = result[1]
    thought = turn.get("reasoning_content", turn.get("reasoning")) if role == "assistant" else None
    beside = {"reasoning_content": thought} if isinstance(thought, str) and thought.strip() else {}
    if calls:
        found = [_call(call) for call in calls] if isinstance(calls, list) else [None]
        if role != "assistant" or None in found:
            return "has calls that are no functions with a name"
        return {"role": role, "content": content or "", "tool_calls": found, **beside}
    return {"role": role, "content": content, **beside} if content is not None else "has no content"


def _content(content: Any) -> str | None:
    """A text, or the texts of a list of parts; None for anything else."""
    if isinstance(content, list):
        texts = [text for part in content if isinstance(text := _text_of(part), str)]
        return "".join(texts) if len(texts) == len(content) else None
    return content if isinstance(content, str) else None


def _text_of(part: Any) -> Any:
    return part.get("text") if isinstance(part, dict) else part


def _call(call: Any) -> dict[str, Any] | None:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    arguments = function.get("arguments", function.get("parameters"))
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    return {"type": "function", "function": {"name": function["name"], "arguments": text}}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    return tool if "function" in tool else {"type": "function", "function": tool}


def _decoded(value: Any) -> Any:
    """A value that some files write as JSON in a string; the string itself where it is none."""
    if not isinstance(value, str) or not value.strip():
        return value or None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):  # words, which the caller refuses where it needs more
        return value
