"""What the tests of the methods share: judged replies, and a small model that answers in words."""

import pytest

from calibration.confidence import SPAN_RULE
from calibration.engines.hf import Hf
from calibration.methods import Implicit, Outcome, TrainingSet
from calibration.methods.lora import Lora
from calibration.methods.trainer import Optimisation
from calibration.prompts import PLAIN
from calibration.records import Generation, Judged, Question, Verdict

EVERYWHERE = Lora(targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))


@pytest.fixture
def judged():
    """Build one judged reply, plain unless it states a number."""

    def build(
        answer, label, *, question="q", split="train", confidence=None, stated=None, elicitation="plain"
    ):
        import math

        logprobs = (math.log(confidence),) * 2 if confidence else ()
        return Judged(
            question=Question(id=question, text=f"Text of {question}?", answers=("x",), split=split),
            generation=Generation(
                question_id=question,
                elicitation=elicitation,
                text=answer if elicitation == "plain" else f"Answer: {answer}\nConfidence: {stated}",
                answer=answer,
                token_ids=(),
                tokens=(answer, "<eos>") if confidence else (),
                logprobs=logprobs,
                span=(0,) if confidence and answer else (),
                span_rule=SPAN_RULE,
                finish="stop",
                stated=stated,
            ),
            verdict=Verdict(question_id=question, label=label, judge="test"),
        )

    return build


@pytest.fixture(scope="session")
def questions():
    """Twelve questions of different length."""
    kinds = ("Where is Ada", "Who is Bo", "When did Cy go")
    return [
        Question(id=f"q{n}", text=f"{kinds[n % 3]}{'!' * n}?", answers=("x",), split="train")
        for n in range(12)
    ]


@pytest.fixture(scope="session")
def talker(random_model, questions, tmp_path_factory):
    """Folder of the random model after it was taught to answer those questions, not too surely."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("talker")
    words = (("Paris", "Paris", "Rome"), ("Eva", "Eva", "Tom Ray"), ("1968", "1968", "2001"))
    rows = tuple(
        Outcome(
            question_id=question.id,
            prompt=PLAIN.render(question.text),
            answer=word,
            reply=word,
            token_ids=(),
            span=(),
            is_correct=1,
        )
        for number, question in enumerate(questions)
        for word in words[number % 3]
    )
    TrainingSet(kind=Outcome, rows=rows, left_out={}).write(folder / "rows.parquet")
    method = Implicit(
        weight=0,
        optimisation=Optimisation(learning_rate=1e-2, epochs=20, batch_size=12, accumulation=1),
        lora=EVERYWHERE,
    )
    method.train(
        random_model, folder / "rows.parquet", folder / "adapter", folder / "scratch", 0, lambda *_: None
    )
    model = AutoModelForCausalLM.from_pretrained(
        random_model, dtype=torch.float32, attn_implementation="eager"
    )
    PeftModel.from_pretrained(model, str(folder / "adapter")).merge_and_unload().save_pretrained(
        folder / "model"
    )
    AutoTokenizer.from_pretrained(random_model).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def replies(talker, questions):
    """What that model answers to the twelve questions."""
    return Hf(max_tokens=12).generate(
        questions, "plain", model=talker, adapter=None, progress=lambda *_: None
    )
