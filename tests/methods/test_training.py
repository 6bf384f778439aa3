"""Real training of a small model: what moves which way, and what must not matter."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Trainer, TrainingArguments, set_seed

from calibration.checkpoints import SEAL, steps_of
from calibration.confidence import read_confidence
from calibration.engines.hf import Hf, Speaker
from calibration.errors import DataError
from calibration.methods import Dpo, Implicit, Outcome, Preference, TrainingSet
from calibration.methods.encoding import encode_outcome, encode_reply
from calibration.methods.implicit_loss import example
from calibration.methods.lora import Lora, load_for_training, save_adapter
from calibration.methods.trainer import Optimisation, checkpoints_of
from calibration.prompts import PLAIN, stated_response

pytestmark = pytest.mark.filterwarnings(
    # peft reads a name that transformers has since renamed.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

FIT = Optimisation(learning_rate=3e-3, epochs=3, batch_size=4, accumulation=1)
METHODS = {
    "dpo": Dpo(optimisation=FIT),
    "implicit": Implicit(weight=1.0, reference_kl=0.5, optimisation=FIT),
}


@pytest.fixture(scope="module")
def outcomes(questions, replies):
    """The model's own replies, of which every third is marked right, and two written down elsewhere."""
    own = [
        Outcome(
            question_id=question.id,
            prompt=PLAIN.render(question.text),
            answer=reply.answer,
            reply=reply.text,
            token_ids=reply.token_ids,
            span=reply.span,
            is_correct=int(number % 3 == 0),
        )
        for number, (question, reply) in enumerate(zip(questions, replies, strict=True))
    ]
    bare = {"token_ids": (), "span": (), "answer": "Bergen", "reply": "Bergen"}
    return (*own, own[0].model_copy(update=bare), own[1].model_copy(update=bare))


@pytest.fixture(scope="module")
def pairs(outcomes):
    """The same answers, stated with the confidence that fits and with the other one."""
    return tuple(
        Preference(
            question_id=row.question_id,
            prompt=row.prompt.rpartition(": ")[2],  # shorter than the real prompt, for speed alone
            chosen=stated_response(row.answer, 0.9 if row.is_correct else 0.1),
            rejected=stated_response(row.answer, 0.1 if row.is_correct else 0.9),
            target=0.9 if row.is_correct else 0.1,
            original=None,
        )
        for row in outcomes
    )


@pytest.fixture(scope="module")
def rows(outcomes, pairs):
    return {"implicit": outcomes, "dpo": pairs}


@pytest.fixture(scope="module")
def train(talker, tmp_path_factory):
    """Train in folders of its own, or in a given scratch; returns the adapter's folder and the figures."""

    def run(method, rows, *, seed=0, scratch=None, progress=lambda *_: None):
        folder = tmp_path_factory.mktemp("training")
        TrainingSet(kind=type(rows[0]), rows=tuple(rows), left_out={}).write(folder / "rows.parquet")
        figures = method.train(
            model=talker,
            data=folder / "rows.parquet",
            folder=folder / "adapter",
            scratch=scratch or folder / "scratch",
            seed=seed,
            progress=progress,
        )
        return folder / "adapter", figures

    return run


@pytest.fixture(scope="module", params=list(METHODS))
def trained(request, train, rows):
    """Each method, its rows, and one undisturbed training with its figures and notes."""
    notes = []
    method, own = METHODS[request.param], rows[request.param]
    folder, figures = train(method, own, progress=lambda *note: notes.append(note))
    return method, own, folder, figures, notes


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def close(one, other, tolerance):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    largest = max((one[name] - other[name]).abs().max().item() for name in one)
    return largest < tolerance


def logprob(speaker, prompt, reply):
    """Log-probability of each token of a reply, by one plain forward pass."""
    before, after = encode_reply(speaker.tokenizer, prompt, reply)
    with torch.inference_mode():
        logits = speaker.model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(after)[:, None]).squeeze(-1)


def confidences(talker, adapter, outcomes):
    speaker = Speaker.load(talker, adapter, "float32")
    return [logprob(speaker, row.prompt, row.reply)[:-1].mean().exp().item() for row in outcomes]


def margins(talker, adapter, pairs):
    speaker = Speaker.load(talker, adapter, "float32")
    return [
        (logprob(speaker, pair.prompt, pair.chosen) - logprob(speaker, pair.prompt, pair.rejected))
        .sum()
        .item()
        for pair in pairs
    ]


