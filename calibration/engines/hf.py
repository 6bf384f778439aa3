"""Engine `hf`: answers from a Hugging Face causal language model, with transformers.

A decoding loop of our own: `generate` of transformers keeps the logits of every step for the whole
vocabulary, applies processors from the model's generation_config to a greedy search, and its continuous
batching leaves out Gemma-2's attention soft-cap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from calibration import confidence
from calibration.errors import ConfigurationError
from calibration.prompts import PROMPTS
from calibration.records import Elicitation, Generation, Question
from calibration.schema import Schema

if TYPE_CHECKING:
    import torch

END_OF_TURN = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>")
"""Tokens that end a turn without being the tokenizer's own end token."""

STATED_TEXTS = (
    tuple(f"{value:.2f}" for value in confidence.GRID) + tuple(f"0.{d}" for d in range(10)) + ("1.0", "1")
)
"""Every way of writing a confidence with at most two decimals."""


class Hf(Schema):
    """Greedy decoding with transformers, on a GPU when there is one."""

    kind: Literal["hf"] = "hf"
    max_tokens: int = Field(default=40, ge=1)
    """Longest reply, in tokens; a reply that reaches it is marked, not dropped."""
    batch_size: int = Field(default=64, ge=1)
    """Questions decoded together."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 elsewhere."""

    @property
    def elicitations(self) -> tuple[Elicitation, ...]:
        """A live model can be asked in every way."""
        return ("plain", "stated")

    def check(self, questions: Sequence[Question], elicitations: Sequence[Elicitation]) -> None:
        """Nothing can be known to be wrong before the model is there."""

    def generate(
        self,
        questions: Sequence[Question],
        elicitation: Elicitation,
        *,
        model: Path | None,
        adapter: Path | None,
        progress: Callable[[float, str], None],
    ) -> list[Generation]:
        """Answer every question, in order.

        Args:
            questions: What to ask.
            elicitation: How to ask.
            model: Folder of a Hugging Face model.
            adapter: Folder of a PEFT adapter to put on it.
            progress: Called with the share done and a note.

        Raises:
            ConfigurationError: No model was given, or a prompt does not fit the model's context.
        """
        if model is None:
            raise ConfigurationError("engine hf must have a model; give the model entry `weights`")
        speaker = Speaker.load(model, adapter, self.dtype)
        prompts = [speaker.prompt(PROMPTS[elicitation].render(question.text)) for question in questions]
        speaker.check_length(questions, prompts, self.max_tokens)
        # Longest first: the largest batch comes first, and rows of one batch need little padding.
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        replies: dict[int, Generation] = {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            answers = speaker.answer(
                [questions[i] for i in batch], [prompts[i] for i in batch], elicitation, self
            )
            replies.update(zip(batch, answers, strict=True))
            progress(len(replies) / len(order), f"{len(replies)} of {len(order)} answers")
        return [replies[index] for index in range(len(questions))]


class Speaker:
    """A loaded model and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:  # noqa: ANN401 - transformers' classes are dynamic
        """Wrap a model in evaluation mode."""
        self.model = model
        self.tokenizer = tokenizer
        self.stop_ids = _stop_ids(model, tokenizer)

    @classmethod
    def load(cls, folder: Path, adapter: Path | None, dtype: str) -> Speaker:
        """Load a model folder, and an adapter onto it, for inference."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "bfloat16" if device == "cuda" else "float32"
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation=attention_for(folder)
        )
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapter))
        return cls(model.to(device).eval(), AutoTokenizer.from_pretrained(folder))

    def prompt(self, user: str) -> list[int]:
        """Token ids of one user turn, up to where the model's reply begins."""
        chat = [{"role": "user", "content": user}]
        ids = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return list(ids["input_ids"])

    def check_length(
        self, questions: Sequence[Question], prompts: Sequence[list[int]], max_tokens: int
    ) -> None:
        """Refuse a prompt that leaves no room for the reply."""
        limit = self.model.config.max_position_embeddings
        for question, prompt in zip(questions, prompts, strict=True):
            if len(prompt) + max_tokens > limit:
                raise ConfigurationError(
                    f"question {question.id!r} must leave room for {max_tokens} tokens in a context of "
                    f"{limit}; its prompt has {len(prompt)}. Shorten it or lower engine.max_tokens"
                )

    def decode(self, prompts: Sequence[list[int]], max_tokens: int) -> list[tuple[list[int], list[float]]]:
        """Greedy replies to a batch: the sampled ids and their log-probabilities, end token included."""
        import torch

        ids, mask = self._padded(prompts)
        replies: list[tuple[list[int], list[float]]] = [([], []) for _ in prompts]
        alive = torch.arange(len(prompts), device=ids.device)
        cache = None
        with torch.inference_mode():
            for _ in range(max_tokens):
                output = self._forward(ids, mask, cache, 1)
                cache = output.past_key_values
                best, chosen = output.logits[:, -1].float().log_softmax(-1).max(-1)
                for row, token, logprob in zip(alive.tolist(), chosen.tolist(), best.tolist(), strict=True):
                    replies[row][0].append(token)
                    replies[row][1].append(logprob)
                going = torch.tensor(
                    [token not in self.stop_ids for token in chosen.tolist()], device=ids.device
                )
                if not going.any():
                    break
                if not going.all():
                    cache.batch_select_indices(going.nonzero().squeeze(1))
                alive, ids = alive[going], chosen[going, None]
                mask = torch.cat([mask[going], mask.new_ones(len(alive), 1)], dim=1)
        return replies

    def answer(
        self,
        questions: Sequence[Question],
        prompts: Sequence[list[int]],
        elicitation: Elicitation,
        settings: Hf,
    ) -> list[Generation]:
        """Answer one batch, and read answer, answer tokens and stated number of every reply."""
        answers: list[Generation] = []
        numbers: dict[int, tuple[list[int], str]] = {}
        for question, prompt, (ids, logprobs) in zip(
            questions, prompts, self.decode(prompts, settings.max_tokens), strict=True
        ):
            tokens = token_texts(self.tokenizer, ids)
            stopped = ids[-1] in self.stop_ids
            text = "".join(tokens[:-1] if stopped else tokens)
            reply = confidence.read_reply(text, elicitation)
            if reply.number_start is not None:
                at = confidence.token_at(tokens, reply.number_start)
                lead = tokens[at][: reply.number_start - len("".join(tokens[:at]))]
                numbers[len(answers)] = (prompt + ids[:at], lead)
            answers.append(
                Generation(
                    question_id=question.id,
                    elicitation=elicitation,
                    text=text,
                    answer=reply.answer,
                    token_ids=tuple(ids),
                    tokens=tuple(tokens),
                    logprobs=tuple(min(0.0, value) for value in logprobs),
                    span=confidence.answer_span(tokens, reply.start, reply.stop),
                    span_rule=confidence.SPAN_RULE,
                    finish="stop" if stopped else "length",
                    stated=reply.stated,
                )
            )
        for lead in sorted({lead for _, lead in numbers.values()}):
            rows = [row for row, (_, own) in numbers.items() if own == lead]
            grids = self.stated_grids(
                [numbers[row][0] for row in rows], lead, max(1, settings.batch_size // 4)
            )
            for row, grid in zip(rows, grids, strict=True):
                answers[row] = answers[row].model_copy(update={"stated_grid": grid})
        return answers

    def stated_grids(
        self, contexts: Sequence[list[int]], lead: str, batch_size: int
    ) -> list[tuple[float, ...]]:
        """Probability of writing each of 0.00 ... 1.00 where a reply states its number.

        The numbers form a small tree of tokens. What all of them share, the context, is computed once;
        the branches of the tree then run side by side on copies of its cache.

        Args:
            contexts: Token ids of prompt and reply up to the number, one list a reply.
            lead: Text between the last whole token and the number, such as the space of " 0".
            batch_size: Contexts computed together.

        Returns:
            101 probabilities a context; their sum is below 1 by what would have gone to other text.
        """
        import torch

        tree = NumberTree({text: self._ids_of(lead + text) for text in STATED_TEXTS}, self._digit_ids())
        grids: list[tuple[float, ...]] = []
        for start in range(0, len(contexts), batch_size):
            ids, mask = self._padded(contexts[start : start + batch_size])
            width = len(tree.branches)
            with torch.inference_mode():
                shared = self._forward(ids, mask, None, 1)
                branches = torch.tensor(tree.padded, device=ids.device).repeat(len(ids), 1)
                shared.past_key_values.batch_repeat_interleave(width)
                mask = torch.cat([mask.repeat_interleave(width, 0), torch.ones_like(branches)], dim=1)
                # Padding behind a branch is never read: attention looks back only.
                inside = self._forward(branches, mask, shared.past_key_values, branches.shape[1])
            steps = torch.cat([shared.logits.repeat_interleave(width, 0), inside.logits], dim=1)
            logprobs = steps.float().log_softmax(-1).reshape(len(ids), width, *steps.shape[1:])
            grids.extend(tree.probabilities(logprobs))
        return grids

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any, keep: int) -> Any:  # noqa: ANN401
        return self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )

    def _ids_of(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _digit_ids(self) -> list[int]:
        return sorted({self._ids_of(str(digit))[-1] for digit in range(10)})

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        width = max(len(row) for row in rows)
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return ids.to(self.model.device), mask.to(self.model.device)


def attention_for(folder: Path) -> str | None:
    """The attention implementation that computes what the model defines.

    Gemma-2 caps its attention logits; fused kernels leave the cap out, some versions without saying so.
    """
    from transformers import AutoConfig

    capped = getattr(AutoConfig.from_pretrained(folder), "attn_logit_softcapping", None)
    return "eager" if capped else None


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


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:  # noqa: ANN401 - transformers' classes are dynamic
    named = [
        tokenizer.convert_tokens_to_ids(token) for token in END_OF_TURN if token in tokenizer.get_vocab()
    ]
    configured = model.generation_config.eos_token_id
    own = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [tokenizer.eos_token_id, *own, *named] if token is not None)


