"""Engine `hf` is the oracle: it shares the reading of replies with engine `vllm`, and no way to run a model.

What needs vLLM is marked so; `make test-vllm` runs it in an environment of its own.
"""

import json
import os
import random
import subprocess
import sys
from importlib.util import find_spec

import pytest

from calibration.config import load_experiment
from calibration.engines.hf import Hf
from calibration.engines.vllm import ENVIRONMENT, Vllm, room_for_rank
from calibration.errors import ConfigurationError
from calibration.prompts import PROMPTS
from calibration.records import Question

with_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM; run with `make test-vllm`")
without_vllm = pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
# Importing vLLM warns of things that are its own affair.
of_its_own = pytest.mark.filterwarnings("default")

STOP = "<stop>"
"""A token that ends a turn because the model's generation configuration says so, and nothing else does."""

REPLIES = {
    "plain": (
        ("Paris", "<end_of_turn>"),
        (" New York\n", "<eos>"),
        ("1968", STOP),
        ("La la la la la la la la la la la la la la", ""),
    ),
    "stated": (
        ("Answer: Eva\nConfidence: 0.{}{}", "<end_of_turn>"),
        ("Answer: Rome\nConfidence:0.{}", "<eos>"),
        ("Answer: 1968\nConfidence: 1", STOP),
        ("Answer: I do not know, I do not know, I do", ""),
        ("Answer: Bo\nConfidence: {}{}%", "<end_of_turn>"),
        ("Answer: Cy\nConfidence: very", STOP),
    ),
}
"""What the model learns to reply to question n, in turn, and what ends it; digits are drawn each time."""


QUESTIONS = tuple(
    Question(id=f"q{n}", text=f"{'ABCDEF'[n % 6] * 8}{'!' * (11 * n % 60)}?", answers=("x",))
    for n in range(12)
)
"""Of different length; every prompt is longer than the sliding window of 64 tokens."""


def with_merges(source, folder):
    """Save that tokenizer with a token that holds both a space and the beginning of a number."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    parts["model"]["vocab"]["Ġ0"] = len(tokenizer)
    parts["model"]["merges"] = [["Ġ", "0"]]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(parts))
    tokenizer.add_special_tokens({"additional_special_tokens": [STOP]})
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def turns(tokenizer, draw):
    """One batch to learn from: prompt and reply ids, and labels for the reply alone."""
    rows = []
    for elicitation, replies in REPLIES.items():
        for number, question in enumerate(QUESTIONS):
            user = [{"role": "user", "content": PROMPTS[elicitation].render(question.text)}]
            prompt = tokenizer.apply_chat_template(user, add_generation_prompt=True, return_dict=True)[
                "input_ids"
            ]
            reply, end = replies[number % len(replies)]
            digits = (draw.randrange(10) for _ in range(2))
            ids = tokenizer.encode(reply.format(*digits) + end, add_special_tokens=False)
            rows.append((prompt, ids))
    width = max(len(prompt) + len(ids) for prompt, ids in rows)
    padding = [width - len(prompt) - len(ids) for prompt, ids in rows]
    return (
        [prompt + ids + [0] * pad for (prompt, ids), pad in zip(rows, padding, strict=True)],
        [[-100] * len(prompt) + ids + [-100] * pad for (prompt, ids), pad in zip(rows, padding, strict=True)],
    )


@pytest.fixture(scope="session")
def talker(random_model, tmp_path_factory):
    """Folder of a small Gemma-2 that ends its turn in every way, and is not sure of its numbers.

    The attention heads of `random_model` are smaller than any that vLLM has a kernel for on a CPU.
    """
    import torch
    from transformers import AutoConfig, Gemma2ForCausalLM

    folder = tmp_path_factory.mktemp("talker")
    tokenizer = with_merges(random_model, folder)
    config = AutoConfig.from_pretrained(random_model)
    config.update({"head_dim": 32, "query_pre_attn_scalar": 32, "vocab_size": len(tokenizer)})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model, draw = Gemma2ForCausalLM(config), random.Random(0)  # noqa: S311 - digits to learn
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(70):
        ids, labels = turns(tokenizer, draw)
        optimizer.zero_grad()
        model(input_ids=torch.tensor(ids), labels=torch.tensor(labels)).loss.backward()
        optimizer.step()
    ends = [config.eos_token_id, tokenizer.convert_tokens_to_ids(STOP)]
    # An engine that took its sampling from the model would give other replies.
    model.generation_config.update(eos_token_id=ends, repetition_penalty=1.5, do_sample=True, temperature=2.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter(talker, tmp_path_factory):
    """Folder of an adapter with random weights, of a rank that vLLM has no room for of just that size."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = LoraConfig(
        r=12,
        lora_alpha=6,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
        init_lora_weights="gaussian",
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(talker, attn_implementation="eager"), config)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.05)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ask(talker, adapter):
    """Ask every question once in each way; the progress that was told comes with the replies."""
    memory = {}

    def asked(engine, elicitation, *, adapted):
        key = (engine, elicitation, adapted)
        if key not in memory:
            notes = []
            replies = engine.generate(
                QUESTIONS,
                elicitation,
                model=talker,
                adapter=adapter if adapted else None,
                progress=lambda share, note: notes.append((share, note)),
            )
            memory[key] = (replies, notes)
        return memory[key]

    return asked


ORACLE = Hf(max_tokens=36, batch_size=5, dtype="float32")
ENGINE = Vllm(max_tokens=36, chunk_size=5, dtype="float32", cache_gib=0.0625)


