"""Where the time of a step goes: the parts of a known trace, and of a real one."""

import json

import pytest
from mimo_rt import _C
from mimo_rt.bench.breakdown import GAPS, HEADER, Breakdown, measure_breakdown, read_step
from mimo_rt.bench.synthetic import synthetic_config


def piece(worker, name, category, begin, end, process=1):
    return {"ph": "X", "pid": process, "tid": worker, "name": name, "cat": category, "ts": begin, "dur": end - begin}


KNOWN = [
    piece(0, "embed", "embed", 2, 5),
    piece(0, "layer 0 o_proj", "o_proj", 5.5, 10),
    piece(0, "wait: layer 0 o_proj", "wait", 10, 16),
    piece(0, "layer 0 router", "router", 16, 20),
    piece(1, "wait: embed", "wait", 1, 7),
    piece(1, "layer 0 o_proj", "o_proj", 7, 14),
    piece(1, "embed", "embed", 0, 99, process=0),  # predicted: not counted
]


def trace(events):
    return json.dumps({"traceEvents": events})


def test_known_trace():
    step = read_step(trace(KNOWN))
    first, second = step.workers
    assert step.step_us == 20 and first.total() == second.total() == 20
    assert first.busy == {"embed": 3, "o_proj": 4.5, "router": 4}
    # The other worker was at o_proj until 14; its end was seen at 16.
    assert first.others_busy == {"o_proj": 4} and first.seen_late == {"o_proj": 2}
    assert first.gaps == {"start": 2, "fetch": 0, "between": 0.5, "end": 0} and not any(first.weights.values())
    assert second.others_busy == {"embed": 4} and second.seen_late == {"embed": 2}
    assert second.gaps == {"start": 1, "fetch": 0, "between": 0, "end": 6}


def test_idle_that_nothing_explains_is_listed():
    shorter = [dict(event) for event in KNOWN]
    shorter[3]["ts"], shorter[3]["dur"] = 18, 2  # nobody says what worker 0 did from 16 to 18
    worker = read_step(trace(shorter)).workers[0]
    assert worker.gaps["between"] == 2.5 and worker.total() == 20
    rows = Breakdown([read_step(trace(shorter))]).rows()
    assert [row[0] for row in rows[-4:]] == ["waiting: for the next task", "unexplained: before the first task",
                                             "unexplained: between tasks", "unexplained: after the last task"]
    assert rows[-2][1] == "1.2" and all(len(row) == len(HEADER) for row in rows)
    shares = [float(row[-1]) for row in rows[-5:]]
    assert sum(shares) == pytest.approx(100, abs=0.2)


def test_waits_for_tasks_and_for_weights_are_parts_of_their_own():
    events = [
        piece(0, "a x", "x", 0, 4) | {"args": {"task": 0, "weights_us": 1.5}},
        piece(0, "fetch", "fetch", 4, 5), piece(0, "wait: a x", "wait", 5, 6), piece(0, "b y", "y", 6, 8),
    ]
    worker = read_step(trace(events)).workers[0]
    assert worker.busy == {"x": 2.5, "y": 2} and worker.weights == {"x": 1.5, "y": 0}
    assert worker.gaps["fetch"] == 1 and worker.total() == 8
    rows = {row[0]: row for row in Breakdown([read_step(trace(events))]).rows()}
    assert rows["x"][1:4] == ["2.5", "2.5", "1.5"] and rows["waiting: for the next task"][1] == "1.0"


def test_a_wait_for_several_stages_ends_with_the_last():
    events = [
        piece(0, "a x", "x", 0, 4), piece(1, "b y", "y", 0, 6),
        piece(0, "wait: a x, b y", "wait", 4, 7), piece(0, "c z", "z", 7, 8),
        piece(1, "wait", "wait", 6, 6.5), piece(1, "d z", "z", 6.5, 8),
    ]
    first, second = read_step(trace(events)).workers
    assert first.others_busy == {"y": 2} and first.seen_late == {"y": 1}
    assert second.gaps["between"] == 0.5 and not second.others_busy  # it waited for nobody


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_parts_of_real_steps_add_up(num_workers):
    config = _C.ModelConfig.from_json(json.dumps(synthetic_config(2)), "synthetic")
    engine = _C.Engine.synthetic(config, 1, _C.EngineOptions(num_threads=num_workers))
    session = _C.Session(engine, max_context=128)
    breakdown, last = measure_breakdown(engine, session, 4, 5)
    record = breakdown.record()
    assert record["num_steps"] == 3 and read_step(last).step_us > 0
    parts = ("busy_us", "weights_us", "others_busy_us", "seen_late_us", "unexplained_us")
    for worker in range(num_workers):
        total = sum(sum(record[part][worker].values()) for part in parts)
        assert total + record["fetch_us"][worker] == pytest.approx(record["step_us"], abs=0.2)
        assert record["unexplained_us"][worker].keys() == set(GAPS)
    assert {"qkv_proj", "attention", "expert_down", "lm_head", "sample"} <= record["busy_us"][0].keys()

