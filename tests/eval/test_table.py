from __future__ import annotations

from io import StringIO

from rich.console import Console

from keju.eval.table import print_results


def summary(**changes) -> dict:
    row = {"task": "idiom", "protocol": "instruction", "num_shots": 3, "num_items": 1000, "metric": "acc_pmi"}
    return {**row, "accuracy": 0.375, "interval": [0.3, 0.453], "chance": 0.25, "choice_mass": 0.017, **changes}


def test_everything_is_readable_in_80_columns():
    out = StringIO()
    parts = {name: {"value": 0.123} for name in ("STEM", "Social Science", "Humanities", "Other")}
    exam = {"categories": parts, "subsets": {"China specific": {"value": 0.456}}}
    rows = [
        summary(),
        summary(task="cluewsc2020", num_items=14042, metric="acc_token", accuracy=1.0, interval=[0.995, 1.0]),
        summary(task="cmmlu", protocol="official", metric="acc", **exam),
        summary(task="cmrc2018", metric="f1", accuracy=0.5, chance=None),
        summary(task="ceval", accuracy=None, interval=None),
    ]
    print_results(rows, "runs/sft", Console(file=out, width=80))
    text = out.getvalue()
    assert "…" not in text
    for cell in ("instruction", "14042", "25.0%", "37.5%", "30.0%-45.3%", "chance", "50.0%", "1.7%", "12.3%", "45.6%"):
        assert cell in text
