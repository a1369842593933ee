"""Small inputs of kinds that users really have, from the folder of cases beside the repository, as one table.

What each should give stands in that folder's README. A case is read as the stages read it ("read") or as data
preparation does ("prepare"): so many rows, and what is said of the others.
"""

from __future__ import annotations

import json
import shutil

import pytest

from keju.data_prepare.corpora import records
from keju.data_prepare.corpus import BadRow
from keju.encoding.dataset import left_out
from keju.models.configurations import check_model
from keju.records.reading import iterate_records
from keju.records.record import ChatRecord, RankedRecord

# file -> (rows, what is wrong with the first of the others or with the file: "" where nothing is)
READ = {
    "01-answers-marked-bad/kto_int.jsonl": (2, ""),
    "01-answers-marked-bad/kto_tag.jsonl": (2, ""),
    "01-answers-marked-bad/trl_kto.jsonl": (2, ""),
    "02-fields-dropped-silently/images.jsonl": (0, ':1: "images" cannot be learned'),
    "02-fields-dropped-silently/loss_flags.jsonl": (1, ""),
    "02-fields-dropped-silently/reasoning_content.jsonl": (1, ""),
    "02-fields-dropped-silently/tool_calls_with_text.jsonl": (1, ""),
    "02-fields-dropped-silently/train_false.jsonl": (1, ""),
    "02-fields-dropped-silently/weight.jsonl": (1, ""),
    "03-first-turn-gpt/first_gpt.jsonl": (1, ""),
    "03-first-turn-gpt/mixed.jsonl": (2, ""),
    "03-first-turn-gpt/system_first_gpt.jsonl": (1, ""),
    "04-same-role-twice/ends_with_user.jsonl": (1, ""),
    "04-same-role-twice/system_empty.jsonl": (1, ""),
    "04-same-role-twice/system_twice.jsonl": (0, ":1: a system turn must be the first and the only one"),
    "04-same-role-twice/tool_turn.jsonl": (2, ""),
    "04-same-role-twice/two_users.jsonl": (2, ""),
    "05-tool-roles/both_names_null.jsonl": (1, ""),
    "05-tool-roles/capital_roles.jsonl": (1, ""),
    "05-tool-roles/function_call.jsonl": (1, ""),
    "05-tool-roles/openai_empty_content.jsonl": (1, ""),
    "10-strange-json/array.json": (3, ""),
    "10-strange-json/array_in_jsonl.jsonl": (1, ":1: malformed JSON"),
    "10-strange-json/array_trailing_comma.json": (3, ""),
    "10-strange-json/blank_lines.jsonl": (2, ""),
    "10-strange-json/bom_each_line.jsonl": (1, ":2: malformed JSON"),
    "10-strange-json/columns.json": (0, ':1: "instruction" must be a string'),
    "10-strange-json/cr_only.jsonl": (0, ":1: malformed JSON"),
    "10-strange-json/crlf.jsonl": (2, ""),
    "10-strange-json/empty_output.jsonl": (0, ':1: "output" is empty'),
    "10-strange-json/history_none.jsonl": (0, ':1: turn 1 of "history"'),
    "10-strange-json/history_text.jsonl": (0, ':1: "history" must be a list'),
    "10-strange-json/lfs_pointer.jsonl": (0, ":1: malformed JSON"),
    "10-strange-json/lone_surrogate.jsonl": (0, "half of a surrogate pair"),
    "10-strange-json/nan_score.jsonl": (0, "is not a finite number"),
    "10-strange-json/nulls.jsonl": (1, ""),
    "10-strange-json/pair_surrogate.jsonl": (1, ""),
    "10-strange-json/python_repr.jsonl": (0, ":1: malformed JSON"),
    "10-strange-json/space_output.jsonl": (0, ':1: "output" is empty'),
    "10-strange-json/trailing_commas.jsonl": (0, ":1: malformed JSON"),
    "13-folders/upper/B.JSONL": (50, ""),
    "13-folders/upper/c.ndjson": (50, ""),
    "13-folders/upper/d.jsonl.xz": (0, "cut off or damaged"),
    "13-folders/upper/e.xlsx": (0, "records are read from files that end in"),
    "19-epochs/seven.jsonl": (7, ""),
    "20-tables/binary.parquet": (0, ':1: "text" must be a string'),
    "20-tables/cut.jsonl.gz": (0, "cut off or damaged"),
    "20-tables/data-00000-of-00001.arrow": (1, ""),
    "20-tables/empty.parquet": (0, "damaged"),
    "20-tables/kto_int.parquet": (2, ""),
    "20-tables/plain.jsonl.gz": (0, "cut off or damaged"),
    "20-tables/really_gz.jsonl": (0, ":1: not UTF-8 text"),
    "20-tables/two_frames.jsonl.zst": (200, ""),
    "20-tables/types.parquet": (1, ""),
}
PREPARED = {
    "10-strange-json/array_trailing_comma.json": (3, ""),
    "10-strange-json/wrapped.json": (0, "one JSON object; expected an array of records"),
    "12-encodings/big5/a.jsonl": (0, "this is BIG5, not UTF-8; convert it: iconv -f big5 -t utf-8 "),
    "12-encodings/cp1252/a.jsonl": (0, "this is CP1252, not UTF-8; convert it: iconv -f cp1252 -t utf-8 "),
    "12-encodings/utf16/a.jsonl": (0, "this is UTF-16, not UTF-8; convert it: iconv -f utf-16 -t utf-8 "),
    "16-cleaning/data/a.jsonl": (13, ""),
    "20-tables/bom.csv": (1, ""),
    "20-tables/cr_only.csv": (0, "the first row must name known fields"),
    "20-tables/index.csv": (2, ""),
    "20-tables/kto_yes.csv": (2, ""),
    "20-tables/messages_repr.csv": (0, ':2: "messages": malformed JSON'),
    "20-tables/newlines.csv": (2, ""),
    "20-tables/sep_line.csv": (0, "the first row must name known fields"),
    "20-tables/unclosed.csv": (2, ":2: a quote is not closed"),
}
# Of the configurations that others published, those that cannot be taken: words of the refusal.
REFUSED = {
    "glm_moe_dsa": "indexed_attention",
    "gpt_oss": "mxfp4",
    "internvl_chat": "is not known",
    "llava_llama": "is not known",
    "mimo": "is not known",
    "minicpmv": "is not known",
    "minimax_m2": "fp8",
    "nemotron_h": "carry a state along the row",
    "qwen2_5_omni": "awq",
    "qwen3_5_moe": "carry a state along the row",
    None: "has no model_type",
}


