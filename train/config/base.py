"""What all sections of the config share."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..buckets.address import check_place

MOST = 2**31 - 1  # Updates and rows are counted in int32.
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Place = Annotated[str, AfterValidator(check_place)]  # A path, an address or a hub name.
CountOrZero = Annotated[int, Field(ge=0, le=MOST)]


class Section(BaseModel):
    """A part of the config: immutable, and without keys that are not declared."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
