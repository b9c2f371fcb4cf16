"""This project's decoder as a model of lm-evaluation-harness, without PyTorch.

Importing the module registers it there under the name gmt-train.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import Mesh
from jinja2 import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from ..errors import UserError, warn
from ..generate import BATCH_SIZE, Sampling, complete
from ..hf.bounds import rendering
from ..hf.evaluations import add_evaluation
from ..hf.time_limit import SECONDS
from ..model import ComputeOptions, choose_attention
from ..restore import Model
from ..sharding import make_mesh
from .scores import Request, score

NAME = "gmt-train"
MAX_NEW_TOKENS = 256  # lm-eval's own default, where a task names no limit.
# What a task may ask of a generation; anything else is refused.
KNOWN = {"do_sample", "until", "max_gen_toks", "temperature", "top_p", "top_k"}


@dataclass(frozen=True)
class _Generation:
    """How the prompts of a task are completed."""

    sampling: Sampling
    until: tuple[str, ...]


@register_model(NAME)
class GmtTrainLM(TemplateLM):
    """A run's newest weights, an export, another model folder or a hub name.

    Args:
      pretrained: the model; the name that lm-eval's own models use.
      dtype: of activations and products, float32 or bfloat16.
      batch_size: rows that are computed together.
      data, fsdp, context, tensor: devices along the axes of the mesh, unless `mesh` is given.
      max_length: the most tokens that the model reads; by default the model's positions.
      max_gen_toks: the length of a completion, where a task names none.
      seed: of completions that are sampled.
      add_bos_token: whether texts begin with BOS; by default, if the tokenizer adds it.
      revision: the commit or tag of a hub name.
      device, max_batch_size: lm-eval passes them to every model; jax chooses the devices.

    Raises:
      UserError: if the model cannot be read.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        dtype: str = "float32",
        batch_size: int | str | None = None,
        data: int = 1,
        fsdp: int = -1,
        context: int = 1,
        tensor: int = 1,
        max_length: int | None = None,
        max_gen_toks: int = MAX_NEW_TOKENS,
        seed: int = 0,
        add_bos_token: bool | None = None,
        revision: str | None = None,
        mesh: Mesh | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype must be float32 or bfloat16, got {dtype}")
        try:
            size = BATCH_SIZE if batch_size in (None, "auto") else int(str(batch_size))
        except ValueError:
            raise UserError(f"batch_size must be a number, got {batch_size}") from None
        mesh = mesh or make_mesh(data, fsdp, tensor, context)
        self._model = Model(str(pretrained), mesh, revision)
        self.tokenizer = self._model.tokenizer
        self.batch_size, self._dtype, self._seed = size, dtype, seed
        self._max_gen_toks, self._add_bos = max_gen_toks, add_bos_token
        positions = self._model.config.max_position_embeddings
        self.max_length = min(max_length or positions, positions)
        self._params = self._model.params(dtype)
        self.num_tokens = 0  # That the model read or wrote, without padding.

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's end of text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context: BOS, or the end of text if there is none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """The model, for the names of lm-eval's caches."""
        return self._model.source.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval records of the model."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self._params))
        return {"model_num_parameters": count, "model_dtype": self._dtype}

    def keep(self, results: dict[str, Any]) -> None:
        """Adds results of this model to the run's, if it is a run."""
        run, step = self._model.run, self._model.step
        if run is not None and step is not None:
            try:
                add_evaluation(run.folder, step, results)
            except UserError as error:  # What was computed for hours is shown.
                warn(f"{error}; the results are not kept with the run")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """The ids of a text, with the BOS that the tokenizer adds unless it is there already."""
        special = self._add_bos if add_special_tokens is None else add_special_tokens
        bos = self.tokenizer.decode([self.prefix_token_id])
        if add_special_tokens is None and bos and string.startswith(bos):
            special = False
        options = {} if special is None else {"add_special_tokens": special}
        ids: list[int] = self.tokenizer.encode(string, **options)
        return ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation; its last turn is gone on with if no other is to follow.

        Raises:
          UserError: if the template refuses it, or there is none.
        """
        try:
            with rendering(SECONDS):
                text: str = self.tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
        except (TemplateError, ValueError, TimeoutError, MemoryError) as error:
            raise UserError(
                f"{self._model.source}: the chat template refuses a prompt of the task "
                f"({' '.join(str(error).split())[:300]}); leave the system turn or the chat "
                "template out"
            ) from None
        return text

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-probability of each text, in windows of `max_length` tokens that do not overlap.

        The first token of the text follows the prefix token, each window the token before it.
        """
        windows, owners = [], []
        for number, request in enumerate(requests):
            parts = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, parts):
                windows.append((("", ""), context, continuation))
                owners.append(number)
        totals = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for number, (logprob, _) in zip(owners, scores, strict=True):
            totals[number] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The completion of each prompt, up to the model's ends or one of the task's strings."""
        groups: dict[_Generation, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(self._generation(request.args[1]), []).append(number)
        completions = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Completing") as bar:
            for generation, numbers in groups.items():
                prompts = [self.tok_encode(requests[number].args[0]) for number in numbers]
                for number, text in zip(
                    numbers, self._complete(prompts, generation, bar), strict=True
                ):
                    completions[number] = text
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return completions

    def _complete(
        self, prompts: list[list[int]], generation: _Generation, bar: Any
    ) -> Iterable[str]:
        room = self.max_length - generation.sampling.max_new_tokens
        if room < 1:
            raise UserError(
                f"a task asks for {generation.sampling.max_new_tokens:,} new tokens, and the model "
                f"has {self.max_length:,} positions; give it a smaller max_gen_toks"
            )
        cut = [prompt[-room:] for prompt in prompts]  # As lm-eval's own models do.
        with jax.set_mesh(self._model.mesh):
            texts = complete(
                self._model.config,
                self._params,
                self.tokenizer,
                cut,
                generation.sampling,
                self._model.ends.ids,
                self._dtype,
                stop_strings=generation.until,
                batch_size=self.batch_size,
                progress=bar.update,
            )
        written = self.tokenizer(texts, add_special_tokens=False).input_ids
        self.num_tokens += sum(map(len, cut)) + sum(map(len, written))
        return texts

    def _generation(self, options: dict[str, Any]) -> _Generation:
        """How a task's options complete a prompt.

        Raises:
          UserError: for an option that is not known here.
        """
        given = dict(normalize_gen_kwargs(options, self._max_gen_toks))
        if unknown := sorted(given.keys() - KNOWN):
            raise UserError(
                f"a task asks for generation with {', '.join(unknown)}; known are "
                f"{', '.join(sorted(KNOWN))}"
            )
        until = given.get("until") or []
        sampling = Sampling(int(given["max_gen_toks"]), seed=self._seed)
        if given.get("do_sample"):
            sampling = replace(
                sampling,
                temperature=float(given.get("temperature", 1.0)),
                top_p=float(given.get("top_p", 1.0)),
                top_k=int(given.get("top_k", 0)),
            )
        return _Generation(sampling, (until,) if isinstance(until, str) else tuple(until))

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_options: object,
    ) -> list[tuple[float, bool]]:
        pairs = [Request(context, continuation) for _, context, continuation in requests]
        mesh = self._model.mesh
        attention = choose_attention("auto", self._model.config, mesh, self._dtype)
        compute = ComputeOptions(self._dtype, attention=attention)
        self.num_tokens += sum(len(pair.context) + len(pair.continuation) - 1 for pair in pairs)
        with (
            tqdm(total=len(pairs), disable=disable_tqdm, desc="Scoring") as bar,
            jax.set_mesh(mesh),
        ):
            scores = score(
                self._model.config,
                self._params,
                pairs,
                compute,
                batch_size=self.batch_size,
                max_length=self.max_length,
                progress=bar.update,
            )
        for (texts, _, _), (logprob, is_greedy) in zip(requests, scores, strict=True):
            if texts != ("", ""):
                self.cache_hook.add_partial("loglikelihood", texts, (logprob, is_greedy))
        return [(logprob, is_greedy) for logprob, is_greedy in scores]
