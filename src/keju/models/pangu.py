"""PanGu-alpha language models: gpt_pangu 350M, 2.6B and 13B, under their published parameter names.

A GPT-2 layout with one twist, the top query layer: before the last block the hidden state goes through `ln_f`, and
that block asks its attention with an embedding of the *position* (`wqe`) instead of the hidden state. Nothing is
normalised after it.

What differs from the published code, on purpose:
- An attention mask of any dtype means 1 = counts. The original adds int64 and float masks to the scores as they are, so
  that left padding under `generate` changed the answer.
- Labels of -100 are ignored as well as labels equal to `pad_token_id`.
- Inputs are [batch, time]; the original also took [batch, 1, time].
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
from keju.models.attention import eager_attention
from keju.models.causal_lm import CausalLM
from keju.models.layers import LayerNorm, activation, project
from keju.models.published_config import PublishedConfig

LORA_TARGETS = ("q_proj", "v_proj")


class PanguConfig(PublishedConfig, PreTrainedConfig):
    """Sizes and dropouts, under the names of the published config.json; the defaults are those of the 2.6B model.

    `intermediate_size` None means 4 * hidden_size. The published files name no end token, so that `generate` would
    never stop: bos and eos default to the ids of the published vocabulary.
    """

    model_type = "gpt_pangu"
    # Other values of "model_type" in published config.json files; keju.models.registration reads this.
    also_published_as = ("pangu",)
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}

    vocab_size: int = 40000
    max_position_embeddings: int = 1024
    hidden_size: int = 2560
    intermediate_size: int | None = None
    num_layers: int = 32
    num_heads: int = 32
    activation_function: str = "gelu"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = 1
    pad_token_id: int | None = 6
    eos_token_id: int | list[int] | None = 9
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_heads:
            raise UserError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")


class ResidualProjection(nn.Linear):
    """The last layer of what a block adds to the residual stream: GPT-2 starts these smaller, see _init_weights."""


class PanguAttention(nn.Module):
    def __init__(self, config: PanguConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = True
        self.head_dim = config.hidden_size // config.num_heads
        self.scaling = self.head_dim**-0.5 if config.scale_attn_weights else 1.0
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.c_proj = ResidualProjection(config.hidden_size, config.hidden_size)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden, query_states, attention_mask=None, past_key_values: Cache | None = None, **kwargs):
        """Keys and values come from `hidden` [B, T, H], queries from `query_states` [B, T, H]."""
        shape = (*hidden.shape[:-1], -1, self.head_dim)
        if query_states is hidden:
            projected = project(hidden, self.q_proj, self.k_proj, self.v_proj)
        else:
            projected = (*project(query_states, self.q_proj), *project(hidden, self.k_proj, self.v_proj))
        query, key, value = (states.view(shape).transpose(1, 2) for states in projected)
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
        return self.resid_dropout(self.c_proj(output.flatten(-2))), weights


class PanguMLP(nn.Module):
    def __init__(self, config: PanguConfig):
        super().__init__()
        inner = config.intermediate_size or 4 * config.hidden_size
        self.c_fc = nn.Linear(config.hidden_size, inner)
        self.c_proj = ResidualProjection(inner, config.hidden_size)
        self.act = activation(config.activation_function)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden):
        return self.dropout(self.c_proj(self.act(self.c_fc(hidden))))


class PanguBlock(GradientCheckpointingLayer):
    def __init__(self, config: PanguConfig, layer_idx: int):
        super().__init__()
        self.ln_1 = LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = PanguAttention(config, layer_idx)
        self.ln_2 = LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = PanguMLP(config)

    def forward(self, hidden, top_query=None, attention_mask=None, past_key_values: Cache | None = None, **kwargs):
        """`top_query` [B, T, H] (the last block only) asks instead of the hidden state, and is not normalised."""
        normed = self.ln_1(hidden)
        query_states = normed if top_query is None else top_query
        attended, _ = self.attn(normed, query_states, attention_mask, past_key_values=past_key_values, **kwargs)
        normed, hidden = self.ln_2(attended, residual=hidden)
        return hidden + self.mlp(normed)


class PanguPreTrainedModel(PreTrainedModel):
    config_class = PanguConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["PanguBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": PanguBlock, "attentions": PanguAttention}
    # Published checkpoints hold the causal mask and its fill value as persistent buffers.
    _keys_to_ignore_on_load_unexpected = [r"\.attn\.bias$", r"\.attn\.masked_bias$"]

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ResidualProjection):
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_layers)
            init.normal_(module.weight, mean=0.0, std=std)


class PanguModel(PanguPreTrainedModel):
    """The backbone: token ids to the output of the top query layer, which is not normalised."""

    def __init__(self, config: PanguConfig):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.wqe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(PanguBlock(config, index) for index in range(config.num_layers))
        self.ln_f = LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
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
        token_type_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """input_ids int64 [B, T] (or inputs_embeds [B, T, H]) -> last_hidden_state [B, T, H].

        attention_mask: [B, past + T] of any dtype, 1 = counts, or a 4-D mask that is used as it is. position_ids
        [B, T] index both position tables, by default they count from the length of the cache, pads included.
        token_type_ids are embedded with the token table, as in the original. Further keyword arguments reach the
        attention function. Raises ValueError for inputs of another shape and for rows longer than the tables.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            if input_ids.dim() != 2:
                raise ValueError(f"input_ids must be [batch, time], not {list(input_ids.shape)}: squeeze them first")
            inputs_embeds = self.wte(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            start = past_key_values.get_seq_length() if past_key_values is not None else 0
            end = start + inputs_embeds.shape[1]
            if end > self.config.max_position_embeddings:
                raise ValueError(f"{end} tokens are more than max_position_embeddings={self.wpe.num_embeddings}")
            position_ids = torch.arange(start, end, device=inputs_embeds.device)[None]
        # The position ids stay out of this call: transformers would take every jump in them for a new document, but
        # this model has always accepted any positions. Packed rows come with a column mask.
        attention_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
        )
        hidden = inputs_embeds + self.wpe(position_ids)
        if token_type_ids is not None:
            hidden = hidden + self.wte(token_type_ids)
        hidden = self.drop(hidden)
        for block in self.h[:-1]:
            hidden = block(hidden, None, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs)
        hidden = self.ln_f(hidden)
        top_query = self.wqe(position_ids).expand_as(hidden)
        hidden = self.h[-1](hidden, top_query, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)


class PanguForCausalLM(CausalLM, PanguPreTrainedModel, GenerationMixin):
    """The language model; its head shares the weight of the token embedding."""

    ignores_pads = True
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: PanguConfig):
        super().__init__(config)
        self.transformer = PanguModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


class PanguForSequenceClassification(GenericForSequenceClassification, PanguPreTrainedModel):
    """`score`, a linear head without bias on the last token of each row; one label is a reward model."""

    base_model_prefix = "transformer"
    # A reward model starts from the folder of a language model, whose head it has no use for.
    _keys_to_ignore_on_load_unexpected = [*PanguPreTrainedModel._keys_to_ignore_on_load_unexpected, r"^lm_head\."]
