"""The only chat template: messages in, prompt ids out (and the loss mask that training uses).

A conversation becomes a list of parts: markup, which may hold control tokens, and what people said, which may not. Ids
are made from the parts, never from one long string, so that a user who types "<|im_start|>system" gets those
characters and no turn of their own. Everything between two control tokens is encoded as one run, as the reference does,
with one exception: an answer starts and ends a run, because it did so when the model said it. That is also what makes
ids stable: the prompt of one turn is a prefix of the next one's, and the cache can be reused.

Known formats are data (formats.py). A template we do not recognise (detect.py) runs in a process of its own
(sandbox_parent.py); contents go in with the first character of every control token replaced by a private one, which
is turned back after the control tokens have been found. A conversation with tools is rendered by the checkpoint's own template
where that has a way to write calls (call_format.py), and goes through tools.py elsewhere.

A picture stands in a content as one private character; what takes its place is put in after rendering (pictures.py).

What it gives up: marks that are ordinary text inside a foreign template.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NotRequired, TypedDict

from gangpao.text.templates import detect, sandbox_parent
from gangpao.text.templates.call_format import OWN_CALLS, CallFormat, call_format_of
from gangpao.text.templates.closing import closing_of
from gangpao.text.templates.disguise import Disguise, texts_in
from gangpao.text.templates.formats import BY_NAME, Family
from gangpao.text.templates.mask import answer_spans
from gangpao.text.templates.pictures import Layout, Pictures, cut, image_mark_of, in_order, put_back, with_parts
from gangpao.text.templates.render import Part, render_parts
from gangpao.text.templates.tools import MARKS, OWN, Tools, for_template, form_of, needs_tools, without_tools
from gangpao.text.thoughts import Marks, Splitter, marks_of
from gangpao.text.tokenizer import Tokenizer
from gangpao.text.vocabulary import SpecialFinder

_MARK_TOKENS = 32  # more than any opening mark and the white space behind it


class Message(TypedDict):
    """One turn: role is system, user or assistant. pictures: (place in the content, picture), for whoever has them encoded; they
    are taken out before a template sees the message."""

    role: str
    content: str
    pictures: NotRequired[Sequence[tuple[int, Any]]]


Variables = Mapping[str, Any]
_NONE: Variables = {}
Messages = Sequence[Mapping[str, Any]]  # Message, or with tools OpenAI's: role tool, and tool_calls of an assistant


class Masked(NamedTuple):
    """Ids of a conversation, and 1 for each that the model is to learn: its answers and their ends."""

    ids: list[int]
    mask: list[int]


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat format: a family of ours, or a foreign one; a template's source with its special pieces as text, if it has one;
    the marks around a model's thoughts, if it thinks; texts of the tokens that end an answer."""

    name: str
    family: Family | None = None
    source: str | None = None
    special: tuple[tuple[str, str], ...] = ()
    stop: tuple[str, ...] = ()
    thoughts: Marks | None = None
    ends: tuple[str, ...] = ()

    @classmethod
    def named(cls, name: str) -> "ChatTemplate":
        """A family by name, e.g. "minicpm". Raises ValueError listing the names."""
        if name not in BY_NAME:
            raise ValueError(f"no chat template called {name!r}; there are {', '.join(sorted(BY_NAME))}")
        family = BY_NAME[name]
        return cls(family.name, family, stop=family.stop)

    @classmethod
    def for_model(cls, source: str | None, *, tokenizer: Tokenizer, architecture: str = "") -> "ChatTemplate":
        """The template of a checkpoint: `source` is its jinja text (tokenizer.chat_template), None when it has none.

        A foreign template's mistakes show when something is rendered, not here.
        """
        special = tuple(
            (f"{role}_token", tokenizer.vocabulary.pieces[token])
            for role, token in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id))
            if token is not None
        )
        thoughts = marks_of(source, tokenizer.id_of)
        ends = tuple(sorted(tokenizer.vocabulary.pieces[i] for i in tokenizer.end_ids))
        if source is None:
            family = _family_by_tokens(tokenizer, architecture)
        else:
            found = detect.family_of(source, dict(special))
            if found is None:
                return cls("own", source=source, special=special, thoughts=thoughts, ends=ends)
            family = found
        # A mark that is no token in this vocabulary has to be looked for in the text.
        as_text = () if tokenizer.id_of(family.end) in tokenizer.end_ids else (family.end.strip(),)
        stop = (*family.stop, *filter(None, as_text))
        return cls(family.name, family, source, special, stop, thoughts, ends)

    @property
    def calls(self) -> CallFormat:
        """How the model writes calls of functions: as its template does, or as ours where it has no way of its own."""
        return self._own_calls() or OWN_CALLS

    @property
    def writes_images(self) -> bool:
        """Whether the checkpoint's own template takes contents as parts and writes a mark of its own for each picture."""
        return self.source is not None and bool(image_mark_of(self.source, self.special))

    @property
    def closing(self) -> str:
        """What ends a thought: the closing mark with the white space that the template writes around it; "" where there is none."""
        return closing_of(self.source, self.special, self.thoughts) if self.thoughts else ""

    def _own_calls(self) -> CallFormat | None:
        return call_format_of(self.source, self.special, self.ends) if self.source is not None else None

    def splitter(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> Splitter:
        """What tells thought and answer apart in the text that follows this prompt, whose end may have opened a thought."""
        if self.thoughts is None:
            return Splitter(None)
        end = tokenizer.decode(prompt_ids[-_MARK_TOKENS:], keep_special=True)
        return Splitter(self.thoughts, opened=end.rstrip().endswith(self.thoughts.begin))

    def _for_tools(self, messages: Messages, tools: Tools | None) -> "ChatTemplate":
        """What renders a conversation: the checkpoint's own template where functions take part and it has a way to say them that
        our parts do not equal."""
        if self.family is None or not needs_tools(messages, tools) or self._own_calls() is None:
            return self
        return replace(self, family=None) if form_of(self.source, self.special, self.family) == OWN else self

    def render(
        self,
        messages: Messages,
        *,
        tools: Tools | None = None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        variables: Variables = _NONE,
    ) -> str:
        """The conversation as text, for reading; BOS only where the format itself writes it.

        tools: functions the model may call, as OpenAI describes them. continue_final: the last message is the beginning of an
        answer, which is left open. variables: further switches of the checkpoint's own template, such as enable_thinking; one
        that it does not know changes nothing. Raises ValueError for a role or an order of roles that the format does not have.
        """
        template = self._with(variables)._for_tools(messages, tools)
        add_generation_prompt &= not continue_final
        plan = template._plan(messages, tools)
        if template.family is not None:
            parts = render_parts(template.family, plan.messages, add_generation_prompt, continue_final)
            return "".join(part.text for part in parts)
        return template._render_foreign(plan, add_generation_prompt, continue_final, variables, lambda text: text)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Messages,
        *,
        tools: Tools | None = None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        variables: Variables = _NONE,
        pictures: Pictures = _NONE,
    ) -> list[int]:
        """Prompt ids, BOS included where the model wants one. Arguments and errors are those of `render`.

        pictures: characters in contents that stand for pictures, and what each of them becomes: texts, in which control tokens
        count as such, and ids.
        """
        template = self._with(variables)._for_tools(messages, tools)
        if pictures and template.writes_images:
            template = replace(template, family=None)
        add_generation_prompt &= not continue_final
        plan = template._plan(messages, tools)
        if template.family is not None:
            parts = render_parts(template.family, plan.messages, add_generation_prompt, continue_final)
            return _encode_parts(tokenizer, (*template.family.text_marks, *plan.marks), parts, pictures).ids
        return template._encode_foreign(tokenizer, plan, add_generation_prompt, continue_final, variables, pictures)

    def encode_with_mask(
        self,
        tokenizer: Tokenizer,
        messages: Messages,
        *,
        tools: Tools | None = None,
        begin: int = 0,
        pictures: Pictures = _NONE,
    ) -> Masked:
        """Ids of a finished conversation for training, and their mask (equally long): 1 for the answers from message `begin` on.

        The same template writes it that writes prompts (`encode`), pictures among them, which are never learned. Where an answer
        ends in no token (MiniCPM), the last one gets EOS behind it. Raises ValueError as `render` does, and for a foreign template
        in which answers cannot be told (mask.py).
        """
        template = self._for_tools(messages, tools)
        if pictures and template.writes_images:
            template = replace(template, family=None)
        plan = template._plan(messages, tools)
        family = template.family
        if family is None:
            skipped = sum(m["role"] == "assistant" for m in messages[:begin])
            masked = template._mask_foreign(tokenizer, plan, skipped, pictures)
            unended = bool(masked.mask[-1]) and masked.ids[-1] not in tokenizer.end_ids
        else:
            unended = not family.end and messages[-1]["role"] == "assistant"
            parts = render_parts(family, plan.messages, False, continue_final=unended)
            masked = _encode_parts(tokenizer, (*family.text_marks, *plan.marks), parts, pictures)
            if begin:
                prompt = template._length_of_prompt(tokenizer, masked.mask, messages, tools, begin, pictures)
                masked.mask[:prompt] = [0] * prompt
        if unended and tokenizer.eos_id is not None:
            masked.ids.append(tokenizer.eos_id)
            masked.mask.append(1)
        return masked

    def _length_of_prompt(
        self,
        tokenizer: Tokenizer,
        mask: Sequence[int],
        messages: Messages,
        tools: Tools | None,
        begin: int,
        pictures: Pictures,
    ) -> int:
        """How many of a masked conversation's ids stand in front of the first answer from message `begin` on."""
        starts = [i for i, (before, mine) in enumerate(itertools.pairwise([0, *mask])) if mine > before]
        is_answer: list[bool] = [message["role"] == "assistant" for message in messages]
        if len(starts) == sum(is_answer) and any(is_answer[begin:]):
            return starts[sum(is_answer[:begin])]
        # Two answers that follow each other are one stretch of the mask in a format without marks.
        return len(self.encode(tokenizer, messages[:begin], tools=tools, pictures=pictures))

    def _with(self, variables: Variables) -> "ChatTemplate":
        """What renders a conversation: the checkpoint's own template as it is, where it has one of these switches."""
        if self.source is not None and any(name in self.source for name in variables):
            return replace(self, family=None)
        return self

    def _plan(self, messages: Messages, tools: Tools | None) -> "_Plan":
        """Checked messages in the roles that this format has."""
        _check(messages)
        if not needs_tools(messages, tools):
            return _Plan(messages)
        family = self.family
        calls = self._own_calls() if family is None else None
        if calls is not None:  # the template says functions itself
            return _Plan(for_template(messages, calls), tools, (*MARKS, *calls.marks))
        form = OWN if family is None else form_of(self.source, self.special, family)
        return _Plan(without_tools(messages, tools, form, family), None, MARKS)

    def _render_foreign(
        self,
        plan: "_Plan",
        add_generation_prompt: bool,
        continue_final: bool,
        variables: Variables,
        cover: Callable[[str], str],
    ) -> str:
        assert self.source is not None
        begun = ""
        if continue_final:
            begun = _covered(plan.messages[-1]["content"], cover).rstrip()
            if not begun:  # an answer of which nothing was said yet is a new one
                plan, add_generation_prompt = plan._replace(messages=plan.messages[:-1]), True
        context = {
            **_covered(variables, cover),
            "messages": _covered(plan.messages, cover),
            "add_generation_prompt": add_generation_prompt,
            "tools": _covered(plan.tools, cover),
            "documents": None,
            "bos_token": "",
            "eos_token": "",
            **dict(self.special),
        }
        text = sandbox_parent.shared().render(self.source, context)
        return _left_open(text, begun, self.thoughts) if begun else text

    def _encode_foreign(
        self,
        tokenizer: Tokenizer,
        plan: "_Plan",
        add_generation_prompt: bool,
        continue_final: bool,
        variables: Variables,
        pictures: Pictures,
    ) -> list[int]:
        assert self.source is not None
        mark = image_mark_of(self.source, self.special) if pictures else ""
        marks = (*plan.marks, mark) if mark else plan.marks
        disguise = Disguise(tokenizer, marks, [self.source, *texts_in((plan.messages, plan.tools, variables))])
        order = in_order(plan.messages, pictures)
        if mark:
            plan = plan._replace(messages=with_parts(plan.messages, pictures))
        text = self._render_foreign(plan, add_generation_prompt, continue_final, variables, disguise.on)
        run = _Run(tokenizer)
        _put_disguised(run, put_back(text, mark, order) if mark else text, disguise, 0, pictures)
        return run.finish().ids

    def _mask_foreign(self, tokenizer: Tokenizer, plan: "_Plan", skipped: int, pictures: Pictures) -> Masked:
        """Ids and mask of a conversation without its first `skipped` answers, as the checkpoint's own template writes it."""
        assert self.source is not None
        mark = image_mark_of(self.source, self.special) if pictures else ""
        marks = (*plan.marks, mark) if mark else plan.marks
        disguise = Disguise(tokenizer, marks, [self.source, *texts_in((plan.messages, plan.tools))])

        def rendered(messages: Messages, add_generation_prompt: bool) -> str:
            shown = plan._replace(messages=with_parts(messages, pictures) if mark else messages)
            text = self._render_foreign(shown, add_generation_prompt, False, _NONE, disguise.on)
            return put_back(text, mark, in_order(messages, pictures)) if mark else text

        answers = [i for i, message in enumerate(plan.messages) if message["role"] == "assistant"]
        learned = answers[min(skipped, len(answers) - 1)] if answers else 0
        text, spans = answer_spans(rendered, plan.messages, self.ends, learned)
        run, at = _Run(tokenizer), 0
        for start, end in spans:
            _put_disguised(run, text[at:start], disguise, 0, pictures)
            run.cut()
            _put_disguised(run, text[start:end], disguise, 1)
            at = end
        if (
            text[:at].endswith(self.ends) or text[at:].strip()
        ):  # else white space would part the last answer from its end
            _put_disguised(run, text[at:], disguise, 0, pictures)
        return run.finish()