# Which way it moves


def by_mark(outcomes, before, after):
    changes = list(zip(outcomes, before, after, strict=True))
    return [[new - old for row, old, new in changes if row.is_correct == mark] for mark in (0, 1)]


def test_the_corrected_penalty_lowers_wrong_answers_and_raises_right_ones(talker, train, outcomes):
    own = outcomes[:12]
    method = Implicit(
        weight=10.0, optimisation=Optimisation(learning_rate=5e-3, epochs=12, batch_size=12, accumulation=1)
    )
    adapter, _ = train(method, own)
    wrong, right = by_mark(own, confidences(talker, None, own), confidences(talker, adapter, own))
    assert max(wrong) < 0
    assert min(right) > 0


def test_likelihood_of_wrong_answers_raises_them_in_spite_of_the_penalty(talker, train, outcomes):
    own = outcomes[:12]
    fit = Optimisation(learning_rate=5e-3, epochs=6, batch_size=12, accumulation=1)
    adapter, _ = train(Implicit(lm_on="all", optimisation=fit), own)
    wrong, _ = by_mark(own, confidences(talker, None, own), confidences(talker, adapter, own))
    assert min(wrong) > 0


@pytest.mark.parametrize("losses", [("sigmoid",), ("sigmoid", "sft")])
def test_preference_raises_the_chosen_reply_over_the_rejected_one(talker, train, pairs, losses):
    fit = Optimisation(learning_rate=3e-3, epochs=4, batch_size=8, accumulation=1)
    low = [pair for pair in pairs if pair.target == 0.1][:8]
    high = [pair.model_copy(update={"chosen": pair.rejected, "rejected": pair.chosen}) for pair in low]
    base = margins(talker, None, low)
    for taught, sign in ((low, 1), (high, -1)):
        adapter, _ = train(Dpo(loss_type=losses, optimisation=fit), taught)
        after = margins(talker, adapter, low)
        assert min(sign * (new - old) for new, old in zip(after, base, strict=True)) > 0


# What is computed


def still(method):
    """The same method with a rate so small that the figures are those of the untrained model."""
    return method.model_copy(
        update={"optimisation": Optimisation(learning_rate=1e-12, epochs=1, batch_size=4, accumulation=4)}
    )


def test_the_first_loss_of_preference_is_ln_2_plus_the_likelihood_of_the_chosen_tokens(talker, train, pairs):
    _, figures = train(still(Dpo(loss_weights=(1.0, 0.5))), pairs)
    speaker = Speaker.load(talker, None, "float32")
    chosen = torch.cat([logprob(speaker, pair.prompt, pair.chosen) for pair in pairs])
    assert figures["loss"] == pytest.approx(math.log(2) - 0.5 * chosen.mean().item(), rel=1e-5)


@pytest.mark.parametrize("confidence", ["geometric_mean", "joint"])
def test_the_first_penalty_is_the_brier_score_of_the_recorded_confidences(
    train, outcomes, replies, confidence
):
    own = outcomes[:12]
    _, figures = train(still(Implicit(weight=1.0, lm_weight=0.0, confidence=confidence)), own)
    scores = [
        (read_confidence(reply, confidence) - row.is_correct) ** 2
        for row, reply in zip(own, replies, strict=True)
    ]
    assert figures["loss"] == pytest.approx(sum(scores) / 12, rel=1e-4)


@pytest.mark.parametrize("tokens", ["answer", "all"])
def test_without_the_penalty_it_is_plain_language_modelling(talker, train, outcomes, tokens, tmp_path):
    """The oracle is transformers' own Trainer with the model's own loss."""
    fit = FIT.model_copy(update={"epochs": 1, "accumulation": 2})
    ours, _ = train(Implicit(weight=0, lm_on="all", tokens=tokens, optimisation=fit), outcomes)

    model, tokenizer = load_for_training(talker)

    def labelled(row):
        prompt, reply, _ = encode_outcome(tokenizer, row)
        return {
            "ids": prompt + reply,
            "labels": (prompt if tokens == "all" else [-100] * len(prompt)) + reply,
        }

    def padded(batch):
        width = max(len(row["ids"]) for row in batch)
        fill = [width - len(row["ids"]) for row in batch]
        return {
            "input_ids": torch.tensor([row["ids"] + [0] * n for row, n in zip(batch, fill, strict=True)]),
            "attention_mask": torch.tensor(
                [[1] * len(row["ids"]) + [0] * n for row, n in zip(batch, fill, strict=True)]
            ),
            "labels": torch.tensor([row["labels"] + [-100] * n for row, n in zip(batch, fill, strict=True)]),
        }

    from peft import get_peft_model

    set_seed(0)
    plain = Trainer(
        model=get_peft_model(model, Lora().config()),
        args=TrainingArguments(**fit.arguments(tmp_path / "scratch", 0)),
        train_dataset=[labelled(row) for row in outcomes],
        data_collator=padded,
    )
    plain.train()
    save_adapter(plain.model, tmp_path / "plain")
    assert close(ours, tmp_path / "plain", 1e-5)


