"""`python -m tinylm.sample RUN [PROMPT] [key=value ...]`: a run's model goes on with a text."""

import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tinylm import commands, config, terminal, threads
from tinylm.config import ConfigError, Run, SampleConfig

if TYPE_CHECKING:
    from tinylm.model import Model
    from tinylm.tokenizer import Tokenizer

HELP = """usage: python -m tinylm.sample RUN [PROMPT] [key=value ...]

Go on with PROMPT, printing the text as the model writes it.

RUN is the folder of a run, of one of its checkpoints, or of a transformers model. Without
PROMPT the text comes from standard input (less one final newline), or, where that is a
terminal, a new document begins. After `--` the next argument is PROMPT whatever it looks like.

With --chat a model that has learned conversations (data.source=tasks, or a .jsonl of messages)
answers PROMPT; without PROMPT it answers line by line, and Ctrl-D ends the conversation.

Settings start as in the run's config.yaml, or else as below; `sample.` may be left out:
  python -m tinylm.sample runs/stdlib "def main(" temperature=0 max_tokens=100
  python -m tinylm.sample runs/chat --chat "What is 3 + 4?"
"""
CHAT = "--chat"
SETTING = re.compile(r"[A-Za-z_][\w.]*=")
# The settings that ask for log-probabilities.
SCORES = ("logprobs", "prompt_logprobs")
# What can be done about a special token in a prompt.
PLAIN = "take it out: a prompt is plain text, and without one a new document begins"
Item = TypeVar("Item")


def main(arguments: Sequence[str]) -> int:
    """Print the prompt and its continuations; returns the exit code."""
    if commands.wants_help(arguments[: [*arguments, "--"].index("--")]):
        print(f"{HELP}\n{config.describe(('sample',))}")
        return 0
    folder, prompt, overrides, chat = _parse(arguments)
    with commands.finding(folder, "sample"):
        run = _settings(folder, overrides)
        scored = not chat and _scored(run.sample)
        if prompt is None and not chat:
            prompt = _standard_input()
        # These take seconds: a typo above is answered before them.
        import torch

        from tinylm import checkpoint, device

        place = device.find_or_best(run.train.device)
        model, tokenizer = checkpoint.load(folder, device=place)
    if model.weight.dtype == torch.float16:
        # Its range ends at 65504, which the logits of a model trained in bfloat16 may pass.
        model = model.float()
    if tokenizer is None:
        from tinylm.checkpoint import origin

        raise origin.why_no_tokenizer(folder, "a text cannot become ids without one")
    with threads.sharing(torch.get_num_threads()):
        if chat:
            from tinylm.sample.talking import talk

            talk(model, tokenizer, prompt, run.sample)
        elif scored:
            _print_scored(model, tokenizer, prompt or "", run)
        else:
            _print(model, tokenizer, prompt or "", run)
    return 0