def _put_disguised(run: "_Run", text: str, disguise: "Disguise", trained: int, pictures: Pictures = _NONE) -> None:
    """A stretch of what a foreign template wrote, with its contents disguised, and characters that stand for pictures."""
    if pictures:
        for words in cut(text, pictures):
            if isinstance(words, str):
                _put_disguised(run, words, disguise, trained)
            else:
                run.put_picture(words)
        return
    for piece in run.tokenizer.vocabulary.split(text, parse_special=True):
        if isinstance(piece, int):
            run.put_id(piece, trained)
            continue
        for part, is_mark in disguise.marks.cut(piece):
            put = run.put_letters if is_mark else run.put_text
            put(disguise.off(part), trained)


def _left_open(text: str, begun: str, thoughts: Marks | None) -> str:
    """A rendered conversation up to the end of its last answer's words. Raises ValueError where they are not in it."""
    # A template may leave out the thought in front of an answer: then the words behind it are what can be found.
    behind = begun.rpartition(thoughts.end)[2].strip() if thoughts else ""
    for words in (begun, behind):
        at = text.rfind(words)
        if words and at >= 0:
            return text[: at + len(words)]
    raise ValueError("the last answer cannot be continued: the model's chat template does not write it as it is")


class _Plan(NamedTuple):
    """What is to be rendered: messages, tools if the template says them itself, and marks that nobody may type."""

    messages: Messages
    tools: Tools | None = None
    marks: tuple[str, ...] = ()


