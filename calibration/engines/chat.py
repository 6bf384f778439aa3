"""How a model is talked to: a question becomes token ids, and sampled tokens become a record.

Every engine that runs a model goes through here, so that one question is the same ids, and one reply the
same record, whichever runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from calibration import confidence
from calibration.engines.number_tree import STATED_TEXTS, NumberTree
from calibration.errors import ConfigurationError
from calibration.prompts import PROMPTS
from calibration.records import Elicitation, Generation, Question

END_OF_TURN = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>")
"""Tokens that end a turn without being the tokenizer's own end token."""

Grid = tuple[float, ...]
"""Probability of writing 0.00, 0.01, ..., 1.00."""


class Chat:
    """A model's tokenizer, the tokens that end its turn, and the length of its context."""

    def __init__(self, tokenizer: Any, end_ids: int | list[int] | None, limit: int) -> None:  # noqa: ANN401 - transformers' classes are dynamic
        """Wrap a tokenizer.

        Args:
            tokenizer: Of transformers.
            end_ids: What the model's generation configuration names as its end tokens.
            limit: Longest prompt and reply together, in tokens.
        """
        self.tokenizer = tokenizer
        self.stop_ids = _stop_ids(tokenizer, end_ids)
        self.limit = limit

    @classmethod
    def of(cls, folder: Path) -> Chat:
        """All that can be known of a model folder without loading its weights."""
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        config = AutoConfig.from_pretrained(folder)
        # Where a model brings no generation configuration, transformers makes one of the model's.
        if (folder / "generation_config.json").exists():
            generation = GenerationConfig.from_pretrained(folder)
        else:
            generation = GenerationConfig.from_model_config(config)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(tokenizer, generation.eos_token_id, config.max_position_embeddings)

    def prompt(self, user: str) -> list[int]:
        """Token ids of one user turn, up to where the model's reply begins.

        Raises:
            ConfigurationError: The model has no chat template.
        """
        if not self.tokenizer.chat_template:
            raise ConfigurationError(
                f"model {self.tokenizer.name_or_path} must have a chat template; its tokenizer has none. "
                "Take the instruction-tuned form of the model"
            )
        chat = [{"role": "user", "content": user}]
        ids = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return list(ids["input_ids"])

    def prompts(
        self, questions: Sequence[Question], elicitation: Elicitation, max_tokens: int
    ) -> list[list[int]]:
        """Token ids of what is put to the model for each question.

        Raises:
            ConfigurationError: The model has no chat template, or a prompt leaves no room for the reply.
        """
        prompts = [self.prompt(PROMPTS[elicitation].render(question.text)) for question in questions]
        for question, prompt in zip(questions, prompts, strict=True):
            if len(prompt) + max_tokens > self.limit:
                raise ConfigurationError(
                    f"question {question.id!r} must leave room for {max_tokens} tokens in a context of "
                    f"{self.limit}; its prompt has {len(prompt)}. Shorten it or lower engine.max_tokens"
                )
        return prompts

    def read(
        self, question: Question, elicitation: Elicitation, ids: Sequence[int], logprobs: Sequence[float]
    ) -> Generation:
        """The record of one reply: its answer, the answer's tokens, and the number it states.

        Args:
            question: What was asked.
            elicitation: How it was asked.
            ids: The sampled tokens, the one that ended the turn included.
            logprobs: Their natural log-probabilities at temperature 1.
        """
        tokens = token_texts(self.tokenizer, ids)
        stopped = ids[-1] in self.stop_ids
        text = "".join(tokens[:-1] if stopped else tokens)
        reply = confidence.read_reply(text, elicitation)
        return Generation(
            question_id=question.id,
            elicitation=elicitation,
            text=text,
            answer=reply.answer,
            token_ids=tuple(ids),
            tokens=tuple(tokens),
            # A sum of rounded parts may come out a hair above 0.
            logprobs=tuple(min(0.0, value) for value in logprobs),
            span=confidence.answer_span(tokens, reply.start, reply.stop),
            span_rule=confidence.SPAN_RULE,
            finish="stop" if stopped else "length",
            stated=reply.stated,
        )

    def with_grids(
        self,
        prompts: Sequence[list[int]],
        replies: Sequence[Generation],
        measure: Callable[[list[list[int]], str], Sequence[Grid]],
    ) -> list[Generation]:
        """Add to every reply that states a number the distribution that the number was taken from.

        Args:
            prompts: Token ids of what was put to the model.
            replies: What it replied.
            measure: Takes contexts, and the text between the end of each and its number, such as the space
                of a token " 0"; returns a grid for each.
        """
        places: dict[int, tuple[list[int], str]] = {}
        for row, reply in enumerate(replies):
            start = confidence.read_reply(reply.text, reply.elicitation).number_start
            if start is not None:
                at = confidence.token_at(reply.tokens, start)
                lead = reply.tokens[at][: start - len("".join(reply.tokens[:at]))]
                places[row] = (prompts[row] + list(reply.token_ids[:at]), lead)
        measured = list(replies)
        for lead in sorted({lead for _, lead in places.values()}):
            rows = [row for row, (_, own) in places.items() if own == lead]
            grids = measure([places[row][0] for row in rows], lead)
            for row, grid in zip(rows, grids, strict=True):
                measured[row] = measured[row].model_copy(update={"stated_grid": grid})
        return measured

    def numbers(self, lead: str) -> NumberTree:
        """The token paths of every number that can be stated behind a lead."""
        digits = sorted({self._ids_of(str(digit))[-1] for digit in range(10)})
        return NumberTree({text: self._ids_of(lead + text) for text in STATED_TEXTS}, digits)

    def _ids_of(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:  # noqa: ANN401 - transformers' classes are dynamic
    """The text that each token adds; joined, they are the decoded text.

    A token that ends inside a character adds nothing; the token that completes it adds the character.
    """
    texts, so_far = [], ""
    for stop in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:stop], clean_up_tokenization_spaces=False)
        whole = text.rstrip("\N{REPLACEMENT CHARACTER}") if stop < len(ids) else text
        texts.append(whole[len(so_far) :])
        so_far = whole if len(whole) > len(so_far) else so_far
    return texts


def _stop_ids(tokenizer: Any, end_ids: int | list[int] | None) -> frozenset[int]:  # noqa: ANN401
    named = [
        tokenizer.convert_tokens_to_ids(token) for token in END_OF_TURN if token in tokenizer.get_vocab()
    ]
    own = end_ids if isinstance(end_ids, list) else [end_ids]
    return frozenset(token for token in [tokenizer.eos_token_id, *own, *named] if token is not None)
