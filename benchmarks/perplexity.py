"""The perplexity of a model folder on plain English, by this project's own decoder.

    python benchmarks/perplexity.py models/SmolLM2-135M-Instruct

A wrong weight layout shows here at once: with query and key weights left in GGUF's order, the
perplexity of a small Llama is many times what it should be.
"""

import math
import platform
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from gmt_train.hf.load import load_params
from gmt_train.hf.tokenizer import load_tokenizer
from gmt_train.model import forward, load_model_config

TEXT = """\
A lighthouse is a tower built to guide ships at sea. Before electricity, its lamp burned oil, and a
keeper lived beside it to trim the wick, wind the clockwork that turned the lens, and write down the
weather in a log. The lens was often more valuable than the building itself. Made of hundreds of
glass prisms, it bent the light of a single flame into a narrow beam that could be seen from twenty
miles away. Each lighthouse had its own pattern of flashes, so that a captain could tell from the
rhythm alone which part of the coast he was passing. Today most lighthouses run without a keeper.
Satellites tell ships where they are, and many of the old towers have become museums or small
hotels, but some of them still shine every night, as they did a hundred years ago.
""".replace("\n", " ").strip()


def main() -> None:
    """Prints the perplexity of each folder named on the command line."""
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {platform.machine()}")
    for name in sys.argv[1:]:
        folder = Path(name)
        config = load_model_config(folder)
        ids = np.asarray(load_tokenizer(folder)(TEXT).input_ids, np.int32)[None]
        scores = forward(config, load_params(folder, config), jnp.asarray(ids))
        losses = optax.softmax_cross_entropy_with_integer_labels(scores[:, :-1], ids[:, 1:])
        mean = float(jnp.mean(losses))
        print(f"{folder}: perplexity {math.exp(mean):.2f} over {ids.size - 1} tokens")


if __name__ == "__main__":
    main()
