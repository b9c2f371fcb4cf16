"""The completions of a run's prompts, before and after training."""

from collections.abc import Sequence
from datetime import datetime

from transformers import PreTrainedTokenizerBase

from .config import Config
from .data.prompts import DataPrompt, prompt_ids
from .generate import Sampling, check_prompts, complete
from .model import ModelConfig, Params


class Completer:
    """Completes the run's prompts."""

    def __init__(
        self,
        config: Config,
        model: ModelConfig,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Sequence[int],
    ) -> None:
        self._prompts: list[dict[str, str]] = []  # With the answers of the data, if there are any.
        self._ids: list[Sequence[int]] = []
        self._sampling = Sampling(config.evaluation.max_new_tokens)
        self._dtype = config.model.compute_dtype
        self._model, self._tokenizer, self._stop_ids = model, tokenizer, stop_ids

    def add_prompts(self, prompts: Sequence[str] | None, now: datetime) -> None:
        """Adds user turns.

        Args:
          now: what chat templates read of the time.

        Raises:
          UserError: if the model cannot complete one of them.
        """
        ids = [prompt_ids(self._tokenizer, prompt, now) for prompt in prompts or ()]
        check_prompts(self._model, ids, self._sampling)
        self._prompts += [{"prompt": prompt} for prompt in prompts or ()]
        self._ids += ids

    def add_data_prompts(self, prompts: Sequence[DataPrompt]) -> None:
        """Adds prompts of the data; they and their answers are recorded as text."""
        self._ids += [prompt.ids for prompt in prompts]
        for prompt in prompts:
            named = {"prompt": prompt.ids, **prompt.answers}
            self._prompts.append(
                {
                    name: self._tokenizer.decode(ids, skip_special_tokens=True)
                    for name, ids in named.items()
                }
            )

    def __call__(self, params: Params) -> list[dict[str, str]]:
        """The prompts with their completions."""
        if not self._ids:
            return []
        completions = complete(
            self._model,
            params,
            self._tokenizer,
            self._ids,
            self._sampling,
            self._stop_ids,
            self._dtype,
        )
        return [
            {**prompt, "completion": completion}
            for prompt, completion in zip(self._prompts, completions, strict=True)
        ]
