"""A conversation that outlives its process: `gangpao chat --session NAME`.

    NAME.json    what was said, written after every answer
    NAME.kv      the model's cache of it, written at the end (engine/saved/session.py)

The first is the conversation, the second only saves reading it again: where it is missing, damaged or another model's, the chat
says so and the model reads everything anew. Both lie in ~/.local/state/gangpao/sessions (XDG_STATE_HOME elsewhere), for their
owner only. What it gives up: pictures; their places in what was said are kept, they are not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gangpao import atomic
from gangpao.commands.terminal.conversation import Conversation
from gangpao.commands.terminal.history import history_path
from gangpao.engine.saved import session as session_file
from gangpao.text.templates.chat import Message

PICTURE = "[a picture that is not here any more]"


class KeptChat:
    """The files of a conversation. Raises ValueError for a name that is none."""

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[\w][\w.-]{0,63}", name):
            raise ValueError(f"--session {name!r:.80}: a name has up to 64 letters, digits, dots, - and _")
        folder = history_path().parent / "sessions"
        self.name, self.said, self.cache = name, folder / f"{name}.json", folder / f"{name}.kv"

    def begin(self, talk: Conversation) -> str:
        """Go on where the conversation was; what to tell the user. Raises ValueError for a file that is none of ours."""
        if not self.said.exists():
            return f"a new conversation, kept as {self.name}"
        found = self._read()
        if talk.system and talk.system != found["system"]:
            raise ValueError(
                f"--session {self.name} began with another system message: leave --system out, or take another name"
            )
        talk.system, talk.forgotten = found["system"], found["forgotten"]
        talk.turns = [Message(role=turn["role"], content=turn["content"]) for turn in found["turns"]]
        return f"going on with {self.name}: {len(talk.turns)} messages, {self._restored(talk)}"

    def _restored(self, talk: Conversation) -> str:
        if not self.cache.exists():
            return "which the model reads anew"
        try:
            return f"{session_file.restore(self.cache, talk.session())} tokens of them read already"
        except (ValueError, OSError) as error:
            return f"which the model reads anew ({error})"

    def _read(self) -> dict[str, Any]:
        found = atomic.read_json(self.said)
        turns = found.get("turns") if isinstance(found, dict) else None
        right = isinstance(turns, list) and all(
            isinstance(turn, dict)
            and turn.get("role") in ("user", "assistant")
            and isinstance(turn.get("content"), str)
            for turn in turns
        )
        if not right or not isinstance(found.get("system"), str) or type(found.get("forgotten")) is not int:
            raise ValueError(f"{self.said}: this is no conversation; give another --session, or delete it")
        found["forgotten"] = min(max(0, found["forgotten"]), len(turns or ()))
        return dict(found)

    def keep(self, talk: Conversation) -> None:
        """Write what was said. Raises OSError."""
        _private(self.said.parent)
        turns = [
            {
                "role": turn["role"],
                "content": "\n".join([*[PICTURE for _ in turn.get("pictures", ())], turn["content"]]),
            }
            for turn in talk.turns
        ]
        atomic.write_json(
            self.said, {"model": talk.engine.name, "system": talk.system, "forgotten": talk.forgotten, "turns": turns}
        )

    def end(self, talk: Conversation) -> None:
        """Write the cache, too. Raises OSError."""
        self.keep(talk)
        if talk.cached_tokens:
            session_file.save(self.cache, talk.session())


def _private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
