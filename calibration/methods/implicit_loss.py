"""The loss of method `implicit`, and the trainer that minimises it.

Shapes: B rows, T tokens of the longest row, V words of the vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

    from calibration.methods.implicit import Implicit

    Batch = Mapping[str, torch.Tensor]


def example(
    prompt: Sequence[int], reply: Sequence[int], span: Sequence[int], is_correct: int
) -> dict[str, Any]:
    """One row: token ids, which of them are the reply, which the answer, and the outcome."""
    answer = set(span)
    return {
        "input_ids": [*prompt, *reply],
        "attention_mask": [1] * (len(prompt) + len(reply)),
        "reply": [0] * len(prompt) + [1] * len(reply),
        "answer": [0] * len(prompt) + [int(position in answer) for position in range(len(reply))],
        "is_correct": float(is_correct),
    }


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, "torch.Tensor"]:
    """Rows of different length as [B, T] tensors, filled up with zeros on the right; outcomes as [B]."""
    import torch

    width = max(len(row["input_ids"]) for row in rows)
    batch = {
        name: torch.tensor([row[name] + [0] * (width - len(row[name])) for row in rows])
        for name in ("input_ids", "attention_mask", "reply", "answer")
    }
    return {**batch, "is_correct": torch.tensor([row["is_correct"] for row in rows])}


def token_weights(
    settings: "Implicit", batch: "Batch"
) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    """Which predicted tokens count for likelihood, confidence and divergence; [B, T - 1] each.

    Column t stands for the token at t + 1, which the model predicts at t.
    """
    right = batch["is_correct"][:, None]
    whole = settings.tokens == "all"
    lm = batch["attention_mask"] if whole else batch["reply"]
    confidence = batch["attention_mask"] if whole else batch["answer"]
    lm_rows = right if settings.lm_on == "correct" else right * 0 + 1
    return lm[:, 1:] * lm_rows, confidence[:, 1:] * (right * 0 + 1), batch["reply"][:, 1:] * right


def loss_terms(
    settings: "Implicit",
    logprobs: "torch.Tensor",
    lm_weight: "torch.Tensor",
    answer: "torch.Tensor",
    is_correct: "torch.Tensor",
    counts: "torch.Tensor",
) -> dict[str, "torch.Tensor"]:
    """Likelihood and calibration terms of a forward pass, as its share of a whole step.

    Args:
        settings: The method.
        logprobs: [B, T] log-probability of each token.
        lm_weight: [B, T], which tokens' likelihood counts.
        answer: [B, T], 1 for the tokens that make the confidence.
        is_correct: [B] outcomes, 0 or 1.
        counts: Likelihood tokens, divergence tokens and rows of the whole step. Dividing by them, not by
            those of this pass, makes several small passes add up to one large one.
    """
    lm = -(logprobs * lm_weight).sum() / counts[0].clamp(min=1)
    if settings.penalty == "batch":
        confidence = ((logprobs * answer).sum() / answer.sum()).exp()
    else:
        total = (logprobs * answer).sum(1)
        confidence = (total / answer.sum(1) if settings.confidence == "geometric_mean" else total).exp()
    return {"lm": lm, "penalty": ((confidence - is_correct) ** 2).sum() / counts[2]}


def divergence(reference: "torch.Tensor", policy: "torch.Tensor", weight: "torch.Tensor") -> "torch.Tensor":
    """Sum of weight x KL(reference || policy) over tokens, in nats.

    Args:
        reference: [B, T, V] log-probabilities of the base model.
        policy: [B, T, V] log-probabilities of the model in training.
        weight: [B, T].
    """
    return (reference.exp() * (reference - policy)).sum(-1).mul(weight).sum()


def trainer_class(settings: "Implicit") -> type["Trainer"]:
    """A transformers Trainer with this loss."""
    import torch
    from transformers import Trainer

    class CalibrationTrainer(Trainer):
        """Likelihood plus penalty, equal for equal rows however they are split into passes."""

        loss_is_scaled_for_ga = True

        def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:  # noqa: ANN401
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
            counts = torch.zeros(3, device=device)
            for batch in batches:
                lm, _, kept = token_weights(settings, batch)
                counts += torch.stack([lm.sum(), kept.sum(), lm.new_tensor(len(lm))]).to(device)
            return batches, counts

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **step: Any) -> Any:  # noqa: ANN401
            counts = step["num_items_in_batch"]
            first = 0 if settings.tokens == "all" else int(inputs["reply"].argmax(1).min()) - 1
            policy = _predictions(model, inputs, first)
            lm, answer, kept = (weight[:, first:] for weight in token_weights(settings, inputs))
            sampled = policy.gather(-1, inputs["input_ids"][:, first + 1 :, None]).squeeze(-1)
            terms = loss_terms(settings, sampled, lm, answer, inputs["is_correct"], counts)
            loss = settings.lm_weight * terms["lm"] + settings.weight * terms["penalty"]
            if settings.reference_kl:
                with torch.no_grad(), self.accelerator.unwrap_model(model).disable_adapter():
                    reference = _predictions(model, inputs, first)
                drift = divergence(reference, policy, kept) / counts[1].clamp(min=1)
                loss = loss + settings.reference_kl * drift
            return loss

    return CalibrationTrainer


def _predictions(model: Any, inputs: "Batch", first: int) -> "torch.Tensor":  # noqa: ANN401 - a wrapped model
    """[B, T - 1 - first, V] log-probabilities of the tokens behind position `first`, in float32."""
    import torch

    width = inputs["input_ids"].shape[1]
    keep = torch.arange(first, width - 1, device=inputs["input_ids"].device)
    output = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        use_cache=False,
        logits_to_keep=keep,
    )
    logits: torch.Tensor = output.logits
    return logits.float().log_softmax(-1)
