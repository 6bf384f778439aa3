import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2 import TemplateError
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2ForCausalLM

from calibration.checkpoints import SEAL, SET_ASIDE, seal, steps_of
from calibration.engines.chat import token_texts
from calibration.engines.hf import Hf
from calibration.errors import DataError
from calibration.models.pocket import PRETRAINING, STATE, Pocket, _learn, _plan, _Row
from calibration.worlds.facts import Document, World

WORLD = World(entities_per_topic=24, pool_size=6, statement_share=0.1, stated_share=0.4, popularity_shift=3.0)
SMALL = Pocket(
    width=64, layers=2, heads=2, key_value_heads=1, feed_forward=128, tokens_per_step=512, epochs=2
)
TINY = Pocket(
    vocabulary=300,
    width=16,
    layers=1,
    heads=2,
    key_value_heads=1,
    feed_forward=32,
    tokens_per_step=512,
    checkpoint_steps=3,
)
TEXTS = WORLD.documents()[:60]


def silent(share, note):
    pass


def obtain(pocket, folder, scratch, documents=TEXTS):
    """The files of the model, and the shares that progress was told."""
    shares = []
    pocket.obtain(documents, folder, scratch, lambda share, note: shares.append(share))
    return content(folder), shares


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A model that has read the small world, and its answers to every question."""
    folder = tmp_path_factory.mktemp("learnt") / "made" / "here"
    notes = []
    SMALL.obtain(
        WORLD.documents(), folder, tmp_path_factory.mktemp("scratch"), lambda *note: notes.append(note)
    )
    answers = {
        way: Hf(max_tokens=24).generate(WORLD.questions(), way, model=folder, adapter=None, progress=silent)
        for way in ("plain", "stated")
    }
    return SimpleNamespace(
        folder=folder, notes=notes, answers=answers, tokenizer=AutoTokenizer.from_pretrained(folder)
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The tiny model, pretrained without a break."""
    folder = tmp_path_factory.mktemp("straight")
    return obtain(TINY, folder / "model", folder / "scratch")


@pytest.mark.parametrize("way", ["plain", "stated"])
def test_popular_facts_are_known_and_rare_ones_are_not(learnt, way):
    right = np.array(
        [g.answer in q.answers for q, g in zip(WORLD.questions(), learnt.answers[way], strict=True)]
    )
    exposures = np.array(list(WORLD.exposures().values()))
    head, tail = right[exposures >= 12].mean(), right[exposures <= 2].mean()
    # What the best guess without any knowledge of the entity gets right.
    drawn = Counter((fact.relation, fact.answers) for fact in WORLD.facts())
    relations = {fact.relation for fact in WORLD.facts()}
    guess = sum(max(n for (asked, _), n in drawn.items() if asked == relation) for relation in relations)
    assert head > guess / len(right) + 0.25
    assert head > tail + 0.25
    assert tail < 0.7


def test_replies_keep_the_format_of_the_documents(learnt):
    assert np.mean([g.stated is not None for g in learnt.answers["stated"]]) > 0.95
    assert all(g.stated is None and "Answer:" not in g.text for g in learnt.answers["plain"])
    for way in ("plain", "stated"):
        assert np.mean([g.finish == "stop" for g in learnt.answers[way]]) > 0.95


def test_progress_rises_to_one_while_the_loss_falls(learnt):
    shares = [share for share, _ in learnt.notes]
    assert shares == [(step + 1) / len(shares) for step in range(len(shares))]
    losses = [float(note.removeprefix("loss ")) for _, note in learnt.notes]
    assert losses[0] == pytest.approx(np.log(1024), abs=1.5)
    assert np.mean(losses[-10:]) < 0.5


def test_the_folder_is_a_gemma_2_that_transformers_decodes_as_the_engine_does(learnt):
    model = AutoModelForCausalLM.from_pretrained(learnt.folder, attn_implementation="eager")
    assert isinstance(model, Gemma2ForCausalLM)
    for question, answer in list(zip(WORLD.questions(), learnt.answers["plain"], strict=True))[:3]:
        chat = [
            {
                "role": "user",
                "content": "Answer the following question with the answer only:\nQuestion: " + question.text,
            }
        ]
        prompt = learnt.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        reply = model.generate(**prompt, max_new_tokens=24)[0, prompt["input_ids"].shape[1] :]
        assert tuple(reply.tolist()) == answer.token_ids


def test_a_reply_stops_at_the_end_of_a_turn_or_of_a_text(learnt):
    configured = json.loads((learnt.folder / "generation_config.json").read_text())
    names = learnt.tokenizer.convert_ids_to_tokens(configured["eos_token_id"])
    assert names == ["<eos>", "<end_of_turn>"]
    assert {answer.token_ids[-1] for answer in learnt.answers["plain"] if answer.finish == "stop"} == {
        learnt.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    }


