"""Where the time of a step goes: the parts of a known trace, and of a real one."""

import json
from types import SimpleNamespace

import pytest
from mimo_rt import _C
from mimo_rt.bench.breakdown import GAPS, HEADER, Breakdown, measure_breakdown, measure_step_breakdowns, read_step
from mimo_rt.bench.measurement import Roofs
from mimo_rt.bench.rates import TracedStep, dense_cost
from mimo_rt.bench.synthetic import synthetic_config
from mimo_rt.bench.work import KindWork, step_bytes, step_flops, step_work
from mimo_rt.cli import main as cli_main
from mimo_rt.cli._breakdown import traced_step_text


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


# -- rates of the matrix products


def synthetic_engine(num_layers):
    config = _C.ModelConfig.from_json(json.dumps(synthetic_config(num_layers)), "synthetic")
    return _C.Engine.synthetic(config, 1, _C.EngineOptions(num_threads=1))


def test_work_of_the_kinds_adds_up_to_the_step():
    engine = synthetic_engine(2)
    work = step_work(engine, 8, 8)
    assert list(work) == ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "router", "lm_head", "expert_gate_up",
                          "expert_down"]
    assert sum(w.num_flops for w in work.values()) == step_flops(engine.config, 8, 8)
    dense = sum(w.num_bytes for kind, w in work.items() if not kind.startswith("expert"))
    assert dense == pytest.approx(engine.dense_bytes_per_step, rel=1e-3)  # norms and sinks are no products
    everything = SimpleNamespace(config=engine.config, dense_bytes_per_step=0, expert_bytes=engine.expert_bytes)
    experts = step_bytes(everything, 64 * (1 - (60 / 64) ** 8))
    assert work["expert_gate_up"].num_bytes + work["expert_down"].num_bytes == pytest.approx(experts)
    # Control: weights that are not packed as was thought, here all in twice the bytes.
    everything.dense_bytes_per_step = 2 * engine.dense_bytes_per_step
    assert step_work(everything, 8, 8)["lm_head"] == KindWork(None, work["lm_head"].num_flops)


def known_step(num_rows=1, slower=1.0):
    """KNOWN with o_proj `slower`: 5.75 us of it on average."""
    step = read_step(trace(KNOWN))
    for worker in step.workers:
        worker.busy["o_proj"] *= slower
    work = {"o_proj": KindWork(115e3, 23e6 * num_rows), "router": KindWork(None, 4e6), "expert_down": KindWork(1.0, 1.0)}
    return TracedStep(num_rows, Breakdown([step]), work)


def test_rates_are_those_of_all_workers_together():
    step = known_step()
    assert step.product_us("o_proj") == (4.5 + 7) / 2
    assert step.rates("o_proj") == pytest.approx((20.0, 4000.0)) and step.rates("router") == (None, pytest.approx(2000.0))
    assert step.rates("embed") == step.rates("expert_down") == (None, None)
    assert step.products_share == pytest.approx((5.75 + 2) / 20)
    assert step.products_gflops == pytest.approx((23e6 + 4e6 + 1) / 7.75e3)
    record = step.record(Roofs(30.0, 10_000.0))
    assert record["step_us"] == 20 and record["kind_gbs"] == {"o_proj": 20.0}
    assert record["products_peak_fraction"] == pytest.approx(27e6 / 7.75e3 / 1e4, abs=1e-4)
    text = traced_step_text(step, Roofs(30.0, 10_000.0))
    (row,) = [line.split() for line in text.splitlines() if line.startswith("o_proj")]
    assert row[-3:] == ["20.0", "4000.0", "40.0"] and "34.8 % of the vector peak" in text
    assert "%peak" not in traced_step_text(step, Roofs(30.0)) and "peak" not in step.record(Roofs(30.0))


def test_dense_products_of_several_tokens_in_those_of_one():
    cost = dense_cost(known_step(), known_step(8, slower=2.0))
    assert cost.num_rows == 8 and cost.of_kind == {"o_proj": 2.0, "router": 1.0}
    assert cost.total == pytest.approx((2 * 5.75 + 2) / 7.75) and "8 tokens over 1: 1.74 x (o_proj 2.00" in cost.text()
    assert dense_cost(known_step(), known_step(8)).total == 1.0  # bytes alone would be the limit


def test_wide_steps_take_turns_and_each_gets_its_own_trace():
    engine = synthetic_engine(1)
    session = _C.Session(engine, max_context=128)
    seen = []

    def run(num_rows):
        seen.append(num_rows)
        session.logits([1] * 2 * num_rows, num_rows)

    runs = [lambda: run(1), lambda: run(8)]
    assert len(measure_step_breakdowns(engine, runs, 6, 3600.0)[1].steps) == 4 and seen == [1, 8] * 7
    seen.clear()
    one, eight = measure_step_breakdowns(engine, runs, 1000, 0.0)  # no time: few traces all the same
    assert seen == [1, 8] * 5 and len(one.steps) == len(eight.steps) == 2
    for breakdown in (one, eight):
        parts = (sum(breakdown.mean(part, name, 0) for name in breakdown.names())
                 for part in ("busy", "weights", "others_busy", "seen_late"))
        gaps = sum(breakdown.mean("gaps", gap, 0) for gap in (*GAPS, "fetch"))
        assert sum(parts) + gaps == pytest.approx(breakdown.step_us, abs=0.2)
    assert one.steps[0] != eight.steps[0]


def test_bench_traces_wide_steps_and_prefill(tmp_path, capsys):
    from mimo_rt.checkpoints import write_tiny_checkpoint

    model = str(write_tiny_checkpoint(tmp_path / "tiny"))
    head = ("--model", model, "--seconds", "0.05", "--threads", "1")

    def lines(*arguments):
        assert cli_main(["bench", *arguments, *head, "--json"]) == 0
        return [json.loads(text) for text in capsys.readouterr().out.splitlines()]

    one, wide, sixteen = lines("verify", "--rows", "1,4,16", "--breakdown")
    assert one["breakdown"]["kind_gflops"]["lm_head"] > 0 and wide["breakdown"]["products_share"] > 0
    assert wide["dense_cost_of_one"] > 0 and not {"breakdown", "dense_cost_of_one"} & sixteen.keys()
    one, wide = lines("verify", "--rows", "1,3")  # the ratio is always there
    assert "dense_cost_of_one" in wide and "breakdown" not in one and "dense_cost_of_one" not in one
    prefill, decode = lines("prefill", "--breakdown")
    assert prefill["breakdown"]["products_peak_fraction"] > 0 and "breakdown" not in decode
    assert {"attention", "qkv_proj"} <= prefill["breakdown"]["busy_us"][0].keys()
    assert cli_main(["bench", "verify", "--rows", "1-2", *head]) == 0
    assert "dense products, 2 tokens over 1:" in capsys.readouterr().out
