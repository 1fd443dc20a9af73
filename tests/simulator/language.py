"""The part of RouterOS's command language that one ``exec`` line can hold (MikroTik's manual, page "Scripting").

Words separated by space or ``/``; ``key=value`` and ``key~"regex"`` without spaces around the sign; double quotes with a
closed set of escapes; ``[…]`` substitutes what a command returns; ``;`` ends a command. A whole line is read before any of it
is run, so a syntax error means that nothing was done.
"""

from dataclasses import dataclass

ESCAPES = {'"': '"', "\\": "\\", "n": "\n", "r": "\r", "t": "\t", "$": "$", "_": " ", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
HEX = "0123456789ABCDEF"
ENDS_WORD = ' \t;[]{}()"$=~'
ENDS_VALUE = ' \t;[]{}()"$'


class ConsoleError(Exception):
    """What RouterOS answers instead of a result; the text is the whole answer."""


@dataclass(frozen=True)
class Word:
    """A bare or quoted word, and the column (from 1) where it begins."""

    text: str
    column: int
    is_quoted: bool = False


@dataclass(frozen=True)
class Pair:
    """``key=value`` or ``key~value``; the value is a text or a command whose result is the value."""

    key: str
    sign: str
    value: "str | Command"
    column: int


@dataclass(frozen=True)
class Command:
    """One command: words, pairs and substitutions in the order they were written."""

    items: "tuple[Argument, ...]"
    column: int


Argument = Word | Pair | Command


def read_line(text: str) -> list[Command]:
    """The commands of one line. Raises ConsoleError with RouterOS's wording and column where the line is not understood."""
    if "\n" in text or "\r" in text:
        # Only documented: several lines fail over an exec channel. The wording is the generic one.
        raise ConsoleError(f"expected end of command (line 1 column {text.index(chr(10)) + 1 if chr(10) in text else 1})")
    reader = _Reader(text)
    commands = []
    while True:
        command = reader.command()
        if command.items:
            commands.append(command)
        if reader.done:
            return commands
        if reader.char != ";":
            raise ConsoleError(f"syntax error (line 1 column {reader.at + 1})")
        reader.at += 1


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    @property
    def done(self) -> bool:
        return self.at >= len(self.text)

    @property
    def char(self) -> str:
        return self.text[self.at]

    def fail(self) -> ConsoleError:
        return ConsoleError(f"syntax error (line 1 column {self.at + 1})")

    def command(self) -> Command:
        column = self.at + 1
        items: list[Argument] = []
        while not self.done and self.char not in ";]":
            if self.char in " \t":
                self.at += 1
            elif self.char == "#":
                self.at = len(self.text)
            else:
                items.append(self.item())
        return Command(tuple(items), column)

    def item(self) -> Argument:
        column = self.at + 1
        if self.char == "[":
            return self.substitution()
        if self.char == '"':
            return Word(self.quoted(), column, is_quoted=True)
        word = self.bare(ENDS_WORD)
        if not self.done and self.char in "=~" and word:
            sign = self.char
            self.at += 1
            return Pair(word, sign, self.value(), column)
        if not word:
            raise self.fail()
        return Word(word, column)

    def value(self) -> "str | Command":
        if self.done or self.char in " \t;":
            return ""
        if self.char == "[":
            return self.substitution()
        if self.char == '"':
            return self.quoted()
        word = self.bare(ENDS_VALUE)
        if not word:
            raise self.fail()
        return word

    def substitution(self) -> Command:
        self.at += 1
        command = self.command()
        if self.done or self.char != "]":
            raise self.fail()
        self.at += 1
        return command

    def bare(self, ends: str) -> str:
        start = self.at
        while not self.done and self.char not in ends:
            self.at += 1
        return self.text[start : self.at]

    def quoted(self) -> str:
        self.at += 1
        text = ""
        while not self.done and self.char != '"':
            if self.char == "$":
                raise self.fail()  # variables: nothing of ours may hold one
            if self.char == "\\":
                text += self.escape()
            else:
                text += self.char
                self.at += 1
        if self.done:
            raise self.fail()
        self.at += 1
        return text

    def escape(self) -> str:
        # An unknown escape is a syntax error: seen on 7.16 with "\." in a file name.
        self.at += 1
        if not self.done and self.char in ESCAPES:
            self.at += 1
            return ESCAPES[self.text[self.at - 1]]
        code = self.text[self.at : self.at + 2]
        if len(code) == 2 and all(digit in HEX for digit in code):
            self.at += 2
            return chr(int(code, 16))
        raise self.fail()
