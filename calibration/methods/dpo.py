"""Method `dpo`: teach a model to state its confidence, with direct preference optimisation.

Rafailov et al. 2023 (arXiv:2305.18290), through TRL. A pair holds one answer stated with two confidences;
the one that fits the outcome is preferred.

The literal form (`Dpo.literal`) takes plain answers whose token confidence was off by 0.3 or more, and
prefers the target over that confidence. Three things in it are corrected by default:

- the filter selects on the outcome, so that nearly all pairs are of wrong answers, and the base rate of
  right answers in training is not that of the questions: all rows are used;
- the rejected text holds a number the model would never state: the pair is about the model's own stated
  reply, and rejected is the opposite target, so that the two targets meet in every pair;
- the preference loss alone may lower the probability of both replies, format and answer with them: a
  likelihood term on the chosen reply (`sft`) holds them.

The mean of the stated number under the model's distribution (`stated_expected`) is the main readout: the
most likely number takes few values, while the distribution over the digits carries the information.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from calibration.confidence import READOUTS, Readout, read_confidence, read_reply
from calibration.errors import DataError
from calibration.methods.encoding import check_lengths, encode_preference
from calibration.methods.lora import Lora, load_for_training
from calibration.methods.rows import Preference, TrainingSet, judged_for, learnable
from calibration.methods.trainer import Optimisation, checkpoints_of, run
from calibration.prompts import STATED, stated_response
from calibration.records import Elicitation, Judged, read_rows
from calibration.schema import Schema

if TYPE_CHECKING:
    from trl.trainer.dpo_trainer import DPOTrainer

TARGETS: dict[str, tuple[float, float]] = {"binary": (0.9, 0.1), "moderate": (0.8, 0.2)}
"""The confidence to state in a right and in a wrong answer."""


class Dpo(Schema):
    """Preference pairs over the stated confidence (TRL's DPOTrainer, LoRA)."""

    kind: Literal["dpo"] = "dpo"
    elicitation: ClassVar[Elicitation] = "stated"
    readouts: tuple[Readout, ...] = Field(default=("stated_expected", "stated_greedy"), min_length=1)
    """How the trained model's confidence is read, the main way first."""
    targets: Literal["binary", "moderate"] = "binary"
    """Confidence taught for right / wrong answers: binary 0.9 / 0.1, moderate 0.8 / 0.2."""
    original: Readout = "stated_greedy"
    """Which confidence before training counts as the original one. A token probability belongs to the plain
    reply, a stated number to the stated one; the answer in the pair is the answer of that reply."""
    minimum_gap: float | None = Field(default=None, ge=0, le=1)
    """Keep only replies whose original confidence is at least this far from 1 (right) or 0 (wrong); None:
    keep all."""
    rejected: Literal["original", "opposite"] = "opposite"
    """The confidence in the rejected reply: the original one, or the target of the other outcome."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the model is held to the base model; higher is stronger."""
    loss_type: tuple[Literal["sigmoid", "robust", "ipo", "hinge", "sft"], ...] = Field(
        ("sigmoid", "sft"), min_length=1
    )
    """Losses that are added up. `sigmoid` is DPO, `robust` DPO under flipped labels, `sft` the mean
    negative log-likelihood of the chosen reply."""
    loss_weights: tuple[float, ...] | None = None
    """Weight of each loss; None: 1 each."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | Literal["audited"] = 0.0
    """For `robust`: the probability that a preference is the wrong way round, as when the judge erred.
    "audited" is the share of wrong marks that the experiment's `judge_audit` has found."""
    optimisation: Optimisation = Optimisation()
    """How the adapter is fitted."""
    lora: Lora = Lora()
    """Which weights the adapter changes."""

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if not set(self.readouts) <= set(READOUTS["stated"]):
            raise ValueError(f"dpo.readouts must be among {READOUTS['stated']}; got {self.readouts}")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"dpo.loss_weights must hold {len(self.loss_type)} weights; got {self.loss_weights}"
            )
        if self.label_smoothing and "robust" not in self.loss_type:
            raise ValueError(f"dpo.label_smoothing is for loss_type 'robust' alone; got {self.loss_type}")
        return self

    @classmethod
    def literal(cls) -> Self:
        """The original specification's settings."""
        return cls(
            readouts=("stated_greedy", "stated_expected"),
            original="geometric_mean_all",
            minimum_gap=0.3,
            rejected="original",
            loss_type=("sigmoid",),
        )

    @property
    def learns_from(self) -> Elicitation:
        """Which judged replies of the base model the pairs are made of."""
        return "stated" if self.original in READOUTS["stated"] else "plain"

    def rows(self, judged: Mapping[Elicitation, Sequence[Judged]]) -> TrainingSet:
        """One pair for each judged reply of the train split that can be used."""
        left_out: Counter[str] = Counter()
        pairs = []
        for row, is_correct in learnable(judged_for(judged, self.learns_from), left_out):
            pair = self._pair(row, is_correct)
            if isinstance(pair, str):
                left_out[pair] += 1
            else:
                pairs.append(pair)
        return TrainingSet(kind=Preference, rows=tuple(pairs), left_out=dict(left_out))

    def _pair(self, row: Judged, is_correct: bool) -> Preference | str:  # noqa: FBT001 - the mark goes with the row
        """The pair of one reply, or why there is none."""
        right, wrong = TARGETS[self.targets]
        target, opposite = (right, wrong) if is_correct else (wrong, right)
        original = read_confidence(row.generation, self.original)
        if self.minimum_gap is not None:
            if original is None:
                return "no readable confidence"
            if abs(original - is_correct) < self.minimum_gap:
                return f"original confidence less than {self.minimum_gap} off"
        other = original if self.rejected == "original" else opposite
        if other is None:
            return "no readable confidence"
        answer = row.generation.answer
        chosen, rejected = stated_response(answer, target), stated_response(answer, other)
        if chosen == rejected:
            return "chosen and rejected are the same"
        if read_reply(chosen, "stated").answer != answer:
            return "answer cannot be read back from the reply"
        return Preference(
            question_id=row.question.id,
            prompt=STATED.render(row.question.text),
            chosen=chosen,
            rejected=rejected,
            target=target,
            original=original,
        )

    def train(
        self,
        model: Path,
        data: Path,
        folder: Path,
        scratch: Path,
        seed: int,
        progress: Callable[[float, str], None],
    ) -> dict[str, float]:
        """Fit an adapter to the pairs.

        Args:
            model: Folder of the base model.
            data: The rows, as written by `TrainingSet.write`.
            folder: Where the adapter goes.
            scratch: Where checkpoints go; a run that finds its own there goes on from the last whole one.
            seed: Of the adapter's first weights and the order of the rows.
            progress: Called after every step with the share done and a note.

        Returns:
            TRL's figures over the last tenth of the steps, the loss at the start, the number of steps.

        Raises:
            DataError: There are no rows, or one does not fit the model's context.
        """
        from datasets import Dataset

        pairs = read_rows(data, Preference)
        if not pairs:
            raise DataError(
                f"{data} must hold preference pairs; got none. See the counts of what was left out"
            )
        policy, tokenizer = load_for_training(model)
        encoded = [encode_preference(tokenizer, pair) for pair in pairs]
        check_lengths(
            [pair.question_id for pair in pairs],
            [
                len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
                for row in encoded
            ],
            policy.config.max_position_embeddings,
        )
        checkpoints = checkpoints_of(scratch, self, data, seed)
        trainer = _trainer_class(self)(
            model=policy,
            args=self._arguments(checkpoints, seed),
            train_dataset=Dataset.from_list(encoded),
            processing_class=tokenizer,
            peft_config=self.lora.config(),
        )
        return run(trainer, checkpoints, folder, progress)

    def _arguments(self, checkpoints: Path, seed: int) -> Any:  # noqa: ANN401 - trl's class, imported on use
        from trl.trainer.dpo_config import DPOConfig

        return DPOConfig(
            **self.optimisation.arguments(checkpoints, seed),
            beta=self.beta,
            loss_type=list(self.loss_type),
            loss_weights=None if self.loss_weights is None else list(self.loss_weights),
            label_smoothing=float(self.label_smoothing),
            max_length=None,
        )


