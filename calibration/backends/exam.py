"""What can be known to be wrong with a model of the hub before a GPU is asked for."""

from calibration.engines import EngineConfig
from calibration.engines.chat import Chat
from calibration.engines.recorded import RecordedAnswers
from calibration.errors import ConfigurationError
from calibration.models.hub import Hub
from calibration.records import Elicitation, Question
from calibration.schema import Schema


class Exam(Schema):
    """A model, and how an experiment would ask it."""

    weights: Hub
    engine: EngineConfig
    elicitations: tuple[Elicitation, ...]
    questions: tuple[Question, ...]
    """The longest ones."""

    def take(self) -> None:
        """See that the model can be had, that it can be talked to, and that the questions fit.

        Only its tokenizer and its configuration are downloaded.

        Raises:
            ConfigurationError: It can't, or they don't.
        """
        self.weights.check_access()
        if isinstance(self.engine, RecordedAnswers):
            return
        try:
            chat = Chat.of(self.weights.without_weights())
            # By its name, and not by the folder in a container.
            chat.tokenizer.name_or_path = self.weights.repo
        except (OSError, ValueError) as error:
            words = str(error).splitlines()[0]
            raise ConfigurationError(
                f"model {self.weights.repo} must be one that transformers can read; {words}"
            ) from error
        for elicitation in self.elicitations:
            self.engine.prompts(chat, self.questions, elicitation)
