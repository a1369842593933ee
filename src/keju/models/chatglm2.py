"""ChatGLM2-6B and ChatGLM3-6B, one architecture, under their published parameter names.

A Llama-like decoder (RMSNorm, SwiGLU, grouped queries) with three habits of its own: rotary positions turn the first
half of every head only, in neighbouring pairs; query, key and value are one projection [all queries | keys | values];
and the head of the language model, `output_layer`, lives inside the backbone, whose name is `transformer`.

What differs from the published code, on purpose:
- Labels of -100 are always ignored, a label equal to pad_token_id only where that is not an end token as well. The
  original ignores pad_token_id alone: for ChatGLM2 that is the end token, so that an end could never be learned.
- Position ids count on from the cache when none are given. The original started again at 0.
- Positions have no upper limit: rotary tables are computed from the position ids, in float32. The original read them
  from a table of seq_length rows (half precision in ChatGLM2) and failed beyond.
- `full_attention_mask` (True = masked) is refused: give a 4-D `attention_mask` (True = counts; a float one is added).
- Hidden states are [batch, time, H] and caches [batch, groups, time, head_dim], as everywhere in transformers.
- A negative pad_token_id, which cannot be embedded, counts as none.
- `return_last_logit` is `logits_to_keep=1` here.
- Sequence classification has a head `score` without bias on the last token of each row that is not a pad. The
  original's `classifier_head` looks at the last column, pads included, and has a bias.
- Switches that no published float checkpoint turns, prefix tuning and quantized weights are refused, not ignored. So
  is `rope_ratio`: it divides positions in ChatGLM2-6B-32K but multiplies the rotary base in ChatGLM3-6B-32K, and no
  field of the config says which.
"""

from __future__ import annotations

import torch
from torch import nn
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
from keju.models.layers import RMSNorm
from keju.models.published_config import PublishedConfig
from keju.models.rotary import rotary_angles

LORA_TARGETS = ("query_key_value",)

# Switches that change the arithmetic, with the one value that every published float checkpoint has. What is absent
# from this table and from ChatGLM2Config changes nothing here (apply_query_key_layer_scaling cancels out).
FIXED = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "multi_query_attention": True,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
    "pre_seq_len": None,
    "quantization_bit": 0,
    "rope_ratio": 1,
}


