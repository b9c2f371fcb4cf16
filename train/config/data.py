"""The data section of the config: the sources to train on and to evaluate on."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from .base import MOST, Count, Fraction, Place, Section

# The fields that each format requires. A record has the first format whose fields it has.
FORMATS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "preference": ("chosen", "rejected"),
    "completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
# Fields that a record may have beside those of its format.
OPTIONAL = ("input", "history", "system", "tools")
# All fields that are read.
FIELDS = (*dict.fromkeys(f for fields in FORMATS.values() for f in fields), *OPTIONAL)

Format = Literal["messages", "conversations", "preference", "completion", "alpaca", "text"]
ControlTokens = Literal["text", "keep", "refuse"]


def _known_fields(columns: dict[str, str]) -> dict[str, str]:
    for field in columns:
        if field not in FIELDS:
            raise ValueError(f"unknown field {field!r}; known fields: {', '.join(FIELDS)}")
    return columns


Columns = Annotated[dict[str, str], AfterValidator(_known_fields)]


class Source(Section):
    """Files, a folder, a hub data set, python-stdlib or python-stdlib-preferences; a key that is
    null is taken from `data`."""

    path: Place
    """A JSONL, JSON, Parquet or CSV file or pattern, also compressed; an Arrow folder; the address
    (gs://, s3://) of such; or a hub data set."""
    weight: float = Field(1.0, gt=0)
    """How often an epoch contains each record: 2 is twice, 0.5 is a half of them in turn."""
    split: str | None = None
    """The split of a hub data set or of an Arrow folder."""
    revision: str | None = None
    """The commit or tag of a hub data set."""
    format: Format | None = None
    """The format of the records; null: recognised by their fields."""
    columns: Columns | None = None
    """The column of each field, as in {prompt: question, completion: answer}."""


def _as_list(given: Any) -> Any:
    """Puts a single source into a list, and a path that stands for a source into a section."""
    if given is None:
        return ()
    sources = given if isinstance(given, list | tuple) else [given]
    return tuple({"path": source} if isinstance(source, str) else source for source in sources)


Sources = Annotated[
    tuple[Source, ...],
    BeforeValidator(_as_list, json_schema_input_type=str | Source | list[str | Source]),
]


class DataSection(Section):
    """The sources to train on and to evaluate on, and how they become rows of tokens."""

    train: Annotated[Sources, Field(min_length=1)]
    """The sources to train on."""
    eval: Sources = ()
    """The sources to evaluate on; if there are none, a part of the training data is split off."""
    split: str = "train"
    """The split of hub data sets to train on."""
    eval_split: str | None = None
    """The split of hub data sets to evaluate on."""
    revision: str | None = None
    """The commit or tag of a hub data set."""
    format: Format | None = None
    """The format of the records; null: recognised by their fields. A record that fits two is
    refused."""
    columns: Columns = Field(default_factory=dict)
    """The column of each field, as in {prompt: question, completion: answer}."""
    ignore: tuple[str, ...] = ()
    """Columns, and keys of turns, that are left out although they look as if they mattered: a label
    or a thought that the chat template does not render."""
    control_tokens: ControlTokens = "text"
    """What becomes of a control token, such as <|im_end|>, that a conversation's content spells
    out: ordinary text (text), the control token (keep), or a fault (refuse). Plain text and
    completions always keep it."""
    eval_fraction: Fraction = 0.05
    """The share of the training data to split off if no eval data is named; 0: do not evaluate."""
    loss_on: Literal["assistant", "last", "everything"] = "assistant"
    """The tokens of a conversation that are trained on: all turns of the assistant, its last turn,
    or every token."""
    max_length: int = Field(1024, ge=2, le=MOST)
    """The length of a row in tokens."""
    overlong: Literal["drop", "truncate", "error"] = "drop"
    """What to do with an example that is longer; the number is always reported."""
    packing: Literal["none", "bucketed", "packed"] = "none"
    """How examples fill rows: one per row (none), one per row in batches of similar length
    (bucketed), or several per row (packed)."""
    on_error: Literal["stop", "report"] = "stop"
    """Whether data that cannot be used ends the program at the first fault (stop) or after all
    faults are reported (report); neither trains."""
    streaming: bool = False
    """Read the training data in order without tokenising it first: for data that does not fit on
    the disk."""
    shuffle_buffer: Count = 10_000
    """The number of a stream's records that are shuffled together."""
    limit: Count | None = None
    """Use at most this many training examples."""
    eval_limit: Count | None = None
    """Use at most this many eval examples."""

    @model_validator(mode="after")
    def _can_be_streamed(self) -> Self:
        if self.streaming and (self.packing == "bucketed" or self.limit is not None):
            raise ValueError("streaming takes packing none or packed, and no limit")
        named = self.eval or self.eval_split
        if self.streaming and not named and self.eval_fraction:
            raise ValueError("nothing is split off a stream: set eval, or set eval_fraction to 0")
        return self

    def train_sources(self) -> tuple[Source, ...]:
        """Returns the sources to train on, with the section's values for what they leave null."""
        return tuple(self._filled(source, self.split, self.revision) for source in self.train)

    @property
    def is_evaluated(self) -> bool:
        """Whether there is evaluation data, named or split off."""
        return bool(self.eval or self.eval_split or self.eval_fraction)

    def fill(self, source: Source) -> Source:
        """The source of evaluation data with the section's values for what it leaves null."""
        own = source.path in {trained.path for trained in self.train}
        return self._filled(source, self.split, self.revision if own else None)

    def eval_sources(self) -> tuple[Source, ...]:
        """Returns the sources to evaluate on; none if a part of the training data is split off."""
        sources = self.eval or (self.train if self.eval_split else ())
        trained = {source.path for source in self.train}
        return tuple(
            self._filled(
                source.model_copy(update={"split": None}) if not self.eval else source,
                self.eval_split or self.split,
                self.revision if source.path in trained else None,  # of the same repository
            )
            for source in sources
        )

    def _filled(self, source: Source, split: str, revision: str | None) -> Source:
        return source.model_copy(
            update={
                "split": source.split or split,
                "revision": source.revision or revision,
                "format": source.format or self.format,
                "columns": self.columns if source.columns is None else source.columns,
            }
        )
