"""What can become what: the files of `pairs/`, each with the two architectures of a PAIR."""

from __future__ import annotations

import importlib
import pkgutil

from transformers import PreTrainedConfig

import keju.conversion.pairs
from keju.conversion.pair import Pair
from keju.errors import UserError
from keju.models.chatglm import ChatGLMConfig
from keju.models.glm import GLMConfig
from keju.models.pangu import PanguConfig

# Families that no class of transformers computes, with the reason.
WITHOUT_EQUAL = {
    ChatGLMConfig: "ChatGLM-6B reads its context in both directions, with two positions for each token",
    GLMConfig: "GLM reads its context in both directions, with two positions for each token",
    PanguConfig: "Pangu has a query of its own for the next position in its last layer",
}


def find_pair(config: PreTrainedConfig, to: str) -> tuple[Pair, bool]:
    """The pair that makes a `to` of a model with this config, and whether that is the way from ours to theirs.

    Raises UserError, with the reason, where there is none.
    """
    names = [module.name for module in pkgutil.iter_modules(keju.conversion.pairs.__path__)]
    pairs = [importlib.import_module(f"keju.conversion.pairs.{name}").PAIR for name in sorted(names)]
    ways = []
    for pair in pairs:
        for origin, target, forward in ((pair.ours, pair.theirs, True), (pair.theirs, pair.ours, False)):
            if type(config) is origin and target.model_type == to:
                return pair, forward
            ways.append(f"{origin.__name__.removesuffix('Config')} to {target.model_type}")
    reason = WITHOUT_EQUAL.get(type(config), f"there is {', '.join(ways)}")
    raise UserError(f"{to}: no exact equal of {type(config).__name__.removesuffix('Config')}: {reason}", option="to")
