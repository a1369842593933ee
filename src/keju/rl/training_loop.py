"""The rollouts of a PPO run: each logged, drawn and watched; checkpoints, alarms and steps back."""

import time
from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedTokenizerBase

from keju.records.journal import Journal
from keju.rl.checkpoint import load_checkpoint, save_checkpoint
from keju.rl.health import Alarm, HealthMonitor
from keju.rl.ppo_trainer import PPOTrainer
from keju.rl.samples import print_samples, sample_rows
from keju.training.checkpoints import checkpoints
from keju.training.crash import MissingEos
from keju.training.plots import plot_panels
from keju.training.progress import Progress, describe
from keju.training.run_folder import RunFolder
from keju.training.stopping import Stopped, stop_asked, stopping_gracefully

PANELS = {
    "reward (score of the reward model)": ("reward", "judge"),
    "KL to the start (nats a response)": ("kl",),
    "entropy (nats a token)": ("entropy",),
    "response length (tokens)": ("response_length",),
    "clipped (share)": ("clip_fraction", "value_clip_fraction"),
    "explained variance of the critic": ("explained_variance",),
    "ended by themselves (share)": ("fraction_finished",),
    "diversity": ("distinct_1", "distinct_2", "repetition"),
}
SECONDS_BETWEEN_DRAWINGS = 30
MAX_ROLLBACKS = 3


