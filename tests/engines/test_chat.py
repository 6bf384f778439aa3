"""The oracle is transformers with the weights loaded, and the tokens of the random model: single bytes."""

import json
import math
import shutil

import pytest
from transformers import AutoModelForCausalLM

from calibration import fingerprint
from calibration.engines.chat import Chat
from calibration.engines.number_tree import NumberTree
from calibration.errors import ConfigurationError
from calibration.records import Question


@pytest.fixture
def folder(random_model, tmp_path):
    """A copy of the random model that a test may change."""
    return shutil.copytree(random_model, tmp_path / "model")


def test_the_end_tokens_are_the_models_the_tokenizers_and_the_turns(folder):
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [9]}))
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == [9]
    named = {Chat.of(folder).tokenizer.convert_tokens_to_ids(end) for end in ("<eos>", "<end_of_turn>")}
    assert Chat.of(folder).stop_ids == {9} | named


def test_without_a_generation_configuration_the_models_own_counts(folder):
    (folder / "generation_config.json").unlink()
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 9}))
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == 9
    assert 9 in Chat.of(folder).stop_ids


def test_a_model_without_a_chat_template_is_refused(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ConfigurationError, match=r"must have a chat template.*instruction-tuned"):
        Chat.of(folder).prompts([Question(id="q", text="why?", answers=("x",))], "plain", 1)


def test_a_prompt_may_fill_the_context_up_to_the_reply_and_no_further(random_model):
    chat = Chat.of(random_model)
    question = Question(id="q", text="why?", answers=("x",))
    [prompt] = chat.prompts([question], "plain", 1)
    room = 512 - len(prompt)
    assert chat.prompts([question], "plain", room) == [prompt]
    with pytest.raises(ConfigurationError, match=f"question 'q' must leave room for {room + 1} tokens"):
        chat.prompts([question], "plain", room + 1)


def test_a_stated_number_is_measured_where_it_stands(random_model):
    chat = Chat.of(random_model)
    question = Question(id="q", text="why?", answers=("x",))

    def read(text):
        ids = chat.tokenizer.encode(text, add_special_tokens=False)
        return chat.read(question, "stated", ids, [-1.0] * len(ids))

    seen = {}

    def measure(contexts, lead):
        seen[lead] = [chat.tokenizer.decode(context) for context in contexts]
        return [(0.5, *(0.0,) * 100)] * len(contexts)

    replies = [read("Answer: A\nConfidence: 0.7"), read("none"), read("Confidence:1")]
    measured = chat.with_grids([[], [], []], replies, measure)
    assert seen == {"": ["Answer: A\nConfidence: ", "Confidence:"]}
    assert [len(reply.stated_grid) for reply in measured] == [101, 0, 101]
    assert [reply.stated for reply in measured] == [0.7, None, 1.0]


def test_numbers_that_one_token_holds_are_read_off_it():
    texts = {f"{n / 100:.2f}": (n,) for n in range(101)}
    tree = NumberTree(texts, digits=[200])
    assert tree.asks == {(): tuple(range(101))}
    grid = tree.grid({(): {n: math.log((n + 1) / 5151) for n in range(101)}})
    assert grid == pytest.approx([(n + 1) / 5151 for n in range(101)])
    assert math.fsum(grid) == pytest.approx(1)


def test_one_engines_answers_outlive_a_change_of_the_other():
    assert "calibration.engines.hf" not in fingerprint.closure(["calibration.engines.vllm"])
    assert "calibration.engines.vllm" not in fingerprint.closure(["calibration.engines.hf"])
    for name in ("vllm", "hf"):
        assert "calibration.prompts" in fingerprint.closure([f"calibration.engines.{name}"])
