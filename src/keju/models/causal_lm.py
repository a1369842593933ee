"""What the language models of our families share: their forward pass, loss, and what `generate` needs to know."""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple


class CausalLM:
    """Mixed into a PreTrainedModel that has a backbone (`base_model_prefix`) and an LM head (get_output_embeddings).
    GenerationMixin stands beside it: transformers wants to see its name among the bases.

    shifts_labels: whether a label is the token at its place, predicted one place before, or what is predicted there.
    ignores_pads: whether labels equal to pad_token_id are not predicted, as those of -100, which never are.
    """

    shifts_labels = True
    ignores_pads = False

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., vocab]"""
        return self.get_output_embeddings()(hidden)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """See the forward of the backbone. labels [B, T]: -100 is not predicted, nor pads where the class ignores them.

        logits_to_keep: the last n positions (0 = all), or an int64 tensor of positions; logits are [B, n, vocab].
        """
        outputs = self.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.logits(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            labels = self._without_pads(labels)
            targets = {"labels": labels} if self.shifts_labels else {"labels": None, "shift_labels": labels}
            loss = self.loss_function(logits=logits, vocab_size=logits.shape[-1], **targets, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _without_pads(self, labels: torch.Tensor) -> torch.Tensor:
        pad, ends = self.config.pad_token_id, self.config.eos_token_id
        # Where pad and eos are one token its label stays: an end that is never trained is never learned.
        if not self.ignores_pads or pad is None or pad in (ends if isinstance(ends, list) else [ends]):
            return labels
        return labels.masked_fill(labels == pad, -100)

    def adjust_generation_fn(self, *args, **kwargs):
        """Called by from_pretrained, which reads the folder's JSON alone and so misses what our config classes add to
        it, or take out of it."""
        super().adjust_generation_fn(*args, **kwargs)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self.generation_config, name)
            if value is None or value == -100:
                setattr(self.generation_config, name, getattr(self.config, name))
