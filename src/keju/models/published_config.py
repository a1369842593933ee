"""What all configs of our families do with the fields of a published config.json."""

from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar


class PublishedConfig:
    """Mixed into a PreTrainedConfig, in front of it."""

    auto_map: ClassVar = MappingProxyType({})  # TRL asks configs for it whose class is not in transformers

    def __post_init__(self, **kwargs):
        # A published auto_map names code to download: it is neither followed nor passed on to the folders we save.
        kwargs.pop("auto_map", None)
        kwargs.pop("model_type", None)
        super().__post_init__(**kwargs)
