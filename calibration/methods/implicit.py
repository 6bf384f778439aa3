"""Method `implicit`: teach the token probabilities of the answer to be a confidence.

A likelihood term keeps the model answering; a penalty moves the probability of each answer (its
confidence c) towards its outcome y: loss = LM + weight x (c - y)^2.

The literal form (`Implicit.literal`) has the likelihood term on right and wrong answers alike, and one
confidence for the whole batch, over all its tokens. For a wrong answer of probability p its loss is
-ln p + 0.1 p^2, whose slope -1/p + 0.2 p is negative for every p in (0, 1]: training on it makes the model
surer of its mistakes. By default, therefore, the likelihood term is on right answers only, and the penalty
is the Brier score (Brier 1950) of every single answer, over the tokens by which it is read.

Two liberties are taken with the literal form: the probability of a token is read where the model predicts
it, one position earlier; and the rows are the prompt and the reply as the model is asked and answers.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from calibration.confidence import READOUTS, Readout
from calibration.errors import DataError
from calibration.methods.encoding import check_lengths, encode_outcome
from calibration.methods.implicit_loss import collate, example, trainer_class
from calibration.methods.lora import Lora, load_for_training
from calibration.methods.rows import Outcome, TrainingSet, judged_for, learnable
from calibration.methods.trainer import Optimisation, checkpoints_of, run
from calibration.prompts import PLAIN
from calibration.records import Elicitation, Judged, read_rows
from calibration.schema import Schema


class Implicit(Schema):
    """Likelihood of right answers plus a penalty on the answer's token probability (LoRA)."""

    kind: Literal["implicit"] = "implicit"
    elicitation: ClassVar[Elicitation] = "plain"
    learns_from: ClassVar[Elicitation] = "plain"
    readouts: tuple[Readout, ...] = Field(default=("geometric_mean", "joint"), min_length=1)
    """How the trained model's confidence is read, the main way first."""
    weight: float = Field(default=0.1, ge=0)
    """Of the penalty, beside a likelihood term of weight 1."""
    confidence: Literal["geometric_mean", "joint"] = "geometric_mean"
    """Which number is the confidence in the penalty."""
    penalty: Literal["example", "batch"] = "example"
    """`example`: squared error of every answer's confidence. `batch`: of one confidence for all rows of a
    forward pass, as the specification has it; it depends on the batch size."""
    tokens: Literal["answer", "all"] = "answer"
    """`answer`: likelihood over the reply, confidence over the answer's own tokens. `all`: both over every
    token, prompt included, as the specification has it."""
    lm_on: Literal["all", "correct"] = "correct"
    """The replies whose likelihood is raised."""
    lm_weight: float = Field(default=1.0, ge=0)
    """Of the likelihood term."""
    reference_kl: float = Field(default=0.0, ge=0)
    """Weight of the divergence from the base model along right replies: it holds the answers."""
    optimisation: Optimisation = Optimisation()
    """How the adapter is fitted."""
    lora: Lora = Lora()
    """Which weights the adapter changes."""

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if not set(self.readouts) <= set(READOUTS["plain"]):
            raise ValueError(f"implicit.readouts must be among {READOUTS['plain']}; got {self.readouts}")
        if self.penalty == "batch" and self.confidence == "joint":
            raise ValueError("implicit.confidence must be 'geometric_mean' with penalty 'batch'; got 'joint'")
        return self

    @classmethod
    def literal(cls) -> Self:
        """The original specification's settings."""
        return cls(
            readouts=("geometric_mean_all", "geometric_mean"), penalty="batch", tokens="all", lm_on="all"
        )

    def rows(self, judged: Mapping[Elicitation, Sequence[Judged]]) -> TrainingSet:
        """One row for each judged plain reply of the train split that can be used, whatever its outcome."""
        left_out: Counter[str] = Counter()
        rows = tuple(
            Outcome(
                question_id=row.question.id,
                prompt=PLAIN.render(row.question.text),
                answer=row.generation.answer,
                reply=row.generation.text,
                token_ids=row.generation.token_ids,
                span=row.generation.span if row.generation.token_ids else (),
                is_correct=int(is_correct),
            )
            for row, is_correct in learnable(judged_for(judged, "plain"), left_out)
        )
        return TrainingSet(kind=Outcome, rows=rows, left_out=dict(left_out))

    def train(
        self,
        model: Path,
        data: Path,
        folder: Path,
        scratch: Path,
        seed: int,
        progress: Callable[[float, str], None],
    ) -> dict[str, float]:
        """Fit an adapter to the outcomes.

        Args:
            model: Folder of the base model.
            data: The rows, as written by `TrainingSet.write`.
            folder: Where the adapter goes.
            scratch: Where checkpoints go; a run that finds its own there goes on from the last whole one.
            seed: Of the adapter's first weights and the order of the rows.
            progress: Called after every step with the share done and a note.

        Returns:
            Loss and its terms over the last tenth of the steps, the loss at the start, the number of steps.

        Raises:
            DataError: There are no rows, one does not fit the model's context, or its tokens are not the
                model's.
        """
        from peft import get_peft_model
        from transformers import TrainingArguments, set_seed

        outcomes = read_rows(data, Outcome)
        if not outcomes:
            raise DataError(f"{data} must hold judged answers; got none. See the counts of what was left out")
        policy, tokenizer = load_for_training(model)
        examples = [example(*encode_outcome(tokenizer, row), row.is_correct) for row in outcomes]
        check_lengths(
            [outcome.question_id for outcome in outcomes],
            [len(row["input_ids"]) for row in examples],
            policy.config.max_position_embeddings,
        )
        set_seed(seed)
        checkpoints = checkpoints_of(scratch, self, data, seed)
        trainer = trainer_class(self)(
            model=get_peft_model(policy, self.lora.config()),
            args=TrainingArguments(**self.optimisation.arguments(checkpoints, seed)),
            train_dataset=examples,
            data_collator=collate,
        )
        return run(trainer, checkpoints, folder, progress)
