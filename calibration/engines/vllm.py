"""Engine `vllm`: answers from a Hugging Face causal language model, with vLLM.

It gives the records that engine `hf` gives, many times faster on a GPU. Token ids go in, and token ids with
the raw log-probabilities of the sampled tokens come out: no text is tokenised by vLLM, no sampling setting is
taken from the model, and no grammar bends the probabilities.

vLLM runs in an environment of its own, since its dependencies exclude others that this project has.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from calibration.engines.chat import Chat, Grid
from calibration.errors import ConfigurationError
from calibration.records import Elicitation, Generation, Question
from calibration.schema import Schema

ENVIRONMENT = {
    # The engine in this process: it ends when the process does, and a cancellation reaches it.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
"""What vLLM is told by environment variables, where the caller has not set them otherwise."""

RELEASE = "0.32.0"
"""The release of vLLM that answers. It is part of every cache key, since this module's code is, and vLLM need
not be installed where the key is made."""

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for; an adapter takes the next larger one."""

CONTEXT_STEP = 256
"""The context is a multiple of so many tokens."""


class Vllm(Schema):
    """Greedy decoding with vLLM, on a GPU when there is one."""

    kind: Literal["vllm"] = "vllm"
    max_tokens: int = Field(default=40, ge=1)
    """Longest reply, in tokens; a reply that reaches it is marked, not dropped."""
    chunk_size: int = Field(default=1000, ge=1)
    """Questions handed over together; progress is told after each chunk."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 elsewhere."""
    cache_gib: float | None = Field(default=None, gt=0)
    """Memory for keys and values, in GiB. Unset: what the model leaves of nine tenths of a GPU's memory, or 1
    without a GPU."""
    eager: bool = True
    """Run the model as it is, which starts sooner. False compiles it and captures CUDA graphs, which pays in
    long jobs."""

    @property
    def elicitations(self) -> tuple[Elicitation, ...]:
        """A live model can be asked in every way."""
        return ("plain", "stated")

    def check(self, questions: Sequence[Question], elicitations: Sequence[Elicitation]) -> None:
        """Nothing can be known to be wrong before the model is there; vLLM may be on another machine."""

    def prompts(self, chat: Chat, questions: Sequence[Question], elicitation: Elicitation) -> list[list[int]]:
        """What is put to the model, checked against its chat template and its context."""
        return chat.prompts(questions, elicitation, self._room(chat, elicitation))

    def _room(self, chat: Chat, elicitation: Elicitation) -> int:
        """Tokens behind a prompt: behind a reply's last one, the longest stated number must still fit."""
        return self.max_tokens + (chat.numbers("").depth if elicitation == "stated" else 0)

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

        The environment variables in `ENVIRONMENT` hold while vLLM runs; afterwards the process's environment
        is as it was, and the model's memory is free. vLLM seeds the process's random numbers.

        Args:
            questions: What to ask.
            elicitation: How to ask.
            model: Folder of a Hugging Face model.
            adapter: Folder of a PEFT adapter to put on it.
            progress: Called with the share done and a note.

        Raises:
            ConfigurationError: vLLM is not installed, no model was given, it has no chat template, a prompt
                does not fit its context, or the adapter's rank is too large. Nothing has run then.
        """
        if model is None:
            raise ConfigurationError("engine vllm must have a model; give the model entry `weights`")
        if find_spec("vllm") is None:
            raise ConfigurationError(
                "engine vllm must run where vLLM is installed; it is not installed here. Send the work to a "
                'GPU with --backend modal, or set the engine to kind = "hf"'
            )
        if (found := _release()) != RELEASE:
            raise ConfigurationError(f"engine vllm must run with vLLM {RELEASE}; installed is {found}")
        if not questions:
            return []
        chat = Chat.of(model)
        prompts = self.prompts(chat, questions, elicitation)
        longest = max(map(len, prompts)) + self._room(chat, elicitation)
        # In steps, since what vLLM compiles is good for one length only.
        context = min(chat.limit, -(-longest // CONTEXT_STEP) * CONTEXT_STEP)
        replies: list[Generation] = []
        with _environment(), closing(Speaker(chat, self, model, adapter, context)) as speaker:
            for start in range(0, len(questions), self.chunk_size):
                chunk = slice(start, start + self.chunk_size)
                replies += speaker.answer(questions[chunk], prompts[chunk], elicitation, self.max_tokens)
                progress(len(replies) / len(questions), f"{len(replies)} of {len(questions)} answers")
        return replies


class Speaker:
    """A model that vLLM has loaded, and how it is talked to."""

    def __init__(self, chat: Chat, settings: Vllm, model: Path, adapter: Path | None, context: int) -> None:
        """Load a model folder, and make room for an adapter's rank.

        Args:
            chat: Of that model.
            settings: The engine's.
            model: Folder of a Hugging Face model.
            adapter: Folder of a PEFT adapter that every request goes through.
            context: Longest prompt and reply together, in tokens.
        """
        lora = {"enable_lora": True, "max_lora_rank": room_for_rank(adapter)} if adapter else {}
        import torch
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        on_gpu = torch.cuda.is_available()
        dtype = settings.dtype if settings.dtype != "auto" else "bfloat16" if on_gpu else "float32"
        # Without a GPU, vLLM would take its share of the machine's whole memory.
        cache_gib = settings.cache_gib if on_gpu else settings.cache_gib or 1.0
        self.chat = chat
        self.lora = LoRARequest("adapter", 1, str(adapter)) if adapter else None
        self.llm: Any = LLM(
            model=str(model),
            dtype=dtype,
            max_model_len=context,
            gpu_memory_utilization=0.9,
            kv_cache_memory_bytes=None if cache_gib is None else int(cache_gib * 2**30),
            enforce_eager=settings.eager,
            enable_prefix_caching=True,
            seed=0,
            **lora,
        )

    def answer(
        self,
        questions: Sequence[Question],
        prompts: Sequence[list[int]],
        elicitation: Elicitation,
        max_tokens: int,
    ) -> list[Generation]:
        """Answer one chunk, and read answer, answer tokens and stated number of every reply."""
        replies = [
            self.chat.read(question, elicitation, ids, logprobs)
            for question, (ids, logprobs) in zip(questions, self.decode(prompts, max_tokens), strict=True)
        ]
        return self.chat.with_grids(prompts, replies, self.stated_grids)

    def decode(self, prompts: Sequence[list[int]], max_tokens: int) -> list[tuple[list[int], list[float]]]:
        """Greedy replies: the sampled ids and their raw log-probabilities, end token included."""
        # `ignore_eos`: the tokens that end a turn are the ones listed here, and no others.
        settings = {"max_tokens": max_tokens, "logprobs": 0, "ignore_eos": True}
        outputs = self._run(
            prompts, [settings | {"stop_token_ids": sorted(self.chat.stop_ids)}] * len(prompts)
        )
        return [
            (
                list(output.token_ids),
                [
                    entry[token].logprob
                    for token, entry in zip(output.token_ids, output.logprobs, strict=True)
                ],
            )
            for output in outputs
        ]

    def stated_grids(self, contexts: Sequence[list[int]], lead: str) -> list[Grid]:
        """Probability of writing each of 0.00 ... 1.00 where a reply states its number.

        The numbers form a small tree of tokens. Behind every inner node of it one step is computed, of which
        the tokens that a number may go on with are looked at; prefix caching shares the context among them.

        Args:
            contexts: Token ids of prompt and reply up to the number, one list a reply.
            lead: Text between the last whole token and the number, such as the space of " 0".

        Returns:
            101 probabilities a context; their sum is below 1 by what would have gone to other text.
        """
        tree = self.chat.numbers(lead)
        # vLLM takes up to 128 ids; 114 texts and 10 digits cannot ask for more.
        steps = [{"max_tokens": 1, "logprob_token_ids": list(tokens)} for tokens in tree.asks.values()]
        prompts = [context + list(path) for context in contexts for path in tree.asks]
        outputs = iter(self._run(prompts, steps * len(contexts)))
        return [
            tree.grid(
                {
                    path: {token: entry.logprob for token, entry in next(outputs).logprobs[0].items()}
                    for path in tree.asks
                }
            )
            for _ in contexts
        ]

    def close(self) -> None:
        """Give back the memory and everything else that vLLM took."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()
        cleanup_dist_env_and_memory()

    def _run(self, prompts: Sequence[list[int]], settings: Sequence[dict[str, Any]]) -> list[Any]:
        from vllm import SamplingParams

        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            [
                SamplingParams(temperature=0.0, detokenize=False, flat_logprobs=True, **own)
                for own in settings
            ],
            use_tqdm=False,
            lora_request=self.lora,
        )
        return [output.outputs[0] for output in outputs]


def _release() -> str:
    """What is installed, whatever its distribution is called: the one for CPUs has another name."""
    with _environment():
        return str(import_module("vllm.version").__version__)


@contextmanager
def _environment() -> Iterator[None]:
    """Set what is unset in `ENVIRONMENT`; afterwards all is as it was, also what vLLM set itself."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in before})
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def room_for_rank(adapter: Path) -> int:
    """The smallest rank in `RANKS` that an adapter fits."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if rank > RANKS[-1]:
        raise ConfigurationError(
            f"engine vllm must be given an adapter of rank {RANKS[-1]} or less; got {rank}. Lower the "
            "method's lora.rank, or use engine hf"
        )
    return next(room for room in RANKS if room >= rank)
