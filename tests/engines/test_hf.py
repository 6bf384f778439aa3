"""The oracle throughout is a plain forward pass over one unpadded sequence."""

import math

import pytest
import torch

from calibration.confidence import GRID
from calibration.engines.chat import token_texts
from calibration.engines.hf import Hf, Speaker
from calibration.errors import ConfigurationError
from calibration.models.hub import Hub, locate
from calibration.records import Question


@pytest.fixture(scope="module")
def speaker(random_model):
    return Speaker.load(random_model, None, "float32")


@pytest.fixture(scope="module")
def prompts(speaker):
    # The last is longer than the sliding window of 64 tokens.
    return [speaker.prompt(f"Q{'x' * length}?") for length in (1, 5, 30, 90)]


def logprobs_of(speaker, ids):
    with torch.inference_mode():
        return speaker.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def test_padded_batches_decode_what_a_plain_forward_pass_prefers(speaker, prompts):
    for prompt, (ids, logprobs) in zip(prompts, speaker.decode(prompts, 12), strict=True):
        reference = logprobs_of(speaker, prompt + ids)[len(prompt) - 1 : -1]
        assert reference.argmax(-1).tolist() == ids
        assert logprobs == pytest.approx(
            [row[i].item() for row, i in zip(reference, ids, strict=True)], abs=1e-4
        )


def test_a_reply_does_not_depend_on_its_neighbours(speaker, prompts):
    together = speaker.decode(prompts, 12)
    for prompt, (ids, logprobs) in zip(prompts, together, strict=True):
        [(alone, its_logprobs)] = speaker.decode([prompt], 12)
        assert alone == ids
        assert its_logprobs == pytest.approx(logprobs, abs=1e-4)


def test_rows_that_end_early_leave_the_others_as_they_were(speaker, prompts):
    free = speaker.decode(prompts, 12)
    # Let the second reply's third token end a turn: every reply now stops at its first such token.
    stop = free[1][0][2]
    stopping = Speaker(speaker.model, speaker.tokenizer)
    stopping.stop_ids = frozenset({stop})
    for (ids, _), (cut, _) in zip(free, stopping.decode(prompts, 12), strict=True):
        assert cut == (ids[: ids.index(stop) + 1] if stop in ids else ids)


def chance_of(speaker, context, text):
    ids = list(speaker.tokenizer.encode(text, add_special_tokens=False))
    steps = logprobs_of(speaker, context + ids)
    logp = sum(steps[len(context) - 1 + place, token].item() for place, token in enumerate(ids))
    return math.exp(logp), steps[-1].exp()


def test_the_grid_holds_the_probability_of_writing_each_number(speaker, prompts):
    def ids(text):
        return speaker.tokenizer.encode(text, add_special_tokens=False)[-1]

    digits = [ids(str(digit)) for digit in range(10)]
    for context, grid in zip(prompts, speaker.stated_grids(prompts, "", 3), strict=True):
        wanted = [chance_of(speaker, context, f"{value:.2f}")[0] for value in GRID]
        for tenth in range(10):
            chance, after = chance_of(speaker, context, f"0.{tenth}")
            wanted[10 * tenth] += chance * (1 - after[digits].sum().item())
        chance, after = chance_of(speaker, context, "1.0")
        wanted[100] += chance * (1 - after[digits].sum().item())
        chance, after = chance_of(speaker, context, "1")
        wanted[100] += chance * (1 - after[[*digits, ids(".")]].sum().item())
        assert grid == pytest.approx(wanted, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("text", ["plain", "héllo 日本 🙂 end", "e\N{COMBINING ACUTE ACCENT}", "🙂", ""])
def test_token_texts_join_to_the_text(speaker, text):
    ids = speaker.tokenizer.encode(text, add_special_tokens=False)
    texts = token_texts(speaker.tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text


def ask(settings, model, count=5, elicitation="plain"):
    questions = [Question(id=str(n), text="why " * n + "?", answers=("x",)) for n in range(count)]
    notes = []
    answers = settings.generate(
        questions,
        elicitation,
        model=model,
        adapter=None,
        progress=lambda share, note: notes.append((share, note)),
    )
    return questions, answers, notes


def test_answers_come_in_the_questions_order_with_their_evidence(random_model):
    questions, answers, notes = ask(Hf(max_tokens=6, batch_size=2), random_model)
    assert [answer.question_id for answer in answers] == [question.id for question in questions]
    for answer in answers:
        assert len(answer.token_ids) == len(answer.tokens) == len(answer.logprobs) <= 6
        assert answer.finish == "length"
        assert "".join(answer.tokens[place] for place in answer.span).replace(" ", "") in answer.text.replace(
            " ", ""
        )
    assert notes[-1] == (1.0, "5 of 5 answers")


def test_the_batch_size_does_not_change_the_answers(random_model):
    _, one, _ = ask(Hf(max_tokens=6, batch_size=1), random_model)
    _, many, _ = ask(Hf(max_tokens=6, batch_size=64), random_model)
    assert [answer.token_ids for answer in one] == [answer.token_ids for answer in many]


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_generated(random_model):
    with pytest.raises(ConfigurationError, match=r"question '99'.*its prompt has .*engine.max_tokens"):
        ask(Hf(), random_model, count=100)


def test_soft_capped_models_never_run_on_a_kernel_without_the_cap(speaker):
    assert speaker.model.config.attn_logit_softcapping == 50.0
    assert speaker.model.config._attn_implementation == "eager"


def test_a_model_in_a_folder_is_known_by_its_content(random_model, tmp_path):
    pointers = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Hub(repo=str(random_model)).obtain([], tmp_path / name, tmp_path, lambda *_: None)
        assert locate(tmp_path / name) == random_model
        pointers.append((tmp_path / name / "pointer.json").read_text())
    assert pointers[0] == pointers[1]
    assert "model.safetensors" in pointers[0]
    with pytest.raises(ConfigurationError, match=r"no config\.json"):
        Hub(repo=str(tmp_path)).obtain([], tmp_path, tmp_path, lambda *_: None)


def test_a_missing_model_is_an_error_with_a_remedy():
    with pytest.raises(ConfigurationError, match="`weights`"):
        ask(Hf(), None)
