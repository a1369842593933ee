"""A tokenizer of one token a character, made on the spot."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 80)]
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")


def build_char_tokenizer(more: str = "成语：。解释“”的意思\n") -> PreTrainedTokenizerFast:
    """`CHARACTERS` and those of `more`; every text begins with <s>, as Llama's tokenizer has it."""
    pieces = dict.fromkeys([*SPECIAL, *CHARACTERS, *more])
    tokenizer = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Fuse()  # no blanks between characters
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
