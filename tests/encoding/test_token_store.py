"""Trees on disk: equal to the last field, the same bytes from any number of processes, damage seen, memory bounded."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from char_tokenizer import CHARACTERS, build_char_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from keju.encoding import workers
from keju.encoding.array_file import ArrayReader, ArrayWriter, DamagedFile
from keju.encoding.chat_settings import ChatSettings
from keju.encoding.dataset import encode_records
from keju.encoding.encoder import Encoder
from keju.encoding.store_build import build_store
from keju.encoding.store_key import VERSION, store_key, tokenizer_digest
from keju.encoding.token_store import CHECKSUMS, DamagedStore, open_store, totals_of
from keju.encoding.tree_columns import ARRAYS, flatten, restore
from keju.encoding.tree_totals import TreeTotals
from keju.records.folds import Fold
from keju.records.reading import read_records
from keju.records.writing import write_jsonl
from keju.trees.lazy_trees import lengths_of
from keju.trees.segment import Segment

numbers = st.floats(allow_nan=False)


@st.composite
def segments(draw, depth=3):
    tokens = draw(st.lists(st.integers(0, 2**32 - 1), max_size=20))
    flags = st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens))
    by_token = st.lists(numbers, min_size=len(tokens), max_size=len(tokens))
    return Segment(
        tokens,
        trained=draw(st.one_of(st.booleans(), flags)),
        branches=draw(st.lists(segments(depth=depth - 1), max_size=3)) if depth else [],
        values=draw(st.dictionaries(st.sampled_from(["score", "ref", "分"]), numbers, max_size=3)),
        token_values=draw(st.dictionaries(st.sampled_from(["a", "score"]), by_token, max_size=2)),
        bidirectional=draw(st.booleans()),
    )


@settings(max_examples=80, deadline=None)
@given(st.lists(segments(), max_size=5))
def test_any_tree_comes_back_to_the_last_field(trees):
    columns = flatten(trees)
    starts = np.zeros(6, np.int64)
    for tree, ends in zip(trees, columns.ends, strict=True):
        parts = {name: columns.arrays[name][starts[column] : ends[column]] for name, (*_, column) in ARRAYS.items()}
        found = restore(parts, columns.names)
        assert found == tree
        for mine, theirs in zip(found.preorder(), tree.preorder(), strict=True):
            assert type(mine.trained) is type(theirs.trained)
            assert list(mine.values) == list(theirs.values)
        starts = ends
    assert flatten(trees[:2]).ends.tolist() == columns.head(2).ends.tolist()


def test_a_value_that_is_nan_is_a_value():
    columns = flatten([Segment([1], values={"score": math.nan})])
    assert math.isnan(restore(columns.arrays, columns.names).values["score"])


def test_flags_of_another_length_are_refused():
    with pytest.raises(ValueError, match="a segment of 2 tokens has 1 flags"):
        flatten([Segment([1, 2], trained=[True])])


def test_arrays_grow_and_are_read_in_ranges(tmp_path):
    writer = ArrayWriter(tmp_path / "a.npy", "<u2", 3)
    for rows in (0, 5, 100_000):
        writer.append(np.arange(rows * 3).reshape(rows, 3) % 60_000)
    writer.close()
    whole, reader = np.load(tmp_path / "a.npy"), ArrayReader(tmp_path / "a.npy")
    assert whole.shape == reader.shape == (100_005, 3) and whole.dtype == np.uint16
    assert np.array_equal(reader.rows(3, 70_001), whole[3:70_001]) and reader.rows(7, 7).shape == (0, 3)


# -- record files ------------------------------------------------------------------------------------------------------


def text(rng: random.Random, longest: int) -> str:
    return "".join(rng.choices(CHARACTERS, k=rng.randint(1, longest)))


def ranked_rows(count: int, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    return [
        {
            "prompt": text(rng, 30),
            "answers": [{"answer": text(rng, 40), "score": rng.choice([0, 0.5, 1])} for _ in range(3)],
        }
        for _ in range(count)
    ]


def chat_rows(count: int) -> list[dict]:
    rng = random.Random(1)
    turns = ("user", "assistant") * 2
    return [{"messages": [{"role": role, "content": text(rng, 25)} for role in turns]} for _ in range(count)]


def text_rows(count: int) -> list[dict]:
    return [{"text": row["prompt"]} for row in ranked_rows(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return build_char_tokenizer()


def store_of(folder: Path, files: list[Path], encoder: Encoder, form: str, **options):
    folder.mkdir()
    build_store(folder, files, encoder, form, **options)
    return open_store(folder, files, thoroughly=True)


@pytest.fixture
def ranked(tmp_path):
    """Two shards with bad lines."""
    files = [tmp_path / f"r-0000{number}-of-00002.jsonl" for number in (1, 2)]
    for number, file in enumerate(files):
        write_jsonl(file, ranked_rows(900, number))
        lines = file.read_text().splitlines()
        lines[number * 50 + 7 : number * 50 + 7] = ["{", '{"prompt": 1}', ""]
        file.write_text("\n".join(lines))
    return files


FORMS = [("ranked", ranked_rows), ("sft", ranked_rows), ("sft", chat_rows), ("prompt", chat_rows)]


@pytest.mark.parametrize("on_long", ["skip", "truncate"])
@pytest.mark.parametrize(
    "form,rows", [*FORMS, ("text", lambda count: [{"text": r["prompt"]} for r in ranked_rows(count)])]
)
def test_a_store_is_the_encoded_records(tmp_path, tokenizer, form, rows, on_long):
    write_jsonl(tmp_path / "a.jsonl", rows(120))
    encoder = Encoder(tokenizer, 48, on_long=on_long)
    expected = encode_records(read_records(tmp_path / "a.jsonl"), encoder, form)
    stored = store_of(tmp_path / "store", [tmp_path / "a.jsonl"], encoder, form)
    assert list(stored.trees) == expected.trees and list(stored.where) == expected.where
    assert stored.skipped == expected.skipped[:100] and stored.num_skipped == expected.num_skipped
    assert stored.trees[-1] == expected.trees[-1] and stored.trees[2:9:3] == expected.trees[2:9:3]
    assert stored.trees.lengths.tolist() == [tree.num_tokens for tree in expected.trees]
    assert lengths_of(expected.trees).tolist() == stored.trees.lengths.tolist()
    assert totals_of(stored.trees) == totals_of(expected.trees) == TreeTotals.of(expected.trees)
    assert (tmp_path / "store/tokens.npy").stat().st_size == 128 + 2 * stored.trees.totals.num_tokens
    with pytest.raises(IndexError):
        stored.trees[len(stored)]


@pytest.mark.parametrize("options", [{}, {"max_samples": 700}, {"max_samples": 1000, "fold": Fold("2/3")}])
def test_any_number_of_processes_writes_the_same_bytes(tmp_path, tokenizer, ranked, options, monkeypatch):
    monkeypatch.setattr("keju.encoding.store_build.BLOCK_BYTES", 20_000)
    monkeypatch.setattr(workers, "HELP_WHILE_THEY_START", False)
    encoder = Encoder(tokenizer, 60)
    serial = store_of(tmp_path / "1", ranked, encoder, "ranked", on_bad_line="skip", **options)
    store_of(tmp_path / "3", ranked, encoder, "ranked", on_bad_line="skip", num_workers=3, **options)
    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert len(names) == len(ARRAYS) + 4
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes(), name
    # and what reading into memory would have given
    fold = options.get("fold")
    records = [r for f in ranked for r in read_records(f, on_bad_line="skip") if fold is None or fold.holds(r)]
    expected = encode_records(records[: options.get("max_samples")], encoder, "ranked")
    assert list(serial.trees) == expected.trees and list(serial.where) == expected.where
    assert serial.num_records == len(records[: options.get("max_samples")])
    assert serial.num_skipped == expected.num_skipped > 100
    if not options:
        assert serial.num_bad == 4
        assert serial.bad[0].startswith(f"{ranked[0]}:8: malformed JSON") and f"{ranked[1]}:59: " in serial.bad[3]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_first_bad_line_ends_the_run_unless_it_is_behind_the_sample(tmp_path, tokenizer, ranked, num_workers):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=rf"^{ranked[0]}:8: malformed JSON"):
        build_store(tmp_path / "a", ranked, Encoder(tokenizer, 60), "ranked", num_workers=num_workers)
    stored = store_of(tmp_path / "b", ranked, Encoder(tokenizer, 60), "ranked", max_samples=7, num_workers=num_workers)
    assert stored.num_records == 7
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match=rf"^{ranked[0]}:\d+: \d+ tokens, more than --max_length 60"):
        build_store(tmp_path / "c", ranked, Encoder(tokenizer, 60, on_long="error"), "ranked", on_bad_line="skip")
    (tmp_path / "d").mkdir()
    with pytest.raises(ValueError, match="no usable record of 7 read; first: "):
        build_store(tmp_path / "d", ranked, Encoder(tokenizer, 3), "ranked", max_samples=7)


@pytest.mark.parametrize("name", [*(f"{name}.npy" for name in (*ARRAYS, "ends", "places")), "manifest.json"])
def test_damage_is_seen(tmp_path, tokenizer, name):
    write_jsonl(tmp_path / "a.jsonl", chat_rows(20) + ranked_rows(3))
    files = [tmp_path / "a.jsonl"]
    store_of(tmp_path / "store", files, Encoder(tokenizer, 200), "sft")
    path = tmp_path / "store" / name
    whole = path.read_bytes()
    for damaged in (whole[:-3], whole + b"\0", b"", None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(DamagedStore):
            open_store(tmp_path / "store", files)
        path.write_bytes(whole)
    if name.endswith(".npy"):
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(DamagedStore):  # the size is right: only reading all of it shows this
            open_store(tmp_path / "store", files, thoroughly=True)


def test_a_flipped_byte_is_noticed_when_it_is_read(tmp_path, tokenizer):
    """Wherever it is, in whatever file, and not before the others have been read."""
    write_jsonl(tmp_path / "a.jsonl", text_rows(9000))
    files = [tmp_path / "a.jsonl"]
    stored = store_of(tmp_path / "store", files, Encoder(tokenizer, 200), "text")
    expected = [list(tree.tokens) for tree in stored.trees]
    rng = random.Random(0)
    for name in (*(f"{name}.npy" for name in (*ARRAYS, "ends", "places")), CHECKSUMS):
        path = tmp_path / "store" / name
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1, rng.randrange(len(whole))):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            read, noticed = 0, False
            try:
                found = open_store(tmp_path / "store", files)
                for tree, tokens, where in zip(found.trees, expected, found.where, strict=True):
                    assert list(tree.tokens) == tokens and where.startswith(str(files[0]))
                    read += 1
            except (DamagedStore, DamagedFile) as error:
                noticed = name in str(error)
            assert noticed, (name, place)
            if name == "tokens.npy" and place == len(whole) - 1:
                assert read > 4000
        path.write_bytes(whole)


def test_data_files_may_move(tmp_path, tokenizer):
    write_jsonl(tmp_path / "a.jsonl", ranked_rows(20))
    store_of(tmp_path / "store", [tmp_path / "a.jsonl"], Encoder(tokenizer, 200), "sft")
    assert open_store(tmp_path / "store", [Path("b/c.jsonl")]).where[3] == "b/c.jsonl:4"


def _length(trees, connection):
    connection.send([trees[3], len(trees)])


def test_a_store_travels_to_another_process_by_name(tmp_path, tokenizer):
    write_jsonl(tmp_path / "a.jsonl", ranked_rows(20))
    stored = store_of(tmp_path / "store", [tmp_path / "a.jsonl"], Encoder(tokenizer, 200), "sft")
    opener, arguments = stored.trees.__reduce__()
    assert opener(*arguments)[3] == stored.trees[3] and arguments == (tmp_path / "store",)
    context = multiprocessing.get_context("fork")
    own, other = context.Pipe()
    process = context.Process(target=_length, args=(stored.trees, other))
    process.start()
    assert own.recv() == [stored.trees[3], 20]
    process.join()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_records_that_a_template_refuses_are_skipped_and_counted(tmp_path, num_workers):
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "成"}]} for text in "一二三"
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    refusing = build_char_tokenizer("一二三")
    refusing.chat_template = (
        "{% for m in messages %}{{ raise_exception('no') if m.content == '二' }}{{ m.content }}</s>{% endfor %}"
    )
    files, encoder = [tmp_path / "a.jsonl"], Encoder(refusing, 64)
    with pytest.raises(ValueError, match=r"a.jsonl:2: the chat template refuses the conversation: no$"):
        store_of(tmp_path / "none", files, encoder, "sft", num_workers=num_workers)
    stored = store_of(tmp_path / "store", files, encoder, "sft", on_bad_line="skip", num_workers=num_workers)
    assert len(stored) == 2 and stored.num_bad == 1
    assert stored.bad == [f"{files[0]}:2: the chat template refuses the conversation: no"]


# -- the key -----------------------------------------------------------------------------------------------------------


def test_the_key_changes_with_all_that_decides_the_trees(tmp_path):
    def key(
        digest="d", file="a.jsonl", form="sft", max_length=64, on_long="skip", tokenizer=None, chats=None, **options
    ):
        encoder = Encoder(tokenizer or build_char_tokenizer(), max_length, on_long=on_long, chats=chats)
        options = {"on_bad_line": "error", "max_samples": None, "fold": None} | options
        return store_key([digest], [Path(file)], encoder, form, **options)

    templated, larger, other_pad = build_char_tokenizer(), build_char_tokenizer("多"), build_char_tokenizer()
    templated.chat_template = "{{ messages }}"
    other_pad.pad_token = "</s>"
    keys = [
        key(),
        key(digest="e"),
        key(file="a.txt"),
        key(form="ranked"),
        key(max_length=65),
        key(on_long="truncate"),
        *(key(tokenizer=tokenizer) for tokenizer in (templated, larger, other_pad)),
        key(on_bad_line="skip"),
        key(chats=ChatSettings(train_turns="last")),
        key(chats=ChatSettings(train_thoughts="none")),
        key(max_samples=5),
        key(fold=(1, 2)),
    ]
    assert len(set(keys)) == len(keys)
    assert key(file="elsewhere/b.jsonl") == key()
    padded = build_char_tokenizer()
    padded(["成", "成语"], padding=True, truncation=True, max_length=5)  # which the tokenizer keeps in mind
    assert key(tokenizer=padded) == key()


def test_a_tokenizer_that_was_saved_and_loaded_is_the_same(tmp_path):
    from transformers import AutoTokenizer

    build_char_tokenizer().save_pretrained(tmp_path / "one")
    first = AutoTokenizer.from_pretrained(tmp_path / "one")
    first.save_pretrained(tmp_path / "two")
    assert tokenizer_digest(first) == tokenizer_digest(AutoTokenizer.from_pretrained(tmp_path / "two"))


GOLDEN = "6fb69ba159616e4c"


def test_a_change_of_what_is_encoded_raises_the_version(tmp_path, tokenizer):
    """If this fails, old stores hold other trees than the code makes: raise VERSION and take the new digest."""
    digest = hashlib.sha256(str(VERSION).encode())
    templated = build_char_tokenizer()
    templated.chat_template = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    for number, (form, rows) in enumerate(FORMS):
        write_jsonl(tmp_path / f"{number}.jsonl", rows(12))
        for which, own in enumerate((tokenizer, templated)):
            folder = tmp_path / f"{number}-{which}"
            store_of(folder, [tmp_path / f"{number}.jsonl"], Encoder(own, 64, on_long="truncate"), form)
            for path in sorted(folder.glob("*.npy")):
                digest.update(path.read_bytes())
    assert digest.hexdigest()[:16] == GOLDEN


# -- memory ------------------------------------------------------------------------------------------------------------

PEAK = """
from pathlib import Path

