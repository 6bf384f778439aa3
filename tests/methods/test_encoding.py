"""The oracle is the tokenizer over the whole conversation, and the engine's own prompt."""

import pytest
from transformers import AutoTokenizer

from calibration.engines.chat import token_texts
from calibration.engines.hf import Speaker
from calibration.errors import ConfigurationError, DataError
from calibration.methods import Outcome, Preference
from calibration.methods.encoding import (
    check_lengths,
    encode_outcome,
    encode_preference,
    encode_reply,
    end_of_turn,
)

REPLIES = ["Paris", " Paris", "Answer: Paris\nConfidence: 0.90", "Zürich 日本", ""]


@pytest.fixture
def tokenizer(random_model):
    return AutoTokenizer.from_pretrained(random_model)


def merging():
    """A tokenizer whose first merge joins a line break and what follows it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<bos>", "<eos>", *alphabet, "ĊP", ":P"]
    bpe = models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=[("Ċ", "P"), (":", "P")])
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    ends = {"bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)


@pytest.mark.parametrize("reply", REPLIES)
def test_prompt_and_reply_apart_are_the_joint_tokens(tokenizer, reply):
    prompt, completion = encode_reply(tokenizer, "Where?", reply)
    text = f"<bos><start_of_turn>user\nWhere?<end_of_turn>\n<start_of_turn>model\n{reply}<end_of_turn>"
    assert prompt + completion == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("reply", REPLIES)
def test_there_is_one_beginning_and_the_turn_ends(tokenizer, reply):
    prompt, completion = encode_reply(tokenizer, "Where?", reply)
    assert (prompt + completion).count(tokenizer.bos_token_id) == 1
    assert prompt[0] == tokenizer.bos_token_id
    assert completion[-1] == tokenizer.convert_tokens_to_ids("<end_of_turn>") != tokenizer.eos_token_id
    assert tokenizer.decode(completion[:-1]) == reply


def test_the_prompt_is_the_one_that_the_engine_asks(random_model, tokenizer):
    speaker = Speaker.load(random_model, None, "float32")
    prompt, completion = encode_reply(tokenizer, "Who?\nAda", "Bo")
    assert prompt == speaker.prompt("Who?\nAda")
    assert completion[-1] in speaker.stop_ids


def test_the_two_replies_of_a_pair_have_one_prompt_and_differ_in_the_number(tokenizer):
    pair = Preference(
        question_id="q",
        prompt="Where?",
        chosen="Answer: Paris\nConfidence: 0.90",
        rejected="Answer: Paris\nConfidence: 0.10",
        target=0.9,
        original=None,
    )
    ids = encode_preference(tokenizer, pair)
    assert ids["prompt_ids"] == encode_reply(tokenizer, "Where?", pair.chosen)[0]
    for name, reply in (("chosen_ids", pair.chosen), ("rejected_ids", pair.rejected)):
        assert token_texts(tokenizer, ids[name]) == [*reply, "<end_of_turn>"]


def test_a_reply_that_merges_with_the_prompt_is_refused():
    tokenizer = merging()
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}:"
    with pytest.raises(ConfigurationError, match="'Paris' merges with"):
        encode_reply(tokenizer, "Where?", "Paris")
    assert encode_reply(tokenizer, "Where?", "Rome")[1][-1] == tokenizer.eos_token_id


def test_a_template_without_an_end_of_turn_ends_with_the_end_token_or_not_at_all():
    tokenizer = merging()
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(ConfigurationError, match="Set eos_token"):
        end_of_turn(tokenizer)


def outcome(reply, token_ids=(), span=()):
    return Outcome(
        question_id="q7",
        prompt="Where?",
        answer=reply.strip(),
        reply=reply,
        token_ids=token_ids,
        span=span,
        is_correct=1,
    )


def test_recorded_tokens_are_used_as_they_are(tokenizer):
    ids = tuple(tokenizer("Paris\n", add_special_tokens=False)["input_ids"])
    prompt, reply, span = encode_outcome(tokenizer, outcome("Paris\n", ids, (0, 1, 2, 3, 4)))
    assert prompt == encode_reply(tokenizer, "Where?", "x")[0]
    assert (reply, span) == (list(ids), [0, 1, 2, 3, 4])  # cut off at the limit: no end of turn is put there


def test_a_reply_without_tokens_is_tokenised_and_its_answer_found(tokenizer):
    _, reply, span = encode_outcome(tokenizer, outcome(" New York\n"))
    assert token_texts(tokenizer, reply) == [*" New York\n", "<end_of_turn>"]
    assert "".join(token_texts(tokenizer, reply)[place] for place in span) == "NewYork"


def test_tokens_of_another_tokenizer_are_refused(tokenizer):
    with pytest.raises(DataError, match=r"question 'q7' must spell its reply 'Paris'"):
        encode_outcome(tokenizer, outcome("Paris", (20, 21, 22), (0,)))


def test_a_row_that_does_not_fit_is_named_and_nothing_is_cut():
    check_lengths(["a", "b"], [10, 9], 10)
    with pytest.raises(DataError, match=r"question 'b' must fit a context of 10 tokens.*it has 11"):
        check_lengths(["a", "b"], [10, 11], 10)
