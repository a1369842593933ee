"""The end of a run whose evaluations get no better (--early_stopping_patience)."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_utils import SaveStrategy


class EarlyStopping(EarlyStoppingCallback):
    """transformers' own, which says when it ends a run, and leaves a checkpoint that says so, too."""

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        pass  # the settings are looked at where they are parsed

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        super().on_evaluate(args, state, control, metrics or {}, **kwargs)
        if self.has_waited:
            control.should_save |= args.save_strategy != SaveStrategy.NO
            if args.should_save:
                print(
                    f"{args.metric_for_best_model} was no better in {self.early_stopping_patience} evaluations in a "
                    f"row: the run ends after step {state.global_step} of {state.max_steps}"
                )

    @property
    def has_waited(self) -> bool:
        return self.early_stopping_patience_counter >= self.early_stopping_patience


def has_stopped_early(callbacks: Sequence[TrainerCallback]) -> bool:
    """Whether a run that goes on from a checkpoint was at its end there."""
    return any(isinstance(callback, EarlyStopping) and callback.has_waited for callback in callbacks)
