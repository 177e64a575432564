"""What was typed at the prompt: line editing, and the file that keeps questions for the next chat.

The file is ~/.local/state/gangpao/chat_history (XDG_STATE_HOME elsewhere), readable by its owner only. A line is kept when
it was entered, so that it survives a closed window, and lines of two chats at once are kept both. Without a file (--no-history)
lines can be recalled until the chat ends, and nothing is read or written.
"""

import os
import sys
from pathlib import Path

MAX_LINES = 1000


def history_path() -> Path:
    """Where the questions are kept between chats (XDG state directory)."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "gangpao" / "chat_history"


class History:
    """The lines of this chat, and of those before it. path None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._kept = 0  # lines of readline's list that are in the file

    def begin(self) -> None:
        """Switch line editing on, with the lines of earlier chats. Without readline there is plain input."""
        try:
            import readline
        except ImportError:
            return
        readline.parse_and_bind("set enable-bracketed-paste on")  # a pasted text of many lines is one question
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            readline.read_history_file(self._path)
            # Cut here, and appended to afterwards: another chat may be writing to it as well.
            readline.set_history_length(MAX_LINES)
            readline.write_history_file(self._path)
        except OSError as error:
            self._give_up(error)
        self._kept = readline.get_current_history_length()

    def keep(self) -> None:
        """Write what was entered since the last call to the file."""
        if self._path is None:
            return
        try:
            import readline
        except ImportError:
            return
        count = readline.get_current_history_length()
        try:
            if count > self._kept:
                readline.append_history_file(count - self._kept, self._path)
        except OSError as error:
            self._give_up(error)
        self._kept = count

    def _give_up(self, error: OSError) -> None:
        print(f"warning: {self._path} does not keep this chat's questions: {error.strerror}", file=sys.stderr)
        self._path = None
