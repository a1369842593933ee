"""Our tokenizers against the original way, on real texts: first equal ids, then tokens per second, in turns.

python tests/bench/tokenizer.py [--family pangu] [--characters 60]

The original way is what transformers 4 did with the published classes, and what its Python tokenizers still do: one
text at a time is split at added tokens, cut into tokens as strings, and each of those is looked up. Both sides are
called as tokenizer(list of texts), in one process: first pinned to one core, then ours on all cores, as it is used.
ChatGLM and Baichuan have small vocabularies here, the published ones being no part of our test data. The ids are
compared first, so that both have seen the texts when they are timed. Ours for Qwen remembers rare pieces: on new texts
its ratio is about 4 on one core and 5.5 on two.

The last line is a JSON list of {"name", "ours", "peer", "ratio", "ratio_one_core", "unit"}, one for each family, in
which `ours` and `ratio` are those of all cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import unicodedata
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import transformers
from sentencepiece import SentencePieceProcessor
from side_by_side import shared_folder
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase

from keju.tokenizers.baichuan import BaichuanTokenizer
from keju.tokenizers.byte_pieces import PIECE
from keju.tokenizers.chatglm import LINE, MOST_BLANKS, TAB, ChatGLMTokenizer
from keju.tokenizers.chatglm2 import ChatGLM2Tokenizer
from keju.tokenizers.glm import GLMChineseTokenizer
from keju.tokenizers.llama import SentencePieceLlamaTokenizer
from keju.tokenizers.pangu import PanguTokenizer
from keju.tokenizers.qwen import QWenTokenizer, read_ranks

TEXTS = "data/pretrain/CLUECorpusSmall_sampled.txt"
VOCABULARIES = shared_folder() / "data" / "tokenizers"
GOLDEN = shared_folder() / "golden"


class Original(PreTrainedTokenizer):
    """transformers' Python tokenizer over a SentencePiece model, as the published classes derive from it.

    added: the added tokens with their ids; before, after: ids around a text; first_id: that of the first piece.
    """

    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, model: SentencePieceProcessor, added: dict, before=(), after=(), first_id: int = 0):
        self.sp_model, self.before, self.after, self.first_id = model, list(before), list(after), first_id
        super().__init__(added_tokens_decoder=dict(added))

    @property
    def vocab_size(self) -> int:
        return self.first_id + self.sp_model.get_piece_size()

    def get_vocab(self) -> dict[str, int]:
        return {}

    def shaped(self, text: str) -> str:
        return text

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        return self.sp_model.encode(self.shaped(text), out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return self.first_id + self.sp_model.piece_to_id(token)

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return [*self.before, *token_ids_0, *self.after]


class OriginalChatGLM(Original):
    def shaped(self, text: str) -> str:
        text = text.replace("\n", LINE).replace("\t", TAB)
        for number in range(MOST_BLANKS, 1, -1):
            text = text.replace(" " * number, f"<|blank_{number}|>")
        return text


class OriginalPangu(Original):
    """jieba with the patch that the published tokenizer needs; SentencePiece gets its words, joined."""

    def __init__(self, model: SentencePieceProcessor, added: dict, before, after):
        import jieba

        jieba.re_han_default = re.compile(r"([\u4E00-\u9FD5a-zA-Z0-9+#&\._%\-<>]+)")
        self.jieba = jieba.Tokenizer()
        self.jieba.FREQ, self.jieba.total = self.jieba.gen_pfdict(self.jieba.get_dict_file())
        self.jieba.initialized = True
        for token in ("<s>", "</s>", "<unk>", "<sep>", "<pad>", "<eot>"):
            self.jieba.add_word(token)
        self.stand_ins = str.maketrans(" \n", "\u2582\u2583")
        super().__init__(model, added, before, after)

    def tokenize(self, text: str, **kwargs) -> list[str]:
        return [word.translate(self.stand_ins) for word in self.jieba.cut(text)]

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int]:
        if isinstance(tokens, str):
            return super().convert_tokens_to_ids(tokens)
        return self.sp_model.encode(" ".join(tokens))


class OriginalQwen(PreTrainedTokenizer):
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, path: Path):
        import tiktoken

        self.ranks = read_ranks(path)
        self.special: dict[str, int] = {}
        self.bpe = tiktoken.Encoding("original", pat_str=PIECE, mergeable_ranks=self.ranks, special_tokens=self.special)
        self.tokens = {rank: token for token, rank in self.ranks.items()}
        super().__init__()

    @property
    def vocab_size(self) -> int:
        return len(self.ranks)

    def get_vocab(self) -> dict[bytes, int]:
        return self.ranks

    def tokenize(self, text: str, **kwargs) -> list[bytes]:
        text = unicodedata.normalize("NFC", text)
        return [self.tokens[rank] for rank in self.bpe.encode(text, allowed_special=set(), disallowed_special=())]

    def convert_tokens_to_ids(self, tokens: list[bytes]) -> list[int]:
        return [self.special[token] if token in self.special else self.ranks[token] for token in tokens]


def pangu():
    ours = PanguTokenizer(str(VOCABULARIES / "pangu" / "vocab.model"))
    added = ours.added_tokens_decoder
    return ours, OriginalPangu(ours.sp_model, added, [ours.bos_token_id], [ours.eos_token_id])


def glm():
    ours = GLMChineseTokenizer(str(VOCABULARIES / "glm-chinese" / "cog-pretrain.model"))
    return ours, Original(ours.sp_model, ours.added_tokens_decoder, [ours.cls_token_id], [ours.eos_token_id])


def chatglm():
    folder = GOLDEN / "chatglm" / "tokenizer_tinyvocab"
    ours = ChatGLMTokenizer.from_pretrained(folder)
    pieces = ChatGLMTokenizer.from_pretrained(folder, num_image_tokens=0).sp_model  # the original adds to their ids
    named = ours.special_tokens_map.values()
    added = {index: token for index, token in ours.added_tokens_decoder.items() if str(token) in named}
    after = ours.build_inputs_with_special_tokens([])
    return ours, OriginalChatGLM(pieces, added, (), after, ours.num_image_tokens)


def chatglm2():
    ours = ChatGLM2Tokenizer(str(VOCABULARIES / "chatglm2-6b" / "tokenizer.model"), chat_format="chatglm2")
    return ours, Original(ours.sp_model, {}, ours.build_inputs_with_special_tokens([]))


def baichuan():
    ours = BaichuanTokenizer.from_pretrained(GOLDEN / "baichuan-7B" / "tokenizer_tinyvocab")
    return ours, Original(ours.sp_model, ours.added_tokens_decoder, ours.build_inputs_with_special_tokens([]))


def qwen():
    path = VOCABULARIES / "qwen" / "qwen.tiktoken"
    return QWenTokenizer(str(path)), OriginalQwen(path)


def llama():
    ours = SentencePieceLlamaTokenizer(str(VOCABULARIES / "llama" / "tokenizer.model"))
    return ours, Original(ours.sp_model, ours.added_tokens_decoder, [ours.bos_token_id])


FAMILIES: dict[str, Callable[[], tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]]] = {
    build.__name__: build for build in (pangu, glm, chatglm, chatglm2, baichuan, qwen, llama)
}


@contextmanager
def one_core():
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def seconds(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    start = time.perf_counter()
    tokenizer(texts)
    return time.perf_counter() - start


def compare(name: str, texts: list[str], rounds: int) -> dict:
    """Raises AssertionError naming the first text whose ids differ."""
    ours, peer = FAMILIES[name]()
    mine, theirs = ours(texts)["input_ids"], peer(texts)["input_ids"]
    for text, a, b in zip(texts, mine, theirs, strict=True):
        assert a == b, f"{name}: ids differ for {text[:60]!r}: {a[:20]} {b[:20]}"
    times: dict[str, list[float]] = {"ours": [], "peer": [], "cores": []}
    for _ in range(rounds):
        with one_core():
            times["ours"].append(seconds(ours, texts))
            times["peer"].append(seconds(peer, texts))
        times["cores"].append(seconds(ours, texts))
    count = sum(map(len, mine))
    mine, theirs, cores = (count / min(times[side]) for side in ("ours", "peer", "cores"))
    print(f"{name:9} {count:8} {theirs:12,.0f} {mine:12,.0f} {mine / theirs:6.2f}", end="")
    print(f" {cores:12,.0f} {cores / theirs:6.2f}", flush=True)
    return {
        "name": f"tokenizer_{name}",
        "ours": round(cores),
        "peer": round(theirs),
        "ratio": round(cores / theirs, 2),
        "ratio_one_core": round(mine / theirs, 2),
        "unit": "tokens/s",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, help="One only. Default: all.")
    parser.add_argument("--rounds", type=int, default=5, help="The best of so many counts.")
    parser.add_argument("--characters", type=int, help="Texts are cut off there. Default: whole ones, about 270.")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    path = shared_folder() / TEXTS
    if not path.exists():
        sys.exit(f"error: {path} is absent; its texts are what this benchmark is about")
    lines = path.read_text(encoding="utf-8").split("\n")
    texts = [line[: args.characters] for line in lines if line]
    cores = len(os.sched_getaffinity(0))
    print(f"{len(texts)} texts, {sum(map(len, texts))} characters, {cores} cores; tokens per second")
    print(f"{'family':9} {'tokens':>8} {'original':>12} {'ours':>12} {'ratio':>6} {'all cores':>12} {'ratio':>6}")
    print(json.dumps([compare(name, texts, args.rounds) for name in ([args.family] if args.family else FAMILIES)]))


if __name__ == "__main__":
    main()
