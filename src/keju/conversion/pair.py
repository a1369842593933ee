"""Two architectures with the same arithmetic under different names, and the tensors of one from those of the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from keju.errors import UserError

LAYER = re.compile(r"\.(\d+)\.")


def unchanged(name: str, tensor: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    return tensor


@dataclass(frozen=True)
class Pair:
    """`ours`, the config class of one of our families, and `theirs`, of transformers.

    modules: names of modules of ours, "*" for the number of a layer, to the one or, for a packed projection, the query,
    key and value of theirs; a module that is not listed has the same name in both. to_theirs, to_ours: the config of
    one from that of the other, or UserError with the reason why their arithmetic differs. adjust(name, tensor, config
    of ours): a tensor of theirs, where it is more than a part of ours.
    """

    ours: type[PreTrainedConfig]
    theirs: type[PreTrainedConfig]
    modules: dict[str, tuple[str, ...]]
    to_theirs: Callable[[PreTrainedConfig], PreTrainedConfig]
    to_ours: Callable[[PreTrainedConfig], PreTrainedConfig]
    adjust: Callable[[str, torch.Tensor, PreTrainedConfig], torch.Tensor] = unchanged


class Converted(Mapping[str, torch.Tensor]):
    """The tensors `names` of the one architecture, made when asked for from those of the other, `source`.

    forward: from ours (whose config is `ours`) to theirs, else back.
    """

    def __init__(
        self,
        source: Mapping[str, torch.Tensor],
        names: Sequence[str],
        pair: Pair,
        *,
        ours: PreTrainedConfig,
        theirs: PreTrainedConfig,
        forward: bool,
    ) -> None:
        self.source = source
        self.pair = pair
        self.ours = ours
        self.forward = forward
        heads, groups = theirs.num_attention_heads, theirs.num_key_value_heads
        self.shares = (heads, groups, groups)
        self.parts = {name: (own, i) for own, names in pair.modules.items() for i, name in enumerate(names)}
        self.made_from = {name: self._made_from(name) for name in names}

    def unused(self) -> list[str]:
        """Tensors of the source that no tensor here is made from."""
        used = {name for sources, _ in self.made_from.values() for name in sources}
        return sorted(set(self.source) - used)

    def __getitem__(self, name: str) -> torch.Tensor:
        sources, part = self.made_from[name]
        for key in sources:
            if key not in self.source:
                raise UserError(f"the checkpoint lacks {key}, which {name} is made from")
        tensor = torch.cat([self.source[key] for key in sources]) if len(sources) > 1 else self.source[sources[0]]
        if part is not None:
            unit = len(tensor) // sum(self.shares)
            tensor = tensor.split([share * unit for share in self.shares])[part]
        return self.pair.adjust(name, tensor, self.ours) if self.forward else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.made_from)

    def __len__(self) -> int:
        return len(self.made_from)

    def _made_from(self, name: str) -> tuple[tuple[str, ...], int | None]:
        """(tensors of the source, which part of it where it is packed)"""
        module, _, kind = name.rpartition(".")
        layer = LAYER.search(module)
        pattern = LAYER.sub(".*.", module, count=1)
        part = None
        if not self.forward:
            found = self.pair.modules.get(pattern, (pattern,))
        elif pattern in self.parts:
            own, part = self.parts[pattern]
            found, part = (own,), part if len(self.pair.modules[own]) > 1 else None
        else:
            found = (pattern,)
        number = layer.group(1) if layer else "*"
        return tuple(f"{each.replace('*', number)}.{kind}" for each in found), part


def require(config: PreTrainedConfig, target: str, **values) -> None:
    """Raises UserError for a field of `config` without the one value that `target` has built in."""
    for field, value in values.items():
        if getattr(config, field) != value:
            raise UserError(f"config.json: {field} is {getattr(config, field)}, but {target} has only {value}")


def shared_fields(config: PreTrainedConfig, *names: str) -> dict:
    """Fields that both sides call the same."""
    common = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "initializer_range",
        "use_cache",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "tie_word_embeddings",
    )
    return {name: getattr(config, name) for name in (*common, *names)}
