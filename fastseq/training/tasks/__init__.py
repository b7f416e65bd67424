"""The tasks of ``fastseq train``, by name."""

from .base import Batch, Examples, Task
from .classify import Classify
from .language_model import LanguageModel
from .masked import MaskedLanguageModel
from .question import AnswerQuestions
from .sequence import Summarize, Translate

TASKS: dict[str, type[Task]] = {
    "translate": Translate,
    "lm": LanguageModel,
    "mlm": MaskedLanguageModel,
    "classify": Classify,
    "qa": AnswerQuestions,
    "summarize": Summarize,
}

__all__ = ["TASKS", "Batch", "Examples", "Task"]
