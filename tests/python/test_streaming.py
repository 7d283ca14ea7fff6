"""Streaming, cancelling and Ctrl-C: what is promised while a generation runs."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest

from mimo_rt import Session, errors
from mimo_rt.streaming import MAX_PENDING_EVENTS

PROMPT = "Once upon a time"
# Long enough not to end by itself during a test, also on a fast machine.
NUM_CONTEXT = 200_000
ENDLESS = {"temperature": 0.0, "ignore_eos": True}
ANOTHER_PROCESS = pytest.mark.cpu_only(reason="CUDA takes seconds to start in one more process")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, write_model):
    path = tmp_path_factory.mktemp("model") / "tiny"
    return write_model(path, seed=5, max_position_embeddings=NUM_CONTEXT)


@pytest.fixture
def session(model_dir):
    with Session(model_dir, num_threads=1, max_context=NUM_CONTEXT) as session:
        yield session


def assert_usable(session):
    """The session gives what a fresh one gives."""
    result = session.generate(PROMPT, max_tokens=8, **ENDLESS)
    session.reset()
    assert session.generate(PROMPT, max_tokens=8, **ENDLESS).token_ids == result.token_ids
    assert result.finish_reason == "length"


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


@pytest.mark.parametrize("call", ["list(session.stream(*arguments, **options))",
                                  pytest.param("session.generate(*arguments, **options)", marks=ANOTHER_PROCESS)])
def test_the_interpreter_exits_while_a_daemon_generates(model_dir, call):
    script = (f"import threading, time, mimo_rt\n"
              f"session = mimo_rt.Session({str(model_dir)!r}, num_threads=1, max_context={NUM_CONTEXT})\n"
              f"arguments, options = ({PROMPT!r},), {ENDLESS | {'max_tokens': 150_000}!r}\n"
              f"threading.Thread(target=lambda: {call}, daemon=True).start()\n"
              f"time.sleep(0.5)\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("ends_by_itself", [True, False])
def test_every_reader_of_a_stream_finds_its_end(session, ends_by_itself):
    stream = session.stream(PROMPT, max_tokens=30 if ends_by_itself else 150_000, **ENDLESS)
    readers = [threading.Thread(target=lambda: list(stream), daemon=True) for _ in range(3)]
    for reader in readers:
        reader.start()
    if not ends_by_itself:
        time.sleep(0.1)
        stream.close()
    for reader in readers:
        reader.join(20)
    assert not any(reader.is_alive() for reader in readers)


def test_an_error_does_not_keep_its_session(model_dir):
    gc.collect()
    gc.disable()
    try:
        session = Session(model_dir, num_threads=1)
        with pytest.raises(errors.InvalidArgumentError):
            session.generate([10**6], max_tokens=1)
        alive = weakref.ref(session)
        del session
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "options", [ENDLESS, {"seed": 11, "temperature": 1.0}, {"seed": 3, "stop": "e"}]
)
def test_streaming_equals_generate(session, options):
    whole = session.generate(PROMPT, max_tokens=48, **options)
    events = list(session.stream(PROMPT, max_tokens=48, **options))
    assert [event.finished for event in events] == [False] * (len(events) - 1) + [True]
    assert "".join(event.text for event in events) == whole.text
    assert [i for event in events for i in event.token_ids] == whole.token_ids
    result = events[-1].result
    assert (result.text, result.token_ids) == (whole.text, whole.token_ids)
    assert (result.finish_reason, result.stop_reason) == (whole.finish_reason, whole.stop_reason)


def test_stream_ends_for_good(session):
    stream = session.stream(PROMPT, max_tokens=3, **ENDLESS)
    assert stream.result is None
    events = list(stream)
    assert stream.result is events[-1].result and stream.ended
    assert list(stream) == []
    stream.close()
    assert stream.result.finish_reason == "length"


def test_arguments_are_checked_before_the_first_event(session):
    with pytest.raises(errors.InvalidArgumentError):
        session.stream(PROMPT, top_p=2)
    with pytest.raises(errors.InvalidArgumentError):
        session.astream([])
    with pytest.raises(errors.InvalidArgumentError, match="vocab|515"):
        next(session.stream([515], max_tokens=1))
    assert_usable(session)


def test_closing_a_stream_cancels(session):
    with session.stream(PROMPT, **ENDLESS) as stream:
        for _ in range(5):
            next(stream)
    assert stream.result.finish_reason == "abort"
    # What had been read, what waited in the queue, and the step that was under way.
    assert 5 <= len(stream.result.token_ids) <= 5 + MAX_PENDING_EVENTS + 3
    assert_usable(session)


def test_dropping_a_stream_cancels(session):
    num_threads = threading.active_count()
    for event in session.stream(PROMPT, **ENDLESS):
        assert event.token_ids
        break
    gc.collect()
    assert threading.active_count() <= num_threads
    assert_usable(session)


def test_a_reader_that_stops_stops_the_generation(session):
    stream = session.stream(PROMPT, **ENDLESS)
    next(stream)
    time.sleep(0.3)
    events = [next(stream) for _ in range(MAX_PENDING_EVENTS + 40)]
    assert all(len(event.token_ids) >= 1 for event in events)
    stream.close()
    assert len(stream.result.token_ids) < 10 * (MAX_PENDING_EVENTS + 41)


def test_a_stream_may_move_to_another_thread(session):
    """A thread that has read some events ends, and long after that another one goes on."""
    num_tokens = 2 * MAX_PENDING_EVENTS + 20
    expected = session.generate(PROMPT, max_tokens=num_tokens, **ENDLESS)
    stream = session.stream(PROMPT, max_tokens=num_tokens, **ENDLESS)
    events = []
    thread = threading.Thread(target=lambda: events.append(next(stream)))
    thread.start()
    thread.join()
    time.sleep(0.3)  # the queue is full, and the generation waits for a reader
    events += stream
    assert stream.result.finish_reason == "length"
    assert [i for event in events for i in event.token_ids] == expected.token_ids


def test_cancel_from_another_thread(session):
    results = []
    thread = threading.Thread(target=lambda: results.append(session.generate(PROMPT, **ENDLESS)))
    thread.start()
    time.sleep(0.3)
    assert not results
    session.cancel()
    thread.join(10)
    assert results[0].finish_reason == "abort"
    assert 5 < len(results[0].token_ids) < NUM_CONTEXT - 100
    assert_usable(session)


def test_cancel_leaves_the_end_of_a_stream_readable(session):
    events = []
    for event in session.stream(PROMPT, **ENDLESS):
        events.append(event)
        if len(events) == 4:
            session.cancel()
    assert events[-1].result.finish_reason == "abort"
    assert [i for event in events for i in event.token_ids] == events[-1].result.token_ids


def test_an_idle_cancel_does_nothing(session):
    session.cancel()
    assert_usable(session)


def test_a_busy_session_refuses_a_second_call(session):
    first = session.stream(PROMPT, **ENDLESS)
    next(first)
    for call in (
        lambda: next(session.stream(PROMPT)),
        lambda: session.generate(PROMPT, max_tokens=1),
        lambda: session.logits(PROMPT),
        session.reset,
    ):
        with pytest.raises(errors.InvalidArgumentError, match="busy"):
            call()
    with session.new_session(max_context=64) as other:
        assert other.generate(PROMPT, max_tokens=2, **ENDLESS).finish_reason == "length"
    assert next(first).token_ids
    first.close()
    assert_usable(session)


def test_close_from_another_thread_ends_a_generation(session):
    results = []
    thread = threading.Thread(target=lambda: results.append(session.generate(PROMPT, **ENDLESS)))
    thread.start()
    time.sleep(0.3)
    session.close()
    thread.join(10)
    assert results[0].finish_reason == "abort"


@pytest.mark.parametrize("name", ["generate", "stream"])
def test_close_while_a_prompt_is_encoded_is_seen(session, monkeypatch, name):
    encode = session._text.prompt_ids

    def encode_and_close(prompt):
        session.close()
        return encode(prompt)

    monkeypatch.setattr(session._text, "prompt_ids", encode_and_close)
    with pytest.raises(errors.InvalidArgumentError, match="closed"):
        list(getattr(session, name)(PROMPT, max_tokens=2, **ENDLESS))


def test_a_stream_does_not_begin_on_a_closed_session(session):
    stream = session.stream(PROMPT, max_tokens=2, **ENDLESS)
    session.close()
    with pytest.raises(errors.InvalidArgumentError, match="closed"):
        next(stream)


# -- asyncio


def test_async_stream_equals_generate(session):
    whole = session.generate(PROMPT, max_tokens=12, **ENDLESS)

    async def main():
        events = session.astream(PROMPT, max_tokens=12, **ENDLESS)
        return [event async for event in events]

    events = asyncio.run(main())
    assert [i for event in events for i in event.token_ids] == whole.token_ids
    assert events[-1].result.text == whole.text


def test_cancelling_a_task_cancels_the_generation(session):
    num_events = 0

    async def read():
        nonlocal num_events
        async for _ in session.astream(PROMPT, **ENDLESS):
            num_events += 1

    async def main():
        task = asyncio.create_task(read())
        while num_events < 5:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert 5 <= num_events < NUM_CONTEXT - 100
    wait_until(lambda: not any(t.name == "mimo_rt-generate" for t in threading.enumerate()))
    assert_usable(session)


def test_leaving_an_async_loop_early(session):
    async def main():
        async for _ in session.astream(PROMPT, **ENDLESS):
            break
        assert_usable(session)  # at once, in the same turn of the event loop
        events = session.astream(PROMPT, **ENDLESS)
        async for _ in events:
            break
        with pytest.raises(errors.MimoRtError, match="busy"):  # control: this one goes on
            session.generate(PROMPT, max_tokens=1)
        await events.aclose()
        assert_usable(session)
        assert [event async for event in events] == []

    asyncio.run(main())
    assert_usable(session)


def test_a_dropped_async_stream_is_closed_whoever_holds_its_parts(session):
    async def main():
        events = session.astream(PROMPT, **ENDLESS)
        held = events._stream  # as by a thread of the executor that is late
        async for _ in events:
            break
        del events
        assert held.ended
        assert_usable(session)

    asyncio.run(main())


def test_cancelling_a_task_in_the_body_of_an_async_loop(session):
    async def read():
        async for _ in session.astream(PROMPT, **ENDLESS):
            await asyncio.sleep(60)

    async def main():
        task = asyncio.create_task(read())
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert_usable(session)

    asyncio.run(main())


# -- Ctrl-C


def interrupt_after(seconds):
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


@pytest.fixture
def ctrl_c_raises():
    """A runner in the background starts with SIGINT ignored; Python then raises nothing."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("method", ["generate", "stream"])
