"""What a step that quantizes is told."""

from pydantic import Field, field_validator

from gangpao.compress.quantize.mixtures import named
from gangpao.config import Frozen, PathText


class QuantizeConfig(Frozen):
    """[[step]] do = "quantize": a file in a type or a named mixture, rounded with an importance matrix."""

    to: str = Field(
        default="Q4_K_M", description="A type or mixture of llama-quantize: Q4_0, Q4_K_M, Q3_K_S, IQ4_XS ..."
    )
    imatrix: PathText = Field(default="", description="An importance matrix; empty: made from `data`.")
    data: tuple[str, ...] = Field(
        default=("own",),
        description="Texts and chats for the importance matrix; own: those of the package; []: without one.",
    )
    tokens: int = Field(default=65_536, ge=32, description="Tokens of them to look at.")
    pure: bool = Field(default=False, description="The same type for all matrices.")
    threads: int = Field(default=0, ge=0, description="Threads to compute with; 0: the physical cores.")

    @field_validator("to")
    @classmethod
    def _known(cls, value: str) -> str:
        return named(value)
