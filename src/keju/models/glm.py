"""GLM language models that fill in blanks (glm-350m-chinese, glm-10b-chinese), under their published parameter names.

A row is a context with a mask token ([MASK], [sMASK] or [gMASK]), `<|startofpiece|>`, and what is generated for the
mask, ended by `<|endofpiece|>`; keju.models.prefix_lm says where these stand and what they see. Pre-norm blocks with
learned positions in both dimensions; the head is the token embedding.

transformers has a "glm" too (GLM-4): a config.json with `max_sequence_length` is ours, see GLMConfig.describes.

What differs from the published code, on purpose:
- The token embedding is a parameter. The original keeps it in a buffer, which no training reaches.
- A 2-D attention mask means padding, 1 = counts; what the row's ids say about context and generated part still holds.
  (In the original it means that all tokens see each other. So it does here in a row without `<|startofpiece|>`.)
- Rows padded on the left stand at the positions that they have alone, so that they give what they give alone.
- Labels of -100 are ignored as well as labels equal to `pad_token_id`. As in the original, labels are not shifted.
- The cache holds keys and values. The original kept hidden states and computed keys and values again at every step.
- GLMModel returns last_hidden_state (after the final norm) whether or not `output_predict` is set.
- Masks of shape [batch, 1] are padding masks, not prefix lengths; those have shape [batch].
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, MultipleChoiceModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from keju.errors import UserError
from keju.kernels.gelu import gelu
from keju.models.attention import eager_attention
from keju.models.causal_lm import CausalLM
from keju.models.layers import LayerNorm
from keju.models.prefix_lm import MaskTokens, PrefixGenerationMixin, PrefixLayout, PrefixLM, prefix_layout
from keju.models.published_config import PublishedConfig

# GLM-4 of transformers has the same model_type.
LORA_TARGETS = ("query_key_value", "q_proj", "v_proj")


class GLMConfig(PublishedConfig, PreTrainedConfig):
    """Sizes and dropouts, under the names of the published config.json; the defaults are those of the 10B model.

    Published files name no special token but the pad. The others stand at fixed distances from it in the vocabulary of
    the Chinese models, and default to these places: [MASK], [sMASK], [gMASK], sop `<|startofpiece|>`, and
    eop `<|endofpiece|>`, which is also what ends a generated text (eos).
    """

    model_type = "glm"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {"num_hidden_layers": "num_layers", "max_position_embeddings": "max_sequence_length"}

    vocab_size: int = 50048
    num_layers: int = 48
    hidden_size: int = 4096
    num_attention_heads: int = 64
    max_sequence_length: int = 1024
    layernorm_epsilon: float = 1e-5
    embedding_dropout_prob: float = 0.1
    attention_dropout_prob: float = 0.1
    output_dropout_prob: float = 0.1
    block_position_encoding: bool = True
    relative_encoding: bool = False
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = 50000
    bos_token_id: int | None = None
    sop_token_id: int | None = None
    eop_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    mask_token_id: int | None = None
    smask_token_id: int | None = None
    gmask_token_id: int | None = None
    tie_word_embeddings: bool = False  # one matrix serves as both: there is nothing to tie

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"hidden_size {self.hidden_size} is not a multiple of {self.num_attention_heads} heads")
        if self.relative_encoding or not self.block_position_encoding:
            raise UserError("only GLM models with block_position_encoding and without relative_encoding are supported")
        for name, distance in (("mask", 3), ("sop", 6), ("eop", 7), ("smask", 8), ("gmask", 9)):
            if getattr(self, f"{name}_token_id") is None and self.pad_token_id is not None:
                setattr(self, f"{name}_token_id", self.pad_token_id + distance)
        if self.eos_token_id is None:
            self.eos_token_id = self.eop_token_id

    @classmethod
    def describes(cls, config: dict) -> bool:
        """Whether the fields of a config.json of model_type "glm" are those of this architecture."""
        # Llama's relatives may have max_sequence_length, too, but all of them intermediate_size.
        return "block_position_encoding" in config or (
            "max_sequence_length" in config and "intermediate_size" not in config
        )


class GLMAttention(nn.Module):
    def __init__(self, config: GLMConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = False  # the mask says what is seen
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.output_dropout = nn.Dropout(config.output_dropout_prob)

    def forward(self, hidden, attention_mask=None, past_key_values: Cache | None = None, **kwargs):
        """hidden [B, T, H]; attention_mask is added to scores [B, heads, T, S]."""
        shape = (*hidden.shape[:-1], -1, self.head_dim)
        query, key, value = (part.view(shape).transpose(1, 2) for part in self.query_key_value(hidden).chunk(3, dim=-1))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout_prob if self.training else 0.0,
            scaling=self.head_dim**-0.5,
            **kwargs,
        )
        return self.output_dropout(self.dense(output.flatten(-2))), weights


class GLMMLP(nn.Module):
    def __init__(self, config: GLMConfig):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.dense_4h_to_h = nn.Linear(4 * config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.output_dropout_prob)

    def forward(self, hidden):
        return self.dropout(self.dense_4h_to_h(gelu(self.dense_h_to_4h(hidden))))


class GLMBlock(GradientCheckpointingLayer):
    def __init__(self, config: GLMConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = GLMAttention(config, layer_idx)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = GLMMLP(config)

    def forward(self, hidden, attention_mask=None, past_key_values: Cache | None = None, **kwargs):
        attended, _ = self.attention(
            self.input_layernorm(hidden), attention_mask, past_key_values=past_key_values, **kwargs
        )
        normed, hidden = self.post_attention_layernorm(attended, residual=hidden)
        return hidden + self.mlp(normed)


class GLMTransformer(nn.Module):
    """Position tables, blocks and final norm; a module of its own because published names have it."""

    def __init__(self, config: GLMConfig):
        super().__init__()
        self.embedding_dropout = nn.Dropout(config.embedding_dropout_prob)
        self.position_embeddings = nn.Embedding(config.max_sequence_length + 1, config.hidden_size)
        self.block_position_embeddings = nn.Embedding(config.max_sequence_length + 1, config.hidden_size)
        self.layers = nn.ModuleList(GLMBlock(config, index) for index in range(config.num_layers))
        self.final_layernorm = LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)

    def forward(self, embeddings, position_ids, **kwargs):
        """embeddings [B, T, H], position_ids [B, 2, T] -> [B, T, H]."""
        hidden = embeddings + self.position_embeddings(position_ids[:, 0])
        hidden = self.embedding_dropout(hidden + self.block_position_embeddings(position_ids[:, 1]))
        for layer in self.layers:
            hidden = layer(hidden, **kwargs)
        return self.final_layernorm(hidden)


class GLMPreTrainedModel(PreTrainedModel):
    config_class = GLMConfig
    base_model_prefix = "glm"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": GLMBlock, "attentions": GLMAttention}


class SharedEmbedding(nn.Embedding):
    """The token embedding, which is the LM head, too: who multiplies by a head (TRL does) asks for its bias."""

    bias = None


class GLMModel(PrefixLM, GLMPreTrainedModel):
    """The backbone: token ids to the output of the final norm."""

    def __init__(self, config: GLMConfig):
        super().__init__(config)
        self.word_embeddings = SharedEmbedding(config.vocab_size, config.hidden_size)
        self.transformer = GLMTransformer(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.word_embeddings

    def set_input_embeddings(self, value):
        self.word_embeddings = value

    @property
    def context_end(self) -> tuple[int, int]:
        return self.config.mask_token_id, self.config.sop_token_id

    def layout(self, ids, positions, row, num_rows, *, generated: bool = True) -> PrefixLayout:
        config = self.config
        masks = [MaskTokens((config.mask_token_id, config.smask_token_id, config.gmask_token_id))]
        return prefix_layout(ids, positions, row, num_rows, start_id=config.sop_token_id, masks=masks)

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

        attention_mask, by its dimensions:
        - None: causal;
        - 1: prefix lengths, one a row or one for all: so many tokens are context, the others are causal;
        - 2: [B, past + T], 1 = counts; the context is what stands before the row's start token;
        - 4: 1 = counts, as it is (the last past + T columns of it).
        position_ids [B, 2, T]; by default those of the row's own layout with a 2-D mask, else 0, 1, 2 ... and zeros,
        counted on from the length of the cache. Further keyword arguments reach the attention function. Raises
        ValueError for inputs of another shape and for rows longer than the tables.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        position_ids, attention_mask = self.positions_and_mask(
            input_ids, inputs_embeds, attention_mask, position_ids, past_key_values
        )
        hidden = self.transformer(
            inputs_embeds, position_ids, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
        )
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)


class GLMForConditionalGeneration(PrefixGenerationMixin, CausalLM, GLMPreTrainedModel, GenerationMixin):
    """The language model; its head is the token embedding. Labels stand where they are predicted."""

    shifts_labels = False
    ignores_pads = True

    def __init__(self, config: GLMConfig):
        super().__init__(config)
        self.glm = GLMModel(config)
        self.post_init()

    def get_output_embeddings(self):
        return self.glm.word_embeddings

    def set_output_embeddings(self, value):
        self.glm.word_embeddings = value

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, self.glm.word_embeddings.weight)

    def _prepare_attention_mask_for_generation(self, inputs_tensor, generation_config, model_kwargs):
        """Called by `generate` when it is given no mask. transformers would take every pad for padding, but the pad is
        also the `<|endoftext|>` of a context. The tokenizer's build_inputs_for_generation says which tokens count."""
        whole = model_kwargs.get("generation_attention_mask")
        if whole is None:
            return torch.ones_like(inputs_tensor)
        return whole[:, 0, -1, : inputs_tensor.shape[1]].long()  # the last token sees all that counts

    def prepare_inputs_for_generation(self, input_ids, *args, generation_attention_mask=None, **kwargs):
        """`generation_attention_mask` [B, 1, L, L] and the position_ids beside it, as build_inputs_for_generation makes
        them, are accepted; both follow from the ids and from which of them are padding."""
        return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)