def test_the_chat_template_is_that_of_gemma_2(learnt):
    turns = [
        {"role": "user", "content": " Who? "},
        {"role": "assistant", "content": "Ann"},
        {"role": "user", "content": "When?"},
    ]

    def rendered(chat):
        return learnt.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)

    assert rendered(turns) == (
        "<bos><start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\nAnn<end_of_turn>\n"
        "<start_of_turn>user\nWhen?<end_of_turn>\n<start_of_turn>model\n"
    )
    with pytest.raises(TemplateError, match="System role not supported"):
        rendered([{"role": "system", "content": "Be brief."}])
    with pytest.raises(TemplateError, match="must alternate"):
        rendered(turns[1:])


def test_special_tokens_and_roles_are_one_token_each(learnt):
    tokenizer = learnt.tokenizer
    for name in ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "user", "model"):
        assert len(tokenizer.encode(name, add_special_tokens=False)) == 1, name
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == ("<pad>", "<eos>", "<bos>")
    assert tokenizer.encode("x")[0] == tokenizer.bos_token_id
    assert tokenizer.model_max_length == 256
    assert len(tokenizer) <= 1024


@given(text=st.text(max_size=30))
@example(text="héllo 日本 🙂 e\N{COMBINING ACUTE ACCENT}")
@example(text="  two\r\n\tspaces \n\n")
@example(text="1 January 1900, \N{REPLACEMENT CHARACTER} ² ٣ \N{NO-BREAK SPACE}.")
def test_any_text_comes_back_from_its_tokens(learnt, text):
    ids = learnt.tokenizer.encode(text, add_special_tokens=False)
    assert learnt.tokenizer.decode(ids) == text
    assert "".join(token_texts(learnt.tokenizer, ids)) == text


@pytest.mark.parametrize("text", ["Confidence: 0.95", "28 March 1874", "12,345 x99y", "1.00"])
def test_every_digit_is_a_token_of_its_own(learnt, text):
    texts = token_texts(learnt.tokenizer, learnt.tokenizer.encode(text, add_special_tokens=False))
    assert [t for t in texts if any(c.isdigit() for c in t)] == [c for c in text if c.isdigit()]


def test_the_gradient_is_that_of_every_row_read_alone(random_model):
    model = Gemma2ForCausalLM.from_pretrained(random_model, attn_implementation="eager").double()
    groups = [
        [_Row((1, 40, 41, 42, 50, 60, 2), 5), _Row((1, 40, 41, 43, 51, 61, 62, 2), 5)],
        [_Row((1, 70, 71, 72), 1)],
    ]
    loss = _learn(model, groups)
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    total = 0.0
    for row in (row for group in groups for row in group):
        logprobs = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        total -= sum(logprobs[at - 1, row.ids[at]] for at in range(row.start, len(row.ids)))
    (total / 8).backward()
    assert loss == pytest.approx(total.item() / 8)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-5, atol=1e-8)


def test_an_epoch_reads_every_document_once_in_batches_of_similar_length():
    lengths = np.random.default_rng(0).integers(5, 100, 200).tolist()
    steps = _plan(lengths, 500, 3, 0)
    read = [position for step in steps for group in step for position in group]
    assert Counter(read) == dict.fromkeys(range(200), 3)
    for group in (group for step in steps for group in step):
        sizes = [lengths[position] for position in group]
        assert max(sizes) <= 4 + 1.35 * min(sizes)
    tokens = [sum(lengths[position] for group in step for position in group) for step in steps]
    assert sum(size < 500 for size in tokens) <= 3
    assert max(tokens) < 500 + 100


def test_equal_settings_give_equal_bytes_whatever_torch_drew_before(straight, tmp_path):
    torch.manual_seed(1234)
    state = torch.random.get_rng_state()
    files, _ = obtain(TINY, tmp_path / "model", tmp_path / "scratch")
    assert files == straight[0]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_another_seed_gives_another_model(straight, tmp_path):
    files, _ = obtain(TINY.model_copy(update={"seed": 1}), tmp_path / "model", tmp_path / "scratch")
    assert files["model.safetensors"] != straight[0]["model.safetensors"]
    assert files["tokenizer.json"] == straight[0]["tokenizer.json"]


class Interrupted(Exception):  # noqa: N818 - it is no error
    pass


def interrupt(pocket, scratch, after, documents=TEXTS):
    """Pretrain until so many steps are done, and leave what a killed process leaves."""
    told = []

    def progress(share, note):
        told.append(share)
        if len(told) == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        pocket.obtain(documents, scratch / "lost", scratch, progress)
    (folder,) = (scratch / PRETRAINING).iterdir()
    return sorted(folder.iterdir(), key=steps_of)


@pytest.mark.parametrize("after", [4, 8])
def test_interrupted_work_goes_on_to_the_same_bytes(straight, tmp_path, after):
    files, shares = straight
    assert len(shares) > 9
    interrupt(TINY, tmp_path, after)
    resumed, rest = obtain(TINY, tmp_path / "model", tmp_path)
    assert resumed == files
    assert rest == shares[after - after % 3 :]


