"""ChatGLM-6B (v1 and v1.1), under its published parameter names.

A prefix language model (keju.models.prefix_lm) with [MASK] or [gMASK] in its context, `<sop>` (bos) as start token and
`<eop>` (eos) at the end. Each half of a head is rotated by one of the two positions. Residuals carry the *normed*
input, scaled by sqrt(2 * 28) whatever the number of layers.

ChatGLM2 and 3 share the model_type "chatglm" but not the architecture: see ChatGLMConfig.describes.

What differs from the published code, on purpose:
- An attention mask means 1 = counts: [batch, time] for padding, or 4-D as it is. The original takes 4-D masks alone, in
  which True = hidden; it cannot mask padding, so that pads on the left change what follows them.
- Rows padded on the left stand at the positions that they have alone.
- [MASK] in one row of a batch decides about that row alone; the original lays out all rows by it, and lets the rows of
  a batch overwrite each other's positions.
- Labels of -100 are ignored as well as labels equal to `pad_token_id`.
- Hidden states are [batch, time, hidden]; the original's are [time, batch, hidden].
- A row without `<sop>` is a context as a whole (the original fails).

The original disagrees with itself about [gMASK]: its forward pass over a whole row puts token t at position t, while
its cached generation keeps every generated token at the position of [gMASK] (`<sop>` alone keeps its own). Here a plain
forward pass without position_ids does as its forward pass does; generation, and with it all token trees (training,
scoring, evaluation), do as its generation does, so that what is trained is what will be sampled.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from keju.errors import UserError
from keju.kernels.gelu import gelu
from keju.kernels.rotary import rotary
from keju.models.attention import eager_attention
from keju.models.causal_lm import CausalLM
from keju.models.layers import LayerNorm
from keju.models.prefix_lm import MaskTokens, PrefixGenerationMixin, PrefixLayout, PrefixLM, prefix_layout
from keju.models.published_config import PublishedConfig

LORA_TARGETS = ("query_key_value",)
# The original's blocks never learn how many of them there are and scale for 28, those of the 6B model.
RESIDUAL_SCALE = math.sqrt(2 * 28)


class ChatGLMConfig(PublishedConfig, PreTrainedConfig):
    """Sizes and special tokens, under the names of the published config.json; the defaults are those of 6B v1.0.

    Older files do not name the mask tokens, whose distance from `<sop>` (bos_token_id) is the same in all vocabularies.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }

    vocab_size: int = 150528
    hidden_size: int = 4096
    num_layers: int = 28
    num_attention_heads: int = 32
    inner_hidden_size: int = 16384
    max_sequence_length: int = 2048
    layernorm_epsilon: float = 1e-5
    position_encoding_2d: bool = True
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = 150004
    eos_token_id: int | list[int] | None = 150005
    pad_token_id: int | None = 20003
    mask_token_id: int | None = None
    gmask_token_id: int | None = None
    pre_seq_len: int | None = None
    quantization_bit: int | None = 0
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.hidden_size % (4 * self.num_attention_heads):
            raise UserError(f"hidden_size {self.hidden_size} is not a multiple of 4 x {self.num_attention_heads} heads")
        for name, refused in (
            ("position_encoding_2d", not self.position_encoding_2d),
            ("pre_seq_len", self.pre_seq_len),
            ("quantization_bit", self.quantization_bit),
        ):
            if refused:
                raise UserError(f"{name}={getattr(self, name)} is not supported for ChatGLM models")
        if self.bos_token_id is not None:
            self.mask_token_id = self.bos_token_id - 4 if self.mask_token_id is None else self.mask_token_id
            self.gmask_token_id = self.bos_token_id - 3 if self.gmask_token_id is None else self.gmask_token_id

    @classmethod
    def describes(cls, config: dict) -> bool:
        """Whether the fields of a config.json of model_type "chatglm" are those of this architecture."""
        return "inner_hidden_size" in config or "position_encoding_2d" in config