@pytest.fixture(scope="module")
def cases(shared):
    if not (shared / "cases").is_dir():
        pytest.skip(f"{shared / 'cases'} is absent: small inputs of users' kinds live there")
    return shared / "cases"


@pytest.mark.parametrize("name", READ)
def test_read(cases, name):
    num_rows, wrong = READ[name]
    said: list[str] = []
    try:
        found = list(iterate_records(cases / "data" / name, on_bad_line="skip", on_skipped=said.append))
    except ValueError as error:
        found, said = [], [str(error)]
    assert len(found) == num_rows and wrong in "".join(said[:1]) and bool(said) == bool(wrong)


@pytest.mark.parametrize("name", PREPARED)
def test_prepare(cases, name, tmp_path):
    num_rows, wrong = PREPARED[name]
    shutil.copy(cases / "data" / name, tmp_path)
    try:
        found = [value for piece in records.pieces(tmp_path, 1 << 40) for value in records.read(tmp_path, piece)]
        said = [f"{value.where}: {value.reason}" for value in found if isinstance(value, BadRow)]
    except ValueError as error:
        found, said = [], [str(error)]
    assert len(found) - len(said) * bool(found) == num_rows and wrong in "".join(said[:1]) and bool(said) == bool(wrong)


@pytest.mark.parametrize("name", [name for name in READ if "kto" in name])
def test_answers_marked_bad_are_left_out_of_sft(cases, name):
    found = list(iterate_records(cases / "data" / name))
    assert sorted(record.answers[0].is_good for record in found) == [False, True]
    assert [bool(left_out(record, "sft")) for record in found] == [not record.answers[0].is_good for record in found]


@pytest.mark.parametrize("name", ["loss_flags", "train_false", "weight"])
def test_turns_are_weighed(cases, name):
    (record,) = iterate_records(cases / "data" / "02-fields-dropped-silently" / f"{name}.jsonl")
    assert [message.weight for message in record.messages if message.role == "assistant"] == [0, 1]


def test_thoughts_and_tools_are_kept(cases):
    folder = cases / "data" / "02-fields-dropped-silently"
    (thought,) = iterate_records(folder / "reasoning_content.jsonl")
    (tools,) = iterate_records(folder / "tool_calls_with_text.jsonl")
    assert isinstance(thought, ChatRecord) and thought.messages[1].reasoning.startswith("先把三和五")
    assert json.loads(tools.tools)[0]["function"]["name"] == "weather" and "北京" in tools.messages[1].tool_calls
    assert tools.messages[2].name == "weather"


def test_every_marked_row_is_one_of_ranked_answers(cases):
    for name in READ:
        if "kto" in name:
            assert all(isinstance(record, RankedRecord) for record in iterate_records(cases / "data" / name))


def test_published_configurations_are_taken_or_refused_in_one_line(cases, tmp_path):
    for line in (cases / "models" / "configs.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        config = json.loads(line)["config"]
        kind = config.get("model_type")
        (tmp_path / "config.json").write_text(json.dumps(config))
        if kind not in REFUSED:
            check_model(str(tmp_path))
            continue
        with pytest.raises(ValueError, match="^model_name_or_path: ") as error:
            check_model(str(tmp_path))
        assert REFUSED[kind] in str(error.value) and "\n" not in str(error.value), kind
