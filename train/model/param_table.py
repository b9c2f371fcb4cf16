"""The one table of parameters: Hugging Face's name, our path and the logical axes of each."""

from typing import NamedTuple


class ParamSpec(NamedTuple):
    """The name, path and logical axes of one parameter.

    Files store a tensor for each layer, our tree stacks them. Both use the layout [out, in], so no
    weight is transposed when it is loaded.
    """

    name: str  # name in safetensors files; {} is the layer's number
    path: str  # path in our tree
    axes: tuple[str | None, ...]  # logical axes of the array in our tree

    @property
    def stacked(self) -> bool:
        """Whether files store a tensor for each layer."""
        return self.axes[0] == "layers"


def _layer(name: str, path: str, *axes: str | None) -> ParamSpec:
    return ParamSpec(f"model.layers.{{}}.{name}", f"layers/{path}", ("layers", *axes))


HEAD = "lm_head.weight"
EMBED = "model.embed_tokens.weight"

PARAM_SPECS = (
    ParamSpec(EMBED, "embed", ("vocab", "embed")),
    _layer("input_layernorm.weight", "attention_norm/weight", None),
    _layer("self_attn.q_proj.weight", "attention/q/weight", "heads", "embed"),
    _layer("self_attn.q_proj.bias", "attention/q/bias", "heads"),
    _layer("self_attn.k_proj.weight", "attention/k/weight", "kv_heads", "embed"),
    _layer("self_attn.k_proj.bias", "attention/k/bias", "kv_heads"),
    _layer("self_attn.v_proj.weight", "attention/v/weight", "kv_heads", "embed"),
    _layer("self_attn.v_proj.bias", "attention/v/bias", "kv_heads"),
    _layer("self_attn.o_proj.weight", "attention/out/weight", "embed", "heads"),
    _layer("self_attn.o_proj.bias", "attention/out/bias", None),
    _layer("self_attn.q_norm.weight", "attention/q_norm/weight", None),
    _layer("self_attn.k_norm.weight", "attention/k_norm/weight", None),
    _layer("post_attention_layernorm.weight", "mlp_norm/weight", None),
    _layer("mlp.gate_proj.weight", "mlp/gate/weight", "ffn", "embed"),
    _layer("mlp.gate_proj.bias", "mlp/gate/bias", "ffn"),
    _layer("mlp.up_proj.weight", "mlp/up/weight", "ffn", "embed"),
    _layer("mlp.up_proj.bias", "mlp/up/bias", "ffn"),
    _layer("mlp.down_proj.weight", "mlp/down/weight", "embed", "ffn"),
    _layer("mlp.down_proj.bias", "mlp/down/bias", None),
    ParamSpec("model.norm.weight", "norm/weight", (None,)),
    ParamSpec(HEAD, "head", ("vocab", "embed")),
)
