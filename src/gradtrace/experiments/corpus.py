"""Text for the competition: words, a vocabulary, and a training and a held-out part.

A word is what whitespace separates. The default text, `pydoc_data.topics`, is the language reference that
CPython's help() prints; it differs a little between Python versions, so perplexities on it compare within
one version only.
"""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import OptionError

UNKNOWN, END = "<unk>", "<eos>"
HELD_OUT = 10  # one word in ten is held out,
MOST_HELD_OUT = 20_000  # but no more than this, so that evaluating a long text stays cheap


@dataclass(frozen=True)
class Text:
    """A text and where it came from."""

    name: str
    words: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class Corpus:
    """A text as word numbers.

    Attributes:
        vocabulary: the word of each number; `<unk>` is number 0.
        training, held_out: word numbers; the held-out part is the end of the text.
    """

    text: Text
    vocabulary: tuple[str, ...]
    training: Tensor
    held_out: Tensor

    def unknown_share(self, part: Tensor) -> float:
        """Give the share of a part that is `<unk>`."""
        return float((part == 0).float().mean())


def default_text() -> Text:
    """Join the topics of CPython's help(), in the order of their names."""
    from pydoc_data import topics

    known: dict[str, str] = topics.topics
    content = "\n".join(known[name] for name in sorted(known))
    return _text(f"pydoc_data.topics of Python {platform.python_version()}", content)


def read_text(path: str | Path) -> Text:
    """Read a UTF-8 text file.

    Raises:
        OptionError: it cannot be read, is empty, or is not text.
    """
    path = Path(path)
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise OptionError(f"corpus {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise OptionError(f"corpus {path} is not UTF-8 text: byte {error.start} cannot be decoded") from None
    if "\0" in content:
        raise OptionError(f"corpus {path} is not text: it has a null byte at character {content.index(chr(0))}")
    if not content.strip():
        raise OptionError(f"corpus {path} is empty: it has no words")
    return _text(path.name, content)


def _text(name: str, content: str) -> Text:
    digest = hashlib.sha256(content.encode()).hexdigest()
    return Text(name, tuple(split_words(content)), digest)


def split_words(content: str) -> list[str]:
    """Split text into words; in the Penn Treebank's format a line is a sentence and gets an `<eos>`.

    A text is taken to be in that format if it contains the word `<unk>`.

    >>> split_words("the <unk> sat" + chr(10) + "it slept")
    ['the', '<unk>', 'sat', '<eos>', 'it', 'slept', '<eos>']
    >>> split_words("wrapped" + chr(10) + "text")
    ['wrapped', 'text']
    """
    words = content.split()
    if UNKNOWN not in words:
        return words
    lines = (line.split() for line in content.splitlines())
    return [word for line in lines if line for word in (*line, END)]


def choose_vocabulary(words: tuple[str, ...], size: int) -> tuple[str, ...]:
    """Give the most frequent words, `<unk>` first; equally frequent ones in the order of the alphabet.

    Unless the text has its own `<unk>`, a word that occurs once is not kept: a text whose words all fit
    into `size` would have no `<unk>` to learn from, and every new word would come as a surprise.
    """
    counts = Counter(words)
    least = 1 if UNKNOWN in counts else 2
    kept = [w for w, n in counts.items() if n >= least and w != UNKNOWN]
    kept.sort(key=lambda w: (-counts[w], w))
    return (UNKNOWN, *kept[: size - 1])


def make_corpus(text: Text, size: int) -> Corpus:
    """Cut a text in two and number its words; the vocabulary comes from the training part alone."""
    held_out = min(len(text.words) // HELD_OUT, MOST_HELD_OUT)
    cut = len(text.words) - held_out
    vocabulary = choose_vocabulary(text.words[:cut], size)
    number = {word: i for i, word in enumerate(vocabulary)}
    ids = torch.tensor([number.get(word, 0) for word in text.words], dtype=torch.long)
    return Corpus(text, vocabulary, ids[:cut], ids[cut:])


def check_length(corpus: Corpus, batch: int, bptt: int, trace_examples: int) -> None:
    """Raise unless the text fills one training step and the traced windows.

    Raises:
        OptionError: with the number of words that would do.
    """
    least_training, least_held_out = batch * (bptt + 1), trace_examples * bptt + 1
    if len(corpus.training) >= least_training and len(corpus.held_out) >= least_held_out:
        return
    least = max(least_training * HELD_OUT // (HELD_OUT - 1) + 1, least_held_out * HELD_OUT)
    raise OptionError(
        f"corpus {corpus.text.name} is too short: it has {len(corpus.text.words)} words, and "
        f"--batch {batch} --bptt {bptt} --trace-examples {trace_examples} need at least {least}"
    )


def unigram_perplexity(corpus: Corpus) -> float:
    """Give the held-out perplexity of word frequencies alone (one added to each count): what to beat."""
    counts = torch.bincount(corpus.training, minlength=len(corpus.vocabulary)).double() + 1
    log_p = (counts / counts.sum()).log()
    return float((-log_p[corpus.held_out].mean()).exp())