class _Run:
    """Ids so far, and the text that has not been encoded yet because more may join it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._out = Masked([], [])
        self._text = ""
        self._trained = 0
        self._fresh = True  # whether SentencePiece would put a space in front of the next text

    def put_text(self, text: str, trained: int) -> None:
        if trained != self._trained:
            self.cut()
        self._text += text
        self._trained = trained

    def put_letters(self, text: str, trained: int) -> None:
        """A typed mark keeps its characters, as tokens that no real mark has."""
        for character in text:
            self.cut()
            self.put_text(character, trained)
        self.cut()

    def put_id(self, token: int, trained: int) -> None:
        self.cut()
        self._add([token], trained)
        self._fresh = self.tokenizer.vocabulary.space_prefix == "always"

    def put_picture(self, layout: Layout) -> None:
        """What stands for a picture: texts of marks, and ids of its rows."""
        for part in layout:
            if not isinstance(part, str):
                self.cut()
                self._add(part, 0)
                self._fresh = self.tokenizer.vocabulary.space_prefix == "always"
                continue
            for piece in self.tokenizer.vocabulary.split(part, parse_special=True):
                if isinstance(piece, int):
                    self.put_id(piece, 0)
                else:
                    self.put_text(piece, 0)

    def cut(self) -> None:
        """Nothing that comes later may merge with what came before."""
        if self._text:
            self._add(self.tokenizer.encode(self._text, start=self._fresh), self._trained)
            self._text, self._fresh = "", False

    def finish(self) -> Masked:
        """Everything, with the BOS the model wants in front."""
        self.cut()
        bos, out = self.tokenizer.bos_id, self._out
        if self.tokenizer.adds_bos and bos is not None and out.ids[:1] != [bos]:
            out.ids.insert(0, bos)
            out.mask.insert(0, 0)
        return out

    def _add(self, ids: Iterable[int], trained: int) -> None:
        before = len(self._out.ids)
        self._out.ids.extend(ids)
        self._out.mask.extend([trained] * (len(self._out.ids) - before))


def _encode_parts(
    tokenizer: Tokenizer, typed_marks: Iterable[str], parts: Iterable[Part], pictures: Pictures = _NONE
) -> Masked:
    run = _Run(tokenizer)
    marks = SpecialFinder(typed_marks)
    for part in parts:
        trained = int(part.trained)
        if part.trained and not part.inner:
            run.cut()
        if part.markup:
            for piece in tokenizer.vocabulary.split(part.text, parse_special=True):
                if isinstance(piece, int):
                    run.put_id(piece, trained)
                else:
                    run.put_text(piece, trained)
            continue
        for words in cut(part.text, pictures) if pictures else (part.text,):
            if not isinstance(words, str):
                run.put_picture(words)
                continue
            for text, is_mark in marks.cut(words):
                put = run.put_letters if is_mark else run.put_text
                put(text, trained)
    return run.finish()


def _covered(value: Any, cover: Callable[[str], str]) -> Any:
    """A JSON-like value with `cover` over every text but markup; lone surrogates, which JSON lacks, become "?"."""
    if isinstance(value, str):
        return cover(value.encode("utf-8", "replace").decode())
    if isinstance(value, Mapping):
        return {cover(key): _covered(v, cover) for key, v in value.items()}
    if isinstance(value, Sequence):
        if value and isinstance(value[0], Part):
            return "".join(part.text if part.markup else _covered(part.text, cover) for part in value)
        return [_covered(v, cover) for v in value]
    return value


def _check(messages: Messages) -> None:
    if not messages:
        raise ValueError("a conversation needs at least one message")
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant", "tool"):
            raise ValueError(f"message {i}: role must be system, user, assistant or tool, not {role!r:.60}")
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise ValueError(f"message {i}: content must be a string, not {type(content).__name__}")
        before = messages[i - 1] if i else {}
        if role == "tool" and before.get("role") != "tool" and not before.get("tool_calls"):
            raise ValueError(f"message {i}: a tool's result must follow the assistant's tool_calls or another result")


def _family_by_tokens(tokenizer: Tokenizer, architecture: str) -> Family:
    """A family for a checkpoint without a template, by the marks its vocabulary holds as single tokens."""
    for mark, name in (("<|im_start|>", "chatml"), ("<|start_header_id|>", "llama-3"), ("<start_of_turn>", "gemma-3")):
        if tokenizer.id_of(mark) is not None:
            return replace(BY_NAME[name], begin="")
    return BY_NAME["minicpm" if architecture == "minicpm" else "plain"]
