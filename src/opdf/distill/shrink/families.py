"""Where the parts of each supported family are: all that the fits need to know of a model, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn


class Part(NamedTuple):
    """A matrix in a block: all outputs of a module, or the `share`-th of `of` equal shares (GPT-2's q, k and v).

    Its outputs may be scaled by a module behind it (LayerScale), whose one parameter has a factor for each of them.
    """

    name: str
    share: int = 0
    of: int = 1
    scale: str | None = None

    def weights(self) -> list[str]:
        """Names of the modules that hold weights."""
        return [name for name in (self.name, self.scale) if name]

    def outputs(self, block: nn.Module, states: Tensor) -> Tensor:
        """`[..., outputs]` of a block's matrix."""
        found: Tensor = block.get_submodule(self.name)(states)
        return found.chunk(self.of, -1)[self.share]


@dataclass(frozen=True)
class Attention:
    """Names inside a block.

    Attributes:
        norm: before the attention, or after it is added.
        module: what is called with the hidden states, and calls `output` with what the heads have gathered.
        reads: queries, keys and values.
        memory: the argument of `module` with the states that keys and values are made of, if these are the encoder's.
        head_norms: norms of queries and keys, with one weight for all heads.
    """

    norm: str
    module: str
    reads: tuple[Part, ...]
    output: Part
    memory: str | None = None
    head_norms: tuple[str, ...] = ()

    def weights(self) -> list[str]:
        """Names of the modules that hold weights."""
        return [self.norm, *self.output.weights(), *(part.name for part in self.reads), *self.head_norms]


@dataclass(frozen=True)
class FeedForward:
    """Names inside a block: of `output(activation(up x))`, or of `output(activation(gate x) * up x)`."""

    norm: str
    up: Part
    activation: str
    output: Part
    gate: Part | None = None

    def weights(self) -> list[str]:
        """Names of the modules that hold weights."""
        return [self.norm, self.up.name, *self.output.weights(), *([self.gate.name] if self.gate else [])]


@dataclass(frozen=True)
class Tower:
    """Blocks that follow one another: an encoder or a decoder; names are relative to the base model.

    Attributes:
        depth: the configuration's field with the number of blocks.
        entry: the norm of the first state, where there is one. Where norms stand before branches, the stream begins
            after it.
        final: the norm after the last block, where there is one.
        memory: the tower whose final states the blocks attend to.
        mask: the input that says which tokens are real.
        position_bias: the table with a column for every head that all blocks use where they attend to their own states.
        relative: the table with a state for every distance, which queries and keys of all blocks read as they do
            tokens.
        relative_norm: what these states go through, where there is something.
    """

    blocks: str
    depth: str
    branches: tuple[Attention | FeedForward, ...]
    entry: str | None = None
    final: str | None = None
    memory: str | None = None
    mask: str = "attention_mask"
    position_bias: str | None = None
    relative: str | None = None
    relative_norm: str | None = None

    def weights(self) -> list[str]:
        """Names of the modules beside the blocks that hold weights."""
        names = (self.entry, self.final, self.position_bias, self.relative, self.relative_norm)
        return [name for name in names if name]

    def shares_heads(self, branch: Attention | FeedForward) -> bool:
        """Whether all blocks have to keep the same heads of a branch."""
        return self.position_bias is not None and isinstance(branch, Attention) and branch.memory is None


def attentions(tower: Tower) -> list[Attention]:
    return [branch for branch in tower.branches if isinstance(branch, Attention)]


@dataclass(frozen=True)
class Head:
    """Linear maps outside of the blocks, named from the whole model; BASE stands for the base model's own name.

    Attributes:
        first: reads the final states, or those of chosen tokens.
        activation: what follows a `first` of the model's width: a pooler, or a classifier's hidden layer.
        second: what reads that, where there is something.
        norm: between the activation and `second`, where there is one.
        states: how many states `first` reads side by side (DINOv2's reads the first token and the mean of the patches).
    """

    first: str
    activation: str | None = None
    second: str | None = None
    norm: str | None = None
    states: int = 1

    def weights(self) -> list[str]:
        """Names of the modules that hold weights."""
        return [name for name in (self.first, self.norm, self.second) if name]


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        embeddings: modules that add up to the first state; relative to the base model.
        pre_norm: whether norms stand before attention and feed-forward, and not after these are added.
        outputs: what may stand outside of the base model, most particular first; the first that a model has count.
        width, inner, heads: fields of the configuration: of the hidden and feed-forward size and the number of heads.
        inner_times_width: whether `inner` is the feed-forward size over the hidden size.
        groups: the field with the number of key-value heads, where these can be fewer.
        head: the field with the size of a head; without it, and where a model has none, it is the hidden size over the
            number of heads.
        rotary: whether positions rotate queries and keys, so that the dimensions of a head cannot be mixed.
    """

    embeddings: tuple[str, ...]
    towers: tuple[Tower, ...]
    pre_norm: bool
    outputs: tuple[Head, ...]
    width: str = "hidden_size"
    inner: str = "intermediate_size"
    heads: str = "num_attention_heads"
    inner_times_width: bool = False
    groups: str | None = None
    head: str | None = None
    rotary: bool = False


def _parts(pattern: str, *names: str) -> tuple[Part, ...]:
    return tuple(Part(pattern.format(name)) for name in names)


def _shares(name: str, of: int) -> tuple[Part, ...]:
    return tuple(Part(name, share, of) for share in range(of))


def _one_tower(
    blocks: str,
    *branches: Attention | FeedForward,
    pre_norm: bool,
    outputs: tuple[Head, ...],
    depth: str = "num_hidden_layers",
    entry: str | None = None,
    final: str | None = None,
    embeddings: tuple[str, ...] = ("embeddings",),
    tables: Mapping[str, str] | None = None,
    **fields: Any,
) -> Family:
    """A family with an encoder or a decoder alone; `tables` and `fields` are more of `Tower` and of `Family`."""
    tower = Tower(blocks, depth, branches, entry, final, **(tables or {}))
    return Family(embeddings, (tower,), pre_norm, outputs, **fields)


def _bert_like(attention: Attention, *pooled: Head, **tables: str) -> Family:
    """Blocks as BERT has them.

    Args:
        attention: of its own kind.
        pooled: heads of its own kind.
        tables: of positions, as `Tower` has them.
    """
    return _one_tower(
        "encoder.layer",
        attention,
        FeedForward("output.LayerNorm", Part("intermediate.dense"), "intermediate.intermediate_act_fn",
                    Part("output.dense")),
        entry="embeddings.LayerNorm",
        pre_norm=False,
        outputs=(
            *pooled,
            Head("BASE.pooler.dense", "tanh", "classifier"),
            Head("BASE.pooler.dense", "tanh"),
            Head("classifier.dense", "tanh", "classifier.out_proj"),
            Head("classifier"),
            Head("qa_outputs"),
        ),
        tables=tables,
    )  # fmt: skip


_berts = Attention("attention.output.LayerNorm", "attention", _parts("attention.self.{}", "query", "key", "value"),
                   Part("attention.output.dense"))  # fmt: skip
_bert = _bert_like(_berts)
_electra = _bert_like(_berts, Head("classifier.dense", "gelu", "classifier.out_proj"))

_mpnet = _bert_like(
    Attention("attention.LayerNorm", "attention", _parts("attention.attn.{}", "q", "k", "v"), Part("attention.attn.o")),
    position_bias="encoder.relative_attention_bias",
)


def _deberta(activation: str) -> Family:
    return _bert_like(
        Attention("attention.output.LayerNorm", "attention",
                  _parts("attention.self.{}_proj", "query", "key", "value"), Part("attention.output.dense")),
        Head("pooler.dense", activation, "classifier"),
        relative="encoder.rel_embeddings",
        relative_norm="encoder.LayerNorm",
    )  # fmt: skip


_distilbert = _one_tower(
    "transformer.layer",
    Attention("sa_layer_norm", "attention", _parts("attention.{}_lin", "q", "k", "v"), Part("attention.out_lin")),
    FeedForward("output_layer_norm", Part("ffn.lin1"), "ffn.activation", Part("ffn.lin2")),
    depth="n_layers",
    entry="embeddings.LayerNorm",
    pre_norm=False,
    outputs=(Head("pre_classifier", "relu", "classifier"), Head("classifier"), Head("qa_outputs")),
    width="dim",
    inner="hidden_dim",
    heads="n_heads",
)


def _vit(activation: str) -> Family:
    return _one_tower(
        "layers",
        Attention("layernorm_before", "attention", _parts("attention.{}_proj", "q", "k", "v"),
                  Part("attention.o_proj")),
        FeedForward("layernorm_after", Part("mlp.fc1"), "mlp.activation_fn", Part("mlp.fc2")),
        final="layernorm",
        pre_norm=True,
        outputs=(
            Head("BASE.pooler.dense", activation),
            Head("classifier"),
            Head("cls_classifier"),
            Head("distillation_classifier"),
        ),
    )  # fmt: skip


_dinov2 = _one_tower(
    "encoder.layer",
    Attention("norm1", "attention", _parts("attention.{}_proj", "q", "k", "v"),
              Part("attention.o_proj", scale="layer_scale1")),
    FeedForward("norm2", Part("mlp.fc1"), "mlp.activation_fn", Part("mlp.fc2", scale="layer_scale2")),
    final="layernorm",
    pre_norm=True,
    outputs=(Head("classifier", states=2),),
    inner="mlp_ratio",
    inner_times_width=True,
)  # fmt: skip

_gpt2 = _one_tower(
    "h",
    Attention("ln_1", "attn", _shares("attn.c_attn", 3), Part("attn.c_proj")),
    FeedForward("ln_2", Part("mlp.c_fc"), "mlp.act", Part("mlp.c_proj")),
    embeddings=("wte", "wpe"),
    depth="n_layer",
    final="ln_f",
    pre_norm=True,
    outputs=(Head("lm_head"), Head("score"), Head("classifier"), Head("qa_outputs")),
    width="n_embd",
    inner="n_inner",
    heads="n_head",
)


def _modernbert(activation: str) -> Family:
    return _one_tower(
        "layers",
        Attention("attn_norm", "attn", _shares("attn.Wqkv", 3), Part("attn.Wo")),
        FeedForward("mlp_norm", Part("mlp.Wi", 1, 2), "mlp.act", Part("mlp.Wo"), Part("mlp.Wi", 0, 2)),
        entry="embeddings.norm",
        final="final_norm",
        pre_norm=True,
        outputs=(Head("head.dense", activation, "classifier", "head.norm"),),
        rotary=True,
    )


def _rotary(*head_norms: str) -> Family:
    return _one_tower(
        "layers",
        Attention("input_layernorm", "self_attn", _parts("self_attn.{}_proj", "q", "k", "v"), Part("self_attn.o_proj"),
                  head_norms=head_norms),
        FeedForward("post_attention_layernorm", Part("mlp.up_proj"), "mlp.act_fn", Part("mlp.down_proj"),
                    Part("mlp.gate_proj")),
        embeddings=("embed_tokens",),
        final="norm",
        pre_norm=True,
        outputs=(Head("lm_head"), Head("score"), Head("qa_outputs")),
        groups="num_key_value_heads",
        head="head_dim",
        rotary=True,
    )  # fmt: skip


def _t5(gated: bool) -> Family:
    def layer(k: int) -> FeedForward:
        dense = f"layer.{k}.DenseReluDense."
        up, gate = (Part(f"{dense}wi_1"), Part(f"{dense}wi_0")) if gated else (Part(f"{dense}wi"), None)
        return FeedForward(f"layer.{k}.layer_norm", up, f"{dense}act", Part(f"{dense}wo"), gate)

    attends = Attention(
        "layer.0.layer_norm", "layer.0.SelfAttention", _parts("layer.0.SelfAttention.{}", "q", "k", "v"),
        Part("layer.0.SelfAttention.o"),
    )  # fmt: skip
    crosses = Attention(
        "layer.1.layer_norm", "layer.1.EncDecAttention", _parts("layer.1.EncDecAttention.{}", "q", "k", "v"),
        Part("layer.1.EncDecAttention.o"),
        memory="key_value_states",
    )  # fmt: skip
    return Family(
        embeddings=("shared",),
        towers=(
            Tower(
                "encoder.block", "num_layers", (attends, layer(1)), final="encoder.final_layer_norm",
                position_bias="encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
            ),
            Tower(
                "decoder.block", "num_decoder_layers", (attends, crosses, layer(2)), final="decoder.final_layer_norm",
                memory="encoder.block", mask="decoder_attention_mask",
                position_bias="decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
            ),
        ),
        pre_norm=True,
        outputs=(
            Head("lm_head"),
            Head("classification_head.dense", "tanh", "classification_head.out_proj"),
            Head("classifier"),
            Head("qa_outputs"),
        ),
        width="d_model",
        inner="d_ff",
        heads="num_heads",
        head="d_kv",
    )  # fmt: skip


def family_of(model: nn.Module) -> Family:
    """The description of a transformers model.

    Raises:
        TypeError: it is none.
        ValueError: its family is not supported.
    """
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(model, "base_model"):
        raise TypeError(f"teacher is a {type(model).__name__}; shrink needs a transformers model")
    if (made := MADE.get(config.model_type)) is not None:
        return made(config)
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    raise ValueError(
        f"teacher is a {config.model_type} ({type(model).__name__}), whose blocks shrink does not know; it knows "
        f"{', '.join([*FAMILIES, *MADE])}. keep_layers copies blocks of any model with one list of them"
    )


FAMILIES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _bert),
    "electra": _electra,
    "mpnet": _mpnet,
    "distilbert": _distilbert,
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), _dinov2),
    "gpt2": _gpt2,
    **dict.fromkeys(("llama", "mistral", "qwen2"), _rotary()),
    "qwen3": _rotary("self_attn.q_norm", "self_attn.k_norm"),
}

MADE: dict[str, Callable[[Any], Family]] = {
    **dict.fromkeys(("t5", "mt5"), lambda config: _t5(config.is_gated_act)),
    **dict.fromkeys(("vit", "deit"), lambda config: _vit(config.pooler_act)),
    "modernbert": lambda config: _modernbert(config.classifier_activation),
    "deberta-v2": lambda config: _deberta(config.pooler_hidden_act),
}
"""Families that differ with their configuration."""