@dataclass
class TrainingLoop:
    """on_alarm: "warn" only says so; "stop" ends the run; "rollback" goes back to a checkpoint from before the trouble,
    with twice the KL coefficient. save_steps 0: no checkpoints; else the last step has one, too.
    """

    trainer: PPOTrainer
    tokenizer: PreTrainedTokenizerBase
    folder: RunFolder
    monitor: HealthMonitor
    on_alarm: Literal["warn", "stop", "rollback"] = "warn"
    save_steps: int = 0
    save_total_limit: int = 2
    allow_unfinished: bool = False
    alarms: list[dict] = field(default_factory=list, init=False)  # the rows of alarms.jsonl
    _saved_step: int | None = field(default=None, init=False)

    def run(self) -> None:
        """All steps that are left."""
        trainer, folder = self.trainer, self.folder
        rows = list(folder.metrics.read()) if folder.checkpoint else []  # of the run that is resumed
        if folder.checkpoint:
            self._recall(rows)
        logged = rows[-1] if rows else {}
        unfinished, num_tokens = 0, logged.get("num_tokens", 0)
        start = time.perf_counter() - logged.get("elapsed", 0.0)
        drawn = time.perf_counter()
        if self.on_alarm == "rollback" and not trainer.step:
            folder.begin()
            self._save()  # there is always a place to go back to
        with stopping_gracefully(), Progress(trainer.max_steps, "rlhf", unit="rollouts", done=trainer.step) as bar:
            while trainer.step < trainer.max_steps:
                experience, metrics = trainer.train_step()
                num_tokens += metrics["num_tokens"]
                row = {
                    "step": trainer.step,
                    "loss": metrics["policy_loss"],
                    "learning_rate": metrics["actor_learning_rate"],
                }
                row |= metrics | {"num_tokens": num_tokens, "elapsed": round(time.perf_counter() - start, 3)}
                folder.log_metrics(row)
                folder.write_log(f"step {trainer.step}/{trainer.max_steps}: {describe(row)}")
                if folder.is_main:
                    self.samples.extend(sample_rows(experience, self.tokenizer, trainer.step))
                shown = {name: metrics[name] for name in ("reward", "kl", "response_length", "tokens_per_second")}
                bar.advance(1, loss=metrics["policy_loss"], **shown)
                # Without a single end there is nothing to learn ending from.
                unfinished = 0 if metrics["fraction_finished"] else unfinished + 1
                if unfinished == 3 and not self.allow_unfinished:
                    raise MissingEos(trainer.step, share=1.0)
                if self._react(self.monitor.check(row)):
                    break
                is_stopped = stop_asked(trainer.actor.device)
                is_due = self.save_steps and trainer.step % self.save_steps == 0
                is_last = trainer.step >= trainer.max_steps
                if self.save_steps and (is_due or is_last) or is_stopped:
                    self._save()
                    if is_stopped and not is_last:
                        raise Stopped(trainer.step, folder.path / f"checkpoint-{trainer.step}")
                if folder.is_main and time.perf_counter() - drawn > SECONDS_BETWEEN_DRAWINGS:
                    self.draw()
                    print(f"samples of step {trainer.step}:")
                    print_samples(experience, self.tokenizer, count=2)
                    drawn = time.perf_counter()
        self.draw()

    def draw(self) -> None:
        """curves.png: everything worth watching, with the alarms as dashed lines."""
        if not self.folder.is_main:
            return
        steps = sorted({row["step"] for row in self.alarms})
        plot_panels(self.folder.metrics_path, self.folder.path / "curves.png", PANELS, marks={"alarm": steps})

    @property
    def samples(self) -> Journal:
        return Journal(self.folder.path / "samples.jsonl")

    @property
    def alarm_log(self) -> Journal:
        return Journal(self.folder.path / "alarms.jsonl")

    def _save(self) -> None:
        if self._saved_step != self.trainer.step:  # a step back has saved: once more would put the only one at risk
            save_checkpoint(
                self.trainer,
                self.tokenizer,
                self.folder.path,
                keep=self.save_total_limit,
                made_with=self.folder.made_with,
            )
        self._saved_step = self.trainer.step

    def _react(self, alarms: list[Alarm]) -> bool:
        """Writes alarms down and does what --on_alarm says; whether the run ends."""
        if not alarms:
            return False
        action = self.on_alarm
        if action == "rollback" and len(self._rollbacks()) >= MAX_ROLLBACKS:
            action = "stop"
        rows = [{**alarm._asdict(), "action": action} for alarm in alarms]
        self.alarms += rows
        if self.folder.is_main:
            self.alarm_log.extend(rows)
            for alarm in alarms:
                print(f"alarm at step {alarm.step}: {alarm.name}: {alarm.message}", flush=True)
        if action == "rollback":
            self._roll_back(alarms[0].step)
        elif action == "stop":
            print(
                "stopped by --on_alarm; the policy is saved as it is, earlier ones are in the checkpoints", flush=True
            )
        return action == "stop"

    def _rollbacks(self) -> list[int]:
        return sorted({row["step"] for row in self.alarms if row["action"] == "rollback"})

    def _roll_back(self, step: int) -> None:
        """Weights, optimizers and controllers of a checkpoint that is older than the trouble; steps count on, so that
        other prompts and samples follow and the curves show what happened."""
        found = checkpoints(self.folder.path)
        older = [path for number, path in found if number <= step - self.monitor.window]
        source = older[-1] if older else found[0][1]
        load_checkpoint(self.trainer, source, self.folder.made_with)
        self.trainer.step = step
        controller = self.trainer.shaping.kl_controller
        controller.coef *= 2
        self.monitor.start_anew()
        self._save()  # a run that is killed goes on from here, not from the trouble
        print(f"went back to {source.name}, --kl_coef is {controller.coef:g} now", flush=True)

    def _recall(self, rows: list[dict]) -> None:
        """Brings alarms, monitor and samples to where the run that is resumed had them."""
        self.alarms = [row for row in self.alarm_log.read() if row["step"] <= self.trainer.step]
        if self.folder.is_main:
            for journal in (self.alarm_log, self.samples):
                if journal.path.is_file():
                    journal.rewrite(row for row in journal.read() if row["step"] <= self.trainer.step)
        last = max(self._rollbacks(), default=0)
        for row in rows:
            if row["step"] > last:
                self.monitor.check(row)
