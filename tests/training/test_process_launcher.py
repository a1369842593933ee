"""What is refused before the launcher of several processes starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
LAUNCHER = REPO / "src/keju/training/process_launcher.py"


def refusal(*flags) -> str:
    """Of a launcher that would print what it was given."""
    command = [sys.executable, LAUNCHER, "echo", *flags, "--module", "keju.x", "--hostfile", "of the stage"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    if done.returncode == 0:
        assert not done.stderr and "keju.x" in done.stdout
        return ""
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    return line


def test_hosts_that_are_not_there(tmp_path):
    assert refusal("--hostfile", "/nowhere") == "error: HOSTFILE=/nowhere: No such file or directory"
    assert refusal("--hostfile", tmp_path) == f"error: HOSTFILE={tmp_path}: Is a directory"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("node1 slots=8\nnode2 slots=8  # the new one\n\n# node3 slots=8\n", ""),
        ("node1 slots=8\nnode2\n", "{file}:2: expected a host and its GPUs, as in `node1 slots=8`, got 'node2'"),
        (
            "node1 slots=eight\n",
            "{file}:1: expected a host and its GPUs, as in `node1 slots=8`, got 'node1 slots=eight'",
        ),
        ("node1 slots=0\n", "{file}:1: expected a host and its GPUs, as in `node1 slots=8`, got 'node1 slots=0'"),
        ("node1:8\n", "{file}:1: expected a host and its GPUs, as in `node1 slots=8`, got 'node1:8'"),
        ("node1 slots=8\nnode1 slots=4\n", "{file}:2: node1 is named twice"),
        ("# nobody\n", "HOSTFILE={file}: names no host"),
        ("\udcff slots=8", "HOSTFILE={file}: not UTF-8"),
    ],
)
def test_what_a_file_of_hosts_says(tmp_path, text, said):
    file = tmp_path / "hosts"
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    assert refusal("--hostfile", file) == (said and f"error: {said.format(file=file)}")


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
def test_what_is_no_port(port):
    assert refusal("--master_port", port) == f"error: MASTER_PORT={port}: not the number of a port"


def test_a_port_that_another_program_has():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        line = refusal("--master_port", port)
    assert line == f"error: MASTER_PORT={port}: Address already in use; give another number"
    assert refusal("--master_port", port) == ""


@pytest.mark.parametrize("variables", [{"HOSTFILE": "/nowhere"}, {"HOSTFILE": "/nowhere", "NUM_GPUS": "1"}])
def test_hosts_are_never_left_aside(variables):
    """Without NUM_GPUS, too: a run on this machine alone is not what was asked for."""
    script = 'source "$0/examples/_environment.sh"; run_stage train_sft'
    environment = {name: value for name, value in os.environ.items() if name not in ("NUM_GPUS", "DEEPSPEED_CONFIG")}
    done = subprocess.run(
        ["bash", "-c", script, str(REPO)], env=environment | variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stderr == "error: HOSTFILE=/nowhere: No such file or directory\n"
