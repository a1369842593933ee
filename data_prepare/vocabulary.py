"""Train a small SentencePiece vocabulary and save it as a transformers tokenizer folder.

Byte-pair pieces over characters: Chinese characters stay single pieces but for the most frequent words, so that a small
model sees which characters an idiom and its explanation share. Characters beyond the vocabulary become UTF-8 bytes;
nothing is unknown and nothing is normalised: decode(encode(text)) == text.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, processors
from transformers import PreTrainedTokenizerFast

from keju.errors import UserError

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")  # ids 0, 1, 2, 3
NUM_BYTES = 256
SPACE = "\u2581"  # how SentencePiece writes a space
CHARACTER_SHARE = 0.9  # of the pieces that are neither special nor bytes; the others are for frequent words
MIN_COVERAGE = 0.98  # of all characters in the texts, which SentencePiece asks for


def train_sentencepiece(texts: Sequence[str], vocab_size: int) -> bytes:
    """The trained model file, of at most `vocab_size` pieces: fewer where the texts have few different characters, so
    that words never outnumber them. Raises UserError if the characters need more."""
    counts = [count for _, count in Counter(character for text in texts for character in text).most_common()]
    total = sum(counts)
    reserved = len(SPECIAL_TOKENS) + NUM_BYTES
    num_characters = min(int((vocab_size - reserved) * CHARACTER_SHARE), len(counts))
    coverage = sum(counts[: max(num_characters, 0)]) / total
    if coverage < MIN_COVERAGE:
        needed = next(n for n, covered in enumerate(accumulate(counts), start=1) if covered >= MIN_COVERAGE * total)
        smallest = reserved + math.ceil((needed + 1) / CHARACTER_SHARE)
        raise UserError(f"must be at least {smallest} for the characters of these texts", option="vocab_size")
    vocab_size = min(vocab_size, reserved + math.ceil(num_characters / CHARACTER_SHARE))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        character_coverage=coverage,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        max_sentence_length=1 << 20,
        unk_id=0, bos_id=1, eos_id=2, pad_id=3,
        unk_piece=SPECIAL_TOKENS[0], bos_piece=SPECIAL_TOKENS[1],
        eos_piece=SPECIAL_TOKENS[2], pad_piece=SPECIAL_TOKENS[3],
        num_threads=1,
        minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def save_tokenizer(sentencepiece_model: bytes, folder: str | Path) -> None:
    """Write a fast tokenizer for AutoTokenizer.from_pretrained: SentencePiece's ids, with <s> in front."""
    PreTrainedTokenizerFast(
        tokenizer_object=_fast_tokenizer(sentencepiece_model),
        unk_token=SPECIAL_TOKENS[0],
        bos_token=SPECIAL_TOKENS[1],
        eos_token=SPECIAL_TOKENS[2],
        pad_token=SPECIAL_TOKENS[3],
        add_bos_token=True,
        add_eos_token=False,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)


def _fast_tokenizer(sentencepiece_model: bytes) -> Tokenizer:
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    # A plain space instead of SentencePiece's mark: with the mark, a text that holds the mark would come back changed.
    pieces = [processor.id_to_piece(index).replace(SPACE, " ") for index in range(processor.get_piece_size())]
    ids = {piece: index for index, piece in enumerate(pieces)}
    # SentencePiece merges whichever neighbours form the piece with the smallest id, however the piece divides.
    first = len(SPECIAL_TOKENS) + NUM_BYTES
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces[first:]
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=SPECIAL_TOKENS[0], fuse_unk=True, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    bos = SPECIAL_TOKENS[1]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, ids[bos])]
    )
    return tokenizer