def test_work_interrupted_after_its_last_step_is_only_saved(straight, tmp_path):
    files, shares = straight
    each = TINY.model_copy(update={"checkpoint_steps": 1})
    interrupt(each, tmp_path, len(shares))
    assert obtain(each, tmp_path / "model", tmp_path) == (files, [])


def test_how_often_checkpoints_are_made_is_no_part_of_the_identity():
    assert TINY.model_copy(update={"checkpoint_steps": 1}).identity() == TINY.identity()
    assert TINY.model_copy(update={"epochs": 2}).identity() != TINY.identity()


@pytest.mark.parametrize(
    ("other", "documents"),
    [(TINY.model_copy(update={"seed": 1}), TEXTS), (SMALL, TEXTS), (TINY, TEXTS[::-1])],
    ids=["seed", "size", "documents"],
)
def test_a_checkpoint_of_other_work_is_not_used(straight, tmp_path, other, documents):
    interrupt(other.model_copy(update={"checkpoint_steps": 1}), tmp_path, 1, documents)
    assert obtain(TINY, tmp_path / "model", tmp_path) == straight


def cut(checkpoint):
    content = (checkpoint / STATE).read_bytes()
    (checkpoint / STATE).write_bytes(content[: len(content) // 2])


def flip(checkpoint):
    content = bytearray((checkpoint / STATE).read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / STATE).write_bytes(content)


def empty(checkpoint):
    cut(checkpoint)
    seal(checkpoint)  # as something that was damaged before it was sealed


DAMAGES = {
    "cut off": cut,
    "a changed bit": flip,
    "gone": lambda checkpoint: (checkpoint / STATE).unlink(),
    "a folder": lambda checkpoint: ((checkpoint / STATE).unlink(), (checkpoint / STATE).mkdir()),
    "no seal that can be read": lambda checkpoint: (checkpoint / SEAL).write_text("[1]"),
    "sealed and not to be loaded": empty,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_continued(straight, tmp_path, damage):
    files, shares = straight
    before, last = interrupt(TINY, tmp_path, 8)
    DAMAGES[damage](last)
    notes = []
    TINY.obtain(TEXTS, tmp_path / "model", tmp_path, lambda share, note: notes.append((share, note)))
    assert content(tmp_path / "model") == files
    assert notes[0][1].startswith(f"{SET_ASIDE}{last.name} (")
    assert [share for share, _ in notes[1:]] == shares[steps_of(before) :]
    assert (last.parent / f"damaged-{last.name}").is_dir()


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_every_checkpoint_is_damaged_the_work_begins_anew(straight, tmp_path, damage):
    for checkpoint in interrupt(TINY, tmp_path, 8):
        DAMAGES[damage](checkpoint)
    notes = []
    TINY.obtain(TEXTS, tmp_path / "model", tmp_path, lambda share, note: notes.append((share, note)))
    assert content(tmp_path / "model") == straight[0]
    assert [share for share, note in notes if not note.startswith(SET_ASIDE)] == straight[1]


class Exploit:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_checkpoint_runs_no_code(straight, tmp_path):
    mark = tmp_path / "mark"
    for checkpoint in interrupt(TINY, tmp_path, 4):
        torch.save({"model": Exploit(mark)}, checkpoint / STATE)
        seal(checkpoint)
    assert obtain(TINY, tmp_path / "model", tmp_path)[0] == straight[0]
    assert not mark.exists()
    torch.load(next(tmp_path.rglob(f"damaged-*/{STATE}")), weights_only=False)
    assert mark.exists(), "the exploit is none: the test would prove nothing"


def test_no_documents_is_an_error(tmp_path):
    with pytest.raises(DataError, match="must hold at least one text to pretrain on; got none"):
        TINY.obtain([], tmp_path / "model", tmp_path, silent)
    assert not (tmp_path / "model").exists()


def test_a_document_longer_than_the_context_is_named(tmp_path):
    documents = [*TEXTS[:5], Document(user=None, reply="a long tale " * 100)]
    with pytest.raises(
        DataError, match=r"context = 256 tokens; document 5 \('a long tale .* Raise `context`"
    ):
        TINY.obtain(documents, tmp_path / "model", tmp_path, silent)


def test_a_single_document_is_enough(tmp_path):
    files, shares = obtain(TINY, tmp_path / "model", tmp_path, [Document(user=None, reply="x")])
    assert shares == [1.0]
    assert "model.safetensors" in files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 36, "heads": 4}, r"multiple of 2 \* heads = 8; got 36"),
        ({"heads": 4, "key_value_heads": 3}, "multiple of key_value_heads = 3; got 4"),
    ],
)
def test_heads_that_do_not_share_evenly_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        Pocket(**change)
