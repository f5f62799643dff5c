"""The error for a tokenizer file that needs more information from the caller."""


class LoadError(ValueError):
    """A file alone does not make a tokenizer: its message is `problem`, then an advice.

    `remedy` names the advice, so that a command can offer its own: "format" (say the format),
    "pattern" (say the pattern and the special tokens).
    """

    def __init__(self, problem: str, remedy: str, advice: str) -> None:
        super().__init__(f"{problem}; {advice}")
        self.problem = problem
        self.remedy = remedy
