"""Baichuan language models: Baichuan-7B and 13B, Baichuan2-7B and 13B, under their published parameter names.

Llama's layout with the three projections of attention in one matrix, `W_pack`. One model_type covers four models, and
the config's own fields tell them apart: with `max_position_embeddings` positions are rotary (7B), without it they are
ALiBi (13B); with `z_loss_weight` the rows of the head are normalised (Baichuan2).

What differs from the published code, on purpose:
- An attention mask of any dtype means 1 = counts, in every model: a padded row equals the row alone. The original 13B
  ignores the mask or fails on it.
- Positions count the tokens that count, and may be given: the bias of ALiBi is slope * (position of key - position of
  query). The original 13B takes the index of the key, which is the same for one unpadded row.
- A cache may be continued by more than one token at a time, with ALiBi too.
- The softmax is in float32 (or in the fused kernel), as it was in the 7B; rotary angles are applied in float32.
- Gradient checkpointing is on when it is asked for; the original 13B always had it on in training.
- NormHead normalises at each forward instead of overwriting its weight in evaluation.
- The embedding of the pad is frozen as ever, unless the pad is also an end token.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from keju.errors import UserError
from keju.kernels.rotary import rotary
from keju.models.attention import eager_attention
from keju.models.backbone import DerivedHead
from keju.models.causal_lm import CausalLM
from keju.models.layers import RMSNorm, gated, project
from keju.models.published_config import PublishedConfig
from keju.models.rotary import rotary_angles

logger = logging.get_logger(__name__)

LORA_TARGETS = ("W_pack",)


class BaichuanConfig(PublishedConfig, PreTrainedConfig):
    """Sizes, under the names of the published config.json; the defaults are those of the 13B model.

    max_position_embeddings: None means ALiBi. z_loss_weight: None means a plain head, a number a NormHead; the loss
    term that it weighs is 0 in all published files and is not computed. model_max_length limits nothing.
    """

    model_type = "baichuan"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 64000
    hidden_size: int = 5120
    intermediate_size: int = 13696
    num_hidden_layers: int = 40
    num_attention_heads: int = 40
    hidden_act: str = "silu"
    max_position_embeddings: int | None = None
    model_max_length: int | None = None
    z_loss_weight: float | int | None = None
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            raise UserError(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {heads}")
        if self.z_loss_weight:
            logger.warning(f"z_loss_weight={self.z_loss_weight} selects the NormHead and has no effect on the loss")


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """float32 [heads]: the geometric slopes of a power of two; other counts add every second slope of twice that."""
    power = 2 ** int(math.log2(num_heads))
    exponents = [(i + 1) / power for i in range(power)] + [(2 * i + 1) / (2 * power) for i in range(num_heads - power)]
    return torch.tensor([2.0 ** (-8 * exponent) for exponent in exponents])


class BaichuanAttention(nn.Module):
    def __init__(self, config: BaichuanConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = True
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden, attention_mask=None, angles=None, past_key_values: Cache | None = None, **kwargs):
        """hidden [B, T, H]; angles: what rotary_angles returns, None with ALiBi (then the mask carries the bias)."""
        packed = self.W_pack(hidden).unflatten(-1, (3, -1, self.head_dim))
        query, key, value = (states.transpose(1, 2) for states in packed.unbind(2))
        if angles is not None:
            query, key = rotary(query, key, *angles, in_place_backward=True)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        output, weights = attention(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.o_proj(output.flatten(-2)), weights


class BaichuanMLP(nn.Module):
    def __init__(self, config: BaichuanConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.gated = gated(config.hidden_act)

    def forward(self, hidden):
        return self.down_proj(self.gated(*project(hidden, self.gate_proj, self.up_proj)))


class BaichuanLayer(GradientCheckpointingLayer):
    def __init__(self, config: BaichuanConfig, layer_idx: int):
        super().__init__()
        self.self_attn = BaichuanAttention(config, layer_idx)
        self.mlp = BaichuanMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden, attention_mask=None, angles=None, past_key_values: Cache | None = None, **kwargs):
        normed = self.input_layernorm(hidden)
        attended, _ = self.self_attn(normed, attention_mask, angles, past_key_values=past_key_values, **kwargs)
        normed, hidden = self.post_attention_layernorm(attended, residual=hidden)
        return hidden + self.mlp(normed)


class BaichuanPreTrainedModel(PreTrainedModel):
    config_class = BaichuanConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BaichuanLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": BaichuanLayer, "attentions": BaichuanAttention}
    # Published checkpoints of the 7B hold the rotary frequencies as buffers.
    _keys_to_ignore_on_load_unexpected = [r"\.rotary_emb\.inv_freq$"]


class BaichuanModel(BaichuanPreTrainedModel):
    """The backbone: token ids to normalised hidden states."""

    def __init__(self, config: BaichuanConfig):
        super().__init__(config)
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        frozen = None if config.pad_token_id in ends else config.pad_token_id
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=frozen)
        self.layers = nn.ModuleList(BaichuanLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

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

        attention_mask: [B, past + T] of any dtype, 1 = counts, or a 4-D mask, bool (True = counts) or added to the
        scores. position_ids [B, T]; by default they count the tokens that count. Further keyword arguments reach the
        attention function; with ALiBi a `column_mask` among them is joined by `alibi`, see keju.kernels. Raises
        ValueError for inputs of another shape.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            if input_ids.dim() != 2:
                raise ValueError(f"input_ids must be [batch, time], not {list(input_ids.shape)}")
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        length, device = inputs_embeds.shape[1], inputs_embeds.device
        is_padding_mask = attention_mask is not None and attention_mask.dim() == 2
        counted = (attention_mask.bool().long().cumsum(1) - 1).clamp(min=0) if is_padding_mask else None
        if position_ids is None:
            at_hand = torch.arange(past, past + length, device=device)[None]
            position_ids = at_hand if counted is None else counted[:, -length:]

        angles = None
        if self.config.max_position_embeddings is not None:
            angles = rotary_angles(position_ids, self.config.hidden_size // self.config.num_attention_heads)
            # Without the position ids: transformers would take every jump in them for a new document.
            attention_mask = create_causal_mask(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
            )
        else:
            slopes = alibi_slopes(self.config.num_attention_heads).to(device)
            if kwargs.get("column_mask") is not None:
                kwargs["alibi"] = (slopes, position_ids[0])
            else:
                attention_mask = _alibi_mask(slopes, position_ids, counted, attention_mask, past, inputs_embeds.dtype)

        hidden = inputs_embeds
        for layer in self.layers:
            hidden = layer(
                hidden, attention_mask=attention_mask, angles=angles, past_key_values=past_key_values, **kwargs
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=past_key_values)


def _alibi_mask(
    slopes: torch.Tensor,
    position_ids: torch.Tensor,
    counted: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    past: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """[B, heads, T, S] in `dtype`, to be added to the scores: slope * (position of key - of query) where visible.

    position_ids int64 [B, T] are those of the queries, `counted` int64 [B, S] those that a padding mask gives, `past`
    the number of keys before the queries.
    """
    length, device = position_ids.shape[1], position_ids.device
    if attention_mask is not None and attention_mask.dim() == 4:
        size, visible = attention_mask.shape[-1], attention_mask
    else:
        size = past + length
        index = torch.arange(size, device=device)
        visible = index <= index[past:, None]
        if attention_mask is not None:
            visible = visible & attention_mask.bool()[:, None, None, :]
    # Where no padding mask tells, the first query goes on from the last of the past keys.
    keys = position_ids[:, :1] - past + torch.arange(size, device=device) if counted is None else counted
    keys = torch.cat([keys[:, :past], position_ids.expand(keys.shape[0], -1), keys[:, past + length :]], dim=1)
    distance = (keys[:, None, None, :] - position_ids[:, None, :, None]).float()
    bias = slopes[:, None, None] * distance
    if visible.dtype == torch.bool:
        return bias.to(dtype).masked_fill(~visible, torch.finfo(dtype).min)
    return (bias + visible).clamp(min=torch.finfo(dtype).min).to(dtype)


class NormHead(DerivedHead):
    """The head of Baichuan2: weight [vocab, hidden], as stored, and `effective_weight`, as it acts."""

    def __init__(self, hidden_size: int, vocab_size: int):
        super().__init__(hidden_size, vocab_size, bias=False)

    def effective_weight(self) -> torch.Tensor:
        """[vocab, hidden], differentiable: each row of the weight divided by its length."""
        return nn.functional.normalize(self.weight)


class BaichuanForCausalLM(CausalLM, BaichuanPreTrainedModel, GenerationMixin):
    """The language model, with a head of its own."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: BaichuanConfig):
        super().__init__(config)
        self.model = BaichuanModel(config)
        if config.z_loss_weight is None:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        else:
            self.lm_head = NormHead(config.hidden_size, config.vocab_size)
        self.post_init()

    def set_output_embeddings(self, new_embeddings: nn.Linear):
        """resize_token_embeddings brings a plain layer with the new weight: a NormHead stays one."""
        if self.config.z_loss_weight is not None:
            head = NormHead(new_embeddings.in_features, new_embeddings.out_features)
            head.weight = new_embeddings.weight
            new_embeddings = head
        self.lm_head = new_embeddings


class BaichuanForSequenceClassification(GenericForSequenceClassification, BaichuanPreTrainedModel):
    """`score`, a linear head without bias on the last token of each row; one label is a reward model."""

    # A reward model starts from the folder of a language model, whose head it has no use for.
    _keys_to_ignore_on_load_unexpected = [*BaichuanPreTrainedModel._keys_to_ignore_on_load_unexpected, r"^lm_head\."]
