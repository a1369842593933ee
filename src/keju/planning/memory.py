"""Bytes of one device, and of CPU memory beside it, under a way to run.

Without DeepSpeed all of it is what the rehearsal saw; under DeepSpeed see keju.planning.zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from keju.planning.allocations import FROZEN, KINDS
from keju.planning.settings import Settings
from keju.planning.step import Rehearsal
from keju.planning.zero import BUFFERS, sharded

ROWS = (*KINDS, BUFFERS)


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
    return Memory(*sharded(rehearsal, settings, num_gpus)) if settings.zero_stage else _whole(rehearsal, settings)


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
