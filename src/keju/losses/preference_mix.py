"""One or several preference losses by name, weighted: the file `losses/preference/<name>.py` is the loss."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType
from typing import Literal

from torch import Tensor

from keju.errors import UserError
from keju.losses import preference
from keju.losses.preference_pairs import LossSettings, PreferencePairs, Side


def loss_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(preference.__path__))


class PreferenceMix:
    """names: of files in `losses/preference/`; weights: one each, 1 by default.

    Such a file has `loss(pairs, settings) -> [P]` and may say: NEEDS_REFERENCE = False; SMOOTHED = True where
    settings.label_smoothing matters; NEEDS_SMOOTHING where it must be above 0; NEEDS_ALL_PAIRS where a pair's loss
    depends on the other pairs of the whole batch, NEEDS_MEAN_LENGTH where it does by Side.mean_length alone;
    `reward(side, settings) -> [P]`, the implicit reward, where it is not beta times the log-ratio. Raises UserError
    naming the flag.
    """

    def __init__(self, names: Sequence[str], weights: Sequence[float] | None, settings: LossSettings) -> None:
        for name in names:
            if name not in loss_names():
                raise UserError(f"{name}: choose from {', '.join(loss_names())}", option="loss_type")
        if not names:
            raise UserError("at least one", option="loss_type")
        self.weights = [1.0] * len(names) if weights is None else list(weights)
        if len(self.weights) != len(names):
            raise UserError(f"{len(self.weights)} for {len(names)} values of --loss_type", option="loss_weights")
        self.settings = settings
        self.losses = [importlib.import_module(f"{preference.__name__}.{name}") for name in names]
        shown, smoothing = " ".join(names), settings.label_smoothing
        if smoothing and not any(_says(loss, "SMOOTHED") for loss in self.losses):
            raise UserError(f"has no effect with --loss_type {shown}", option="label_smoothing")
        if not 0 <= smoothing < 0.5:
            raise UserError(f"must be at least 0 and below 0.5, got {smoothing}", option="label_smoothing")
        if not smoothing and any(_says(loss, "NEEDS_SMOOTHING") for loss in self.losses):
            raise UserError(f"{shown} needs --label_smoothing above 0 (1e-3, for sure labels)", option="loss_type")
        if settings.beta <= 0:
            raise UserError(f"must be above 0, got {settings.beta}", option="beta")

    @property
    def needs_reference(self) -> bool:
        return any(getattr(loss, "NEEDS_REFERENCE", True) for loss in self.losses)

    @property
    def facts_from(self) -> Literal["nothing", "batch", "model"]:
        """What the losses must know of other pairs; see Objective."""
        if any(_says(loss, "NEEDS_ALL_PAIRS") for loss in self.losses):
            return "model"
        return "batch" if any(_says(loss, "NEEDS_MEAN_LENGTH") for loss in self.losses) else "nothing"

    def __call__(self, pairs: PreferencePairs) -> Tensor:
        """[P]."""
        return sum(
            weight * loss.loss(pairs, self.settings) for weight, loss in zip(self.weights, self.losses, strict=True)
        )

    def reward(self, side: Side) -> Tensor:
        """The implicit reward of answers, [P], by the first loss."""
        own = getattr(self.losses[0], "reward", None)
        return own(side, self.settings) if own else self.settings.beta * side.log_ratio


def _says(loss: ModuleType, name: str) -> bool:
    return getattr(loss, name, False)