class ChatGLM2Config(PublishedConfig, PreTrainedConfig):
    """Sizes, biases and dropouts under the names of the published config.json; the defaults are ChatGLM2-6B's.

    Raises UserError for sizes that do not divide and for a switch that is set to something else than in FIXED.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "num_hidden_layers": "num_layers",
        "vocab_size": "padded_vocab_size",
        "max_position_embeddings": "seq_length",
        "num_key_value_heads": "multi_query_group_num",
        "head_dim": "kv_channels",
        "intermediate_size": "ffn_hidden_size",
    }

    padded_vocab_size: int = 65024
    seq_length: int = 32768
    hidden_size: int = 4096
    ffn_hidden_size: int = 13696
    kv_channels: int = 128
    num_layers: int = 28
    num_attention_heads: int = 32
    multi_query_group_num: int = 2
    layernorm_epsilon: float = 1e-5
    add_bias_linear: bool = False
    add_qkv_bias: bool = True
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    multi_query_attention: bool = True
    rmsnorm: bool = True
    post_layer_norm: bool = True
    apply_residual_connection_post_layernorm: bool = False
    fp32_residual_connection: bool = False
    pre_seq_len: int | None = None
    quantization_bit: int = 0
    rope_ratio: float | int = 1
    use_cache: bool = True
    bos_token_id: int | None = None
    pad_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.pad_token_id is not None and self.pad_token_id < 0:
            self.pad_token_id = None
        for name, value in FIXED.items():
            if getattr(self, name) != value:
                raise UserError(f"{name}={getattr(self, name)} is not supported in ChatGLM2 and 3, only {value}")
        if self.num_attention_heads % self.multi_query_group_num:
            groups = self.multi_query_group_num
            raise UserError(f"num_attention_heads {self.num_attention_heads} is not a multiple of the {groups} groups")
        if self.kv_channels % 4:
            raise UserError(f"kv_channels {self.kv_channels} is not a multiple of 4: half of it is turned in pairs")

    @classmethod
    def describes(cls, config: dict) -> bool:
        """Whether a config.json of model_type "chatglm", or of none, is of this family; ChatGLM-6B shares the name."""
        names = ["multi_query_attention", "multi_query_group_num"]
        if config.get("model_type"):
            # The first Qwen has these, too, and its oldest files name no model_type
            names += ["padded_vocab_size", "ffn_hidden_size"]
        return any(name in config for name in names)


class ChatGLM2Attention(nn.Module):
    def __init__(self, config: ChatGLM2Config, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = True
        self.head_dim = config.kv_channels
        self.scaling = self.head_dim**-0.5
        # transformers' name for the number of query heads that share a key and a value; SDPA looks for it.
        self.num_key_value_groups = config.num_attention_heads // config.multi_query_group_num
        query_size = config.num_attention_heads * self.head_dim
        key_size = config.multi_query_group_num * self.head_dim
        self.split = (query_size, key_size, key_size)
        qkv_bias = config.add_bias_linear or config.add_qkv_bias
        self.query_key_value = nn.Linear(config.hidden_size, sum(self.split), bias=qkv_bias)
        self.dense = nn.Linear(query_size, config.hidden_size, bias=config.add_bias_linear)

    def forward(self, hidden, angles, attention_mask=None, past_key_values: Cache | None = None, **kwargs):
        """hidden [B, T, H] -> [B, T, H], weights; angles: what rotary_angles returns."""
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in self.query_key_value(hidden).split(self.split, dim=-1)
        )
        # Neighbouring pairs, in the first half of a head
        query, key = rotary(query, key, *angles, group=1, in_place_backward=True)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.dense(output.flatten(-2)), weights


class ChatGLM2MLP(nn.Module):
    def __init__(self, config: ChatGLM2Config):
        super().__init__()
        bias = config.add_bias_linear
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=bias)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=bias)

    def forward(self, hidden):
        return self.dense_4h_to_h(swiglu(self.dense_h_to_4h(hidden)))


class ChatGLM2Block(GradientCheckpointingLayer):
    def __init__(self, config: ChatGLM2Config, layer_idx: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.self_attention = ChatGLM2Attention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = ChatGLM2MLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden, angles, attention_mask=None, past_key_values: Cache | None = None, **kwargs):
        attended, _ = self.self_attention(
            self.input_layernorm(hidden), angles, attention_mask, past_key_values=past_key_values, **kwargs
        )
        normed, hidden = self.post_attention_layernorm(self.dropout(attended), residual=hidden)
        return hidden + self.dropout(self.mlp(normed))


class ChatGLM2PreTrainedModel(PreTrainedModel):
    config_class = ChatGLM2Config
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ChatGLM2Block"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": ChatGLM2Block, "attentions": ChatGLM2Attention}
    # Published checkpoints hold the rotary frequencies. A bare backbone and a reward model start from the folder of a
    # language model, whose head they have no use for; where the head exists its weight is expected, not ignored.
    _keys_to_ignore_on_load_unexpected = [r"rotary_pos_emb\.inv_freq$", r"output_layer\.weight$"]


class ChatGLM2Model(ChatGLM2PreTrainedModel):
    """The backbone: token ids to normalised hidden states."""

    def __init__(self, config: ChatGLM2Config):
        super().__init__(config)
        self.embedding = nn.ModuleDict({"word_embeddings": nn.Embedding(config.padded_vocab_size, config.hidden_size)})
        self.encoder = nn.ModuleDict(
            {
                "layers": nn.ModuleList(ChatGLM2Block(config, index) for index in range(config.num_layers)),
                "final_layernorm": RMSNorm(config.hidden_size, eps=config.layernorm_epsilon),
            }
        )
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.embedding["word_embeddings"]

    def set_input_embeddings(self, value):
        self.embedding["word_embeddings"] = value

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

        attention_mask: [B, past + T] of any dtype, 1 = counts, or 4-D [B or 1, 1, T, past + T]: bool, True = counts,
        or float, added to the scores. position_ids [B, T], by default they count from the length of the cache, pads
        included: only distances between them matter. Further keyword arguments reach the attention function. Raises
        ValueError for inputs of another shape.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if "full_attention_mask" in kwargs:
            raise ValueError("full_attention_mask is not taken: give a 4-D attention_mask instead, where True = counts")
        if inputs_embeds is None:
            if input_ids.dim() != 2:
                raise ValueError(f"input_ids must be [batch, time], not {list(input_ids.shape)}")
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            start = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(start, start + inputs_embeds.shape[1], device=inputs_embeds.device)[None]
        # The position ids stay out of this call: transformers would take every jump in them for a new document, but
        # this model has always accepted any positions. Packed rows come with a column mask.
        attention_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
        )
        angles = rotary_angles(position_ids, self.config.kv_channels // 2)
        hidden = inputs_embeds
        for block in self.encoder["layers"]:
            hidden = block(hidden, angles, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs)
        hidden = self.encoder["final_layernorm"](hidden)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)


class ChatGLM2ForConditionalGeneration(CausalLM, ChatGLM2PreTrainedModel, GenerationMixin):
    """The language model, published as ChatGLMForConditionalGeneration."""

    ignores_pads = True
    # In effect only where the config says tie_word_embeddings; the published ones do not.
    _tied_weights_keys = {"transformer.output_layer.weight": "transformer.embedding.word_embeddings.weight"}

    def __init__(self, config: ChatGLM2Config):
        super().__init__(config)
        self.transformer = ChatGLM2Model(config)
        # Inside the backbone, as in the published checkpoints, but only in a language model.
        self.transformer.output_layer = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.transformer.output_layer

    def set_output_embeddings(self, new_embeddings):
        self.transformer.output_layer = new_embeddings


class ChatGLM2ForSequenceClassification(GenericForSequenceClassification, ChatGLM2PreTrainedModel):
    """`score`, a linear head without bias on the last token of each row; one label is a reward model."""

    base_model_prefix = "transformer"

    def __init__(self, config: ChatGLM2Config):
        # Not the one of the Generic class: it asks AutoModel for the backbone, which for ChatGLM is the language model.
        super(GenericForSequenceClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.transformer = ChatGLM2Model(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


# What published folders ask of the Auto classes; the language model serves as AutoModel, too.
AUTO_CLASSES = {
    "AutoModel": ChatGLM2ForConditionalGeneration,
    "AutoModelForCausalLM": ChatGLM2ForConditionalGeneration,
    "AutoModelForSeq2SeqLM": ChatGLM2ForConditionalGeneration,
    "AutoModelForSequenceClassification": ChatGLM2ForSequenceClassification,
}