# What must not matter


@pytest.mark.parametrize("name", list(METHODS))
def test_four_passes_of_four_are_one_of_sixteen(train, rows, name):
    """Rows are of different length, and the last step of an epoch is not full."""
    many = [*rows[name], *rows[name]][:26]
    adapters = [
        train(METHODS[name].model_copy(update={"optimisation": fit}), many)[0]
        for fit in (
            Optimisation(learning_rate=1e-3, epochs=2, batch_size=4, accumulation=4),
            Optimisation(learning_rate=1e-3, epochs=2, batch_size=16, accumulation=1),
        )
    ]
    assert close(*adapters, 2e-5)


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(train, trained):
    method, own, folder, figures, _ = trained
    torch.rand(7)  # what was drawn before must not count
    again, same_figures = train(method, own)
    assert content(again) == content(folder)
    assert same_figures == {**figures, **{k: v for k, v in same_figures.items() if "per_second" in k}}
    other, _ = train(method, own, seed=1)
    assert content(other)["adapter_model.safetensors"] != content(folder)["adapter_model.safetensors"]


class KilledError(Exception):
    """What stops a training in the middle."""


@pytest.fixture
def stopped(train, trained, tmp_path):
    """The checkpoints of a training that was stopped in its seventh step, the newest last."""
    method, own, *_ = trained

    def stop(share, note):
        if note.startswith("step 7 of 12"):
            raise KilledError

    with pytest.raises(KilledError):
        train(method, own, scratch=tmp_path, progress=stop)
    (folder,) = tmp_path.iterdir()
    return sorted(folder.glob("checkpoint-*"), key=steps_of)


def resumed(train, trained, tmp_path):
    """Go on, to the adapter of an undisturbed training; what was noted on the way."""
    method, own, folder, figures, _ = trained
    notes = []
    again, same_figures = train(method, own, scratch=tmp_path, progress=lambda *note: notes.append(note[1]))
    assert content(again) == content(folder)
    assert same_figures == figures
    return notes


def test_a_training_that_was_stopped_goes_on_to_the_same_adapter(train, trained, stopped, tmp_path):
    assert [path.name for path in stopped] == ["checkpoint-4", "checkpoint-6"]
    assert resumed(train, trained, tmp_path)[0].startswith("step 7 of 12")


def test_a_checkpoint_that_was_not_written_to_its_end_is_not_continued(train, trained, stopped, tmp_path):
    (stopped[1] / SEAL).unlink()
    (stopped[1] / "optimizer.pt").write_bytes(b"half")
    assert resumed(train, trained, tmp_path)[0].startswith("step 5 of 12")


FILES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("name", [*FILES, "adapter_config.json", SEAL])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_continued(
    train, trained, stopped, tmp_path, name
):
    path = stopped[1] / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    notes = resumed(train, trained, tmp_path)
    assert notes[0].startswith(f"set aside: checkpoint-6 ({name}), kept as {stopped[1].parent}")
    assert notes[1].startswith("step 5 of 12")


def test_where_every_checkpoint_is_damaged_the_training_begins_anew(train, trained, stopped, tmp_path):
    for checkpoint in stopped:
        (checkpoint / "optimizer.pt").unlink()
    notes = resumed(train, trained, tmp_path)
    assert [note[:23] for note in notes[:2]] == ["set aside: checkpoint-6", "set aside: checkpoint-4"]
    assert notes[2].startswith("step 1 of 12")


