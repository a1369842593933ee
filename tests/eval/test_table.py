from __future__ import annotations

from io import StringIO

from rich.console import Console

from keju.eval.table import print_results


def summary(**changes) -> dict:
    metrics = {name: {"value": value} for name, value in (("acc", 0.25), ("acc_norm", 0.3), ("acc_pmi", 0.375))}
    row = {"task": "idiom", "protocol": "instruction", "num_shots": 3, "num_items": 1000, "metric": "acc_pmi"}
    return {**row, "metrics": metrics, "interval": [0.3, 0.453], "chance": 0.25, **changes}


def test_everything_is_readable_in_80_columns():
    out = StringIO()
    rows = [summary(), summary(task="other", metrics={"acc": {"value": 0.5}}, metric="acc")]
    print_results(rows, "runs/sft", Console(file=out, width=80))
    text = out.getvalue()
    assert "…" not in text
    for cell in ("instruction", "1000", "25.0%", "30.0%", "37.5%", "30.0%-45.3%", "chance", "50.0%"):
        assert cell in text
