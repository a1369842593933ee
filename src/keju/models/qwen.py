"""Qwen language models of the first generation (1.8B, 7B, 14B, 72B), under their published parameter names.

Llama's layout with one matrix for query, key and value (`c_attn`, the only bias), and two remedies for texts longer
than `seq_length`, in evaluation alone. Dynamic NTK: the longer the prompt, the slower the rotary angles turn. LogN: a
query at position p is scaled by log(p + 1) / log(seq_length), if that is above 1.

What differs from the published code, on purpose:
- An attention mask of any dtype means 1 = counts. The published code ignored it at first, and positions always: here
  positions count the tokens that count, and may be given.
- The NTK factor is a row's own: its number of tokens that count decides, so that a padded row equals the row alone.
- That factor belongs to a forward pass, or to the cache that it fills (as published, a cache keeps the factor of its
  prompt). It is no state of the model: training uses 1 whatever was evaluated before.
- Where the length of a row is unknown (a column mask, a 4-D mask) and positions pass `seq_length`, dynamic NTK is an
  error in evaluation. LogN is by position and needs no length.
- The floating point type is that of the loaded weights; the flags bf16, fp16 and use_flash_attn of the config choose
  nothing. The softmax is in float32 (or in the fused kernel).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from keju.errors import UserError
from keju.kernels.glu import swiglu
from keju.kernels.rotary import rotary
from keju.models.attention import eager_attention
from keju.models.causal_lm import CausalLM
from keju.models.layers import RMSNorm, project
from keju.models.published_config import PublishedConfig
from keju.models.rotary import rotary_angles

LORA_TARGETS = ("c_attn",)


class QWenConfig(PublishedConfig, PreTrainedConfig):
    """Sizes, under the names of the first published config.json; the defaults are those of the 7B model.

    Later published files call the same things hidden_size, num_hidden_layers, num_attention_heads, intermediate_size,
    max_position_embeddings, emb_dropout_prob and attn_dropout_prob: both sets of names are read. The two matrices of
    the MLP are `ffn_hidden_size` / 2 wide. resid_pdrop has no effect, as in the published code.
    """

    model_type = "qwen"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "ffn_hidden_size",
        "emb_dropout_prob": "embd_pdrop",
        "attn_dropout_prob": "attn_pdrop",
    }

    vocab_size: int = 151936
    n_embd: int = 4096
    n_layer: int = 32
    n_head: int = 32
    kv_channels: int = 128
    ffn_hidden_size: int = 22016
    n_positions: int = 6144
    seq_length: int = 2048
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    rotary_emb_base: float | int = 10000
    scale_attn_weights: bool = True
    no_bias: bool = True
    use_dynamic_ntk: bool = False
    use_logn_attn: bool = False
    use_cache: bool = True
    bos_token_id: int | None = 151643
    eos_token_id: int | list[int] | None = 151643
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        padded = kwargs.pop("padded_vocab_size", self.vocab_size)
        super().__post_init__(**kwargs)
        if padded != self.vocab_size:
            raise UserError(f"padded_vocab_size {padded} differs from vocab_size {self.vocab_size}")
        if self.kv_channels * self.n_head != self.n_embd:
            raise UserError(f"n_embd {self.n_embd} is not kv_channels {self.kv_channels} * n_head {self.n_head}")
        if kwargs.get("rotary_pct", 1.0) != 1.0:
            raise UserError(f"rotary_pct {kwargs['rotary_pct']} is not supported: the rotation spans whole heads")

    @classmethod
    def describes(cls, config: dict) -> bool:
        """Whether a config.json without a model_type is of this family."""
        return any(name in config for name in ("use_dynamic_ntk", "use_logn_attn", "rotary_emb_base"))


def ntk_alpha(lengths: torch.Tensor, seq_length: int) -> torch.Tensor:
    """int64 [B] -> float32 [B]: 1 up to seq_length, 3 up to twice that, 7 up to four times, and so on."""
    doublings = seq_length * 2 ** torch.arange(32, device=lengths.device)
    return 2.0 ** ((lengths[:, None] > doublings).sum(1) + 1) - 1


class ResidualProjection(nn.Linear):
    """The last layer of what a block adds to the residual stream: it starts smaller, see _init_weights."""


class QWenAttention(nn.Module):
    def __init__(self, config: QWenConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = True
        self.head_dim = config.kv_channels
        self.scaling = self.head_dim**-0.5 if config.scale_attn_weights else 1.0
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = ResidualProjection(config.n_embd, config.n_embd, bias=not config.no_bias)

    def forward(self, hidden, attention_mask=None, angles=None, logn=None, past_key_values=None, **kwargs):
        """hidden [B, T, H]; angles: what rotary_angles returns; logn: [B, 1, T, 1] scales the queries, or None."""
        packed = self.c_attn(hidden).unflatten(-1, (3, -1, self.head_dim))
        query, key, value = (states.transpose(1, 2) for states in packed.unbind(2))
        query, key = rotary(query, key, *angles, in_place_backward=True)
        if logn is not None:
            query = query * logn.to(query.dtype)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attn_pdrop if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.c_proj(output.flatten(-2)), weights


class QWenMLP(nn.Module):
    def __init__(self, config: QWenConfig):
        super().__init__()
        inner = config.ffn_hidden_size // 2
        self.w1 = nn.Linear(config.n_embd, inner, bias=not config.no_bias)
        self.w2 = nn.Linear(config.n_embd, inner, bias=not config.no_bias)
        self.c_proj = ResidualProjection(inner, config.n_embd, bias=not config.no_bias)

    def forward(self, hidden):
        up, gate = project(hidden, self.w1, self.w2)
        return self.c_proj(swiglu(gate, up))


class QWenBlock(GradientCheckpointingLayer):
    def __init__(self, config: QWenConfig, layer_idx: int):
        super().__init__()
        self.ln_1 = RMSNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = QWenAttention(config, layer_idx)
        self.ln_2 = RMSNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = QWenMLP(config)

    def forward(self, hidden, past_key_values: Cache | None = None, **kwargs):
        attended, _ = self.attn(self.ln_1(hidden), past_key_values=past_key_values, **kwargs)
        normed, hidden = self.ln_2(attended, residual=hidden)
        return hidden + self.mlp(normed)


class QWenPreTrainedModel(PreTrainedModel):
    config_class = QWenConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["QWenBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": QWenBlock, "attentions": QWenAttention}
    # Some published checkpoints hold the rotary frequencies as a buffer.
    _keys_to_ignore_on_load_unexpected = [r"\brotary_emb\.inv_freq$"]

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ResidualProjection):
            std = self.config.initializer_range / math.sqrt(2 * self.config.n_layer)
            init.normal_(module.weight, mean=0.0, std=std)


class QWenModel(QWenPreTrainedModel):
    """The backbone: token ids to normalised hidden states."""

    def __init__(self, config: QWenConfig):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(QWenBlock(config, index) for index in range(config.n_layer))
        self.ln_f = RMSNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.wte

    def set_input_embeddings(self, value):
        self.wte = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """input_ids int64 [B, T] (or inputs_embeds [B, T, H]) -> last_hidden_state [B, T, H].

        attention_mask: [B, past + T] of any dtype, 1 = counts, or a 4-D mask that is used as it is. position_ids
        [B, T]; by default they count the tokens that count. Further keyword arguments reach the attention function.
        Raises ValueError for inputs of another shape, UserError where dynamic NTK would need lengths that are unknown.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            if input_ids.dim() != 2:
                raise ValueError(f"input_ids must be [batch, time], not {list(input_ids.shape)}")
            inputs_embeds = self.wte(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        length, device = inputs_embeds.shape[1], inputs_embeds.device
        is_padding_mask = attention_mask is not None and attention_mask.dim() == 2
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=device)[None]
            if is_padding_mask:
                position_ids = (attention_mask.bool().long().cumsum(1) - 1).clamp(min=0)[:, -length:]

        alpha = torch.ones(1, device=device)
        if self.config.use_dynamic_ntk and not self.training:
            if kwargs.get("column_mask") is None and (attention_mask is None or is_padding_mask):
                prompt = _prompt_length(past_key_values, past, length)
                counts = torch.full((1,), prompt, device=device)
                if is_padding_mask:
                    counts = attention_mask[:, :prompt].bool().sum(1)
                alpha = ntk_alpha(counts, self.config.seq_length)
            elif (longest := int(position_ids.max()) + 1) > self.config.seq_length:
                raise UserError(
                    f"{longest} positions exceed seq_length={self.config.seq_length}: set use_dynamic_ntk to false in "
                    "the config, which needs the length of each row and finds none in this attention mask"
                )
        logn = None
        if self.config.use_logn_attn and not self.training:
            logn = (position_ids[:, None, :, None] + 1).float().log() / math.log(self.config.seq_length)
            logn = logn.clamp(min=1)
        # Without the position ids: transformers would take every jump in them for a new document.
        attention_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
        )
        hidden = self.drop(inputs_embeds)
        angles = rotary_angles(position_ids, self.config.kv_channels, self.config.rotary_emb_base, alpha)
        for block in self.h:
            hidden = block(
                hidden,
                attention_mask=attention_mask,
                angles=angles,
                logn=logn,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.ln_f(hidden), past_key_values=past_key_values)


def _prompt_length(cache: Cache | None, past: int, length: int) -> int:
    """How many of the first tokens, pads included, decide the NTK factor: those of the forward that began the cache.

    The cache remembers this one number for all its rows. Which of those tokens count is told by the attention mask of
    each forward, so that a cache whose rows are reordered, repeated or selected stays right.
    """
    if cache is None:
        return length
    if past == 0:
        cache.ntk_prompt_length = length
    return vars(cache).setdefault("ntk_prompt_length", past)


class QWenForCausalLM(CausalLM, QWenPreTrainedModel, GenerationMixin):
    """The language model, with a head of its own. Published folders call it QWenLMHeadModel."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: QWenConfig):
        super().__init__(config)
        self.transformer = QWenModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()


class QWenForSequenceClassification(GenericForSequenceClassification, QWenPreTrainedModel):
    """`score`, a linear head without bias on the last token of each row; one label is a reward model."""

    base_model_prefix = "transformer"
    # A reward model starts from the folder of a language model, whose head it has no use for.
    _keys_to_ignore_on_load_unexpected = [*QWenPreTrainedModel._keys_to_ignore_on_load_unexpected, r"^lm_head\."]
