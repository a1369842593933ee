"""The states that DeepSpeed pickles, looked at before DeepSpeed, which runs whatever they say, reads them."""

from __future__ import annotations

from pathlib import Path

from torch.serialization import get_unsafe_globals_in_checkpoint

from keju.errors import UserError

# What DeepSpeed's own files hold beside tensors and plain values.
KNOWN = frozenset(
    {
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    }
)


def check_states(folder: Path) -> None:
    """Raises UserError for a state of DeepSpeed anywhere in `folder` that names other code than its own.

    The pickles are taken apart, not run.
    """
    for path in sorted(folder.rglob("*_states.pt")):
        try:
            strange = sorted(set(get_unsafe_globals_in_checkpoint(path)) - KNOWN)
        except Exception as error:  # of many ways of being no checkpoint
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{path}: damaged, or no state of DeepSpeed: {reason}") from error
        if strange:
            raise UserError(f"{path}: holds {strange[0]}, which is code and no state: it was not run")
