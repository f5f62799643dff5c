r"""Regular expressions of a `tokenizer.json`, in Oniguruma's dialect, to and from TinyLM's.

TinyLM splits with fancy-regex. The two dialects share most of their syntax, and what they do not
share they often spell alike: `$` ends every line in Oniguruma and the text in fancy-regex. `read`
rewrites what both can say and refuses the rest by name:

| Oniguruma | fancy-regex |
|---|---|
| `^`, `$`, `\Z` | look-around for the ends of a line, or for the last one |
| `(?m:.)`, `(?m)` | `(?s:.)`, `(?s)`: a dot that matches line ends |
| `a{1,3}+` | `(?:a{1,3})+`: a repetition; `a++`, `a*+` and `a?+` are possessive in both |
| `a{2}?`, `a{,3}` | `(?:a{2})?`, `a{0,3}` |
| `\w`, `\b` | with the powers and fractions of Latin-1, without the joiners U+200C and U+200D |
| `[[:alpha:]]`, `\p{^L}` | `[\p{Alphabetic}]`, `\P{L}` |
| `(?<name>a)` | `(?:a)` |
"""

import re
from functools import cache
from typing import NoReturn

# What \w matches in a class of Oniguruma; outside of one also six numbers of Latin-1.
_WORD = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}"
_LATIN_NUMBERS = r"\x{B2}\x{B3}\x{B9}\x{BC}-\x{BE}"
_THEIR_WORD = f"[{_WORD}{_LATIN_NUMBERS}]"
_NO_THEIR_WORD = f"[^{_WORD}{_LATIN_NUMBERS}]"
# What \w matches in fancy-regex, as Oniguruma can say it.
_OUR_WORD = rf"{_WORD}\x{{200C}}\x{{200D}}"


def _boundary(word: str) -> str:
    return f"(?:(?<={word})(?!{word})|(?<!{word})(?={word}))"


# A pattern of fancy-regex as `write` spells it, which `read` knows again.
_SPELLED = {
    _boundary(f"[{_OUR_WORD}]"): r"\b",
    f"[{_OUR_WORD}]": r"\w",
    f"[^{_OUR_WORD}]": r"\W",
}
_ESCAPES = {
    "A": r"\A",
    "z": r"\z",
    "Z": r"(?=\n?\z)",
    "d": r"\d",
    "D": r"\D",
    "s": r"\s",
    "S": r"\S",
    "h": r"\h",
    "H": r"\H",
    "w": _THEIR_WORD,
    "W": _NO_THEIR_WORD,
    "b": _boundary(_THEIR_WORD),
    "R": r"(?>\r\n|[\n\x0B\x0C\r\x{85}\x{2028}\x{2029}])",
}
_IN_CLASS = {
    "d": r"\d",
    "D": r"\D",
    "s": r"\s",
    "S": r"\S",
    "h": "0-9A-Fa-f",
    "w": _WORD,
    "W": f"[^{_WORD}]",
}
_CONTROLS = {"n": r"\n", "r": r"\r", "t": r"\t", "f": r"\f", "v": r"\v", "a": r"\a", "e": r"\x1B"}
# By their names in [[:name:]], which fancy-regex reads as ASCII, and in \p{name}.
_POSIX = {
    "alpha": r"\p{Alphabetic}",
    "alnum": r"\p{Alphabetic}\p{Nd}",
    "blank": r"\p{Zs}\t",
    "cntrl": r"\p{Cc}",
    "digit": r"\p{Nd}",
    "lower": r"\p{Lowercase}",
    "punct": r"\p{P}\p{S}",
    "space": r"\s",
    "upper": r"\p{Uppercase}",
    "xdigit": "0-9A-Fa-f",
    "word": _WORD,
    "ascii": r"\x00-\x7F",
}
# Oniguruma counts the symbols among them in [[:punct:]] and not here.
_PROPERTIES = {**_POSIX, "punct": r"\p{P}"}
# Names with another meaning there, or with none that stays from version to version.
_OTHER_NAMES = {"graph", "print", "any", "assigned", "cn", "unassigned"}
_GROUPS = ("(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>")
_INTERVAL = re.compile(r"\{(\d*)(,?)(\d*)\}")
_OPTIONS = re.compile(r"\(\?([im]*)(?:-([im]+))?([:)])")
_NAMED = re.compile(r"\(\?<[A-Za-z_]\w*>")
_CODE = re.compile(r"x\{([0-9A-Fa-f]{1,6})\}|x([0-9A-Fa-f]{1,2})|u([0-9A-Fa-f]{4})")
_ONE_PROPERTY = re.compile(r"\\[pP]\{[^}]*\}")
_PROPERTY = re.compile(r"[pP]\{(\^?)([A-Za-z][A-Za-z0-9 _-]*)\}")


