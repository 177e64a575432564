"""A model's thought apart from its answer: marks as data, and a splitter for text that comes in pieces.

A model that thinks writes its thought between two marks in front of the answer. Which marks are a model's own is read off its
checkpoint: a pair counts when the chat template or the vocabulary knows both of it. A model
with neither has no thoughts, whatever it writes about such marks. Some templates write the opening mark themselves, at the end of
the prompt; then the answer begins inside the thought.

Only the beginning of an answer can be a thought, so marks further on (an answer that explains them, code) are words. The thought
ends at the first closing mark that is not quoted as code (`</think>` between backticks).

What it gives up: thoughts in the middle of an answer; a thought that holds its closing mark in a block of code ends there.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from gangpao.text.pieces import SPACE, PieceReader, held_back


class Marks(NamedTuple):
    """What stands before and after a thought."""

    begin: str
    end: str


# As published checkpoints write them: Qwen3, MiniCPM, DeepSeek-R1 and most others; Magistral; Seed-OSS; Command A; and older ones.
KNOWN = (
    Marks("<think>", "</think>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("<seed:think>", "</seed:think>"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),
    Marks("<|begin_of_thought|>", "<|end_of_thought|>"),
    Marks("<thinking>", "</thinking>"),
    Marks("<thought>", "</thought>"),
)


def marks_of(template: str | None, id_of: Callable[[str], int | None]) -> Marks | None:
    """The marks of a checkpoint, by its template's source and its vocabulary (id_of gives None for what is no piece)."""
    known = template or ""
    return next((marks for marks in KNOWN if all(mark in known or id_of(mark) is not None for mark in marks)), None)


class Said(NamedTuple):
    """Some text, and whether it belongs to the thought."""

    text: str
    thought: bool = False


class Splitter(PieceReader[Said]):
    """Text in pieces -> pieces of thought and answer. marks None: all of it is the answer. opened: the prompt ended in the
    opening mark. White space around a thought is dropped, and so is a thought of nothing else."""

    def __init__(self, marks: Marks | None, *, opened: bool = False) -> None:
        super().__init__()  # held: may still become a mark, or is white space that may turn out to be around a thought
        self._marks = marks or Marks("", "")
        self._state: Literal["start", "opened", "thought", "after", "words"] = "words"
        if marks is not None:
            self._state = "opened" if opened else "start"
        self._line = ""  # of the thought, the line that goes on, as far as it is out
        self._begun = False  # whether any of the thought is out
        self.thought_seen = self._state == "opened"  # whether there is or was a thought, though it may be empty

    @property
    def thinking(self) -> bool:
        """Whether the text is inside a thought now."""
        return self._state in ("opened", "thought")

    @property
    def behind(self) -> bool:
        """Whether the text is behind a thought, before the first word of its answer."""
        return self._state == "after"

    @property
    def decided(self) -> bool:
        """Whether all that may come is the answer."""
        return self._state == "words"

    @property
    def held(self) -> str:
        """Text that is held back."""
        return self._held

    def finish(self) -> list[Said]:
        """The end of the text: what was held back is what it looks like. A thought without its closing mark stays a thought."""
        held, self._held = self._held, ""
        if self.thinking:
            # Behind a backtick the mark waited for another one, which did not come.
            thought = held.partition(self._marks.end)[0].rstrip(SPACE)
            return self._thought(thought if self._begun else thought.lstrip(SPACE))
        return [Said(held)] if held and self._state != "after" else []

    def _step(self, out: list[Said]) -> bool:
        step = {
            "start": self._start, "opened": self._start, "thought": self._inside, "after": self._behind, "words": self._words,
        }  # fmt: skip
        return step[self._state](out)

    def _start(self, out: list[Said]) -> bool:
        """Where an answer begins: with the opening mark, which a template may have written already, or with something else."""
        text, begin = self._held.lstrip(SPACE), self._marks.begin
        if text.startswith(begin):
            self._held, self._state, self.thought_seen = text[len(begin) :], "thought", True
            return True
        if begin.startswith(text):
            return False
        self._state = "thought" if self._state == "opened" else "words"
        return True

    def _inside(self, out: list[Said]) -> bool:
        if not self._begun:
            self._held = self._held.lstrip(SPACE)
        end, at = self._marks.end, self._held.find(self._marks.end)
        if at < 0:
            keep = len(self._held) - held_back(self._held, end)
            self._say(self._held[:keep].rstrip(SPACE), out)
            return False
        before, after = self._held[:at], self._held[at + len(end) :]
        if before.endswith("`") or (not before and self._line.endswith("`")):
            in_code = (self._line + before).rpartition("\n")[2].count("`") % 2 == 1
            if in_code and not after:
                self._say(before, out)
                return False
            if in_code and after[0] == "`":
                self._say(self._held[: at + len(end) + 1], out)
                return True
        out += self._thought(before.rstrip(SPACE))
        self._held, self._state = after, "after"
        return True

    def _say(self, thought: str, out: list[Said]) -> None:
        self._held = self._held[len(thought) :]
        out += self._thought(thought)

    def _thought(self, text: str) -> list[Said]:
        self._line = (self._line + text).rpartition("\n")[2]
        self._begun = self._begun or bool(text)
        return [Said(text, thought=True)] if text else []

    def _behind(self, out: list[Said]) -> bool:
        """White space between a thought and its answer is the format's."""
        self._held = self._held.lstrip(SPACE)
        if self._held:
            self._state = "words"
        return bool(self._held)

    def _words(self, out: list[Said]) -> bool:
        if self._held:
            out.append(Said(self._held))
        self._held = ""
        return False


def split(text: str, splitter: Splitter) -> tuple[str, str]:
    """Thought and answer of a whole text, by a splitter that has seen nothing yet."""
    said = [*splitter.push(text), *splitter.finish()]
    return "".join(s.text for s in said if s.thought), "".join(s.text for s in said if not s.thought)
