"""Runs a generation in a thread of its own, so that the caller can be interrupted and can stop it.

The thread spends its time inside the extension module without the GIL. Events travel through a
bounded queue: a reader that stops reading stops the generation after MAX_PENDING_EVENTS tokens.
Ctrl-C lands in the reader, which cancels the generation and waits for its current step to end.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

from .results import GenerationResult, StreamEvent

MAX_PENDING_EVENTS = 16
_POLL_SECONDS = 0.05
T = TypeVar("T")

# call(on_token) runs the generation; on_token(token_ids, text) -> False stops it.
OnToken = Callable[[list[int], str], bool]
Call = Callable[["OnToken | None"], GenerationResult]


class _Run:
    """One generation in one thread. Knows nothing of the iterator, which may be dropped."""

    def __init__(self, call: Call, cancel: Callable[[], None], wants_events: bool) -> None:
        self._call = call
        self._cancel = cancel
        self._wants_events = wants_events
        self._slots = threading.Semaphore(MAX_PENDING_EVENTS)
        self._stop = False
        self._thread: threading.Thread | None = None
        self.outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @property
    def started(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        # Never a daemon, whatever the caller is: those die inside the extension module at exit.
        self._thread = threading.Thread(target=self._main, name="mimo_rt-generate", daemon=False)
        self._thread.start()

    def _main(self) -> None:
        try:
            self.outbox.put(self._call(self._on_token if self._wants_events else None))
        except BaseException as error:  # handed to the reader, which raises it
            self.outbox.put(error)

    def _on_token(self, token_ids: list[int], text: str) -> bool:
        # At exit the interpreter waits for this thread. (Whether the reader's thread lives says
        # nothing: the next event may be read by another one.)
        while threading.main_thread().is_alive() and not self._stop:
            if self._slots.acquire(timeout=_POLL_SECONDS):
                break
        else:
            self._stop = True
        if not self._stop:
            self.outbox.put(StreamEvent(text, list(token_ids)))
        return not self._stop

    def next(self) -> StreamEvent | GenerationResult | None:
        """The next event or the result; None after the end. Raises what the generation raised."""
        item = self.outbox.get()
        if item is None:
            self.outbox.put(None)  # for the next reader who waits
        if isinstance(item, BaseException):
            try:
                raise item
            finally:
                del item  # its traceback holds this frame: a cycle, and the session in it
        if isinstance(item, StreamEvent):
            self._slots.release()
        return item

    def cancel(self) -> None:
        """Ask the thread to stop after the current step."""
        self._stop = True
        if self._thread is not None and self._thread.is_alive():
            self._cancel()

    def join(self, timeout: float | None = None) -> bool:
        """Whether the thread has left the extension module."""
        thread = self._thread
        # The garbage collector may drop a stream from inside its own thread.
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def free_readers(self) -> None:
        """Lets other threads that wait in `next`, and later ones, find the end."""
        self.outbox.put(None)

    def stop(self) -> GenerationResult | None:
        """Cancel, wait, and return the result if the generation came to one."""
        self.cancel()
        while not self.join(_POLL_SECONDS):
            self.cancel()  # again: one that comes before the generation begins has no effect
        last = None
        while not self.outbox.empty():
            last = self.outbox.get()
        self.free_readers()
        return last if isinstance(last, GenerationResult) else None


class TokenStream(Iterator[StreamEvent]):
    """Iterator over the events of one generation, which starts with the first `next`.

    `close` (also at the end of a ``with`` block, or when the iterator is dropped) cancels within
    one step. `result` holds the outcome once the stream has ended, also after a cancel.
    """

    def __init__(
        self, call: Call, cancel: Callable[[], None], *, wants_events: bool = True
    ) -> None:
        self._run = _Run(call, cancel, wants_events)
        self._text = ""
        self._num_tokens = 0
        self._ended = False
        self.result: GenerationResult | None = None

    def __next__(self) -> StreamEvent:
        if self._ended:
            raise StopIteration
        try:
            if not self._run.started:
                self._run.start()
            item = self._run.next()
        except BaseException:  # the generation failed, or Ctrl-C reached the reader
            self.close()
            raise
        if item is None:
            raise StopIteration
        if isinstance(item, StreamEvent):
            self._text += item.text
            self._num_tokens += len(item.token_ids)
            return item
        return self._finish(item)

    def _finish(self, result: GenerationResult) -> StreamEvent:
        self._run.join()
        self._ended = True
        self._run.free_readers()
        self.result = result
        rest = result.text[len(self._text) :] if result.text.startswith(self._text) else ""
        return StreamEvent(rest, result.token_ids[self._num_tokens :], result)

    def close(self) -> None:
        """Cancel what is running; later `next` calls end the iteration."""
        if self._ended:
            return
        self._ended = True
        if self._run.started:
            self.result = self._run.stop()

    @property
    def ended(self) -> bool:
        """Whether no further event comes."""
        return self._ended

    def cancel(self) -> None:
        """Ask for a stop without waiting; the events up to it and the result still come."""
        self._run.cancel()

    def __enter__(self) -> TokenStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_ended", True):
            self.close()


class AsyncTokenStream(AsyncIterator[StreamEvent]):
    """A `TokenStream` that does not block the event loop, until it is dropped: then it closes as that does.

    Cancelling the task that waits for an event closes it, too. (An asynchronous generator would go
    on until the event loop finds the time to close it: the session of a loop that was left early
    would still be busy behind it.)
    """

    def __init__(self, stream: TokenStream) -> None:
        self._stream = stream

    async def __anext__(self) -> StreamEvent:
        import asyncio  # slow to import, and few programs need it

        loop = asyncio.get_running_loop()
        try:
            event = await loop.run_in_executor(None, next, self._stream, None)
        except BaseException:  # the task was cancelled, or the generation failed
            await self.aclose()
            raise
        if event is None:
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        """Cancel what is running; later events end the iteration."""
        import asyncio

        if not self._stream.ended:
            # A step of a large prefill may take a while: wait for it outside the event loop.
            loop = asyncio.get_running_loop()
            await asyncio.shield(loop.run_in_executor(None, self._stream.close))

    def __del__(self) -> None:
        # Not left to the stream's own: a thread of the executor may hold that for a moment longer.
        if hasattr(self, "_stream"):
            self._stream.close()


def run_to_end(call: Call, cancel: Callable[[], None]) -> GenerationResult:
    """The result of a generation; Ctrl-C cancels it within one step."""
    thread = threading.current_thread()
    if thread is not threading.main_thread() and not thread.daemon:
        return call(None)  # no signals here
    # A daemon's generation has events, which end it when the interpreter exits.
    with TokenStream(call, cancel, wants_events=thread.daemon) as stream:
        for event in stream:
            if event.result is not None:
                return event.result
    raise AssertionError("a generation ends with its result")


def call_interruptibly(call: Callable[[], T], interrupt: Callable[[], None]) -> T:
    """Run ``call`` so that Ctrl-C gets through: ``interrupt`` then has to make it return soon.

    Python delivers Ctrl-C to the main thread, between two byte codes. So a long call into the
    extension module goes to another thread while the main thread waits for it.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def main() -> None:
        try:
            outbox.put((call(), None))
        except BaseException as error:
            outbox.put((None, error))

    thread = threading.Thread(target=main, name="mimo_rt-call", daemon=False)
    try:
        thread.start()
        value, error = outbox.get()
    except BaseException:
        while thread.is_alive():
            interrupt()
            thread.join(_POLL_SECONDS)
        raise
    if error is not None:
        try:
            raise error
        finally:
            del error  # its traceback holds this frame: a cycle
    return value