def _trainer_class(settings: Dpo) -> type["DPOTrainer"]:
    import torch
    from trl.trainer.dpo_trainer import DPOTrainer

    weights = settings.loss_weights or (1.0,) * len(settings.loss_type)

    def sizes(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Pairs and chosen tokens of a batch, which holds the chosen replies and then the rejected ones."""
        chosen = batch["completion_mask"].chunk(2)[0]
        return torch.stack([chosen.new_tensor(len(chosen)), chosen.sum()])

    class EncodedDPOTrainer(DPOTrainer):
        """DPO on pairs that are token ids already, equal for equal pairs however they are split into passes.

        TRL averages over the pairs, for `sft` over the tokens, of one pass, and then over passes; here each
        pass weighs by its share of the step's pairs or tokens.
        """

        loss_is_scaled_for_ga = True

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:  # noqa: ANN401 - as in TRL
            return dataset

        def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:  # noqa: ANN401
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
            return batches, torch.stack([sizes(batch).to(device) for batch in batches]).sum(0)

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **step: Any) -> Any:  # noqa: ANN401
            pairs, tokens = (sizes(inputs) / step["num_items_in_batch"]).tolist()
            shares = [tokens if loss == "sft" else pairs for loss in settings.loss_type]
            self.loss_weights = [weight * share for weight, share in zip(weights, shares, strict=True)]
            return super().compute_loss(model, inputs)  # type: ignore[no-untyped-call]

    return EncodedDPOTrainer
