"""Text to pieces, by regular expression: the units that no token crosses.

A pattern keeps the vocabulary from learning `dog.` and `dog!` as words of their own: letters,
digits, punctuation and white space are cut apart, and most pieces carry the space before them.
The named patterns are those that GPT-2, GPT-4, GPT-4o, Llama 3 and Qwen 2 were published with:

    gpt2    github.com/openai/gpt-2, src/encoder.py (in the form tiktoken runs)
    gpt4    github.com/openai/tiktoken, cl100k_base
    o200k   github.com/openai/tiktoken, o200k_base
    llama3  github.com/meta-llama/llama3, llama/tokenizer.py
    qwen2   github.com/QwenLM/Qwen, tokenization_qwen.py (Qwen 2 and 3 keep it)

The Unicode tables of the `regex` module are newer than the 16.0 of tiktoken and Hugging Face,
so the fast scanners equal `split` on the characters that both know.
"""

import regex

PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "gpt4": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    "o200k": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "llama3": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    # What the character, whitespace and byte tokenizers split by.
    "character": r"(?s:.)",
    "word": r" ?\S+|\s",
    "whole": r"(?s:.+)",
}


def split(text: str, pattern: str) -> list[str]:
    """The pieces of `text`, which joined give `text` again.

    `pattern` is a name in `PATTERNS` or a regular expression; what it does not match is a
    piece too.
    """
    # In tiktoken's dialect `$` is the end of the text; in Python's, also before a last newline.
    expression = PATTERNS[pattern].replace("$", r"\Z") if pattern in PATTERNS else pattern
    pieces, end = [], 0
    for match in regex.finditer(expression, text, flags=regex.V1):
        pieces += [text[end : match.start()], match.group()]
        end = match.end()
    pieces.append(text[end:])
    return [piece for piece in pieces if piece]
