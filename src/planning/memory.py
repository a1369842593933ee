"""Bytes of one device, and of CPU memory beside it, under a way to run: rehearsed, and divided as ZeRO divides it.

Without DeepSpeed all of it is what the rehearsal saw. Under DeepSpeed activations, logits and loss are the rehearsal's;
weights, gradients and optimizer state follow from the number of parameters (ZeRO, Rajbhandari et al. 2020, arXiv
1910.02054, section 3) and from the buffers that DeepSpeed takes under the configurations in examples/configs/deepspeed.
"""

from __future__ import annotations

from dataclasses import dataclass

from keju.planning.allocations import ACTIVATIONS, CACHE, FROZEN, GRADIENTS, KINDS, LOGITS, OPTIMIZER, PARAMETERS
from keju.planning.settings import Settings
from keju.planning.step import Rehearsal

BUFFERS = "DeepSpeed's buffers"
ROWS = (*KINDS, BUFFERS)
# Defaults of DeepSpeed (deepspeed/runtime/zero/config.py), in elements; its bucket of gradients is always of full size.
REDUCE_BUCKET, MAX_LIVE_PARAMETERS = 500_000_000, 1_000_000_000
MASTER_AND_MOMENTS = 3 * 4  # bytes a parameter: float32 weight and Adam's two moments


@dataclass(frozen=True)
class Memory:
    """Bytes by kind at the moment when a device holds most, and what the process keeps in CPU memory instead.

    phase: what the step does then.
    """

    phase: str
    device: dict[str, int]
    cpu: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return sum(self.device.values())


def memory(rehearsal: Rehearsal, settings: Settings, num_gpus: int) -> Memory:
    """rehearsal: of a step under these settings. num_gpus: processes, one a device."""
    return _sharded(rehearsal, settings, num_gpus) if settings.zero_stage else _whole(rehearsal, settings)


def _whole(rehearsal: Rehearsal, settings: Settings) -> Memory:
    """Everything on the device, but for frozen models that stay in CPU memory between their passes."""
    away = {name: size for name, size in rehearsal.frozen.items() if name in settings.offloaded}
    # One after the other they are on the device while they score.
    absent = {"scoring": sum(away.values()) - max(away.values(), default=0)}
    frozen = KINDS.index(FROZEN)
    best = None
    for moment in rehearsal.moments:
        size = sum(moment.sizes) - absent.get(moment.phase, sum(away.values()))
        if best is None or size > best[0]:
            best = size, moment
    _, moment = best
    sizes = list(moment.sizes)
    sizes[frozen] -= absent.get(moment.phase, sum(away.values()))
    return Memory(moment.phase, dict(zip(KINDS, sizes, strict=True)), away)


def _sharded(rehearsal: Rehearsal, settings: Settings, num_gpus: int) -> Memory:
    stage, width = settings.zero_stage, 2 if settings.bf16 else 4
    num_parameters, num_trained = rehearsal.num_parameters, rehearsal.num_trained
    share = -(-num_trained // num_gpus)
    device, cpu = dict.fromkeys(ROWS, 0), {}
    device[PARAMETERS] = num_parameters * width
    if stage == 3:
        device[PARAMETERS] = -(-num_parameters // num_gpus) * width
    device[OPTIMIZER] = share * MASTER_AND_MOMENTS
    device[GRADIENTS] = (share if stage >= 2 else num_trained) * width
    if settings.offload:
        cpu[OPTIMIZER] = device[OPTIMIZER]
        cpu[GRADIENTS] = share * 4  # float32, where the CPU's optimizer reads them
        device[OPTIMIZER] = 0
        device[GRADIENTS] = 0 if stage >= 2 else device[GRADIENTS]
        if stage == 3:
            cpu[PARAMETERS] = device[PARAMETERS]
            device[PARAMETERS] = 0
    # Whole layers that are gathered ahead of their use: DeepSpeed lets go of them above its limit.
    live = min(num_parameters, max(MAX_LIVE_PARAMETERS, 2 * rehearsal.largest_layer)) * width if stage == 3 else 0
    buckets = REDUCE_BUCKET * width * (2 if stage < 3 else 1)  # two take turns where communication overlaps

    kinds = [KINDS.index(kind) for kind in (ACTIVATIONS, LOGITS, CACHE)]
    passes = [moment for moment in rehearsal.moments if moment.phase != "optimizer"]
    moment = max(passes, key=lambda moment: sum(moment.sizes[kind] for kind in kinds))
    in_pass = device | {KINDS[kind]: moment.sizes[kind] for kind in kinds} | {BUFFERS: live + buckets}
    # At the optimizer's step the share of the gradients is there in float32 as well.
    in_step = device | {BUFFERS: buckets if stage == 3 else 0}
    if not settings.offload:
        in_step[GRADIENTS] += share * 4
    if sum(in_step.values()) > sum(in_pass.values()):
        return Memory("optimizer", in_step, cpu)
    return Memory(moment.phase, in_pass, cpu)
