"""Trained models at work, each a class that opens a directory and takes texts.

from fastseq.use import Translator

translator = Translator.open("runs/translate-transformer")
translator(["Good morning.", "The file was not found."])
"""

from .alignment import Alignment, align, plot
from .evaluation import evaluate
from .reading import Answer, Classification, Classifier, QuestionAnswerer
from .scores import plot_scores
from .trained import TextError, Trained
from .writing import Candidate, Summarizer, TextGenerator, Translator

__all__ = [
    "Alignment",
    "Answer",
    "Candidate",
    "Classification",
    "Classifier",
    "QuestionAnswerer",
    "Summarizer",
    "TextError",
    "TextGenerator",
    "Trained",
    "Translator",
    "align",
    "evaluate",
    "plot",
    "plot_scores",
]
