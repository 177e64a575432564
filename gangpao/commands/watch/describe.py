"""What is asked of the server: a sentence about a frame, and answers about what was seen."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gangpao.commands.watch.log import Log, one_line
from gangpao.images.video import Frame, shrunk
from gangpao.openai_client import RemoteError, Server, texts_of
from gangpao.optional import needed

SYSTEM = (
    "You watch through a camera. Below is what was seen, each line with its time. Answer the question from these lines, briefly; "
    "say so when they do not tell."
)


@dataclass(frozen=True, slots=True)
class Describer:
    """A model behind a server. prompt: what is asked of each frame; side: frames are shrunk to side x side pixels in all."""

    server: Server
    model: str
    prompt: str
    side: int
    params: Mapping[str, Any]

    def describe(self, frame: Frame) -> str:
        """What the model says of a frame, on one line. Raises RemoteError."""
        return self._ask([{"role": "user", "content": [image_part(frame, self.side), text_part(self.prompt)]}])

    def answer(self, question: str, log: Log, frame: Frame | None = None) -> str:
        """The answer to a question about what was seen; with a frame about that, too. Raises RemoteError."""
        head = f"{SYSTEM}\n\n{log.text() or '(nothing yet)'}"
        content: Any = question if frame is None else [image_part(frame, self.side), text_part(question)]
        return self._ask([{"role": "system", "content": head}, {"role": "user", "content": content}])

    def _ask(self, messages: list[dict[str, Any]]) -> str:
        found = self.server.ask("/chat/completions", {"model": self.model, "messages": messages, **self.params})
        choices = found.get("choices") if isinstance(found, dict) else None
        message = (
            choices[0].get("message")
            if isinstance(choices, list) and choices and isinstance(choices[0], dict)
            else None
        )
        if not isinstance(message, dict):
            raise RemoteError(f"{self.server.base} sent no answer")
        return one_line(texts_of(message)[1])


def image_part(frame: Frame, side: int) -> dict[str, Any]:
    """A frame as a part of a message: a JPEG in a data: URL."""
    with needed("PIL", "a picture"):
        from PIL import Image

    out = io.BytesIO()
    Image.fromarray(shrunk(frame.pixels, side)).save(out, "JPEG", quality=90)
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"},
    }


def text_part(text: str) -> dict[str, Any]:
    """A text as a part of a message."""
    return {"type": "text", "text": text}
