"""The prompt that a run continues in its samples."""

from dataclasses import replace

from tinylm import sample
from tinylm.config import Run
from tinylm.data import Dataset
from tinylm.model import Model
from tinylm.sample.chat import reply
from tinylm.tokenizer import Tokenizer, chat


def first_words(run: Run, validation: Dataset, net: Model, tokenizer: Tokenizer) -> str:
    """The prompt of samples: a function of Python, else an early line of the validation text.

    Of conversations it is the first question in them.

    One token after it is drawn: invalid settings of `sample` fail now, not an hour into the run.
    """
    if validation.kind == "chat":
        return _first_question(validation, tokenizer)
    # No lone `def` or `def `: hardly a file begins so, and the space belongs to the name.
    python = run.data.texts == ("stdlib",)
    prompt = "def main(" if python else _early_line(_beginning(validation, tokenizer), tokenizer)
    settings = replace(run.sample.as_trained(), samples=1, max_tokens=1, min_tokens=0)
    "".join(sample.stream(net, tokenizer, prompt, settings))
    return prompt


def continued(run: Run, validation: Dataset, net: Model, tokenizer: Tokenizer, prompt: str) -> str:
    """A sample: the prompt and how the model goes on, or its answer on a line of its own."""
    settings = replace(run.sample.as_trained(), samples=1)
    if validation.kind == "chat":
        turns = [{"role": "user", "content": prompt}]
        return f"{prompt}\n{''.join(reply(net, tokenizer, turns, settings))}"
    return prompt + "".join(sample.stream(net, tokenizer, prompt, settings))


def _first_question(validation: Dataset, tokenizer: Tokenizer) -> str:
    ids = validation.read(0, min(4 * 1000, validation.n_tokens)).tolist()
    turns = chat.decode(tokenizer, ids)
    return next((turn["content"] for turn in turns if turn["role"] == "user"), "Hello")


def _early_line(text: str, tokenizer: Tokenizer) -> str:
    # The first line may be the end of one: a single text is cut at a character.
    lines = [line.strip() for line in text.splitlines()]
    line = next((line[:60] for line in lines[1:] if line), lines[0][:60] if lines else "")
    # In the corpus a special token is text; a prompt may not hold one.
    for token in tokenizer.special_tokens:
        line = line.partition(token)[0]
    return line or "The"


def _beginning(validation: Dataset, tokenizer: Tokenizer) -> str:
    """The first 1,000 characters of the first document.

    From its tokens: that needs no text, and a run that resumes has the prompt that it had.
    """
    # A character is at most 4 bytes and a token at least one.
    ids = validation.read(0, min(4 * 1000, validation.n_tokens)).tolist()
    ids = ids[: ids.index(validation.eos_id)] if validation.eos_id in ids else ids
    return tokenizer.decode_bytes(ids).decode(errors="replace")[:1000]
