"""The embedded default's model: a real Gemma-2, small enough to be pretrained from scratch on a laptop.

Tokenizer, chat template, weights and folder are of the kind that a downloaded model has, so whatever
works on this one works on `google/gemma-2-2b-it`, and the other way round. Only the size differs.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, JsonValue, model_validator

from calibration.checkpoints import Checkpoints, steps_of
from calibration.errors import DataError
from calibration.schema import Schema
from calibration.worlds.facts import Document

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, Gemma2ForCausalLM, PreTrainedTokenizerFast

PRETRAINING, STATE = "pretraining", "state.pt"
SPECIAL = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
"""Tokens that text never turns into by merging; their ids are their positions here."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n'"
    " + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
"""Gemma-2's turns: user and model alternate, and there is no system role."""


@dataclass(frozen=True)
class _Row:
    """One document as tokens; what is learnt starts at `start`."""

    ids: tuple[int, ...]
    start: int


class Pocket(Schema):
    """A Gemma-2 of about a million parameters, and how it is pretrained."""

    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers")

    kind: Literal["pocket"] = "pocket"
    seed: int = Field(default=0, ge=0)
    """Decides the first weights and the order of the documents."""
    vocabulary: int = Field(default=1024, ge=300)
    """Largest number of tokens: 256 bytes, five special tokens, and merges."""
    width: int = Field(default=128, ge=8)
    """Length of the vector that stands for a token."""
    layers: int = Field(default=4, ge=1)
    """Layers of the transformer."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; they share the width."""
    key_value_heads: int = Field(default=2, ge=1)
    """Heads of keys and values, each shared by several attention heads."""
    feed_forward: int = Field(default=384, ge=8)
    """Width of the hidden layer between attention layers."""
    context: int = Field(default=256, ge=16)
    """Longest text in tokens, prompt and reply together."""
    epochs: int = Field(default=1, ge=1)
    """How often every document is read."""
    tokens_per_step: int = Field(default=2048, ge=64)
    """Tokens of documents between two updates of the weights, at least."""
    matrix_learning_rate: float = Field(default=0.02, gt=0)
    """Of Muon, which trains the matrices inside the layers."""
    other_learning_rate: float = Field(default=0.01, gt=0)
    """Of AdamW, which trains the embedding and the norms."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the learning rates rise; they fall to zero over the others."""
    checkpoint_steps: int = Field(default=100, ge=1)
    """Steps between two checkpoints."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of 2 * heads = {2 * self.heads}; got {self.width}")
        if self.heads % self.key_value_heads:
            raise ValueError(
                f"heads must be a multiple of key_value_heads = {self.key_value_heads}; got {self.heads}"
            )
        return self

    def obtain(
        self,
        documents: Sequence[Document],
        folder: Path,
        scratch: Path,
        progress: Callable[[float, str], None],
    ) -> None:
        """Train tokenizer and model on the documents and save both as a Hugging Face folder.

        The loss is the mean negative log-probability, in nats, of the tokens of replies and plain texts;
        what users say is read and not learnt. The result is the same to the bit for the same settings,
        documents, library versions and number of threads, whether or not the work was interrupted.

        Args:
            documents: The corpus.
            folder: Where the model goes; made if needed.
            scratch: Where checkpoints are kept; the newest whole one of the same work is continued.
            progress: Told the share of the steps that is done, in (0, 1], and the loss.

        Raises:
            DataError: There are no documents, or one is longer than `context`.
        """
        tokenizer = _train_tokenizer(documents, self.vocabulary, self.context)
        rows = _encode(documents, tokenizer, self.context)
        steps = _plan([len(row.ids) for row in rows], self.tokens_per_step, self.epochs, self.seed)
        checkpoints = Checkpoints(scratch / PRETRAINING / self._work(documents), progress)
        model, optimizers, done = self._begun(tokenizer, checkpoints)
        model.train()
        for step in range(done, len(steps)):
            self._set_learning_rates(optimizers, step / len(steps))
            loss = _learn(model, [[rows[i] for i in group] for group in steps[step]])
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if (step + 1) % self.checkpoint_steps == 0:
                checkpoints.write(step + 1, partial(_save, model, optimizers))
            progress((step + 1) / len(steps), f"loss {loss:.2f}")
        model.train(mode=False)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def identity(self) -> JsonValue:
        """All settings but the one that leaves the weights as they are."""
        return self.model_dump(mode="json", exclude={"checkpoint_steps"})

    def _begun(
        self, tokenizer: "PreTrainedTokenizerFast", checkpoints: Checkpoints
    ) -> tuple["Gemma2ForCausalLM", list["torch.optim.Optimizer"], int]:
        """Model, optimizers and steps that are done, as the newest checkpoint has them that can be loaded."""
        for checkpoint in checkpoints.whole():
            model = self._build(tokenizer)
            optimizers = self._optimizers(model)
            try:
                _load(model, optimizers, checkpoint)
            except Exception as error:  # noqa: BLE001 - whatever is wrong, it cannot be continued
                checkpoints.set_aside(checkpoint, f"{STATE}: {type(error).__name__}")
            else:
                return model, optimizers, steps_of(checkpoint)
        model = self._build(tokenizer)
        return model, self._optimizers(model), 0

    def _build(self, tokenizer: "PreTrainedTokenizerFast") -> "Gemma2ForCausalLM":
        import torch
        from transformers import AutoModelForCausalLM, Gemma2Config, GenerationConfig

        pad, eos, bos, _, end_of_turn = range(len(SPECIAL))
        config = Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=self.width,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            head_dim=self.width // self.heads,
            query_pre_attn_scalar=self.width // self.heads,
            max_position_embeddings=self.context,
            sliding_window=self.context,
            pad_token_id=pad,
            eos_token_id=eos,
            bos_token_id=bos,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            # The other implementations of attention leave out its soft cap.
            model: Gemma2ForCausalLM = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, attn_implementation="eager"
            )
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            pad_token_id=pad, bos_token_id=bos, eos_token_id=[eos, end_of_turn], do_sample=False
        )
        return model

    def _optimizers(self, model: "Gemma2ForCausalLM") -> list["torch.optim.Optimizer"]:
        import torch

        embedding = model.get_input_embeddings().weight
        matrices = [weight for weight in model.parameters() if weight.ndim == 2 and weight is not embedding]
        others = [weight for weight in model.parameters() if weight.ndim != 2 or weight is embedding]
        return [
            torch.optim.Muon(matrices, lr=self.matrix_learning_rate, weight_decay=0.0),
            torch.optim.AdamW(others, lr=self.other_learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    def _set_learning_rates(self, optimizers: Sequence["torch.optim.Optimizer"], done: float) -> None:
        """A straight rise over `warmup`, then a straight fall to zero; `done` in [0, 1)."""
        factor = (1 - done) / (1 - self.warmup)
        if done < self.warmup:
            factor = max(done, 0.01 * self.warmup) / self.warmup
        for optimizer, rate in zip(
            optimizers, (self.matrix_learning_rate, self.other_learning_rate), strict=True
        ):
            optimizer.param_groups[0]["lr"] = rate * factor

    def _work(self, documents: Sequence[Document]) -> str:
        """A digest of all that decides the weights: checkpoints of other work are not continued."""
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode())
        for document in documents:
            digest.update(document.model_dump_json().encode())
        return digest.hexdigest()


def _save(model: "torch.nn.Module", optimizers: Sequence["torch.optim.Optimizer"], folder: Path) -> None:
    import torch

    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"model": model.state_dict(), "optimizers": states}, folder / STATE)


def _load(model: "torch.nn.Module", optimizers: Sequence["torch.optim.Optimizer"], folder: Path) -> None:
    """Bring model and optimizers to where a checkpoint is; no code in it runs."""
    import torch

    saved = torch.load(folder / STATE, weights_only=True)
    model.load_state_dict(saved["model"])
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)


def _train_tokenizer(
    documents: Sequence[Document], vocabulary: int, context: int
) -> "PreTrainedTokenizerFast":
    """Byte-level BPE with one token for each digit, as Gemma-2 has it, and Gemma-2's chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The names of the two roles stand before every turn: a token each, as in Gemma-2.
    turns = (("model", d.reply, "user", d.user) if d.user is not None else (d.reply,) for d in documents)
    bpe.train_from_iterator(turns, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", SPECIAL.index("<bos>"))]
    )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        **dict(zip(("pad_token", "eos_token", "bos_token"), SPECIAL[:3], strict=True)),
        additional_special_tokens=list(SPECIAL[3:]),
        padding_side="left",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _encode(documents: Sequence[Document], tokenizer: "PreTrainedTokenizerFast", context: int) -> list[_Row]:
    if not documents:
        raise DataError("documents must hold at least one text to pretrain on; got none.")
    prompts, replies = [], []
    for document in documents:
        if document.user is None:
            prompts.append("<bos>")
            replies.append(document.reply + "<eos>")
        else:
            turn = [{"role": "user", "content": document.user}]
            prompts.append(
                str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))
            )
            replies.append(document.reply + "<end_of_turn>")
    before = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    after = tokenizer(replies, add_special_tokens=False)["input_ids"]
    rows = [_Row((*b, *a), len(b)) for b, a in zip(before, after, strict=True)]
    for number, row in enumerate(rows):
        if len(row.ids) > context:
            raise DataError(
                f"every document must fit into context = {context} tokens; "
                f"document {number} ({documents[number].reply[:40]!r}) has {len(row.ids)}. Raise `context`."
            )
    return rows