def _standard_input() -> str:
    """What standard input holds, less one final newline; of a terminal or a closed one nothing."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    return sys.stdin.read().removesuffix("\n")


def _parse(arguments: Sequence[str]) -> tuple[Path, str | None, list[str], bool]:
    """Arguments to the folder, the prompt, the settings, and whether to chat."""
    arguments = list(arguments)
    mark = [*arguments, "--"].index("--")
    before, literal = arguments[:mark], arguments[mark + 1 :]
    chat = CHAT in before
    before = [word for word in before if word != CHAT]
    unknown = [word for word in before if word.startswith("--")]
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]}: settings are key=value, see --help")
    # A prompt such as "x=1" looks like a setting too: it goes after `--`.
    overrides = [word for word in before if SETTING.match(word)]
    words = [word for word in before if not SETTING.match(word)] + literal
    if not words:
        raise ConfigError("which run? python -m tinylm.sample RUN [PROMPT] [key=value ...]")
    if len(words) > 2:
        raise ConfigError(
            f"{len(words) - 1} prompts: put quotes around the text to go on with; "
            "settings go before --"
        )
    return Path(commands.path(words[0])), words[1] if len(words) == 2 else None, overrides, chat


def _settings(folder: Path, overrides: Sequence[str]) -> Run:
    """The settings of the run in `folder`, if it has them, with the overrides of `sample`."""
    full = []
    for override in overrides:
        key = override.partition("=")[0]
        if "." in key and not key.startswith("sample."):
            raise ConfigError(f"{key}: only the settings of sample apply here, see --help")
        full.append(override if "." in key else f"sample.{override}")
    file = config.find(folder)
    run = config.load(file, full)
    # A checkpoint that was copied out of its run is still known by its training state.
    ours = file is not None or (folder / "state.json").is_file()
    return replace(run, sample=run.sample.as_trained()) if ours else run


def _scored(settings: SampleConfig) -> bool:
    """Whether log-probabilities are asked for, whose texts stop at ids alone."""
    name = next((name for name in SCORES if getattr(settings, name) is not None), None)
    text = next((stop for stop in settings.stop if isinstance(stop, str)), None)
    if name is not None and text is not None:
        raise ConfigError(
            f"sample.{name}={getattr(settings, name)}: stops at ids alone, and sample.stop has the "
            f"text {text!r}: give its id, or leave {name} out"
        )
    return name is not None


def _print(model: "Model", tokenizer: "Tokenizer", prompt: str, run: Run) -> None:
    """Write every continuation as it comes, and their speed where somebody watches.

    All samples are decoded together: while the first is written, the others grow beside it. With a
    draft a line on standard error says what it was worth.
    """
    from tinylm.sample import prompt as prompts
    from tinylm.sample.decoding import continuations, write
    from tinylm.sample.drafts import find
    from tinylm.sample.stats import Stats

    draft, stats = find(run.sample, model, tokenizer), Stats()
    with commands.remedies(special=PLAIN):
        read = prompts.read(tokenizer, prompt, run.sample, model.embedding.num_embeddings)
    count, start = Count(), time.perf_counter()
    found = continuations(model, tokenizer, read, run.sample, draft=draft, stats=stats)
    for sample, ids in enumerate(found):
        if run.sample.samples > 1:
            print(f"{'-' * 24} sample {sample + 1} of {run.sample.samples} {'-' * 24}")
        # The prompt as it was typed, though its last token may have been healed.
        print(prompt, end="", flush=True)
        for piece in write(tokenizer, count(ids), run.sample, read):
            print(piece, end="", flush=True)
        print(flush=True)
    if terminal.watched():
        seconds = time.perf_counter() - start
        commands.tell(f"{count.total} tokens, {count.total / seconds:.0f} tokens/s")
    if draft is not None:
        commands.tell(f"{_ahead(run.sample)}: {stats}")


def _print_scored(model: "Model", tokenizer: "Tokenizer", prompt: str, run: Run) -> None:
    """Write every continuation, and a table of the log-probabilities that are asked for.

    The prompt is read as it is: its end is not healed. With a draft a line on standard error says
    what it was worth.
    """
    from tinylm.sample import prompt as prompts
    from tinylm.sample.completions import complete
    from tinylm.sample.logprobs import table
    from tinylm.sample.stats import Stats

    def text(id: int) -> str:
        return tokenizer.decode([id])

    plain = replace(run.sample, heal=False)
    with commands.remedies(special=PLAIN):
        read = prompts.read(tokenizer, prompt, plain, model.embedding.num_embeddings)
    ids = [*read.opening, *read.ids]
    completions = complete(model, [ids], plain, tokenizer=tokenizer, stats=(stats := Stats()))
    for number, found in enumerate(completions):
        if run.sample.samples > 1:
            print(f"{'-' * 24} sample {number + 1} of {run.sample.samples} {'-' * 24}")
        print(f"{prompt}{tokenizer.decode(found.ids)}")
        scores = [one for one in found.prompt_logprobs if not number] + found.logprobs
        print("\n".join(["", *table(scores, text)]), flush=True)
    if run.sample.draft is not None:
        commands.tell(f"{_ahead(run.sample)}: {stats}")


def _ahead(settings: SampleConfig) -> str:
    """What makes the texts faster, in words."""
    early = settings.exit_confidence is not None
    return "early exit" if early else f"draft {settings.draft}"


class Count:
    """Passes items on and counts them in `total`."""

    def __init__(self) -> None:
        self.total = 0

    def __call__(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items."""
        for item in items:
            self.total += 1
            yield item


if __name__ == "__main__":
    commands.run(main)
