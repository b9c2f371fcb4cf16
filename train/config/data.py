"""The config's data section: what is learned from, and what the held-out loss is measured on."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from .base import Count, Fraction, Section

# Each format with the fields that tell it. A row is of the first whose fields it has.
FORMATS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "preference": ("chosen", "rejected"),
    "completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
# All fields that are looked at; the last two may be left out.
FIELDS = (*dict.fromkeys(f for fields in FORMATS.values() for f in fields), "input", "tools")


def _fields(columns: dict[str, str]) -> dict[str, str]:
    for field in columns:
        if field not in FIELDS:
            raise ValueError(f"{field!r} is no field of a row; fields are {', '.join(FIELDS)}")
    return columns


Columns = Annotated[dict[str, str], AfterValidator(_fields)]


class Source(Section):
    """A file, a folder, a hub data set or python-stdlib; what is null is taken from `data`."""

    path: str
    """A JSONL, JSON, Parquet or CSV file or pattern, an Arrow folder, or a hub data set."""
    weight: float = Field(1.0, gt=0)
    """How often an epoch holds each example: 2 twice, 0.5 a half of them in turn."""
    split: str | None = None
    """The split of a hub data set or of an Arrow folder."""
    revision: str | None = None
    """The commit or tag of a hub data set."""
    format: (
        Literal["messages", "conversations", "preference", "completion", "alpaca", "text"] | None
    ) = None
    """How rows are read; null: told by their fields."""
    columns: Columns | None = None
    """Which columns hold the fields: {prompt: question, completion: answer}."""


def _listed(given: Any) -> Any:
    """Sources as a list of sections, of which one may stand alone and a path for a section."""
    if given is None:
        return ()
    given = given if isinstance(given, list | tuple) else [given]
    return tuple({"path": each} if isinstance(each, str) else each for each in given)


Sources = Annotated[tuple[Source, ...], BeforeValidator(_listed)]


class DataSection(Section):
    """What is learned from, and what the held-out loss is measured on."""

    train: Annotated[Sources, Field(min_length=1)]
    """A path or hub name, or a list of them or of sources with their own settings and weights."""
    eval: Sources = ()
    """The same for held-out data; left out, it is split off the training data."""
    split: str = "train"
    """The split of hub data sets to train on."""
    eval_split: str | None = None
    """The split of the hub data sets to hold out."""
    revision: str | None = None
    """The commit or tag of a hub data set."""
    columns: Columns = Field(default_factory=dict)
    """Which columns hold the fields: {prompt: question, completion: answer}."""
    eval_fraction: Fraction = 0.05
    """The share to split off where no held-out data is named."""
    loss_on: Literal["assistant", "last", "everything"] = "assistant"
    """Of conversations: all turns of the assistant, its last one, or every token."""
    max_length: int = Field(1024, ge=2)
    """Tokens in a row; rows are padded to it."""
    overlong: Literal["drop", "truncate", "error"] = "drop"
    """What happens to a longer example; always counted and reported."""
    packing: Literal["none", "bucketed", "packed"] = "none"
    """One example a row; batches of examples of about one length; or several examples a row."""
    on_error: Literal["stop", "report"] = "stop"
    """At data that cannot be used, tell the first fault or all of them; nothing is trained on."""
    streaming: bool = False
    """Read the training data in order without tokenising it first: for more than fits a disk."""
    shuffle_buffer: Count = 10_000
    """Rows of a stream that are shuffled together."""
    limit: Count | None = None
    """Use at most this many training examples."""
    eval_limit: Count | None = None
    """Use at most this many held-out examples."""

    @model_validator(mode="after")
    def _streams(self) -> Self:
        if self.streaming and (self.packing == "bucketed" or self.limit is not None):
            raise ValueError("streaming takes packing none or packed, and no limit")
        named = self.eval or self.eval_split
        if self.streaming and not named and self.eval_fraction:
            raise ValueError("nothing is split off a stream: name eval, or set eval_fraction to 0")
        return self

    def train_sources(self) -> tuple[Source, ...]:
        """The sources to train on, with what they leave open filled in."""
        return tuple(self._filled(source, self.split, self.revision) for source in self.train)

    def eval_sources(self) -> tuple[Source, ...]:
        """The sources to hold out, where there are any of their own."""
        named = self.eval or (self.train if self.eval_split else ())
        known = {source.path for source in self.train}
        return tuple(
            self._filled(
                source.model_copy(update={"split": None}) if not self.eval else source,
                self.eval_split or self.split,
                self.revision if source.path in known else None,  # One repository's.
            )
            for source in named
        )

    def _filled(self, source: Source, split: str, revision: str | None) -> Source:
        return source.model_copy(
            update={
                "split": source.split or split,
                "revision": source.revision or revision,
                "columns": self.columns if source.columns is None else source.columns,
            }
        )
