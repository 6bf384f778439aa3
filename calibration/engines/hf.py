"""Engine `hf`: answers from a Hugging Face causal language model, with transformers.

A decoding loop of our own: `generate` of transformers keeps the logits of every step for the whole
vocabulary, applies processors from the model's generation_config to a greedy search, and its continuous
batching leaves out Gemma-2's attention soft-cap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from calibration.engines.chat import Chat, Grid
from calibration.engines.number_tree import TokenPath
from calibration.errors import ConfigurationError
from calibration.records import Elicitation, Generation, Question
from calibration.schema import Schema

if TYPE_CHECKING:
    import torch


class Hf(Schema):
    """Greedy decoding with transformers, on a GPU when there is one."""

    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "peft")

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

    def prompts(self, chat: Chat, questions: Sequence[Question], elicitation: Elicitation) -> list[list[int]]:
        """What is put to the model, checked against its chat template and its context."""
        return chat.prompts(questions, elicitation, self.max_tokens)

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
            ConfigurationError: No model was given, it has no chat template, or a prompt does not fit its
                context.
        """
        if model is None:
            raise ConfigurationError("engine hf must have a model; give the model entry `weights`")
        speaker = Speaker.load(model, adapter, self.dtype)
        prompts = self.prompts(speaker, questions, elicitation)
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


class Speaker(Chat):
    """A loaded model and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:  # noqa: ANN401 - transformers' classes are dynamic
        """Wrap a model in evaluation mode."""
        super().__init__(
            tokenizer, model.generation_config.eos_token_id, model.config.max_position_embeddings
        )
        self.model = model

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
        replies = [
            self.read(question, elicitation, ids, logprobs)
            for question, (ids, logprobs) in zip(
                questions, self.decode(prompts, settings.max_tokens), strict=True
            )
        ]
        width = max(1, settings.batch_size // 4)
        return self.with_grids(
            prompts, replies, lambda contexts, lead: self.stated_grids(contexts, lead, width)
        )

    def stated_grids(self, contexts: Sequence[list[int]], lead: str, batch_size: int) -> list[Grid]:
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

        tree = self.numbers(lead)
        branches = _branches(tree.asks)
        depth = max(1, *(len(branch) for branch in branches))
        padded = [list(branch) + [0] * (depth - len(branch)) for branch in branches]
        asks = [(path, token) for path, tokens in tree.asks.items() for token in tokens]
        rows = [next(row for row, branch in enumerate(branches) if branch[: len(p)] == p) for p, _ in asks]
        grids: list[Grid] = []
        for start in range(0, len(contexts), batch_size):
            ids, mask = self._padded(contexts[start : start + batch_size])
            inside = torch.tensor(padded, device=ids.device).repeat(len(ids), 1)
            logprobs = self._behind(ids, mask, inside)
            picked = logprobs[:, rows, [len(path) for path, _ in asks], [token for _, token in asks]]
            for values in picked.tolist():
                found: dict[TokenPath, dict[int, float]] = {path: {} for path in tree.asks}
                for (path, token), value in zip(asks, values, strict=True):
                    found[path][token] = value
                grids.append(tree.grid(found))
        return grids

    def _behind(self, ids: torch.Tensor, mask: torch.Tensor, branches: torch.Tensor) -> torch.Tensor:
        """Log-probabilities behind each context, and behind every token of its branches.

        Returns:
            [contexts, branches, depth + 1, vocabulary]; at depth d, behind d tokens of the branch.
        """
        import torch

        width = len(branches) // len(ids)
        with torch.inference_mode():
            shared = self._forward(ids, mask, None, 1)
            shared.past_key_values.batch_repeat_interleave(width)
            mask = torch.cat([mask.repeat_interleave(width, 0), torch.ones_like(branches)], dim=1)
            # Padding behind a branch is never read: attention looks back only.
            inside = self._forward(branches, mask, shared.past_key_values, branches.shape[1])
            steps = torch.cat([shared.logits.repeat_interleave(width, 0), inside.logits], dim=1)
            return steps.float().log_softmax(-1).reshape(len(ids), width, *steps.shape[1:])

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any, keep: int) -> Any:  # noqa: ANN401
        return self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )

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


def _branches(paths: Iterable[TokenPath]) -> list[TokenPath]:
    """The paths that no other one continues; every path is the beginning of one of them."""
    every = sorted(paths)
    return [p for p in every if not any(o != p and o[: len(p)] == p for o in every)]
