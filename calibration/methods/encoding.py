"""From a prompt and a reply to token ids, exactly as the model sees them when it is asked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from calibration.confidence import answer_span, read_reply
from calibration.engines.chat import token_texts
from calibration.errors import ConfigurationError, DataError
from calibration.methods.rows import Outcome, Preference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "answer"


def encode_reply(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, reply: str
) -> tuple[list[int], list[int]]:
    """Token ids of one turn: the prompt up to where the reply begins, and the reply with its end token.

    The prompt is the user turn in the tokenizer's chat template, so its ids are those of inference. The
    reply is tokenised behind it; a reply that would change the prompt's last tokens is refused.

    Returns:
        Prompt ids (one BOS where the template has one) and reply ids (ending the turn).

    Raises:
        ConfigurationError: The boundary between prompt and reply is inside a token.
    """
    text = _chat(tokenizer, prompt)
    before: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    together: list[int] = tokenizer(text + reply, add_special_tokens=False)["input_ids"]
    if together[: len(before)] != before:
        raise ConfigurationError(
            f"the chat template must end where a token ends; the reply {reply!r} merges with {text[-20:]!r}. "
            f"End the generation prompt with a special token or a line break"
        )
    return before, [*together[len(before) :], end_of_turn(tokenizer)]


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Id of the token that the chat template puts behind a reply, or else the tokenizer's own end token.

    Raises:
        ConfigurationError: There is neither.
    """
    turns = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    tail = tokenizer(text[text.rindex(_PROBE) + len(_PROBE) :], add_special_tokens=False)["input_ids"]
    special = [
        token
        for token in tail
        if token in tokenizer.all_special_ids or token in tokenizer.added_tokens_decoder
    ]
    if special:
        return int(special[0])
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(
            f"the tokenizer of {tokenizer.name_or_path!r} must have an end token; its chat template closes a "
            f"reply with {text[text.rindex(_PROBE) + len(_PROBE) :]!r}. Set eos_token"
        )
    return int(tokenizer.eos_token_id)


def encode_preference(tokenizer: "PreTrainedTokenizerBase", row: Preference) -> dict[str, list[int]]:
    """The three id lists that TRL's preference collator takes."""
    prompt, chosen = encode_reply(tokenizer, row.prompt, row.chosen)
    _, rejected = encode_reply(tokenizer, row.prompt, row.rejected)
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def encode_outcome(
    tokenizer: "PreTrainedTokenizerBase", row: Outcome
) -> tuple[list[int], list[int], list[int]]:
    """Prompt ids, reply ids and answer positions within the reply.

    Recorded tokens are used as they are, so that training sees the very tokens that the confidence was
    read from; a reply without them is tokenised, and its answer found by the same rule.

    Raises:
        DataError: The recorded tokens are not this tokenizer's.
    """
    prompt, reply = encode_reply(tokenizer, row.prompt, row.reply)
    if not row.token_ids:
        read = read_reply(row.reply, "plain")
        return prompt, reply, list(answer_span(token_texts(tokenizer, reply[:-1]), read.start, read.stop))
    text = "".join(token_texts(tokenizer, row.token_ids))
    if not text.startswith(row.reply):
        raise DataError(
            f"the tokens of question {row.question_id!r} must spell its reply {row.reply!r}; this tokenizer "
            f"reads {text!r}. Train the model that gave the replies"
        )
    return prompt, list(row.token_ids), list(row.span)


def check_lengths(question_ids: Sequence[str], lengths: Sequence[int], limit: int) -> None:
    """Refuse a row that does not fit the model's context; nothing is ever cut off.

    Raises:
        DataError: Names the question.
    """
    for question_id, length in zip(question_ids, lengths, strict=True):
        if length > limit:
            raise DataError(
                f"question {question_id!r} must fit a context of {limit} tokens with its reply; "
                f"it has {length}. Leave the question out"
            )


def _chat(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> str:
    turn = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))
