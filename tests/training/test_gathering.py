"""Generation where ZeRO-3 keeps weights in pieces: gathered once a phase, by ranks that generate differently long."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from free_port import free_port

from keju.models.gathering import gathered


def test_a_plain_model_has_nothing_to_gather():
    from tiny_models import build_llama

    with gathered(build_llama()):
        pass


@pytest.mark.slow
def test_zero3_gathers_once_a_phase(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    script = Path(__file__).with_name("zero3_generation.py")
    command = ["deepspeed", "--num_gpus", "2", "--master_port", free_port(), str(script), str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=400)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["equal"]  # the tokens of a model that is whole
        assert found["held_before"] == found["held_after"] == 0 < found["whole"]  # in pieces before and after
        # Once all weights (padded to equal pieces), for 4 tokens and for 12: not once a token.
        assert found["whole"] <= found["gathered"] < 1.2 * found["whole"]
        assert found["loss_after"] < found["loss"]
