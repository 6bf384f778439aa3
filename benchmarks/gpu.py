"""What one GPU does with the jobs of a container, on weights of gemma-2-2b's form that are drawn at random.

    python -m benchmarks.gpu --out docs/results/gpu.md            # transformers, dpo and implicit
    python -m benchmarks.gpu vllm --out docs/results/gpu-vllm.md  # where vLLM is installed
    python -m benchmarks.gpu --tiny                               # on any machine: to see that it works

Every job is what a container runs, in a process of its own, with the settings of the experiment `gemma-2-2b`.
Needs no account and no download, so time and memory are real and the answers are noise: no reply ends before
its longest length. A token of the made-up tokenizer is a byte, so prompts are about four times as long as
Gemma's own; the figures are for tokens.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter

from calibration.artifacts import Artifact, Store
from calibration.backends.worker import perform
from calibration.config import load_experiment
from calibration.engines.hf import Hf
from calibration.engines.vllm import Vllm
from calibration.errors import ConfigurationError
from calibration.jobs import Job
from calibration.jobs.infer import Infer
from calibration.jobs.obtain import Obtain
from calibration.jobs.train import Train
from calibration.methods.rows import Outcome, Preference
from calibration.models.hub import Hub
from calibration.prompts import PLAIN, STATED, stated_response
from calibration.records import Generation, Question

Part = Literal["infer", "vllm", "dpo", "implicit"]
ROOT = Path(__file__).parent.parent
GEMMA_2_2B = {
    "vocab_size": 256_000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
}
"""Of the model's card; the soft-caps are transformers' defaults for Gemma-2."""
TINY = {
    **GEMMA_2_2B,
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
}
CHUNKS = 4
"""Parts in which the questions are answered. The first one is not counted: it holds what happens once."""


class Measured(NamedTuple):
    """One job."""

    what: str
    seconds: float
    """From the start of the process to its result."""
    start: float
    """To the end of the first chunk or step."""
    rate: str
    """Behind that one."""
    gib: float
    """Most memory: of the GPU, or of the process where there is none."""


def main() -> None:
    """Run the parts that were asked for, and print the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu")
    parser.add_argument("parts", nargs="*", metavar="infer | vllm | dpo | implicit")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on any machine")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the page there, too")
    parser.add_argument("--job", metavar="KEY", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        work(options.job)
        return
    parts: list[Part] = TypeAdapter(list[Part]).validate_python(options.parts or ["infer", "dpo", "implicit"])
    if not options.tiny:
        check_gpu(parts)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SLM_CALIBRATION_STORE"] = folder
        lines = [line for part in parts for line in measure(part, is_tiny=options.tiny)]
    command = " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])
    print(said := page(lines, command, is_tiny=options.tiny))
    if options.out:
        options.out.write_text(said, encoding="utf-8")


def check_gpu(parts: list[Part]) -> None:
    """See that there is a GPU, and vLLM where it is to be used, before gigabytes are written."""
    import torch

    if not torch.cuda.is_available():
        raise ConfigurationError("this machine must have a GPU; it has none. Run: ... --tiny")
    if "vllm" in parts and not find_spec("vllm"):
        raise ConfigurationError("vLLM must be installed for `vllm`; see deployments/images/vllm.txt")


def measure(part: Part, *, is_tiny: bool) -> Iterator[Measured]:
    """The jobs of one part, one after the other."""
    store = Store.from_environment()
    model = obtained(store, TINY if is_tiny else GEMMA_2_2B)
    if part in ("infer", "vllm"):
        count = 8 if is_tiny else 512
        asked = store.save_rows("questions", questions(count), Question)
        engine = (
            Vllm(chunk_size=count // CHUNKS) if part == "vllm" else Hf(batch_size=min(64, count // CHUNKS))
        )
        for way in ("plain", "stated"):
            job = Infer(questions=asked, engine=engine, elicitation=way, model=model)
            told, artifact = run(f"{part}-{way}", job)
            tokens = sum(len(row.token_ids) for row in store.load_rows(artifact, Generation))
            yield line(f"infer, {engine.kind}, {way}", told, tokens, "tokens/s")
        return
    steps = 4 if is_tiny else 20
    method = load_experiment(ROOT / "deployments" / "experiments" / "gemma-2-2b.toml").methods[part]
    once = method.optimisation.model_copy(update={"epochs": 1})
    method = method.model_copy(update={"optimisation": once})
    rows, kind = taught(part, steps * once.batch_size * once.accumulation)
    data = store.save_rows("data", rows, kind)
    told, _ = run(part, Train(method=method, model=model, data=data, seed=0))
    name = f"train, {part}, {once.batch_size * once.accumulation} rows a step"
    yield line(name, told, steps, "steps/s")


def line(what: str, told: dict[str, Any], amount: int, unit: str) -> Measured:
    """How fast a job went between its first progress and its last."""
    (first, begun), (last, ended) = told["seen"][0], told["seen"][-1]
    rate = amount * (last - first) / (ended - begun)
    words = f"{rate:,.0f} {unit}" if unit == "tokens/s" else f"{1 / rate:.2f} s a step"
    return Measured(what, told["seconds"], begun, words, told["gib"])


def run(key: str, job: Infer | Train) -> tuple[dict[str, Any], Artifact]:
    """Do a job in a new process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--job", key],
        cwd=ROOT,
        input=job.model_dump_json(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{key} broke:\n{done.stderr}")
    told = json.loads(done.stdout.splitlines()[-1])
    return told, Artifact.model_validate(told["artifact"])


def work(key: str) -> None:
    """What a container does, with a clock: reads the job, and prints what is to be told of it."""
    began, seen = time.monotonic(), []
    job: Job = TypeAdapter(Job).validate_json(sys.stdin.read())
    artifact = perform(
        job,
        key,
        Store.from_environment(),
        lambda fraction, _: seen.append((fraction, time.monotonic() - began)),
    )
    told = {"seconds": time.monotonic() - began, "seen": seen, "gib": peak_gib()}
    print(json.dumps({**told, "artifact": artifact.model_dump()}), flush=True)


def peak_gib() -> float:
    """Most memory that this process held."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def obtained(store: Store, form: dict[str, int]) -> Artifact:
    """A model with random weights, as a container finds one: a pointer to a folder."""
    folder = store.root / "weights"
    if not folder.exists():
        build(folder, form)
    return perform(Obtain(weights=Hub(repo=str(folder))), "obtain", store, lambda _, __: None)


def build(folder: Path, form: dict[str, int]) -> None:
    """Write random weights, and a tokenizer whose tokens are bytes and fillers."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

    tokens = ["<pad>", "<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"filler{number}" for number in range(form["vocab_size"] - len(tokens))]
    tokenizer = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
        "{% endfor %}{% if add_generation_prompt %}model: {% endif %}"
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = Gemma2Config(**form, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    Gemma2ForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    fast.save_pretrained(folder)


def questions(count: int) -> list[Question]:
    """Questions of one length."""
    return [
        Question(id=f"q{n}", text=f"Which town is number {n:06} of all towns?", answers=("x",))
        for n in range(count)
    ]


def taught(part: Part, count: int) -> tuple[list[Preference] | list[Outcome], type]:
    """Rows to train on, half of them right."""
    if part == "dpo":
        pairs = [
            Preference(
                question_id=row.id,
                prompt=STATED.render(row.text),
                chosen=stated_response("a town", (0.9, 0.1)[n % 2]),
                rejected=stated_response("a town", (0.1, 0.9)[n % 2]),
                target=(0.9, 0.1)[n % 2],
                original=0.5,
            )
            for n, row in enumerate(questions(count))
        ]
        return pairs, Preference
    outcomes = [
        Outcome(
            question_id=row.id,
            prompt=PLAIN.render(row.text),
            answer="a town",
            reply="a town",
            token_ids=(),
            span=(),
            is_correct=n % 2,
        )
        for n, row in enumerate(questions(count))
    ]
    return outcomes, Outcome


def page(lines: list[Measured], command: str, *, is_tiny: bool) -> str:
    """The figures as a page, with all that they depend on."""
    import torch

    weights = f"Random weights in the form of {'a tiny model' if is_tiny else 'gemma-2-2b'}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"no GPU, {platform.machine()}"
    # vLLM without a GPU is a package of another name.
    packages = packages_distributions()
    libraries = [
        packages[name][0] for name in ("torch", "transformers", "trl", "peft", "vllm") if name in packages
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    rows = [
        f"| {one.what} | {one.seconds:.1f} | {one.start:.1f} | {one.rate} | {one.gib:.2f} |" for one in lines
    ]
    return "\n".join(
        [
            "# What a GPU does with the jobs of a container",
            "",
            "```sh",
            command,
            "```",
            "",
            f"{datetime.now(UTC).date()}, {device}; {versions}.",
            "",
            f"{weights}, a token a byte, every reply of its longest length.",
            "The first chunk of questions is not in the rate, nor is the first step of a training.",
            "",
            "| job | s in all | s to the first chunk or step | behind it | peak GiB |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    try:
        main()
    except ConfigurationError as error:
        sys.exit(f"benchmarks.gpu: {error}")
