"""Reward models that read another tokenizer or chat template than the actor's: responses go over as text.

The generated ids stay what is trained; only the reward model sees their text, rendered as its own training data were:
its chat template, its end token where the response has ended, none where it was cut off. What comes back is one score a
response, which is paid at the response's last action, as that of a reward model of the same tokenizer is.
"""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from keju.encoding.encoder import Encoder
from keju.models.generation import Response
from keju.records.record import Record
from keju.rl.response_trees import branch_trees
from keju.rl.rollout import Rollout
from keju.trees.segment import Segment


class Translation:
    """records: the record that each prompt (the actor's ids) was rendered from; encoder: the reward model's."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, encoder: Encoder, records: Mapping[tuple[int, ...], Record]
    ) -> None:
        self.tokenizer, self.encoder, self.records = tokenizer, encoder, records

    def trees(self, rollouts: Sequence[Rollout], token_budget: int) -> list[Segment]:
        """The responses in the reward model's ids, numbered through `rollouts`; never an empty branch."""
        trees, row = [], 0
        for rollout in rollouts:
            messages, prefix, tools = self.encoder.prompt_of(self.records[rollout.prompt])
            texts = [self.text(rollout.prompt, response) for response in rollout.responses]
            prompt, answers = self.encoder.prompt_and_answers(messages, texts, prefix, tools)
            responses = {}
            for response, (ids, _) in zip(rollout.responses, answers, strict=True):
                # A response without any text that was cut off still needs a token to be read at: the end.
                responses[row] = ids if response.finished or len(ids) == 1 else ids[:-1]
                row += 1
            trees += branch_trees(prompt, responses, token_budget)
        return trees

    def text(self, prompt: Sequence[int], response: Response) -> str:
        """What the response adds to its prompt, without special tokens.

        Decoded behind the prompt: by itself a first piece would lose the blank that it begins with (SentencePiece).
        """
        before, whole = (
            self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for ids in ([*prompt], [*prompt, *response.ids])
        )
        if whole.startswith(before):
            return whole[len(before) :]
        return self.tokenizer.decode([*response.ids], skip_special_tokens=True, clean_up_tokenization_spaces=False)


def reads_alike(actor: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase) -> bool:
    """Whether both render a conversation to the same ids, so that the reward model can read what the actor wrote as it
    is: they have one vocabulary, the same special tokens (but for the pad token, which nobody reads) and the same chat
    template."""
    return not differences(actor, reward)


def differences(actor: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase) -> list[str]:
    """In what two tokenizers differ that decides how a conversation is rendered."""
    own, other = (
        {
            "kind": type(tokenizer),
            "vocabulary": tokenizer.get_vocab(),
            "special tokens": {
                name: str(token) for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"
            },
            "chat template": tokenizer.chat_template,
        }
        for tokenizer in (actor, reward)
    )
    return [name for name in own if own[name] != other[name]]
