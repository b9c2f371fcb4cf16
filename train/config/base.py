"""What all sections of the config share."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..buckets.address import local_path


def _no_address(text: str) -> str:
    local_path(text)
    return text


MOST = 2**31 - 1  # Updates and rows are counted in int32.
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=MOST)]
LocalPath = Annotated[str, AfterValidator(_no_address)]  # Or the name of something on a hub.
CountOrZero = Annotated[int, Field(ge=0, le=MOST)]


class Section(BaseModel):
    """A part of the config: immutable, and without keys that are not declared."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