def test_a_training_stopped_at_the_very_end_only_writes_its_adapter(train, trained, tmp_path):
    method, own, folder, figures, _ = trained
    train(method, own, scratch=tmp_path)
    notes = []
    again, same_figures = train(method, own, scratch=tmp_path, progress=lambda *note: notes.append(note))
    assert notes == []
    assert content(again) == content(folder)
    assert same_figures == figures


def test_other_settings_rows_and_seeds_never_go_on_from_these_checkpoints(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    one, two = tmp_path / "one", tmp_path / "two"
    runs = [(Dpo(), one, 0), (Dpo(beta=0.2), one, 0), (Dpo(), two, 0), (Dpo(), one, 1), (Implicit(), one, 0)]
    places = [checkpoints_of(tmp_path, *run) for run in runs]
    assert len(set(places)) == len(runs)
    assert checkpoints_of(tmp_path, Dpo(), one, 0) == places[0]


# What is left behind


def test_progress_and_figures_tell_how_it_went(trained):
    _, _, _, figures, notes = trained
    assert [share for share, _ in notes] == pytest.approx([step / 12 for step in range(1, 13)])
    assert notes[-1][1].startswith("step 12 of 12, loss ")
    assert figures["steps"] == 12
    assert all(math.isfinite(value) for value in figures.values())


def test_an_adapter_is_two_files_that_name_no_place(trained, talker):
    _, _, folder, _, _ = trained
    assert set(content(folder)) == {"adapter_model.safetensors", "adapter_config.json"}
    text = (folder / "adapter_config.json").read_text()
    assert str(talker.parent) not in text
    assert not any(isinstance(value, str) and "/" in value for value in json.loads(text).values())
    assert str(Path(talker).parent).encode() not in content(folder)["adapter_model.safetensors"]


def test_an_adapter_loads_and_changes_the_answers_probabilities(trained, talker, outcomes):
    _, _, folder, _, _ = trained
    speaker = Speaker.load(talker, folder, "float32")
    name = "base_model.model.model.layers.1.self_attn.o_proj.lora_B"
    loaded = dict(speaker.model.named_parameters())[f"{name}.default.weight"]
    assert torch.equal(loaded, weights(folder)[f"{name}.weight"])
    assert confidences(talker, folder, outcomes[:1]) != confidences(talker, None, outcomes[:1])


def test_only_the_named_layers_and_maps_are_adapted(train, outcomes):
    lora = Lora(rank=2, alpha=4, targets=("q_proj",), layers=(1,))
    fit = FIT.model_copy(update={"epochs": 1})
    adapter, _ = train(Implicit(optimisation=fit, lora=lora), outcomes)
    name = "base_model.model.model.layers.1.self_attn.q_proj"
    assert {key: list(value.shape) for key, value in weights(adapter).items()} == {
        f"{name}.lora_A.weight": [2, 64],
        f"{name}.lora_B.weight": [64, 2],
    }


# What is refused


@pytest.mark.parametrize(("method", "kind"), [(Dpo(), Preference), (Implicit(), Outcome)])
def test_no_rows_are_an_error_before_any_model_is_loaded(method, kind, tmp_path):
    TrainingSet(kind=kind, rows=(), left_out={}).write(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="got none"):
        method.train(tmp_path, tmp_path / "rows.parquet", tmp_path, tmp_path, 0, lambda *_: None)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_row_longer_than_the_context_is_named(train, rows, name):
    long = rows[name][3].model_copy(update={"prompt": "x" * 500})
    with pytest.raises(DataError, match=r"question 'q3' must fit a context of 512 tokens"):
        train(METHODS[name], [rows[name][0], long])


def test_the_trained_model_is_asked_through_its_adapter(trained, talker, questions):
    method, _, folder, _, _ = trained
    answers = Hf(max_tokens=3).generate(
        questions[:2], method.elicitation, model=talker, adapter=folder, progress=lambda *_: None
    )
    assert [answer.question_id for answer in answers] == ["q0", "q1"]


def test_rows_of_the_loss_are_the_encoded_rows(talker, outcomes):
    tokenizer = AutoTokenizer.from_pretrained(talker)
    row = example(*encode_outcome(tokenizer, outcomes[0]), outcomes[0].is_correct)
    marked = [token for token, is_answer in zip(row["input_ids"], row["answer"], strict=True) if is_answer]
    assert tokenizer.decode(marked) == outcomes[0].answer