def peak(work):
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    work()
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
READING = """
import sys
from keju.encoding.token_store import open_store

def read(store):
    trees = open_store(Path(store), [Path("a")]).trees
    print(len(trees), sum(len(trees[index].tokens) for index in range(len(trees))))

for store in sys.argv[1:]:
    print(peak(lambda: read(store)))
"""
BUILDING = """
import sys
sys.path.insert(0, sys.argv[1])
from char_tokenizer import build_char_tokenizer
from keju.encoding.encoder import Encoder
from keju.encoding.store_build import build_store

def build(path):
    store = path.with_suffix("")
    store.mkdir()
    build_store(store, [path], Encoder(build_char_tokenizer(), 4096), "text")

for path in map(Path, sys.argv[2:]):
    print(peak(lambda: build(path)))
"""


def output_of(code: str, *arguments) -> list[int]:
    command = [sys.executable, "-c", PEAK + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_memory_does_not_grow_with_the_data(tmp_path):
    """Building and reading eight times as much takes the same peak (in KiB): the larger tokens are 7 MB."""
    paths = [tmp_path / f"{times}.jsonl" for times in (1, 8)]
    for path in paths:
        texts = ["".join(random.Random(n).choices(CHARACTERS, k=1500)) for n in range(300 * int(path.stem))]
        write_jsonl(path, ({"text": text} for text in texts))
    small, large = output_of(BUILDING, Path(__file__).parents[1], *paths)
    assert (tmp_path / "8/tokens.npy").stat().st_size > 7_000_000
    assert large - small < 4 * 1024
    num_small, _, small, num_large, num_tokens, large = output_of(READING, *(path.with_suffix("") for path in paths))
    assert (num_small, num_large) == (300, 2400) and num_tokens > 3_000_000
    assert large - small < 2 * 1024
    assert json.loads((tmp_path / "8/manifest.json").read_text())["totals"]["num_trees"] == 2400
