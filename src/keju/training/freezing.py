"""Which weights of a model are trained, by their names or by the number of their layer."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from keju.errors import UserError
from keju.models.architecture import layers_of
from keju.models.backbone import unwrapped


@dataclass(frozen=True)
class Freezing:
    """freeze: globs of names of weights that rest; unfreeze: of those among them that are trained all the same. The
    first and the last layers of the model that rest, in numbers of layers."""

    freeze: Sequence[str] = ()
    unfreeze: Sequence[str] = ()
    first_layers: int = 0
    last_layers: int = 0

    def __bool__(self) -> bool:
        return bool(self.freeze or self.first_layers or self.last_layers)

    def apply(self, model: nn.Module, *, what: str = "the model") -> None:
        """Lets what is frozen rest, and says how much is trained. The names are those of `named_parameters`; a weight
        that has several, as a tied head, rests where one of them is meant.

        Raises UserError naming the flag for a glob that means nothing in this model, for more layers than there are,
        and where nothing is left to train.
        """
        if not self:
            return
        named = [
            (name, parameter)
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if parameter.requires_grad
        ]
        resting: set[int] = set()
        for pattern in self.freeze:
            resting |= _meant(pattern, named, "--freeze")
        for layer in self._layers(model):
            resting |= {id(parameter) for parameter in layer.parameters()}
        for pattern in self.unfreeze:
            resting -= _meant(pattern, named, "--unfreeze")
        weights = {id(parameter): parameter for _, parameter in named}
        total = sum(_size(parameter) for parameter in weights.values())
        for key, parameter in weights.items():
            parameter.requires_grad_(key not in resting)
        trained = sum(_size(parameter) for parameter in weights.values() if parameter.requires_grad)
        if not trained:
            raise UserError("--freeze: nothing is left to train")
        print(f"Trained of {what}: {trained:,} of {total:,} weights ({trained / total:.1%}).")

    def _layers(self, model: nn.Module) -> list[nn.Module]:
        layers = list(layers_of(unwrapped(model)))
        if max(self.first_layers, self.last_layers) > len(layers):
            flag = "first" if self.first_layers > len(layers) else "last"
            raise UserError(f"--freeze_{flag}_layers: {type(unwrapped(model)).__name__} has {len(layers)} layers")
        return [*layers[: self.first_layers], *layers[len(layers) - self.last_layers :]]


def _meant(pattern: str, named: Sequence[tuple[str, nn.Parameter]], flag: str) -> set[int]:
    matches = re.compile(fnmatch.translate(pattern)).match
    found = {id(parameter) for name, parameter in named if matches(name)}
    if not found:
        examples = ", ".join(dict.fromkeys(name for name, _ in (named[0], named[len(named) // 2], named[-1])))
        raise UserError(f"{flag} {pattern}: no weight has such a name; they are called {examples}")
    return found


def _size(parameter: nn.Parameter) -> int:
    """Also of one that ZeRO-3 keeps in pieces."""
    return getattr(parameter, "ds_numel", None) or parameter.numel()
