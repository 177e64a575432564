"""A conversation that outlives its process: `gangpao chat --session NAME`.

    NAME.json    what was said, written after every answer
    NAME.images  a folder of the pictures in it, each by a hash of its file, as they came
    NAME.kv      the model's cache of it, written at the end (engine/saved/session.py)

The first two are the conversation, the last only saves reading it again: where it is missing, damaged or another model's, the chat
says so and the model reads everything anew. All lie in ~/.local/state/gangpao/sessions (XDG_STATE_HOME elsewhere), for their
owner only. Pictures are encoded anew, because the ids of their rows have a secret of their process. One that somebody
deleted or changed is a line of text in its turn.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from gangpao import atomic
from gangpao.commands.terminal.conversation import Conversation
from gangpao.commands.terminal.history import history_path
from gangpao.engine.saved import session as session_file
from gangpao.images.clips import any_of
from gangpao.images.look import Picture
from gangpao.text.templates.chat import Message

PICTURE = "[a picture that is not here any more]"


class KeptChat:
    """The files of a conversation. Raises ValueError for a name that is none."""

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[\w][\w.-]{0,63}", name):
            raise ValueError(f"--session {name!r:.80}: a name has up to 64 letters, digits, dots, - and _")
        folder = history_path().parent / "sessions"
        self.name, self.said, self.cache = name, folder / f"{name}.json", folder / f"{name}.kv"
        self.images = folder / f"{name}.images"

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
        talk.turns = [self._turn(turn) for turn in found["turns"]]
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
            and _are_places(turn.get("pictures", []))
            for turn in turns
        )
        if not right or not isinstance(found.get("system"), str) or type(found.get("forgotten")) is not int:
            raise ValueError(f"{self.said}: this is no conversation; give another --session, or delete it")
        found["forgotten"] = min(max(0, found["forgotten"]), len(turns or ()))
        return dict(found)

    def _turn(self, turn: dict[str, Any]) -> Message:
        """A turn with its pictures, or with lines of text instead of those that are not there any more."""
        out, lost = Message(role=turn["role"], content=turn["content"]), 0
        shown: list[tuple[int, Picture]] = []
        for at, file in turn.get("pictures", ()):
            try:
                data = (self.images / file).read_bytes()
                if _file_of(picture := any_of(data)) != file:
                    raise ValueError("changed")
                shown.append((at, picture))
            except (OSError, ValueError):  # said in the turn, which is where it is missed
                lost += 1
        if shown:
            out["pictures"] = shown
        if lost:
            lines = "".join(f"{PICTURE}\n" for _ in range(lost))
            out["content"] = lines + out["content"]
            out |= {"pictures": [(at + len(lines), one) for at, one in shown]} if shown else {}
        return out

    def keep(self, talk: Conversation) -> None:
        """Write what was said. Raises OSError."""
        _private(self.said.parent)
        turns, files = [], set()
        for turn in talk.turns:
            one: dict[str, Any] = {"role": turn["role"], "content": turn["content"]}
            if turn.get("pictures"):
                one["pictures"] = [[at, self._stored(picture)] for at, picture in turn["pictures"]]
                files |= {file for _, file in one["pictures"]}
            turns.append(one)
        atomic.write_json(
            self.said, {"model": talk.engine.name, "system": talk.system, "forgotten": talk.forgotten, "turns": turns}
        )
        for old in self.images.iterdir() if self.images.is_dir() else ():
            if old.name not in files:
                old.unlink(missing_ok=True)

    def _stored(self, picture: Picture) -> str:
        """The name of a picture's file, written where it is not there yet."""
        path = self.images / _file_of(picture)
        if not path.exists():
            _private(self.images)
            with atomic.new_file(path) as temporary:
                temporary.write_bytes(picture.data)
        return path.name

    def end(self, talk: Conversation) -> None:
        """Write the cache, too. Raises OSError."""
        self.keep(talk)
        if talk.cached_tokens:
            session_file.save(self.cache, talk.session())


def _file_of(picture: Picture) -> str:
    """What the file of a picture is called here."""
    return f"{hashlib.sha256(picture.data).hexdigest()[:32]}.{picture.kind}"


def _are_places(found: Any) -> bool:
    """Whether these are pictures of a turn: [place in the content, name of the file] each."""
    return isinstance(found, list) and all(
        isinstance(one, list)
        and len(one) == 2
        and type(one[0]) is int
        and one[0] >= 0
        and isinstance(one[1], str)
        and re.fullmatch(r"[0-9a-f]{32}\.(png|jpeg|webp|gif|mp4|webm)", one[1])
        for one in found
    )


def _private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