def read(regex: str) -> str:
    """An expression of a `tokenizer.json` as fancy-regex takes it; ValueError names what it can't.

    ```python
    >>> read(r"\\p{N}{1,3}+|\\s+$")
    '(?:\\\\p{N}{1,3})+|\\\\s+(?m:$)'
    ```
    """
    reader = _Reader(regex)
    found = reader.alternatives(fold=False)
    if reader.at < len(regex):
        reader.refuse(")", "closes no group")
    return found


def write(pattern: str) -> str:
    """A pattern of fancy-regex as a `tokenizer.json` says it; `read` gives the pattern back.

    ValueError names what cannot be said.
    """
    found = []
    at = depth = 0
    while at < len(pattern):
        part = pattern[at : at + 2] if pattern[at] == "\\" else pattern[at]
        if part in (r"\w", r"\W"):
            spelled = _OUR_WORD if part == r"\w" else f"[^{_OUR_WORD}]"
            found.append(f"[{spelled}]" if part == r"\w" and not depth else spelled)
        elif part == r"\b" and not depth:
            found.append(_boundary(f"[{_OUR_WORD}]"))
        elif not depth and (flags := re.match(r"\(\?([is]*)(?:-([is]+))?([:)])", pattern[at:])):
            part = flags[0]
            found.append(part.replace("s", "m"))
        else:
            found.append(part)
            depth += (part == "[") - (part == "]" and depth > 0)
        at += len(part)
    regex = "".join(found)
    # Read back instead of a second set of rules: whatever would be misread is refused.
    if read(regex) != pattern:
        raise ValueError(
            f"regular expression {pattern!r}: a tokenizer.json would read it as {read(regex)!r}; "
            r"write \A and \z for the ends of the text, and (?:a{1,3})+ or (?>a{1,3}) for a{1,3}+"
        )
    return regex


@cache
def _long_folds() -> frozenset[str]:
    """Strings of ASCII that Oniguruma takes for one other character if case does not count."""
    # Full case folding: "ss" for U+00DF, "ffi" for U+FB03.
    folded = (chr(code).casefold() for code in range(128, 0x110000))
    return frozenset(text for text in folded if len(text) > 1 and text.isascii())


