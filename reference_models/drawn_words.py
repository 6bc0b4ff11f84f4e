"""Words that a model draws, and the refusal of prompts that quote others.

A tokenizer may know more than a model draws.  Such a prompt would be drawn as letters that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

from textpatch.errors import PatchError, PromptError
from textpatch.quotes import Quotation, quotations
from textpatch.reference_models.tokenizing import require_text

MOST_NAMED = 10  # letters that a message names
NUMBERS = "shortest", "longest", "words", "lines"


@dataclass(frozen=True)
class DrawnWords:
    """Words that a model draws, each quoted text on a line of its own.

    letters            all that words are made of
    shortest, longest  letters of a word
    words              most words of a line
    lines              most lines
    undrawn            words around the texts that tokenizers know, and that the model does not draw
    places             most letters and blanks of a line of several words, None for any number
    in_all             most letters and blanks of all lines, None for as many as the lines hold

    Raises PatchError for no letters, and for numbers that are none from 1 on or in the wrong order.
    """

    letters: str
    shortest: int
    longest: int
    words: int = 1
    lines: int = 1
    undrawn: tuple[str, ...] = ()
    places: int | None = None
    in_all: int | None = None

    def __post_init__(self) -> None:
        numbers = [getattr(self, name) for name in NUMBERS]
        numbers += [limit for limit in (self.places, self.in_all) if limit is not None]
        whole = all(isinstance(one, Integral) and not isinstance(one, bool) for one in numbers)
        lettered = isinstance(self.letters, str) and self.letters
        if not lettered or not whole or min(numbers) < 1 or self.longest < self.shortest:
            raise PatchError(
                f"{self.letters!r} are the letters and {numbers} {', '.join(NUMBERS)} of the words that a "
                "model draws; give some letters, and whole numbers from 1 on"
            )

    def __str__(self) -> str:
        """The words in a sentence's end, such as `words of 3 to 5 letters (ABC), one on each of 2 lines`."""
        many = "one" if self.words == 1 else f"up to {self.words}"
        lines = "one line" if self.lines == 1 else f"each of at most {self.lines} lines"
        places = "" if self.places is None else f" of {self.places} letters and blanks"
        words = f"words of {self.shortest} to {self.longest} letters ({self.letters})"
        in_all = "" if self.in_all is None else f", {self.in_all} in all"
        return f"{words}, {many} on {lines}{places}{in_all}"

    def require(self, prompts: Sequence[str | None], name: str) -> None:
        """Raise PromptError for the first prompt that asks for what is not drawn.

        name  of the model
        A prompt that quotes nothing passes where no word of its sentence is at fault.
        """
        for prompt in dict.fromkeys(prompts):
            if not isinstance(prompt, str):
                continue
            require_text(prompt)
            found = quotations(prompt)
            self._require_sentence(prompt, found, name)
            texts = [quotation.text for quotation in found]
            for fault in self._faults(texts):
                raise PromptError(
                    f"{prompt!r} quotes {fault}, and {name} draws {self}; {self._cure(texts)}"
                )

    def admits(self, prompt: str) -> bool:
        """True for a prompt that `require` lets pass."""
        try:
            self.require([prompt], "the model")
        except PromptError:
            return False
        return True

    def _require_sentence(self, prompt: str, found: Sequence[Quotation], name: str) -> None:
        """Raise PromptError for a word beside the quoted texts that is not drawn."""
        beside = prompt
        for quotation in reversed(found):
            beside = beside[: quotation.start] + beside[quotation.end :]
        for word in beside.split():
            if word in self.undrawn:
                raise PromptError(
                    f"{prompt!r} asks for {word!r}, which {name} does not draw; leave out all of these: "
                    f"{', '.join(self.undrawn)}"
                )

    def _cure(self, texts: Sequence[str]) -> str:
        """What to do about texts that are not drawn."""
        capitals = [text.upper() for text in texts]
        if any(self._faults(capitals)):
            return "give such words"
        return "write " + " and ".join(f'"{text}"' for text in capitals)

    def _faults(self, texts: Sequence[str]) -> Iterator[str]:
        """What of some quoted texts is not drawn."""
        if len(texts) > self.lines:
            yield f"{len(texts)} texts"
        taken = sum(map(len, texts))
        if self.in_all is not None and taken > self.in_all:
            yield f"{taken} letters and blanks"
        for text in texts:
            words = text.split()
            if not words:
                yield f"the empty text {text!r}"
            if len(words) > self.words:
                yield f"{len(words)} words on one line, {text!r}"
            elif self.places is not None and len(text) > self.places and len(words) > 1:
                yield f"a line of {len(text)} letters and blanks, {text!r}"
            for word in words:
                yield from self._faults_of(word)

    def _faults_of(self, word: str) -> Iterator[str]:
        strange = [repr(letter) for letter in dict.fromkeys(word) if letter not in self.letters]
        if strange:
            more = ", ..." if len(strange) > MOST_NAMED else ""
            yield f"{word!r} with {', '.join(strange[:MOST_NAMED])}{more}"
        elif not self.shortest <= len(word) <= self.longest:
            yield f"{word!r} of {len(word)} letters"
