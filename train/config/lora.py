"""The lora section of the config: low-rank adapters in place of a mask."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from .base import Count, Place, Section

TargetModule = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALL: tuple[TargetModule, ...] = get_args(TargetModule)


def _as_tuple(given: Any) -> Any:
    if isinstance(given, str):
        return ALL if given == "all-linear" else (given,)
    return tuple(dict.fromkeys(given)) if isinstance(given, list | tuple) else given


def _some(modules: tuple[str, ...]) -> tuple[str, ...]:
    if not modules:
        raise ValueError("names no matrix; name one, or all-linear")
    return modules


class LoraSection(Section):
    """Low-rank adapters (LoRA), in place of a mask: the weights stay as they came, and beside each
    target matrix a product of two thin ones is trained, times `alpha / rank`. null: none."""

    rank: Count = 16
    """The rank of the product: the rows of its one factor and the columns of the other."""
    alpha: float = Field(32.0, gt=0)
    """The product counts `alpha / rank` times."""
    target_modules: Annotated[
        tuple[TargetModule, ...], BeforeValidator(_as_tuple), AfterValidator(_some)
    ] = ALL
    """The matrices of each layer that have a product, by PEFT's names; all-linear: all of them."""
    adapter: Place | None = None
    """The folder of an adapter in PEFT's format, with the same rank, alpha and target_modules, that
    training begins with; null: a product that is zero."""
