"""What a process holds under DeepSpeed: the rehearsal's activations, and weights, gradients and optimizer state as ZeRO
divides them.

The shares follow from the numbers of parameters (ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054, section 3), buffers
from the configuration file and from what deepspeed/runtime/zero does with it. Bytes throughout.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

from keju.planning.allocations import ACTIVATIONS, CACHE, FROZEN, GRADIENTS, KINDS, LOGITS, OPTIMIZER, PARAMETERS
from keju.planning.settings import REFERENCE, Settings
from keju.planning.step import Counts, Rehearsal
from keju.training.yaml_config import CONFIGS

BUFFERS = "DeepSpeed's buffers"
FLOAT32 = 4
PASSES = tuple(KINDS.index(kind) for kind in (ACTIVATIONS, LOGITS, CACHE))


@dataclass(frozen=True)
class ZeroConfig:
    """Sizes in elements; without a word in the file they are those of deepspeed/runtime/zero/config.py."""

    reduce_bucket_size: int = 500_000_000
    overlap_comm: bool = False
    sub_group_size: int = 1_000_000_000
    stage3_prefetch_bucket_size: int = 50_000_000
    stage3_max_live_parameters: int = 1_000_000_000
    stage3_max_reuse_distance: int = 1_000_000_000

    @classmethod
    def read(cls, path: str) -> ZeroConfig:
        """path: from examples/configs, where it is not absolute."""
        section = json.loads((CONFIGS / path).read_text(encoding="utf-8")).get("zero_optimization", {})
        given = {item.name: section.get(item.name, "auto") for item in fields(cls)}
        return cls(**{name: type(getattr(cls, name))(value) for name, value in given.items() if value != "auto"})


def sharded(rehearsal: Rehearsal, settings: Settings, num_processes: int) -> tuple[str, dict[str, int], dict[str, int]]:
    """-> phase in which a device holds most, what it holds then by kind, what the process keeps in CPU memory."""
    config, stage, width = ZeroConfig.read(settings.deepspeed_config), settings.zero_stage, settings.width
    device, cpu = _held(rehearsal, settings, num_processes)
    away = _frozen(rehearsal, settings, stage == 3 and num_processes)
    scored = max((size for name, size in away.items() if name in settings.offloaded), default=0)
    best = None
    for moment in rehearsal.moments:
        if moment.phase == "optimizer":
            continue
        found = device | {KINDS[kind]: moment.sizes[kind] for kind in PASSES}
        found[BUFFERS] = buffers(rehearsal.engines, config, stage, moment.phase) * width
        if moment.phase == "scoring":
            found[FROZEN] += scored  # one after the other they are on the device
        if best is None or sum(found.values()) > sum(best[1].values()):
            best = moment.phase, found
    found = dict(device)
    found[BUFFERS] = buffers(rehearsal.engines, config, stage, "optimizer") * width
    if not settings.offload:
        # Of ZeRO-1, too: what others will step is let go of first.
        found[GRADIENTS] = sum(-(-engine.trained // num_processes) for engine in rehearsal.engines) * width
        found[GRADIENTS] += max(_step(engine, config, settings, num_processes) for engine in rehearsal.engines)
        found[ACTIVATIONS] = max(
            FLOAT32 * rehearsal.step_temporaries * _subgroup(engine, config, stage, num_processes)
            for engine in rehearsal.engines
        )
    if sum(found.values()) > sum(best[1].values()):
        best = "optimizer", found
    return *best, cpu


def _held(rehearsal: Rehearsal, settings: Settings, num_processes: int) -> tuple[dict[str, int], dict[str, int]]:
    """On the device, and in CPU memory, in every phase."""
    stage, width = settings.zero_stage, settings.width
    share = sum(-(-engine.trained // num_processes) for engine in rehearsal.engines)
    device, cpu = dict.fromkeys((*KINDS, BUFFERS), 0), {}
    device[PARAMETERS] = rehearsal.num_parameters * width
    if stage == 3:
        device[PARAMETERS] = -(-rehearsal.num_parameters // num_processes) * width
    device[OPTIMIZER] = share * 3 * FLOAT32  # the float32 weight, Adam's two moments
    device[GRADIENTS] = (share if stage >= 2 else rehearsal.num_trained) * width
    frozen = _frozen(rehearsal, settings, stage == 3 and num_processes)
    cpu |= {name: size for name, size in frozen.items() if name in settings.offloaded}
    device[FROZEN] = sum(frozen.values()) - sum(cpu.values())
    if settings.offload:
        cpu[OPTIMIZER] = device[OPTIMIZER]
        cpu[GRADIENTS] = share * FLOAT32  # where the CPU's optimizer reads them
        device[OPTIMIZER] = 0
        device[GRADIENTS] = 0 if stage >= 2 else device[GRADIENTS]
        if stage == 3:
            cpu[PARAMETERS], cpu[FROZEN] = device[PARAMETERS], device[FROZEN]
            device[PARAMETERS] = device[FROZEN] = 0
    return device, {name: size for name, size in cpu.items() if size}


def _frozen(rehearsal: Rehearsal, settings: Settings, pieces: int) -> dict[str, int]:
    """Of each frozen model that has weights of its own. pieces: 0 for whole ones."""
    own = {name: size for name, size in rehearsal.frozen.items() if not (settings.share_base and name == REFERENCE)}
    return {name: -(-size // max(pieces, 1)) for name, size in own.items()}


def buffers(engines: tuple[Counts, ...], config: ZeroConfig, stage: int, phase: str) -> int:
    """Elements that DeepSpeed takes in a phase beside the shares."""
    if stage < 3:
        # They come with the first gradient of a backward pass and go with the last.
        return config.reduce_bucket_size * (1 + config.overlap_comm) if phase == "backward" else 0
    kept = len(engines) * config.reduce_bucket_size
    if phase == "optimizer":
        return kept
    if phase == "rollout":
        return kept + engines[0].all
    largest = max(engines, key=lambda engine: engine.all)
    ahead = max(config.stage3_prefetch_bucket_size, largest.largest_tensor)
    # Gathered pieces lie in one buffer, from which they are copied together.
    kept += min(ahead, largest.all)
    # Every module that is called fetches a bucket more ahead, until so many parameters are there.
    live = config.stage3_max_live_parameters
    if phase != "scoring":
        # A layer is kept where its backward pass is no further away: so much of the model's end, and the layer in use.
        live = max(live, config.stage3_max_reuse_distance // 2 + largest.largest_layer)
    live += largest.largest_tensor  # the one that goes above the limit
    kept += min(live, largest.all)
    if phase == "backward":
        kept += min(config.reduce_bucket_size, largest.all)  # the bucket again, ordered by process
    return kept


def _subgroup(engine: Counts, config: ZeroConfig, stage: int, num_processes: int) -> int:
    """Parameters that the optimizer steps at once."""
    share = -(-engine.trained // num_processes)
    return min(share, config.sub_group_size) if stage == 3 else share


def _step(engine: Counts, config: ZeroConfig, settings: Settings, num_processes: int) -> int:
    """Gradients at the optimizer's step beside the shares: one flat copy, and that in float32 where it is another."""
    parameters = _subgroup(engine, config, settings.zero_stage, num_processes)
    return parameters * (settings.width + (FLOAT32 if settings.width != FLOAT32 else 0))