class _Reader:
    """Reads an expression from left to right; `at` is the next character."""

    def __init__(self, regex: str) -> None:
        self.regex = regex
        self.at = 0

    def refuse(self, what: str, why: str) -> NoReturn:
        raise ValueError(f"regular expression {self.regex!r}: {what!r} {why}")

    def next_is(self, text: str) -> bool:
        return self.regex.startswith(text, self.at)

    def alternatives(self, *, fold: bool) -> str:
        """Everything up to the end of the group; with `fold`, upper and lower case are equal."""
        found: list[str] = []
        run, start = "", True
        while self.at < len(self.regex) and not self.next_is(")"):
            spelled = next((text for text in _SPELLED if self.next_is(text)), None)
            options = _OPTIONS.match(self.regex, self.at)
            if spelled:
                self.at += len(spelled)
                item, run = _SPELLED[spelled], ""
            elif options and options[3] == ")":
                if not start:
                    self.refuse(options[0], "is supported only where a group begins")
                fold = self._folds(options, fold)
                found.append(self._flags(options))
                continue
            elif self.next_is("|"):
                self.at += 1
                found.append("|")
                run, start = "", False
                continue
            else:
                item, literal = self._item(fold=fold)
                run = run + literal.casefold() if literal else ""
                if fold and any(text in run for text in _long_folds()):
                    self.refuse(run, "under (?i) also matches one other character there")
            found.append(self._repeated(item))
            start = False
        return "".join(found)

    def _folds(self, options: re.Match[str], fold: bool) -> bool:
        return "i" in options[1] or (fold and "i" not in (options[2] or ""))

    def _flags(self, options: re.Match[str]) -> str:
        self.at = options.end()
        return options[0].replace("m", "s")

    def _item(self, *, fold: bool) -> tuple[str, str]:
        """The next item, and what it is if it is a character."""
        char = self.regex[self.at]
        if char == "(":
            return self._group(fold=fold), ""
        if char == "[":
            return self._class(fold=fold), ""
        if char == "\\":
            return self._escape(fold=fold)
        self.at += 1
        if char in "*+?":
            self.refuse(char, "repeats nothing")
        if char == "^":
            # Not after a line end that ends the text.
            return r"(?:\A|(?<=\n)(?!\z))", ""
        if char == "$":
            return r"(?m:$)", ""
        if char == ".":
            return char, ""
        if fold and not char.isascii():
            self.refuse(char, "under (?i) is not supported, only ASCII")
        # A brace that is no interval stands for itself.
        return ("\\{" if char == "{" else char), char

    def _group(self, *, fold: bool) -> str:
        options = _OPTIONS.match(self.regex, self.at)
        named = _NAMED.match(self.regex, self.at)
        known = next((opening for opening in _GROUPS if self.next_is(opening)), None)
        if known:
            self.at += len(known)
            opening = known
        elif options:
            opening, fold = self._flags(options), self._folds(options, fold)
        elif named:
            opening, self.at = "(?:", named.end()
        elif self.next_is("(?") or self.next_is("(*"):
            self.refuse(self.regex[self.at : self.at + 4], "is not supported")
        else:
            opening = "("
            self.at += 1
        inside = self.alternatives(fold=fold)
        if not self.next_is(")"):
            self.refuse(opening, "is not closed")
        self.at += 1
        return f"{opening}{inside})"

    def _repeated(self, item: str) -> str:
        """An item with the quantifier that follows."""
        start = self.at
        interval = _INTERVAL.match(self.regex, start)
        if self.at < len(self.regex) and self.regex[self.at] in "*+?":
            self.at += 1
            if self.at < len(self.regex) and self.regex[self.at] in "+?":
                self.at += 1
            item += self.regex[start : self.at]
        elif interval and (interval[1] or (interval[2] and interval[3])):
            least, comma, most = interval.groups()
            if most and int(least or 0) > int(most):
                self.refuse(interval[0], "is not supported")
            self.at = interval.end()
            item += f"{{{least or '0'}{comma}{most}}}"
            after = self.regex[self.at : self.at + 1]
            if after == "+" or (after == "?" and not comma):
                self.at += 1
                item = f"(?:{item}){after}"
            elif after == "?":
                self.at += 1
                item += "?"
        else:
            return item
        again = _INTERVAL.match(self.regex, self.at)
        if self.regex[self.at : self.at + 1] in ("*", "+", "?") or (again and again[0] != "{}"):
            self.refuse(self.regex[start : self.at + 1], "repeats a repetition")
        return item

    def _escape(self, *, fold: bool) -> tuple[str, str]:
        """An escape outside of a class."""
        letter = self.regex[self.at + 1 : self.at + 2]
        if letter in _ESCAPES:
            self.at += 2
            return _ESCAPES[letter], ""
        found, code = self._character()
        if code is not None:
            if fold and code > 127:
                self.refuse(found, "under (?i) is not supported, only ASCII")
            return found, chr(code)
        found = self._property()
        if fold:
            self.refuse(found, "under (?i) is not supported")
        # Oniguruma reads \p{Word} as \w: with the numbers of Latin-1, but in a class without.
        if found in (_WORD, f"[^{_WORD}]"):
            return (_THEIR_WORD if found == _WORD else _NO_THEIR_WORD), ""
        # One property or class stands by itself; the inside of a class needs its brackets.
        alone = found[0] == "[" or _ONE_PROPERTY.fullmatch(found)
        return (found if alone else f"[{found}]"), ""

    def _character(self) -> tuple[str, int | None]:
        """The escape of a character and its code, or no code if it is another escape."""
        letter = self.regex[self.at + 1 : self.at + 2]
        number = _CODE.match(self.regex, self.at + 1)
        if letter in _CONTROLS:
            self.at += 2
            return _CONTROLS[letter], 27 if letter == "e" else "abtnvfr".index(letter) + 7
        if number:
            code = int(next(filter(None, number.groups())), 16)
            if number[2] and code > 127:
                self.refuse("\\" + number[0], "is a byte and no character; write \\x{...}")
            self.at = number.end()
            return "\\" + number[0], code
        if letter and letter.isascii() and not letter.isalnum():
            self.at += 2
            # fancy-regex reads \< and \> as the ends of words.
            return (letter if letter in "<> \n\t" else "\\" + letter), ord(letter)
        return "", None

    def _property(self) -> str:
        r"""A \p{...}, as the inside of a class if it is one."""
        found = _PROPERTY.match(self.regex, self.at + 1)
        if not found:
            self.refuse(self.regex[self.at : self.at + 2], "is not supported")
        negated = (self.regex[self.at + 1] == "P") != bool(found[1])
        name = found[2].lower().replace(" ", "").replace("_", "").replace("-", "")
        block = name.startswith("in") and name[2:3] not in ("h", "s")
        if name in _OTHER_NAMES or block:
            self.refuse("\\" + found[0], "is not supported")
        self.at = found.end()
        if name in _PROPERTIES:
            return f"[^{_PROPERTIES[name]}]" if negated else _PROPERTIES[name]
        return f"\\{'P' if negated else 'p'}{{{found[2]}}}"

    def _class(self, *, fold: bool) -> str:
        """A class in brackets, which may hold others."""
        start = self.at
        self.at += 2 if self.next_is("[^") else 1
        found = [self.regex[start : self.at]]
        if self.next_is("]"):
            self.refuse(self.regex[start : self.at + 1], "is not supported; write \\] in a class")
        while not self.next_is("]"):
            if self.at >= len(self.regex):
                self.refuse(self.regex[start:], "is not closed")
            found.append(self._member(fold=fold))
        self.at += 1
        return "".join(found) + "]"

    def _member(self, *, fold: bool) -> str:
        """A part of a class: a character, a range, an escape, another class, or &&."""
        if self.next_is("[:"):
            end = self.regex.find(":]", self.at)
            name = self.regex[self.at + 2 : end] if end >= 0 else ""
            if name.removeprefix("^") not in _POSIX:
                self.refuse(self.regex[self.at : end + 2 if end >= 0 else None], "is not supported")
            self.at = end + 2
            if fold:
                self.refuse(f"[:{name}:]", "under (?i) is not supported")
            inside = _POSIX[name.removeprefix("^")]
            return f"[^{inside}]" if name.startswith("^") else inside
        if self.next_is("&&"):
            self.at += 2
            return "&&"
        if self.next_is(_OUR_WORD):
            self.at += len(_OUR_WORD)
            return r"\w"
        if self.next_is("["):
            spelled = f"[^{_OUR_WORD}]"
            if self.next_is(spelled):
                self.at += len(spelled)
                return r"\W"
            return self._class(fold=fold)
        first, code = self._one(fold=fold)
        if code is None or not self.next_is("-") or self.next_is("-]"):
            return first
        self.at += 1
        last, highest = self._one(fold=fold) if not self.next_is("[") else ("[", None)
        if highest is None or highest < code:
            self.refuse(f"{first}-{last}", "is not a range")
        if self.next_is("-") and not self.next_is("-]"):
            self.refuse(f"{first}-{last}-", "is not supported; write \\- in a class")
        return f"{first}-{last}"

    def _one(self, *, fold: bool) -> tuple[str, int | None]:
        """A character of a class and its code, or an escape for several."""
        char = self.regex[self.at]
        if char == "\\":
            letter = self.regex[self.at + 1 : self.at + 2]
            if letter in _IN_CLASS:
                self.at += 2
                if fold and letter in "wWDSH":
                    self.refuse("\\" + letter, "in a class under (?i) is not supported")
                return _IN_CLASS[letter], None
            found, last = self._character()
            found = self._property() if last is None else found
            if fold and (last is None or last > 127):
                self.refuse(found, "in a class under (?i) is not supported")
            return found, last
        self.at += 1
        if fold and not char.isascii():
            self.refuse(char, "in a class under (?i) is not supported")
        # fancy-regex has -- and ~~ between classes.
        return ("\\" + char if char in "~&-" and self.next_is(char) else char), ord(char)
