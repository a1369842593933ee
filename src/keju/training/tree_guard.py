"""The proof at the start of a run that a model computes token trees as it computes single rows.

A packed row of two trees, one of them with branches of different lengths, is compared with the rows that it stands for,
each by itself through the model's own forward pass and its own eager attention. A layer that carries a state along the
row, or that attends by rules of its own, differs there; training on such numbers would be a silent error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import nn
from transformers import PretrainedConfig

from keju.errors import UserError
from keju.models.architecture import row_limit
from keju.models.backbone import (
    backbone_of,
    check_head,
    num_embeddings,
    tree_hidden_states,
    tree_layout,
    tree_logprobs,
    unwrapped,
)
from keju.models.evaluating import evaluating
from keju.models.gathering import in_pieces, whole
from keju.models.prefix_lm import PrefixLM
from keju.training.stage_model import StageModel, autocast_of, model_inside, passes_of
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment

TRUNK, LONGEST_TRUNK = 9, 160
# Lengths that a configuration gives by such names are tried out, where they are short.
LENGTHS = ("window", "chunk", "block", "context", "kernel", "local", "topk", "top_k", "length")
# Of the largest number compared.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
NOT_FINITE = "numbers that are not finite"
HALF_TOLERANCE, HALF_MEAN_TOLERANCE = 0.1, 0.02


class Row(NamedTuple):
    """A row that the trees stand for. places: int64 [n], where its tokens stand in the pack. first: bool [n], tokens
    that no row before it has."""

    batch: PackedBatch
    places: torch.Tensor
    first: torch.Tensor


def verify_trees(model: nn.Module, *, gradients: bool = False) -> None:
    """Raises UserError, naming the kind of layer, unless values over trees equal those of single rows.

    model: a model, or what takes its passes (see StageModel; a DeepSpeed engine under ZeRO-3, where only values are
    compared). Log-probabilities of a language model, hidden states of a scalar model. gradients: also those of the
    embedded tokens, as training needs them.
    """
    passes = passes_of(model)
    inner = model_inside(passes)
    if not in_pieces(inner):
        # Engines prepare each pass with gradients for an optimizer step
        passes = StageModel(inner, autocast=autocast_of(passes))
    name = type(unwrapped(inner)).__name__
    try:
        check_head(inner)
    except UserError as error:
        raise UserError(f"{name}: {error}", option="model_name_or_path") from error
    try:
        trees, rows = _probe(inner)
        batch = PackedBatch.from_trees(trees)
        with _as_trained(inner):
            problem = _compare(passes, inner, batch, rows, gradients=gradients and not in_pieces(inner))
            if problem and problem != NOT_FINITE:
                kind = _first_that_differs(passes, inner, batch, rows)
                problem = f"its layers of kind {kind} compute {problem}" if kind else f"it computes {problem}"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever an architecture that is not made for this raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} does not compute token trees ({_raised_in(error) or name}: {reason}); this architecture is not "
            "supported",
            option="model_name_or_path",
        ) from error
    if problem == NOT_FINITE:
        precision = str(autocast_of(passes) or _dtype(inner)).removeprefix("torch.")
        why = "; its weights are broken" if precision == "float32" else f" in {precision}; try another precision"
        raise UserError(f"the model's own outputs are not finite{why}", option="model_name_or_path")
    if problem:
        raise UserError(f"{name}: {problem}; this architecture is not supported", option="model_name_or_path")


# -- what is compared --------------------------------------------------------------------------------------------------


def _probe(model: nn.Module) -> tuple[list[Segment], list[Row]]:
    """Two trees of random tokens within what the model can read, and their rows."""
    backbone, config = backbone_of(model), unwrapped(model).config
    text = config.get_text_config(decoder=True)
    limits = [limit.length for limit in (row_limit(config),) if limit]
    limits += [size for size in (getattr(text, "max_position_embeddings", None),) if isinstance(size, int) and size > 0]
    longest = min(limits, default=1 << 30)
    short = [
        value + 3
        for key, value in text.to_dict().items()
        if isinstance(value, int) and any(word in key for word in LENGTHS) and value + 3 <= LONGEST_TRUNK
    ]
    end = list(backbone.context_end) if isinstance(backbone, PrefixLM) else []
    trunk = max(1, min(max(TRUNK, *short, 1), longest - 8) - len(end))
    part = max(1, min(5, (longest - trunk - len(end)) // 2))
    taken = _special_ids(config)
    num_tokens = num_embeddings(model)
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        found: list[int] = []
        while len(found) < count:
            drawn = torch.randint(num_tokens, (4 * count + 64,), generator=generator).tolist()
            found += [index for index in drawn if index not in taken] or drawn
        return found[:count]

    def context(count: int) -> Segment:
        return Segment([*ids(count), *end], trained=not end)

    deep = Segment(ids(max(1, part - 2)), True, [Segment(ids(part), True), Segment(ids(max(1, part - 1)), True)])
    first = context(trunk)
    first.branches = [Segment(ids(part), True), deep, Segment(ids(1), True)]
    second = context(max(1, trunk // 2))
    second.branches = [Segment(ids(part), True)]
    trees = [first, second]
    return trees, list(_rows(trees))


def _rows(trees: list[Segment]) -> Iterator[Row]:
    place = 0
    seen: set[int] = set()

    def walk(segment: Segment, ids: list[int], flags: list[bool], places: list[int]) -> Iterator[Row]:
        nonlocal place
        ids, flags = ids + list(segment.tokens), flags + segment.trained_flags
        places = places + list(range(place, place + len(segment.tokens)))
        place += len(segment.tokens)
        if not segment.branches:
            batch = PackedBatch.from_trees([Segment(ids, trained=flags)])
            yield Row(batch, torch.tensor(places), torch.tensor([index not in seen for index in places]))
            seen.update(places)
        for branch in segment.branches:
            yield from walk(branch, ids, flags, places)

    for tree in trees:
        yield from walk(tree, [], [], [])


def _special_ids(config: PretrainedConfig) -> set[int]:
    fields = config.get_text_config(decoder=True).to_dict()
    values = [value for key, value in fields.items() if key.endswith("token_id")]
    return {index for value in values for index in (value if isinstance(value, list) else [value]) if index is not None}


def _compare(passes: nn.Module, model: nn.Module, batch: PackedBatch, rows: list[Row], *, gradients: bool) -> str:
    """What is wrong, or nothing."""
    is_scalar = unwrapped(model).get_output_embeddings() is None
    ours, theirs = (tree_hidden_states, _own_hidden) if is_scalar else (_tree_values, _own_values)
    dtype = autocast_of(passes) or _dtype(model)
    if getattr(unwrapped(model), "hf_quantizer", None) is not None and dtype not in (torch.bfloat16, torch.float16):
        dtype = torch.bfloat16  # 4-bit layers multiply in their own precision
    with torch.set_grad_enabled(gradients), _embedded(model, gradients) as embedded:
        values = passes(batch, ours).float()
        weights = torch.cos(torch.arange(values.numel(), device=values.device)).view_as(values)
        tree_gradient = _gradient((values * weights).sum(), embedded) if gradients else None
    row_gradient = torch.zeros_like(tree_gradient) if gradients else None
    index_of = {int(place): index for index, place in enumerate(batch.token_index)}
    for row in rows:
        if is_scalar:
            numbers, counted = row.places, row.first
        else:
            places = row.places[row.batch.token_index]
            numbers = torch.tensor([index_of[int(place)] for place in places])
            counted = row.first[row.batch.token_index]
        with _eager(model), torch.set_grad_enabled(gradients), _embedded(model, gradients) as embedded:
            own = passes(row.batch, theirs).float()
            if gradients:
                loss = (own * weights[numbers])[counted].sum()
                row_gradient[row.places.to(row_gradient.device)] += _gradient(loss, embedded)
        if not own.isfinite().all():
            return NOT_FINITE
        wrong = _difference(values.detach()[numbers], own.detach(), dtype)
        if wrong is not None:
            what = "hidden states" if is_scalar else "log-probabilities"
            return f"other {what} over token trees than over single rows (difference {wrong:.2g})"
    if gradients:
        wrong = _difference(tree_gradient, row_gradient, dtype, offset=0)
        if wrong is not None:
            return f"other gradients over token trees than over single rows (difference {wrong:.2g})"
    return ""


def _difference(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, offset: float = 1.0) -> float | None:
    """The largest difference, where it is more than rounding."""
    difference = (found - expected).abs()
    scale = offset + expected.abs().max().item()
    largest, mean = difference.max().item(), difference.mean().item()
    if dtype in TOLERANCE:
        fits = largest <= TOLERANCE[dtype] * scale
    else:
        fits = largest <= HALF_TOLERANCE * scale and mean <= HALF_MEAN_TOLERANCE * scale
    return None if fits else largest


def _dtype(model: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def _tree_values(model: nn.Module, batch: PackedBatch) -> torch.Tensor:
    return tree_logprobs(model, batch).logprobs


def _own_inputs(model: nn.Module, batch: PackedBatch) -> dict[str, torch.Tensor]:
    backbone = backbone_of(model)
    inputs = {"input_ids": batch.input_ids}
    if isinstance(backbone, PrefixLM):
        inputs["position_ids"] = tree_layout(backbone, batch)[0]
        inputs["attention_mask"] = torch.ones_like(batch.input_ids)
    return inputs


def _own_values(model: nn.Module, batch: PackedBatch) -> torch.Tensor:
    """Log-probabilities of a batch of one row, by the model's own forward pass."""
    logits = model(**_own_inputs(model, batch), use_cache=False).logits[0]
    logprobs = logits[batch.source].float().log_softmax(-1)
    return logprobs.gather(-1, batch.target[:, None]).squeeze(-1)


