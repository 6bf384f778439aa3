"""One training run: settings every method shares, checkpoints, resumption, progress."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from calibration.checkpoints import KEPT, PREFIX, Checkpoints, Progress, seal
from calibration.errors import ConfigurationError
from calibration.methods.lora import save_adapter
from calibration.schema import Schema

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer

SHARE = 0.1
"""A checkpoint is written, and the losses noted, each time this share of the steps is done."""

_NOT_FIGURES = ("epoch", "step", "learning_rate", "num_tokens")
"""Where a run stands, not how well it does; TRL's count of tokens also starts anew when a run is resumed."""


class Optimisation(Schema):
    """How the adapter is fitted: AdamW with a linearly falling rate. The defaults are the specification's."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """The rate in the first steps, after any warmup."""
    epochs: int = Field(default=3, ge=1)
    """How often every row is learnt from."""
    batch_size: int = Field(default=4, ge=1)
    """Rows in one forward pass."""
    accumulation: int = Field(default=4, ge=1)
    """Forward passes in one step; rows a step = batch_size x accumulation."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps over which the rate rises from 0."""

    def arguments(self, scratch: Path, seed: int) -> dict[str, Any]:
        """The arguments that transformers' and TRL's trainers have in common."""
        import torch

        gpu = torch.cuda.is_available()
        if torch.cuda.device_count() > 1:
            raise ConfigurationError(
                f"training must see one GPU; got {torch.cuda.device_count()}. Set CUDA_VISIBLE_DEVICES=0"
            )
        return {
            "output_dir": str(scratch),
            "learning_rate": self.learning_rate,
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": self.batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "warmup_steps": self.warmup,
            "seed": seed,
            "bf16": gpu,
            "use_cpu": not gpu,
            "activation_checkpointing": False,
            "dataloader_num_workers": 0,
            "dataloader_pin_memory": gpu,
            "remove_unused_columns": False,
            "save_strategy": "steps",
            "save_steps": SHARE,
            "save_total_limit": KEPT,
            "logging_steps": SHARE,
            "disable_tqdm": True,
            "report_to": [],
        }


def run(trainer: "Trainer", checkpoints: Path, folder: Path, progress: Progress) -> dict[str, float]:
    """Train from the last whole checkpoint, or from the start, and write the adapter.

    Returns:
        The figures of the last tenth of the steps, the loss of the first tenth as `loss_at_start`, and
        the number of steps; the same whether the run was interrupted or not.
    """
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_reporter(progress))
    checkpoint = next(Checkpoints(checkpoints, progress).whole(), None)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    save_adapter(cast("PeftModel", trainer.model), folder)
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    last = {name: float(value) for name, value in losses[-1].items() if name not in _NOT_FIGURES}
    return {**last, "loss_at_start": float(losses[0]["loss"]), "steps": float(trainer.state.global_step)}


def checkpoints_of(scratch: Path, method: Schema, data: Path, seed: int) -> Path:
    """Where the checkpoints of one run lie: other settings, data or seeds never share them."""
    key = json.dumps([method.identity(), hashlib.sha256(data.read_bytes()).hexdigest(), seed], sort_keys=True)
    return scratch / hashlib.sha256(key.encode()).hexdigest()[:16]


def _reporter(progress: Progress) -> Any:  # noqa: ANN401 - the class exists only once transformers is imported
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        """Tells how far the run is after every step, and seals what was written."""

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401, ARG002
            seal(Path(args.output_dir) / f"{PREFIX}{state.global_step}")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401, ARG002
            loss = next(
                (f", loss {entry['loss']:.4f}" for entry in reversed(state.log_history) if "loss" in entry),
                "",
            )
            progress(
                state.global_step / state.max_steps, f"step {state.global_step} of {state.max_steps}{loss}"
            )

    return Reporter()