def test_ctrl_c_leaves_the_session_usable(session, method, ctrl_c_raises):
    timer = interrupt_after(0.3)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        if method == "generate":
            session.generate(PROMPT, **ENDLESS)
        else:
            for _ in session.stream(PROMPT, **ENDLESS):
                pass
    assert time.monotonic() - begin < 5
    timer.join()
    assert_usable(session)


SCRIPT = """
import sys, mimo_rt
session = mimo_rt.Session({model!r}, num_threads=1, max_context={num_context})
stream = session.stream({prompt!r}, temperature=0.0, ignore_eos=True)
print(len(next(stream).token_ids), flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["1 / 0", pytest.param("", marks=ANOTHER_PROCESS),
                                 pytest.param("sys.exit(3)", marks=ANOTHER_PROCESS)])
def test_a_half_read_stream_does_not_keep_the_process(model_dir, end):
    script = SCRIPT.format(
        model=str(model_dir), num_context=NUM_CONTEXT, prompt=PROMPT, end=end
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert run.stdout == "1\n"
    assert run.returncode == {"": 0, "sys.exit(3)": 3, "1 / 0": 1}[end], run.stderr


@pytest.mark.cpu_only(reason="a process that has used CUDA cannot use it in a fork")
def test_a_fork_opens_a_session_of_its_own(model_dir):
    script = ("import os, sys, mimo_rt\n"
              "session = mimo_rt.Session(sys.argv[1], num_threads=2)\n"
              "child = os.fork()\n"
              "if not child:\n"
              "    session = mimo_rt.Session(sys.argv[1], num_threads=2)  # the parent's goes when its own is there\n"
              "print(session.generate('a', max_tokens=2, temperature=0.0).token_ids, flush=True)\n"
              "session.close()\n"
              "if child:\n"
              "    sys.exit(os.waitpid(child, 0)[1])\n")
    done = subprocess.run([sys.executable, "-c", script, str(model_dir)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split("\n")[:-1])) == 1 and done.stdout.count("\n") == 2
