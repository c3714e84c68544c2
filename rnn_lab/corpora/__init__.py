"""Natural data: sequences of symbols or of frames in three fixed parts. Read here; what is asked of them is a task."""

from rnn_lab.corpora import chorales, text
from rnn_lab.corpora.base import Corpus, CorpusError

__all__ = ["Corpus", "CorpusError", "chorales", "text"]
