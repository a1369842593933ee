from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from keju.report.page import markdown_environment
from keju.report.report import write_report
from keju.report.stages import gather, verdict
from keju.training.plots import plot_bars

SUMMARY = {
    "data": {"ranked_train.jsonl": 1234},
    "predictions": {"model": "m", "rouge-l": 0.217, "finished": True},
    "pretrain": {
        "seconds": 75.0,
        "tokens": 120000,
        "tokens_per_second": 9321.0,
        "first_loss": 8.512,
        "last_loss": 0.61,
    },
    "reward": {"seconds": 60, "first_loss": 0.6931, "last_loss": 0.31, "heldout_accuracy": 0.83, "heldout_pairs": 600},
    "ppo": {"seconds": 9, "reward_before": -0.52, "reward_after": 0.31, "kl": 1.23},
    "eval": {
        "chance": 0.25,
        "pretrain": {"accuracy": 0.26, "num_items": 400, "few_shot": {"8": 0.3}},
        "ppo": {"accuracy": 0.48, "interval": [0.43, 0.53], "num_items": 400, "few_shot": {"8": 0.51}},
    },
}


class Page(HTMLParser):
    """Checks that tags nest, and collects text and links."""

    VOID = {"meta", "img", "br", "line", "path", "rect", "circle", "polyline"}

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.sources, self.tags = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page(tmp_path, summary, runs):
    out = write_report(summary, runs, tmp_path / "deep" / "report.html")
    html = out.read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture
def ppo_folder(tmp_path):
    folder = tmp_path / "ppo"
    folder.mkdir()
    rows = [{"step": step, "loss": 0.1, "reward": step / 10, "kl": 0.1, "response_length": 9} for step in range(1, 6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [
        {
            "step": step,
            "prompt": f"解释{n}",
            "response": "<script>alert(1)</script>答",
            "score": 0.5,
            "kl": 0.1,
            "finished": n > 0,
        }
        for step in (1, 2, 3)
        for n in range(7)
    ]
    cut = '{"step": 4, "response": "\u2028{一}'  # by a kill
    (folder / "samples.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples) + cut)
    (folder / "args.json").write_text(
        json.dumps(
            {"command": ["python", "-m", "keju.train_rlhf", "--a", "b c"], "arguments": {"kl_coef": 0.05, "seed": None}}
        )
    )
    for name in ("loss", "curves"):
        plot_bars({"x": 1}, folder / f"{name}.png", title=name)
    return folder


def test_figures_stand_in_the_page(tmp_path):
    _, parsed = page(tmp_path, SUMMARY, {})
    text = " ".join("".join(parsed.text).split())
    for figure in ("1:15", "120k", "9.32k", "8.51", "0.61", "83.0%", "-0.520 → 0.310", "1.230", "48.0%", "2:24 in all"):
        assert figure in text, figure
    assert "ranked_train.jsonl 1,234" in text and "rouge-l" in text and "0.217" in text and "finished" not in text
    assert "8 shots" in text and "51.0%" in text
    assert "above chance" in text and "not told apart from chance" in text


def test_missing_stages_say_so(tmp_path):
    _, parsed = page(tmp_path, {}, {})
    assert sum(text.strip() == "not run" for text in parsed.text) == 5 + 5 + 1  # table, sections, benchmark
    _, parsed = page(tmp_path, SUMMARY, {})
    assert sum(text.strip() == "not run" for text in parsed.text) == 2 + 2  # sft and dpo


def test_the_page_needs_nothing_from_elsewhere(tmp_path, ppo_folder):
    html, parsed = page(tmp_path, SUMMARY, {"ppo": ppo_folder})
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in parsed.sources)
    assert "script" not in parsed.tags and "link" not in parsed.tags
    assert not re.search(r"url\(|@import|https?://", html)


def test_what_models_write_is_escaped(tmp_path, ppo_folder):
    html, parsed = page(tmp_path, SUMMARY, {"ppo": ppo_folder})
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert "解释0" in "".join(parsed.text)


def test_a_stage_from_its_folder(ppo_folder):
    stage = gather("ppo", SUMMARY["ppo"], ppo_folder)
    assert len(stage.charts) == 3
    assert [caption for caption, _ in stage.pictures] == ["curves"]  # the loss is drawn as a chart
    assert [name for name, _ in stage.samples] == ["Step 1", "Step 3"]
    assert [row["prompt"] for row in stage.samples[1][1]] == [f"解释{n}" for n in range(5)]
    assert stage.settings == {"kl_coef": 0.05} and stage.command == "python -m keju.train_rlhf --a 'b c'"


def test_a_folder_that_is_not_there(tmp_path):
    stage = gather("sft", {"seconds": 1}, tmp_path / "nowhere")
    assert stage.ran and not stage.charts and not stage.pictures


def test_verdicts():
    assert verdict((0.3, 0.4), 0.25) == "above chance"
    assert verdict((0.2, 0.4), 0.25) == "not told apart from chance"
    assert verdict((0.1, 0.2), 0.25) == "below chance"
    assert verdict(None, 0.25) == ""


def test_a_report_is_whole_or_not_there(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_report(SUMMARY, {}, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["a|b", "<script>x</script>", "![x](http://e/x.png)", "`a`", "a\n\n# head", "$x$", "*a*"]
)
def test_texts_stand_for_themselves_in_markdown(text):
    written = markdown_environment().from_string("| {{ text }} |").render(text=text)
    assert written.startswith("| ") and written.endswith(" |") and "\n" not in written and "<" not in written
    assert not re.search(r"(?<!\\)[|`*\[$]", written[2:-2])
