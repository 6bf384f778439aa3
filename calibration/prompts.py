"""Every text that asks a model for an answer, each with a version.

A prompt decides the numbers, so it is part of every cache key through this module's fingerprint, and
its version stands in every report. What a judge is asked stands in `calibration.judges.prompts`.
"""

from dataclasses import dataclass

from calibration.records import Elicitation


@dataclass(frozen=True)
class Prompt:
    """A text with one hole, and its version."""

    version: str
    template: str

    def render(self, question: str) -> str:
        """The user turn for one question; braces in the question stay as they are."""
        return self.template.replace("{question}", question)


PLAIN = Prompt(
    version="plain@1",
    template="Answer the following question with the answer only:\nQuestion: {question}",
)

STATED = Prompt(
    version="stated@1",
    template=(
        "Answer the following question and provide confidence (0.0-1.0):\n"
        "Question: {question}\n"
        "Format: Answer: [your answer]\nConfidence: [0.0-1.0]"
    ),
)
"""Word for word the prompt of the original specification."""

PROMPTS: dict[Elicitation, Prompt] = {"plain": PLAIN, "stated": STATED}


def stated_response(answer: str, confidence: float) -> str:
    """The reply that STATED asks for, with two decimals."""
    return f"Answer: {answer}\nConfidence: {confidence:.2f}"
