"""The command line options that several commands share and that are no field of a record (gangpao/options.py), each written
once; and the sampling options by name, for a conversation that changes them."""

from dataclasses import fields
from typing import Annotated, Any

import typer

from gangpao.engine.sample import SamplingParams

_FIELDS = {f.name: f for f in fields(SamplingParams)}
SETTINGS = tuple(f.name for f in fields(SamplingParams) if f.metadata and f.name != "logprobs")
DEFAULT = SamplingParams()


Stop = Annotated[list[str] | None, typer.Option("--stop", help="End the answer before this text; repeatable.")]
LogitBias = Annotated[
    list[str] | None, typer.Option("--logit-bias", metavar="ID=BIAS", help="Add BIAS to a token's logit; repeatable.")
]
System = Annotated[str, typer.Option("--system", help="The system message: who the model is to be.")]
MODEL = "A catalog name, a .gguf file, a run or Hugging Face folder, or hf.co/owner/repo[:Q4_K_M]"
Model = Annotated[
    str | None,
    typer.Option("-m", "--model", help=f"{MODEL}; the best that is installed if not given."),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="PATH[:SCALE]",
        help="A LoRA adapter: a PEFT folder or a GGUF file; repeatable, all are added.",
    ),
]
Mmproj = Annotated[
    str | None,
    typer.Option(
        "--mmproj", metavar="FILE",
        help="What the model sees with, an mmproj GGUF file; found beside the model if not given, none is to read text only.",
    ),
]  # fmt: skip
Named = Annotated[str | None, typer.Argument(metavar="[MODEL]", help="The same as -m.", show_default=False)]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=f"{MODEL}.")]
StoreName = Annotated[
    str, typer.Argument(metavar="NAME", help="A name of the catalog (`gangpao list`), or hf.co/owner/repo[:Q4_K_M].")
]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Download without asking.")]
CostProfile = Annotated[
    str | None, typer.Option("--cost-profile", help="The machine whose price and power make the yuan.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
ContextShift = Annotated[
    bool | None,
    typer.Option(
        "--context-shift/--no-context-shift",
        help="Drop the oldest of what was said when the context is full, and go on.",
        show_default=False,
    ),
]


def chosen(**options: Any) -> dict[str, Any]:
    """The sampling options that were given (None is not), checked. Raises ValueError."""
    given = {name: value for name, value in options.items() if value is not None}
    SamplingParams(**given)
    return given


def bias_of(pairs: list[str] | None) -> dict[int, float]:
    """--logit-bias values as a mapping. Raises ValueError for one that is not ID=BIAS."""
    out: dict[int, float] = {}
    for pair in pairs or ():
        token, _, bias = pair.partition("=")
        try:
            out[int(token)] = float(bias)
        except ValueError:
            raise ValueError(f"--logit-bias {pair!r:.60}: write ID=BIAS, for example 42=-100") from None
    return out


def setting_of(name: str, text: str) -> Any:
    """A value typed for one of SETTINGS, checked. Raises ValueError with name, bounds and text."""
    kind = int if "int" in str(_FIELDS[name].type) else float
    try:
        value: Any = kind(text)
    except ValueError:
        raise ValueError(f"{name} must be a {'whole ' if kind is int else ''}number, got {text!r:.60}") from None
    SamplingParams(**{name: value})
    return value


def help_of(name: str) -> str:
    """What one of SETTINGS does, in a sentence."""
    text: str = _FIELDS[name].metadata["help"]
    return text