class NumberTree:
    """The token paths of all numbers that can be stated, as the branches of a tree."""

    def __init__(self, paths: dict[str, tuple[int, ...]], digits: list[int]) -> None:
        """Arrange the paths.

        Args:
            paths: Token ids of each number's text.
            digits: Ids of the tokens that would continue a number.
        """
        nodes = {path[:depth] for path in paths.values() for depth in range(len(path) + 1)}
        inner = {node[:-1] for node in nodes if node}
        self.branches = sorted(n for n in inner if not any(o != n and o[: len(n)] == n for o in inner))
        longest = max(1, *(len(branch) for branch in self.branches))
        self.padded = [list(branch) + [0] * (longest - len(branch)) for branch in self.branches]
        at = {
            branch[:d]: (row, d) for row, branch in enumerate(self.branches) for d in range(len(branch) + 1)
        }
        self._cells = [round(float(text) * 100) for text in paths]
        self._steps = [
            (n, *at[p[:d]], token) for n, p in enumerate(paths.values()) for d, token in enumerate(p)
        ]
        # "0.9" is this number only where no further digit follows, and "1" where no ".0" does.
        self._longer = [
            (number, *at[path], token)
            for number, path in enumerate(paths.values())
            if path in at
            for token in sorted({node[-1] for node in nodes if node and node[:-1] == path} | set(digits))
        ]

    def probabilities(self, logprobs: torch.Tensor) -> list[tuple[float, ...]]:
        """Chain the steps of every number into its probability.

        Args:
            logprobs: [contexts, branches, depth + 1, vocabulary]; at depth d, behind d tokens of the branch.
        """
        import torch

        def summed(entries: list[tuple[int, int, int, int]], values: torch.Tensor) -> torch.Tensor:
            into = torch.tensor([entry[0] for entry in entries], device=values.device)
            return values.new_zeros(len(values), len(self._cells)).index_add(1, into, values)

        def picked(entries: list[tuple[int, int, int, int]]) -> torch.Tensor:
            _, rows, depths, tokens = torch.tensor(entries, device=logprobs.device).T
            return logprobs[:, rows, depths, tokens]

        whole = summed(self._steps, picked(self._steps)).exp()
        whole = whole * (1 - summed(self._longer, picked(self._longer).exp())).clamp(min=0)
        cells = torch.tensor(self._cells, device=whole.device)
        grid = whole.new_zeros(len(whole), len(confidence.GRID)).index_add(1, cells, whole)
        return [tuple(row) for row in grid.clamp(max=1.0).tolist()]