class GLMForMultipleChoice(GLMPreTrainedModel):
    """Scores of choices that stand behind one context as blocks which do not see each other."""

    def __init__(self, config: GLMConfig):
        super().__init__(config)
        self.glm = GLMModel(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        choice_ids: list[list[list[int]]],
        choice_indices: list[list[list[int]]],
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> MultipleChoiceModelOutput:
        """choice_ids[row][choice]: its tokens; choice_indices: where in the row each of them is predicted.

        logits [B, choices]: summed log-probabilities. labels int64 [B]: the right choice.
        """
        outputs = self.glm(input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, **kwargs)
        scores = []
        for hidden, ids, indices in zip(outputs.last_hidden_state, choice_ids, choice_indices, strict=True):
            row = []
            for tokens, places in zip(ids, indices, strict=True):
                logits = nn.functional.linear(hidden[places], self.glm.word_embeddings.weight)
                target = torch.tensor(tokens, device=hidden.device)
                row.append(-nn.functional.cross_entropy(logits.float(), target, reduction="sum"))
            scores.append(torch.stack(row))
        logits = torch.stack(scores)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class GLMForSequenceClassification(GenericForSequenceClassification, GLMPreTrainedModel):
    """`score`, a linear head without bias on the last token of each row; one label is a reward model."""

    base_model_prefix = "glm"