class ChatGLMRotaryEmbedding(nn.Module):
    """cos and sin [B, T, head_dim / 2]: one half of the angles by the first position, the other by the second."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.half = config.hidden_size // config.num_attention_heads // 2

    def forward(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """position_ids [B, 2, T]; the result is float32 on the device of `hidden`."""
        exponents = torch.arange(0, self.half, 2, dtype=torch.float32, device=hidden.device) / self.half
        # The original keeps its frequencies in float16, so that 0.1 is 0.09998 there, and so it was trained.
        frequencies = (1.0 / 10000**exponents).half().float()
        angles = position_ids[..., None].float() * frequencies  # [B, 2, T, half / 2]
        angles = angles.transpose(1, 2).flatten(-2)
        return angles.cos(), angles.sin()


class ChatGLMAttention(nn.Module):
    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = False  # the mask says what is seen
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden, angles, attention_mask=None, past_key_values: Cache | None = None, **kwargs):
        """hidden [B, T, H]; angles: cos and sin [B, T, head_dim / 2]; attention_mask is added to scores."""
        # The published matrix holds query, key and value of one head after the other.
        fused = self.query_key_value(hidden).view(*hidden.shape[:-1], self.num_heads, 3 * self.head_dim)
        query, key, value = fused.transpose(1, 2).chunk(3, dim=-1)
        # Rotation within each half of a head
        query, key = rotary(query, key, *angles, group=self.head_dim // 4, in_place_backward=True)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        # The original divides queries by layer + 1 and multiplies scores by it again: a help for float16, no change.
        output, weights = attention(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.head_dim**-0.5, **kwargs
        )
        return self.dense(output.flatten(-2)), weights


class ChatGLMMLP(nn.Module):
    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden):
        return self.dense_4h_to_h(gelu(self.dense_h_to_4h(hidden), "tanh"))


class ChatGLMBlock(GradientCheckpointingLayer):
    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = ChatGLMAttention(config, layer_idx)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = ChatGLMMLP(config)

    def forward(self, hidden, angles=None, attention_mask=None, past_key_values: Cache | None = None, **kwargs):
        normed = self.input_layernorm(hidden)
        attended, _ = self.attention(normed, angles, attention_mask, past_key_values=past_key_values, **kwargs)
        normed, _ = self.post_attention_layernorm(attended, residual=normed * RESIDUAL_SCALE)
        return normed * RESIDUAL_SCALE + self.mlp(normed)


class ChatGLMPreTrainedModel(PreTrainedModel):
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ChatGLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": ChatGLMBlock, "attentions": ChatGLMAttention}
    _keys_to_ignore_on_load_unexpected = [r"\.rotary_emb\.inv_freq$"]


class ChatGLMModel(PrefixLM, ChatGLMPreTrainedModel):
    """The backbone: token ids to the output of the final norm."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = ChatGLMRotaryEmbedding(config)
        self.layers = nn.ModuleList(ChatGLMBlock(config, index) for index in range(config.num_layers))
        self.final_layernorm = LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.word_embeddings

    def set_input_embeddings(self, value):
        self.word_embeddings = value

    @property
    def context_end(self) -> tuple[int, int]:
        return self.config.gmask_token_id, self.config.bos_token_id

    def layout(self, ids, positions, row, num_rows, *, generated: bool = True) -> PrefixLayout:
        masks = [MaskTokens((self.config.mask_token_id,))]
        if generated:
            masks.append(MaskTokens((self.config.gmask_token_id,), lag=1))
        return prefix_layout(ids, positions, row, num_rows, start_id=self.config.bos_token_id, masks=masks)

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

        attention_mask: [B, past + T], 1 = counts, None for all; or 4-D, 1 = counts, as it is. position_ids [B, 2, T];
        by default those of the row's own layout. Further keyword arguments reach the attention function. Raises
        ValueError for inputs of another shape.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        if past and position_ids is None:
            raise ValueError("with a cache position_ids are needed: they depend on the context")
        if attention_mask is None and not past:
            attention_mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        if position_ids is None and attention_mask.dim() == 4 and input_ids is not None:
            position_ids, _ = self.padded_layout(input_ids, torch.ones_like(input_ids), generated=False)
        position_ids, attention_mask = self.positions_and_mask(
            input_ids, inputs_embeds, attention_mask, position_ids, past_key_values
        )
        angles = self.rotary_emb(inputs_embeds, position_ids)
        hidden = inputs_embeds
        for layer in self.layers:
            hidden = layer(hidden, angles, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs)
        hidden = self.final_layernorm(hidden)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)


class ChatGLMForConditionalGeneration(PrefixGenerationMixin, CausalLM, ChatGLMPreTrainedModel, GenerationMixin):
    """The language model; its head shares the weight of the token embedding unless the config says otherwise."""

    ignores_pads = True
    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


class ChatGLMForSequenceClassification(GenericForSequenceClassification, ChatGLMPreTrainedModel):
    """`score`, a linear head without bias on the last token of each row; one label is a reward model."""

    base_model_prefix = "transformer"
    # A reward model starts from the folder of a language model, whose head it has no use for.
    _keys_to_ignore_on_load_unexpected = [*ChatGLMPreTrainedModel._keys_to_ignore_on_load_unexpected, r"^lm_head\."]

    def __init__(self, config: ChatGLMConfig):
        # Not the one of the Generic class: it asks AutoModel for the backbone, which for ChatGLM is the language model.
        super(GenericForSequenceClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.transformer = ChatGLMModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


# What published folders ask of the Auto classes; the language model serves as AutoModel, too.
AUTO_CLASSES = {
    "AutoModel": ChatGLMForConditionalGeneration,
    "AutoModelForCausalLM": ChatGLMForConditionalGeneration,
    "AutoModelForSeq2SeqLM": ChatGLMForConditionalGeneration,
    "AutoModelForSequenceClassification": ChatGLMForSequenceClassification,
}