def _plan(lengths: Sequence[int], tokens_per_step: int, epochs: int, seed: int) -> list[list[list[int]]]:
    """Which documents make up each step, in groups of similar length that are padded together."""
    rng = np.random.default_rng(seed)
    steps: list[list[list[int]]] = []
    for _ in range(epochs):
        step: list[int] = []
        tokens = 0
        for position in rng.permutation(len(lengths)).tolist():
            step.append(position)
            tokens += lengths[position]
            if tokens >= tokens_per_step:
                steps.append(_groups(step, lengths))
                step, tokens = [], 0
        if step:
            steps.append(_groups(step, lengths))
    return steps


def _groups(step: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Cut a step where lengths grow by more than a third, so that little of a batch is padding."""
    by_length = sorted(step, key=lambda position: lengths[position])
    groups = [[by_length[0]]]
    for position in by_length[1:]:
        if lengths[position] > 4 + 1.35 * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(position)
    return groups


def _learn(model: "Gemma2ForCausalLM", groups: Sequence[Sequence[_Row]]) -> float:
    """Add the gradient of the mean loss over all groups' learnt tokens; that loss in nats."""
    import torch

    learnt = sum(len(row.ids) - row.start for group in groups for row in group)
    total = 0.0
    for group in groups:
        shared = _shared(group)
        cache = _read_once(model, group[0].ids[:shared], len(group)) if shared else None
        ids = torch.full((len(group), max(len(row.ids) for row in group) - shared), SPECIAL.index("<pad>"))
        is_learnt = torch.zeros(ids.shape, dtype=torch.bool)
        for line, row in enumerate(group):
            ids[line, : len(row.ids) - shared] = torch.tensor(row.ids[shared:])
            is_learnt[line, row.start - shared : len(row.ids) - shared] = True
        # Padding stands on the right, where a causal model does not look; logits only where they are learnt.
        read = model.model(input_ids=ids, past_key_values=cache, use_cache=cache is not None)
        logits = model.lm_head(read.last_hidden_state[:, :-1][is_learnt[:, 1:]])
        if cap := model.config.final_logit_softcapping:
            logits = torch.tanh(logits / cap) * cap
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:][is_learnt[:, 1:]], reduction="sum")
        (loss / learnt).backward()  # type: ignore[no-untyped-call]
        total += loss.item() / learnt
    return total


def _shared(group: Sequence[_Row]) -> int:
    """How many tokens all rows of a group begin with, short of the last one before what is learnt.

    >>> _shared([_Row((2, 7, 8, 9, 5), 4), _Row((2, 7, 8, 6, 5), 4)])
    3
    """
    least, most = min(row.ids for row in group), max(row.ids for row in group)
    limit = min(row.start for row in group) - 1
    return next((n for n in range(limit) if least[n] != most[n]), limit)


def _read_once(model: "Gemma2ForCausalLM", ids: Sequence[int], rows: int) -> "DynamicCache":
    """Keys and values of a beginning that several rows share, with their gradients.

    A chat prompt opens with the same instruction in every document: read once, it costs a quarter less
    time, and the gradient is that of reading it in every row.
    """
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    model.model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(rows)
    return cache
