"""OCNLI (arXiv 2010.05444): natural language inference, written in Chinese.

`dev.json`; shots from `train.json`, or one of the sizes it is published in. Rows with the label "-" do not count.
"""

from __future__ import annotations

from keju.eval.clue import Inference, clue_folders


class OCNLI(Inference):
    version = 1
    folders = clue_folders("ocnli")
    training_files = ("train.json", *(f"train.{size}.json" for size in ("50k", "30k", "10k", "3k")))


TASK = OCNLI()
