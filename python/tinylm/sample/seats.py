"""Which request has which row of a drawer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinylm.sample.drawer import Drawer
from tinylm.sample.forward import Forward
from tinylm.sample.scheduling import Request

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer


class Seats:
    """A `Drawer` whose rows come and go with requests: row i is that of `requests[i]`."""

    def __init__(self, forward: Forward, tokenizer: "Tokenizer | None") -> None:
        self.requests: list[Request] = []
        size, home = forward.vocab_size, forward.device
        self.drawer = Drawer([], [], [], vocab_size=size, device=home, tokenizer=tokenizer)

    def drawer_of(self, wanted: Sequence[Request]) -> Drawer:
        """The drawer, whose rows become those of these requests, in this order."""
        wanted = [*wanted]
        if self.requests == wanted:
            return self.drawer
        going = {*wanted}
        stay = [i for i, request in enumerate(self.requests) if request in going]
        if len(stay) < len(self.requests):
            self.drawer.keep(stay)
            self.requests = [self.requests[i] for i in stay]
        here = {*self.requests}
        for request in wanted:
            if request not in here:
                text, drawn = request.text[: request.prompt], request.text[request.prompt :]
                self.drawer.add(request.config, text, request.place, drawn, request.stops)
                self.requests.append(request)
        if self.requests != wanted:
            seats = {request: i for i, request in enumerate(self.requests)}
            self.drawer.keep([seats[request] for request in wanted])
            self.requests = wanted
        return self.drawer
