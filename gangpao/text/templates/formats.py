"""The chat formats we render ourselves, as data: what stands before and after each role's words.

A turn is `before + content + after`; an assistant's turn has an `end` between them, which is what the model learns to
say when it is done. Which model uses which family is not decided by its name: see detect.py.

MiniCPM's format has no special tokens: its marks are ordinary text, and its turns end in nothing at all.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Turn:
    """The text around one role's words."""

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Family:
    """One chat format.

    begin: text in front of everything, as far as the tokenizer does not add it (BOS). answer: what makes the model
    speak. end: ends an answer. default_system: said when the conversation brings no system message. system: None when
    the format has none; then system_in_user, if given, says how it goes in front of the first user's words. strip:
    white space around contents is dropped. alternates: user and assistant must take turns. stop: texts that end an
    answer where no token does. text_marks: marks that are ordinary text, and so could be typed.
    """

    name: str
    user: Turn
    assistant: Turn
    answer: str
    end: str = ""
    system: Turn | None = None
    system_in_user: Turn | None = None
    default_system: str | None = None
    begin: str = ""
    strip: bool = False
    alternates: bool = False
    stop: tuple[str, ...] = ()
    text_marks: tuple[str, ...] = ()


def _tagged(name: str, form: str, after: str, **fields: object) -> Family:
    """A family whose turns differ by the role's name only; `form` has {} for it."""
    roles = {role: Turn(form.format(role), after) for role in ("system", "user", "assistant")}
    family = Family(name, roles["user"], roles["assistant"], form.format("assistant"), system=roles["system"])
    return replace(family, **fields)  # type: ignore[arg-type]


_CHATML = _tagged(
    "chatml",
    "<|im_start|>{}\n",
    "<|im_end|>\n",
    end="<|im_end|>",
    assistant=Turn("<|im_start|>assistant\n", "\n"),
)
_MINICPM = Family(
    "minicpm",
    user=Turn("<用户>", "<AI>"),
    assistant=Turn("", ""),
    answer="",
    system=Turn("", ""),
    strip=True,
    stop=("<用户>", "<AI>"),
    text_marks=("<用户>", "<AI>"),
)
_LLAMA3 = _tagged(
    "llama-3",
    "<|start_header_id|>{}<|end_header_id|>\n\n",
    "<|eot_id|>",
    end="<|eot_id|>",
    assistant=Turn("<|start_header_id|>assistant<|end_header_id|>\n\n", ""),
    strip=True,
)
_INST = Family(
    "mistral",
    user=Turn("[INST] ", " [/INST]"),
    assistant=Turn("", ""),
    answer="",
    end="</s>",
    alternates=True,
    text_marks=("[INST]", "[/INST]"),
)
_GEMMA = Family(
    "gemma",
    user=Turn("<start_of_turn>user\n", "<end_of_turn>\n"),
    assistant=Turn("<start_of_turn>model\n", "\n"),
    answer="<start_of_turn>model\n",
    end="<end_of_turn>",
    strip=True,
    alternates=True,
)

FAMILIES: tuple[Family, ...] = (
    _CHATML,
    _MINICPM,
    replace(
        _MINICPM,
        name="minicpm-user",
        user=Turn("<User>", "<AI>"),
        stop=("<User>", "<AI>"),
        text_marks=("<User>", "<AI>"),
    ),
    _LLAMA3,
    _GEMMA,
    replace(_GEMMA, name="gemma-3", system_in_user=Turn("", "\n\n")),
    _INST,
    replace(_INST, name="mistral-v3", assistant=Turn(" ", "")),
    replace(
        _INST,
        name="llama-2",
        user=Turn("<s>[INST] ", " [/INST]"),
        assistant=Turn(" ", ""),
        end=" </s>",
        system_in_user=Turn("<<SYS>>\n", "\n<</SYS>>\n\n"),
        strip=True,
        text_marks=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    ),
    _tagged("zephyr", "<|{}|>\n", "</s>\n", end="</s>", assistant=Turn("<|assistant|>\n", "\n")),
    Family(
        "plain",
        user=Turn("User: ", "\n"),
        assistant=Turn("Assistant: ", "\n"),
        answer="Assistant: ",
        system=Turn("", "\n\n"),
        strip=True,
        stop=("\nUser:",),
        text_marks=("User:", "Assistant:"),
    ),
)
BY_NAME = {family.name: family for family in FAMILIES}

# Templates seen in real checkpoints, by sha256 of their text, so that these models start without a process to try their
# template in. Tests render them and hold this table to it.
_QWEN = replace(_CHATML, default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
_SMOLLM_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
KNOWN: dict[str, Family] = {
    "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": replace(_CHATML, default_system=_SMOLLM_SYSTEM),
    "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f": _QWEN,  # Qwen2.5
    "d5495a1e5db0611132a97e46a65dbb64a642a499421228b9c8b93229097fa9a4": _QWEN,  # Qwen2.5-Coder
    "153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3": _CHATML,  # MiniCPM3, MiniCPM4
    "ae9b050c5a5b0295cb09269e67bf832fa08675dd845c7b3ea4c2130bcacc5c26": _MINICPM,
}
