"""Every expected number is worked out by hand from the probabilities in the test."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from calibration.confidence import read_confidence
from calibration.methods import Implicit
from calibration.methods.encoding import encode_outcome
from calibration.methods.implicit_loss import collate, divergence, example, loss_terms, token_weights
from calibration.methods.lora import load_for_training
from calibration.records import Judged, Verdict

pytestmark = pytest.mark.filterwarnings(
    # peft reads a name that transformers has since renamed.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.fixture
def batch():
    """A wrong reply of three tokens and a right one of two, behind prompts of two and one."""
    return collate([example([5, 6], [7, 8, 9], [0, 1], 0), example([5], [7, 9], [0], 1)])


def test_rows_are_filled_up_on_the_right(batch):
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [5, 7, 9, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["reply"].tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]]
    assert batch["answer"].tolist() == [[0, 0, 1, 1, 0], [0, 1, 0, 0, 0]]
    assert batch["is_correct"].tolist() == [0, 1]


def test_likelihood_is_of_right_replies_and_confidence_of_answer_tokens(batch):
    lm, answer, kept = token_weights(Implicit(), batch)
    assert lm.tolist() == kept.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0]]
    assert answer.tolist() == [[0, 1, 1, 0], [1, 0, 0, 0]]
    lm, answer, kept = token_weights(Implicit(lm_on="all"), batch)
    assert lm.tolist() == [[0, 1, 1, 1], [1, 1, 0, 0]]
    assert kept.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0]]


def test_the_literal_form_takes_every_token_but_the_padding(batch):
    lm, confidence, _ = token_weights(Implicit.literal(), batch)
    assert lm.tolist() == confidence.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


LOGPROBS = torch.tensor([[0.9, 0.5, 0.32, 0.7], [0.25, 0.8, 0.6, 0.6]]).log()
"""Probabilities of the batch's tokens: the wrong answer has 0.5 x 0.32 = 0.4 squared, the right one 0.25."""


def terms_of(settings, batch, counts):
    lm, answer, _ = token_weights(settings, batch)
    terms = loss_terms(settings, LOGPROBS, lm, answer, batch["is_correct"], torch.tensor(counts))
    return terms["lm"].item(), terms["penalty"].item()


def test_the_default_loss_is_the_brier_score_of_each_answer(batch):
    lm, penalty = terms_of(Implicit(), batch, [2.0, 2.0, 2.0])
    assert lm == pytest.approx(-(math.log(0.25) + math.log(0.8)) / 2)
    assert penalty == pytest.approx((0.4**2 + (0.25 - 1) ** 2) / 2)


def test_the_joint_confidence_is_the_product(batch):
    _, penalty = terms_of(Implicit(confidence="joint"), batch, [2.0, 2.0, 2.0])
    assert penalty == pytest.approx((0.16**2 + (0.25 - 1) ** 2) / 2)


def test_the_literal_loss_has_one_confidence_for_the_batch(batch):
    lm, penalty = terms_of(Implicit.literal(), batch, [6.0, 2.0, 2.0])
    product = 0.9 * 0.5 * 0.32 * 0.7 * 0.25 * 0.8
    assert lm == pytest.approx(-math.log(product) / 6)
    mean = product ** (1 / 6)
    assert penalty == pytest.approx((mean**2 + (mean - 1) ** 2) / 2)


def test_a_pass_weighs_by_its_share_of_the_step(batch):
    lm, penalty = terms_of(Implicit(), batch, [2.0, 2.0, 2.0])
    assert terms_of(Implicit(), batch, [8.0, 2.0, 10.0]) == pytest.approx((lm / 4, penalty / 5))


def test_a_step_without_a_right_answer_has_no_likelihood_term(batch):
    wrong = batch | {"is_correct": torch.zeros(2)}
    assert terms_of(Implicit(), wrong, [0.0, 0.0, 2.0]) == pytest.approx((0, (0.4**2 + 0.25**2) / 2))


def test_divergence_is_kullback_leibler_from_the_base_model():
    base = torch.tensor([[[0.5, 0.5], [0.2, 0.8]]]).log()
    policy = torch.tensor([[[0.25, 0.75], [0.6, 0.4]]]).log()
    first = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    second = 0.2 * math.log(0.2 / 0.6) + 0.8 * math.log(2)
    assert divergence(base, policy, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(first)
    assert divergence(base, policy, torch.tensor([[1.0, 1.0]])).item() == pytest.approx(first + second)
    assert divergence(base, base, torch.tensor([[1.0, 1.0]])).item() == 0


def slope(settings, probability, is_correct):
    """Derivative of the whole loss by the probability of a reply of one token."""
    p = torch.tensor([[probability]], dtype=torch.float64, requires_grad=True)
    row = collate([example([5], [7], [0], is_correct)])
    lm, answer, _ = token_weights(settings, row)
    counts = torch.tensor([1.0, 1.0, 1.0])
    terms = loss_terms(settings, p.log(), lm, answer, row["is_correct"], counts)
    (terms["lm"] + settings.weight * terms["penalty"]).backward()
    return p.grad.item()


@pytest.mark.parametrize("probability", [0.001, 0.01, *(n / 20 for n in range(1, 21))])
def test_the_literal_loss_raises_the_confidence_of_a_wrong_answer_at_every_probability(probability):
    literal = slope(Implicit.literal(), probability, 0)
    assert literal == pytest.approx(-1 / probability + 0.2 * probability)
    assert literal < 0
    corrected = slope(Implicit(), probability, 0)
    assert corrected == pytest.approx(0.2 * probability)
    assert corrected > 0
    assert slope(Implicit(), probability, 1) < 0


def test_the_answers_logprobs_in_training_are_those_recorded_in_generation(talker, replies, questions):
    model, tokenizer = load_for_training(talker)
    judged = [
        Judged(
            question=question,
            generation=reply,
            verdict=Verdict(question_id=question.id, label="correct", judge="test"),
        )
        for question, reply in zip(questions, replies, strict=True)
    ]
    rows = Implicit().rows({"plain": judged}).rows
    batch = collate([example(*encode_outcome(tokenizer, row), row.is_correct) for row in rows])
    _, answer, _ = token_weights(Implicit(), batch)
    with torch.inference_mode():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    for reply, got, mask in zip(replies, logprobs, answer.bool(), strict=True):
        assert got[mask].tolist() == pytest.approx([reply.logprobs[n] for n in reply.span], abs=1e-4)
    for settings in (Implicit(), Implicit(confidence="joint")):
        penalty = loss_terms(settings, logprobs, answer * 0, answer, batch["is_correct"], torch.ones(3))
        read = [read_confidence(reply, settings.confidence) for reply in replies]
        assert penalty["penalty"].item() == pytest.approx(sum((c - 1) ** 2 for c in read), rel=1e-4)


def test_the_model_trains_in_the_attention_that_it_answers_in(talker):
    model, _ = load_for_training(talker)
    assert model.config._attn_implementation == "eager"
    assert isinstance(model, type(AutoModelForCausalLM.from_pretrained(talker)))
