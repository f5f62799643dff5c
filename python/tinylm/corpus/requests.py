"""A connection that comes within seconds or fails."""

import threading
from typing import Any

# Seconds to a connection, and between two pieces of a download. With the half second of `connect`
# this stays below the 5 seconds that downloads promise.
TIMEOUT = 4.0


def connect(url: str, *, begin: int = 0, secret: dict[str, str] | None = None) -> Any:
    """The response of `url`, from byte `begin` on if the server can; `OSError` within 5 seconds.

    The headers `secret` are not sent on to the address of a redirection. In a thread, because
    looking up a name has no time-out.
    """
    # Imported late: most runs download nothing.
    import http.client
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url)
    if begin:
        request.add_header("Range", f"bytes={begin}-")
    for name, value in (secret or {}).items():
        request.add_unredirected_header(name, value)
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(urllib.request.urlopen(request, timeout=TIMEOUT))
        except (OSError, http.client.HTTPException) as error:
            answer.append(error)

    # A daemon, so that a lookup that hangs cannot keep the process alive.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT + 0.5)
    if not answer:
        raise TimeoutError(f"no answer in {TIMEOUT} s")
    if isinstance(answer[0], urllib.error.HTTPError):
        answer[0].close()
    if isinstance(answer[0], OSError):
        raise answer[0]
    if isinstance(answer[0], Exception):
        raise ConnectionError(str(answer[0]))
    return answer[0]
