"""An iterator that runs ahead of its reader, in a thread of its own."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
# How often a thread looks whether its reader has left, in seconds.
LOOK = 0.1
# How long a reader that leaves waits for the thread, which may be within a long call.
LEAVE = 1.0


def prefetch(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The items in their order, of which a thread makes up to `depth` before they are asked for.

    What the thread raises is raised here, in its place. Leaving early (`close`, an error, Ctrl-C)
    ends the thread at its next item. Meant for items whose making releases the GIL.
    """
    made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    left = threading.Event()

    def put(item: T | None, error: BaseException | None = None) -> bool:
        while not left.is_set():
            try:
                made.put((item, error), timeout=LOOK)
            except queue.Full:
                continue
            return True
        return False

    def run() -> None:
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as error:
            put(None, error)
        else:
            # An end is an error that is no error, as for an iterator.
            put(None, StopIteration())
        finally:
            # A file that a generator holds open is closed now, not when it is collected.
            close = getattr(items, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=run, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        left.set()
        thread.join(LEAVE)