@with_vllm
@of_its_own
@pytest.mark.vllm
@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapter"])
@pytest.mark.parametrize("elicitation", ["plain", "stated"])
def test_both_engines_give_the_same_records(ask, elicitation, adapted):
    replies, notes = ask(ENGINE, elicitation, adapted=adapted)
    wanted, _ = ask(ORACLE, elicitation, adapted=adapted)
    measured = {"logprobs", "stated_grid"}
    for reply, want in zip(replies, wanted, strict=True):
        assert reply.model_dump(exclude=measured) == want.model_dump(exclude=measured)
        assert reply.logprobs == pytest.approx(want.logprobs, abs=1e-4)
        assert reply.stated_grid == pytest.approx(want.stated_grid, abs=1e-4)
    assert [note for _, note in notes] == [f"{done} of 12 answers" for done in (5, 10, 12)]
    assert notes[-1][0] == 1.0


@with_vllm
@of_its_own
@pytest.mark.vllm
def test_the_replies_compared_are_of_every_kind(ask):
    """Nothing is shown by two engines that agree on replies that are all alike."""
    plain, _ = ask(ENGINE, "plain", adapted=False)
    stated, _ = ask(ENGINE, "stated", adapted=False)
    ends = {reply.tokens[-1] for reply in plain + stated if reply.finish == "stop"}
    assert ends == {"<end_of_turn>", "<eos>", STOP}
    assert {reply.finish for reply in plain} == {reply.finish for reply in stated} == {"stop", "length"}
    grids = [reply.stated_grid for reply in stated if reply.stated_grid]
    assert 0 < len(grids) < len(stated)
    # Numbers behind a whole token, and numbers whose token holds a space too.
    assert {" 0" in reply.tokens for reply in stated if reply.stated_grid} == {True, False}
    assert any(sum(grid) > 0.25 and max(grid) < 0.1 for grid in grids)
    assert any(grid[100] > 0.5 for grid in grids)


@with_vllm
@of_its_own
@pytest.mark.vllm
def test_the_adapter_reaches_both_engines(ask):
    for engine in (ENGINE, ORACLE):
        base, _ = ask(engine, "stated", adapted=False)
        tuned, _ = ask(engine, "stated", adapted=True)
        gap = max(
            abs(a - b)
            for one, other in zip(base, tuned, strict=True)
            for a, b in zip(one.logprobs[:1], other.logprobs[:1], strict=True)
        )
        assert gap > 1e-3


@with_vllm
@of_its_own
@pytest.mark.vllm
def test_the_process_finds_its_environment_as_it_was(talker, monkeypatch):
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "true")
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "7")  # vLLM writes 1 over it
    for name in set(ENVIRONMENT) - {"VLLM_NO_USAGE_STATS"}:
        monkeypatch.delenv(name, raising=False)
    before, inside = dict(os.environ), {}
    ENGINE.generate(
        QUESTIONS[:1],
        "plain",
        model=talker,
        adapter=None,
        progress=lambda *_: inside.update({name: os.environ.get(name) for name in ENVIRONMENT}),
    )
    assert inside == ENVIRONMENT | {"VLLM_NO_USAGE_STATS": "true"}
    assert dict(os.environ) == before


@with_vllm
@of_its_own
@pytest.mark.vllm
def test_a_prompt_that_does_not_fit_is_refused_before_the_model_is_loaded(random_model):
    # vLLM cannot run this model at all, so whatever loads it fails in another way.
    long = [Question(id="long", text="why " * 120, answers=("x",))]
    with pytest.raises(ConfigurationError, match=r"question 'long'.*its prompt has .*engine.max_tokens"):
        ENGINE.generate(long, "plain", model=random_model, adapter=None, progress=print)


@with_vllm
@of_its_own
@pytest.mark.vllm
def test_another_release_than_the_key_names_is_refused(talker, monkeypatch):
    monkeypatch.setattr("calibration.engines.vllm.RELEASE", "0.31.0")
    with pytest.raises(ConfigurationError, match=r"must run with vLLM 0\.31\.0; installed is 0\.32\.0"):
        ENGINE.generate(QUESTIONS[:1], "plain", model=talker, adapter=None, progress=lambda *_: None)


@without_vllm
def test_without_vllm_the_error_says_what_to_do(tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"must run where vLLM is installed.*--backend modal"
    ) as caught:
        Vllm().generate([], "plain", model=tmp_path, adapter=None, progress=print)
    assert "\n" not in str(caught.value)


def test_a_missing_model_is_an_error_with_a_remedy():
    with pytest.raises(ConfigurationError, match="`weights`"):
        Vllm().generate([], "plain", model=None, adapter=None, progress=print)


def test_importing_the_engine_loads_neither_vllm_nor_torch():
    script = (
        "import calibration.engines.vllm, sys; print({'vllm', 'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_experiment_can_name_it(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(
        'name = "small"\n'
        '[data]\nkind = "world"\n'
        '[models.gemma]\nweights = {kind = "hub", repo = "google/gemma-2-2b-it"}\n'
        'engine = {kind = "vllm", max_tokens = 64}\n'
        '[judge]\nkind = "exact"\n'
    )
    experiment = load_experiment(path, ["models.gemma.engine.eager=false"])
    assert experiment.models["gemma"].engine == Vllm(max_tokens=64, eager=False)


@pytest.mark.parametrize(("config", "room"), [({"r": 1}, 8), ({"r": 16}, 16), ({"r": 17}, 32)])
def test_an_adapter_gets_the_next_room_there_is(tmp_path, config, room):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert room_for_rank(tmp_path) == room


def test_the_largest_rank_of_any_module_counts_and_may_be_too_large(tmp_path):
    config = {"r": 4, "rank_pattern": {"q_proj": 600}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match=r"512 or less; got 600.*lora.rank"):
        room_for_rank(tmp_path)
