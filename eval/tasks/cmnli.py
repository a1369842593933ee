"""CMNLI: natural language inference, translated from MultiNLI and XNLI.

`dev.json`, shots from `train.json`. Rows with the label "-" do not count.
"""

from __future__ import annotations

from keju.eval.clue import Inference, clue_folders


class CMNLI(Inference):
    version = 1
    folders = clue_folders("cmnli")


TASK = CMNLI()