def _own_hidden(model: nn.Module, batch: PackedBatch) -> torch.Tensor:
    return backbone_of(model)(**_own_inputs(model, batch), use_cache=False).last_hidden_state[0]


# -- the state of the model meanwhile ----------------------------------------------------------------------------------


@contextmanager
def _as_trained(model: nn.Module) -> Iterator[None]:
    """No dropout; adapters that change nothing yet change something; no weight gets a gradient. All is put back.

    What is trained beside a frozen base starts as if it were not there: a B of zeros, lengths that are those of the
    weights, copies of whole layers. A pass that leaves one of them out would compute the same.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    idle = trained if hasattr(model, "peft_config") else []
    with whole(idle):
        before = [parameter.detach().clone() for parameter in idle]
    generator = torch.Generator().manual_seed(1)
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with whole(idle, write=True):
            for parameter in idle:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.data.add_(0.02 * noise)
        with evaluating(model):
            yield
    finally:
        with whole(idle, write=True):
            for parameter, values in zip(idle, before, strict=True):
                parameter.data.copy_(values)
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """The model's own attention, as its authors wrote it down."""
    configs: dict[int, PretrainedConfig] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            configs[id(config)] = config
    before = [(config, config._attn_implementation_internal) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation_internal = "eager"
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name


@contextmanager
def _embedded(model: nn.Module, watched: bool) -> Iterator[list[torch.Tensor]]:
    """Collects the embedded tokens of a forward pass, as leaves for gradients."""
    found: list[torch.Tensor] = []

    def keep(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        leaf = output.detach().requires_grad_()
        found.append(leaf)
        return leaf

    if not watched:
        yield found
        return
    handle = unwrapped(model).get_input_embeddings().register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def _gradient(loss: torch.Tensor, embedded: list[torch.Tensor]) -> torch.Tensor:
    """float32 [T, H]"""
    (gradient,) = torch.autograd.grad(loss, embedded[:1])
    return gradient.float().reshape(-1, gradient.shape[-1])


# -- which layer it is -------------------------------------------------------------------------------------------------


@torch.no_grad()
def _first_that_differs(passes: nn.Module, model: nn.Module, batch: PackedBatch, rows: list[Row]) -> str:
    """The class of the first part of a layer whose outputs over the trees are not those over the rows."""

    def outputs(read: Callable) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        with ExitStack() as stack:
            for name, part in parts.items():

                def keep(module, args, output, name=name):
                    first = output[0] if isinstance(output, tuple) else output
                    if isinstance(first, torch.Tensor):
                        found.setdefault(name, first.float().reshape(-1, first.shape[-1]))

                stack.callback(part.register_forward_hook(keep).remove)
            passes(read[0], read[1])
        return found

    parts: dict[str, nn.Module] = {}
    for name, module in backbone_of(model).named_modules():
        if isinstance(module, nn.ModuleList):
            for index, layer in enumerate(module):
                parts |= {f"{name}.{index}.{child}": part for child, part in layer.named_children()}
    trees = outputs((batch, tree_hidden_states))
    singles = []
    for row in rows:
        with _eager(model):
            singles.append((row, outputs((row.batch, _own_hidden))))
    for name, ours in trees.items():
        for row, found in singles:
            own = found.get(name)
            if own is None or len(own) != len(row.places) or len(ours) != batch.num_tokens:
                continue
            if (ours[row.places] - own).abs().max() > 1e-3 * (1e-6 + own.abs().max()):
                return type(parts[name]).__name__
    return ""


def _raised_in(error: BaseException) -> str:
    """The class of the innermost module whose forward raised."""
    kind, trace = "", error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and not type(module).__module__.startswith("torch."):
            kind = type(module).__name__
        trace = trace.tb_next
    return kind
