"""Prompts as tokens: a SentencePiece model (arXiv 1808.06226) that is trained on the captions and travels with the run."""

import io
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from jaxtyping import Bool, Int
from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.files import write_atomically

PAD, UNKNOWN, EOS = 0, 1, 2
SPECIAL = 3
FILE = "text.model"
RULE = "nmt_nfkc_cf"  # Unicode's compatibility forms, without case: "A Red" and "a red" are one


def _clean(text: str) -> str:
    return " ".join(text.replace("\0", " ").split())  # SentencePiece takes line breaks and NULs for ends of sentences


def _frequent(captions: Sequence[str], kept: int) -> list[str]:
    """The captions with spaces for all but the `kept` most frequent characters, which then are "unknown" to the model."""
    normalizer = sentencepiece.SentencePieceNormalizer(rule_name=RULE, add_dummy_prefix=False, escape_whitespaces=False)
    captions = normalizer.normalize(list(captions))
    counts = Counter(char for text in captions for char in text if char != " ")
    rare = str.maketrans({char: " " for char, _ in counts.most_common()[kept:]})
    return [text.translate(rare) for text in captions]


def empty_prompt(length: int) -> tuple[Int[np.ndarray, "1 C"], Bool[np.ndarray, "1 C"]]:
    """What every text model makes of "": EOS alone, the null condition of guidance."""
    ids, valid = np.full((1, length), PAD, np.int32), np.zeros((1, length), bool)
    ids[0, -1], valid[0, -1] = EOS, True
    return ids, valid


class TextTokenizer:
    """Text -> ids below `vocabulary`: 0 pads, 1 stands for characters it does not know, 2 ends every prompt."""

    def __init__(self, model: bytes):
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, OSError):
            raise UserError("this is no SentencePiece model") from None
        if (self._processor.pad_id(), self._processor.eos_id()) != (PAD, EOS):
            raise UserError("this SentencePiece model was not trained by mmgen: it needs ids 0 for padding and 2 for the end")

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return self._processor.vocab_size()

    @classmethod
    def train(cls, captions: Iterable[str], vocabulary: int) -> "TextTokenizer":
        """Learns at most `vocabulary` pieces (byte pair encoding over letters without case). The same captions give the
        same model. Warns when the captions hold fewer pieces. Raises `UserError` without captions or below 8 pieces."""
        if vocabulary < 8:
            raise UserError(f"a vocabulary of {vocabulary} is too small: take at least 8, better 100 or more")
        captions = [_clean(text) for text in captions]
        captions = _frequent(captions, vocabulary - SPECIAL - 1)  # one place of the vocabulary is for the space
        if not any(text.strip() for text in captions):
            raise UserError("there are no captions to learn a vocabulary from: the data needs texts")
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(captions),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocabulary,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name=RULE,
            max_sentence_length=1 << 20,
            pad_id=PAD,
            unk_id=UNKNOWN,
            eos_id=EOS,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
        text = cls(model.getvalue())
        if text.vocabulary < vocabulary:
            warnings.warn(f"the captions give {text.vocabulary} pieces of text, not {vocabulary}", stacklevel=2)
        return text

    def encode(
        self, texts: Sequence[str], length: int, warn: bool = True
    ) -> tuple[Int[np.ndarray, "B C"], Bool[np.ndarray, "B C"]]:
        """ids int32 [B, C] and which of them are real bool [B, C], C = `length`, padded on the left.

        Every row ends with EOS, also when the text was cut; "" is EOS alone, the null condition of guidance. Texts that
        are too long are cut; `warn` says how much. Raises `UserError` for a length below 1.
        """
        if length < 1:
            raise UserError(f"prompts need room for at least one token, not {length}")
        ids, valid = np.full((len(texts), length), PAD, np.int32), np.zeros((len(texts), length), bool)
        cut = []
        for row, text in enumerate(texts):
            pieces = self._processor.encode(_clean(text))
            if len(pieces) >= length:
                cut.append((len(pieces) + 1 - length, text))
            pieces = [*pieces[: length - 1], EOS]
            ids[row, -len(pieces) :] = pieces
            valid[row, -len(pieces) :] = True
        if cut and warn:
            _warn_of_cut(cut, len(texts), length)
        return ids, valid

    def decode(self, ids: Sequence[int]) -> str:
        """The text of one row of ids, in lower case."""
        return self._processor.decode([int(i) for i in ids])

    def save(self, path: str | Path) -> None:
        """Writes PATH/text.model (or PATH itself where it ends in .model), whole or not at all."""
        write_atomically(_file(path), self.model)

    @classmethod
    def load(cls, path: str | Path) -> "TextTokenizer":
        """Reads what `save` wrote. Raises `UserError` where there is none."""
        file = _file(path)
        if not file.is_file():
            names = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
            raise UserError(
                f"there is no text tokenizer {file}: name a folder that was exported with one.{nearest(file.name, names)}"
            )
        try:
            return cls(file.read_bytes())
        except UserError as error:
            raise UserError(f"{file}: {error}") from None


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".model" else path / FILE


def _warn_of_cut(cut: list[tuple[int, str]], count: int, length: int) -> None:
    lost, text = max(cut)
    shown = text if len(text) <= 60 else text[:57] + "..."
    what = "the prompt" if count == 1 else f"{len(cut)} of {count} prompts; most of all the prompt"
    warnings.warn(f"cut to {length} tokens: {what} {shown!r}, whose last {lost} tokens are ignored", stacklevel=3)
