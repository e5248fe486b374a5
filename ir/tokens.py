"""Tokens of the text form, and errors that point into the text."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from ..errors import ParseError

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
      |(?P<value>%(?:[^\W\d]\w*|"(?:[^"\\\n]|\\.)*")(?:\#[0-9]+)?)
      |(?P<string>"(?:[^"\\\n]|\\.)*")
      |(?P<dim>-?[0-9]+N(?!\w))
      |(?P<number>-?(?:inf|0x[0-9a-fA-F]+|[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)(?![\w.]))
      |(?P<word>[^\W\d]\w*)
      |(?P<sign>[{}()\[\]:,=@])""",
    re.VERBOSE,
)
_UNSIGNED_INFINITY = "inf"


class Token(NamedTuple):
    """A piece of the text: its kind (a group of the pattern, or ``end``) and where it starts."""

    kind: str
    text: str
    start: int


class Tokens:
    """The tokens of a text, and the place in it.

    Tokens are signs, words, values (%name, %name#1), strings, extents (3N) and numbers; ``//``
    starts a comment. ``inf``, ``nan`` and ``N`` are words, so that a graph may have these names.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self._tokenize()
        self.at = 0

    def _tokenize(self) -> list[Token]:
        tokens: list[Token] = []
        start = 0
        while start < len(self.text):
            match = _TOKEN.match(self.text, start)
            if match is None:
                raise self.error("this is no part of the language", start)
            kind, text = str(match.lastgroup), match.group()
            if kind != "space":
                word = text == _UNSIGNED_INFINITY
                tokens.append(Token("word" if word else kind, text, start))
            start = match.end()
        return [*tokens, Token("end", "", len(self.text))]

    @property
    def next(self) -> Token:
        """The next token, which is not taken."""
        return self.tokens[self.at]

    def error(self, message: str, start: int) -> ParseError:
        """The error with its place: at most 100 characters of the line and a caret below."""
        begin = self.text.rfind("\n", 0, start) + 1
        end = self.text.find("\n", start)
        whole = self.text[begin : end if end >= 0 else len(self.text)].replace("\t", " ")
        line, column = self.text.count("\n", 0, start) + 1, start - begin
        first = max(0, column - 60)
        shown = whole[first : first + 100]
        return ParseError(
            f"line {line}, column {column + 1}: {message}\n  {shown}\n  {' ' * (column - first)}^"
        )

    def expected(self, what: str) -> ParseError:
        """The error that something else was expected here."""
        token = self.next
        if token.kind == "end":
            found = "the end of the text"
        else:
            found = token.text if len(token.text) <= 40 else token.text[:37] + "..."
        return self.error(f"expected {what}, found {found}", token.start)

    def take(self, kind: str, what: str) -> Token:
        """Takes the next token, which must be of this kind."""
        if self.next.kind != kind:
            raise self.expected(what)
        self.at += 1
        return self.tokens[self.at - 1]

    def accept(self, text: str) -> bool:
        """Whether the next token is this sign or word, which is then taken."""
        found = self.next.kind in ("sign", "word") and self.next.text == text
        self.at += found
        return found

    def expect(self, text: str, what: str = "") -> None:
        """Takes the next token, which must be this sign or word."""
        if not self.accept(text):
            raise self.expected(what or f"'{text}'")

    def string(self, what: str) -> str:
        """Takes a string."""
        return self.unquote(self.take("string", what))

    def unquote(self, token: Token, skip: int = 0) -> str:
        """The characters that a string token stands for."""
        try:
            return json.loads(token.text[skip:])
        except ValueError as error:
            raise self.error(f"bad string: {error}", token.start) from None

    def name(self, what: str) -> str:
        """Takes a word or a string."""
        if self.next.kind == "string":
            return self.string(what)
        return self.take("word", what).text

    def integer(self, what: str) -> int:
        """Takes a decimal integer."""
        token = self.take("number", what)
        if not re.fullmatch(r"-?[0-9]+", token.text):
            raise self.error(f"expected {what}, found {token.text}", token.start)
        return self.to_int(token, token.text)

    def to_int(self, token: Token, digits: str) -> int:
        """The number of a token's digits."""
        try:
            return int(digits)
        except ValueError as error:  # Python limits the number of digits
            raise self.error(str(error), token.start) from None
