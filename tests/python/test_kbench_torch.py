"""PyTorch as a baseline of ``mimo-rt kbench``: it does the kernel's job, and the fastest of its ways is taken."""

import math
import weakref

import pytest
from fake_cuda import fake_torch

from mimo_rt import _C
from mimo_rt.bench import kernel_baseline, kernel_torch, kernel_torch_fused, kernel_torch_qkv

torch = pytest.importorskip("torch")

ATTENTION = {"kernel": "attention", "format": "bf16", "num_tokens": 3, "num_kv_heads": 2, "num_q_per_kv": 4,
             "qk_head_dim": 48, "v_head_dim": 32, "num_keys": 20}
ROUTER = _C.KernelCase(kernel="select_experts", format="f32", num_tokens=5, num_experts=24, experts_per_token=3)
ROUTE = {"num_experts": 8, "experts_per_token": 3, "hidden_size": 16}
FP8 = _C.KernelCase(kernel="gemm", format="fp8_e4m3", num_tokens=3, rows=64, k=128)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(1)


def exact_attention(case, is_ring, q, keys, values, sink):
    """float64, head by head and token by token."""
    out = torch.zeros(*q.shape[:2], values.shape[2], dtype=torch.float64)
    for head in range(case.num_kv_heads):
        for row in range(q.shape[1]):
            token = row % case.num_tokens
            is_draft = case.kernel == "attention_draft"
            first = min(token, case.num_keys - 1 if is_draft else token) if is_ring else 0
            seen = slice(first, None if is_draft else token + case.num_keys)
            scores = keys[head, :-1][seen].double() @ q[head, row].double() / math.sqrt(case.qk_head_dim)
            weights = scores.exp() / (scores.exp().sum() + math.exp(sink))
            out[head, row] = weights @ values[head, :-1][seen].double()
    return out


@pytest.mark.parametrize("kernel", ["attention", "attention_draft"])
@pytest.mark.parametrize("is_ring", [False, True])
@pytest.mark.parametrize("attend", [kernel_torch.attend_sdpa, kernel_torch.attend_bmm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_has_a_sink_and_sees_what_the_kernel_sees(attend, is_ring, dtype, kernel):
    case = _C.KernelCase(**ATTENTION | {"kernel": kernel})
    given = []

    def keep(*arguments):
        given[:] = arguments
        return attend(*arguments)

    call = kernel_torch.make_attention(torch, "cpu", dtype, keep, case, is_ring, 0)
    out = call(0)
    _, q, keys, values, mask = given
    assert q.shape == (2, 12, 48) and keys.shape == (2, 23, 48) and values.shape == (2, 23, 32)
    # Of the weights and the result; scores of float32 have 48 products of about 1.
    bound = 1e-5 if dtype == torch.float32 else 4 * 2**-8

    def error(sink, ring):
        exact = exact_attention(case, ring, q, keys, values, sink)
        return ((out.double() - exact).abs().max() / exact.abs().max()).item()

    assert error(kernel_torch.SINK_LOGIT, is_ring) < bound
    assert error(-math.inf, is_ring) > 2 * bound  # without a sink
    assert error(kernel_torch.SINK_LOGIT, not is_ring) > 2 * bound


@pytest.mark.parametrize("is_by_row", [False, True])
def test_fp8_products_are_right(is_by_row):
    x, weights = torch.randn(3, 128, dtype=torch.bfloat16), torch.randn(64, 128, dtype=torch.bfloat16)
    weights[1] *= 30
    rounded = [kernel_torch.to_fp8(torch, part, is_by_row) for part in (x, weights)]
    for (codes, scale), part in zip(rounded, (x, weights), strict=True):
        # 3 bits behind the point; below 2^-6 of a scale, steps of 2^-9.
        step = torch.maximum(part.double().abs() / 16, scale.double() * 2**-10)
        assert ((codes.double() * scale.double() - part.double()).abs() <= step * 1.001).all()
    exact = (rounded[0][0].double() * rounded[0][1].double()) @ (rounded[1][0].double() * rounded[1][1].double()).T
    try:
        out = kernel_torch.multiply_fp8(torch, *rounded)
    except RuntimeError as error:
        pytest.skip(f"this PyTorch does not multiply FP8 on this CPU: {error}")
    assert out.shape == (3, 64)
    magnitude = (rounded[0][0].double() * rounded[0][1].double()).abs() @ (
        rounded[1][0].double() * rounded[1][1].double()).abs().T
    error = (out.double() - exact).abs()
    assert (error <= 2**-8 * exact.abs() + 130 * 2**-24 * magnitude).all()
    wrong = rounded[1][0], rounded[1][1] * 1.05
    assert ((kernel_torch.multiply_fp8(torch, rounded[0], wrong).double() - exact).abs() > 2**-8 * exact.abs()).any()


def test_experts_are_chosen_with_bias_and_weighed_without():
    logits, bias = torch.randn(5, 24), torch.rand(24)
    begin, token, weight = kernel_torch.select_experts(torch, logits, bias, 3)
    sigma = 1 / (1 + (-logits.double()).exp())
    chosen = [sorted(range(24), key=lambda e: -(sigma[t, e] + bias[e]).item())[:3] for t in range(5)]
    assert begin[0] == 0 and begin[-1] == 15
    for expert in range(24):
        slots = range(begin[expert], begin[expert + 1])
        assert [token[s].item() for s in slots] == [t for t in range(5) if expert in chosen[t]]
        for s in slots:
            t = token[s].item()
            exact = (sigma[t, expert] / sigma[t, chosen[t]].sum()).item()
            assert weight[s].item() == pytest.approx(exact, rel=20 * 2**-24)
    unbiased = [sorted(range(24), key=lambda e: -sigma[t, e].item())[:3] for t in range(5)]
    assert unbiased != chosen


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.8, 7, 1.0), (0.8, 7, 0.6)])
def test_tokens_are_drawn_from_what_the_filters_leave(temperature, top_k, top_p):
    logits = torch.randn(4, 50)
    p, tokens = kernel_torch.candidates(torch, logits, temperature, top_k, top_p)
    for row in range(4):
        exact = (logits[row].double() / temperature).exp()
        order = exact.argsort(descending=True)[:top_k or 50]
        share = exact[order] / exact[order].sum()
        before = 0.0
        kept = {}
        for token, part in zip(order.tolist(), share.tolist(), strict=True):
            if before >= top_p:
                break
            kept[token] = part
            before += part
        got = {(tokens[row, i].item() if top_k else i): x for i, x in enumerate(p[row].tolist()) if x}
        assert got.keys() == kept.keys()
        assert all(got[token] == pytest.approx(kept[token], rel=1e-5) for token in kept)
        drawn = kernel_torch.sample(torch, logits.repeat(200, 1), temperature, top_k, top_p)[row::4]
        assert set(drawn.tolist()) <= kept.keys() and len(set(drawn.tolist())) > 1
    assert kernel_torch.sample(torch, logits, 0.0, 0, 1.0).tolist() == logits.argmax(1).tolist()


def test_tokens_are_drawn_as_often_as_they_are_probable():
    p, num_draws = torch.tensor([0.5, 0.3, 0.15, 0.05]).double(), 20_000
    drawn = kernel_torch.sample(torch, p.log().repeat(num_draws, 1), 1.0, 0, 1.0)
    counts = torch.bincount(drawn, minlength=4).double()
    spread = (num_draws * p * (1 - p)).sqrt()
    assert ((counts - num_draws * p).abs() < 5 * spread).all()
    assert ((counts - num_draws * p.flip(0)).abs() > 5 * spread).all()  # control


def test_verification_keeps_the_targets_distribution():
    """Whatever was proposed, the first token is the target's, and all tokens after kept drafts are."""
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]])
    proposed = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.0]])
    num_rounds, first, second = 4000, torch.zeros(4), torch.zeros(4)
    for draft in torch.multinomial(proposed[0], num_rounds, replacement=True).split(1):
        num_kept, token = kernel_torch.verify(torch, p.log(), proposed, draft)
        first[draft[0] if num_kept else token] += 1
        second[token] += num_kept
    for counts, expected, wrong in ((first, p[0], proposed[0]), (second, p[1], p[0])):
        spread = (counts.sum() * expected * (1 - expected)).sqrt()
        assert ((counts - counts.sum() * expected).abs() < 5 * spread).all()
        assert ((counts - counts.sum() * wrong).abs() > 5 * spread).any()  # control
    same = torch.cat((p[:1], torch.zeros(1, 4)))
    assert all(kernel_torch.verify(torch, p.log(), same, torch.tensor([token]))[0] == 1 for token in range(4))


def test_q_k_and_v_are_rotated_scaled_and_stored():
    heads = {"num_kv_heads": 2, "num_q_per_kv": 2, "qk_head_dim": 12, "v_head_dim": 8}
    case = _C.KernelCase(kernel="gemm_qkv", num_tokens=3, k=64, **heads)
    assert kernel_torch_qkv.qkv_rows(case) == 88
    y, angles = torch.randn(3, 88).double(), torch.randn(3, 1, 2).double()
    cache = torch.zeros(9, 2, 12).double(), torch.zeros(9, 2, 8).double()
    slots = torch.tensor([7, 2, 5])
    q = kernel_torch_qkv.store_qkv(torch, case, (angles.cos(), angles.sin()), slots, cache, y)
    for token in range(3):
        def rotated(row, token=token):
            row = row.clone()
            for i, angle in enumerate(angles[token, 0]):
                turned = torch.complex(row[i], row[i + 2]) * torch.polar(torch.ones_like(angle), angle)
                row[i], row[i + 2] = turned.real, turned.imag
            return row

        for head in range(4):
            assert torch.allclose(q[token, head], rotated(y[token, 12 * head:12 * head + 12]), atol=1e-12)
            assert not torch.allclose(q[token, head], y[token, 12 * head:12 * head + 12], atol=1e-2)
        for head in range(2):
            k, v = 48 + 12 * head, 72 + 8 * head
            assert torch.allclose(cache[0][slots[token], head], rotated(y[token, k:k + 12]), atol=1e-12)
            assert torch.allclose(cache[1][slots[token], head], 0.612 * y[token, v:v + 8], atol=1e-12)
    assert not cache[0][[0, 1, 3, 4, 6, 8]].any()


@pytest.mark.parametrize("is_by_row", [None, False, True])
@pytest.mark.parametrize("kernel", [kernel for kernel in kernel_torch_fused.FUSED if kernel != "gemm_qkv"])
def test_what_surrounds_a_product_is_right(kernel, is_by_row):
    case = _C.KernelCase(kernel=kernel, format="bf16", num_tokens=3, rows=64, k=128)
    torch.manual_seed(2)
    call = kernel_torch_fused.make_fused(torch, "cpu", torch.bfloat16, is_by_row, case, 0)
    try:
        out = call(0)
    except RuntimeError as error:
        if is_by_row is None:
            raise
        pytest.skip(f"this PyTorch does not multiply FP8 on this CPU: {error}")
    torch.manual_seed(2)
    x, norm, residual, weights = (torch.randn(shape, dtype=torch.bfloat16).double()
                                  for shape in ((3, 128), (128,), (3, 64), (64, 128)))
    plain = x @ weights.T
    if kernel == "gemm_normed":
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm
    y = x @ weights.T
    exact = {"gemm_normed": y, "gemm_residual": y + residual, "gemm_best": y.argmax(-1),
             "gemm_gate_up": y[:, :32] / (1 + (-y[:, :32]).exp()) * y[:, 32:]}[kernel]
    if kernel == "gemm_best":
        best = y.gather(1, out[:, None])[:, 0]
        assert (y.amax(-1) - best <= (0.01 if is_by_row is None else 0.1) * y.amax(-1)).all()
        return
    # BF16: a few roundings of 2^-9. FP8: two factors off by 2^-4 at most, 0.026 on average. Gate and up: both.
    bound = (0.01 if is_by_row is None else 0.05) * (2 if kernel == "gemm_gate_up" else 1) * exact.norm()
    assert out.shape == exact.shape and (out.double() - exact).norm() < bound
    assert (out.double() - plain[:, :exact.shape[1]]).norm() > 1.5 * bound  # the product alone


def test_the_norm_and_the_whole_route_are_right(monkeypatch):
    norm = _C.KernelCase(kernel="rms_norm", format="bf16", num_tokens=3, hidden_size=64)
    torch.manual_seed(3)
    out = kernel_torch_fused.make_norm(torch, "cpu", torch.float32, norm, 0)(0)
    torch.manual_seed(3)
    x, weight = torch.randn(3, 64).double(), torch.randn(64).double()
    exact = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    assert (out.double() - exact).abs().max() < 1e-5 * exact.abs().max()

    given = []
    monkeypatch.setattr(kernel_torch, "select_experts", lambda *arguments: given.extend(arguments))
    case = _C.KernelCase(kernel="route", format="f32", num_tokens=2, **ROUTE)
    torch.manual_seed(4)
    kernel_torch.make_choice(torch, "cpu", case, 0)(0)
    torch.manual_seed(4)
    x, bias, rows = torch.randn(2, 16), torch.randn(8), torch.randn(8, 16)
    assert (given[1].double() - x.double() @ rows.double().T).abs().max() < 1e-5
    assert torch.equal(given[2], bias) and given[3] == 3


# -- which way is taken


def make_gpu_baseline(gpu):
    """Of calls that the stream shows, and what reached the stream while it was made."""
    baseline = kernel_baseline.Baseline(gpu, "cuda", "torch 2 linear", lambda index: gpu.log.append("call"))
    before = gpu.log.copy()
    gpu.log.clear()
    return baseline, before


def test_calls_on_a_gpu_are_timed_as_a_graph_behind_what_empties_its_cache():
    baseline, before = make_gpu_baseline(gpu := fake_torch({"replay": 0.5}))
    assert before == ["call"] + ["flush", "event", "call", "event", "wait"] * 3 + [
        "flush", "event", "replay", "event", "wait"] * 3
    assert baseline.run(2) == [0.5] * 2 and gpu.log == ["flush", "event", "replay", "event", "wait"] * 2
    assert baseline.name == "torch 2 linear, CUDA graph" and baseline.note == ""
    freed = weakref.ref(baseline)
    del baseline
    assert freed() is None  # at once, with the gigabyte that empties the cache


def test_calls_on_a_gpu_are_plain_where_a_graph_is_slower_or_cannot_be():
    baseline, _ = make_gpu_baseline(gpu := fake_torch({"call": 0.5}))
    assert baseline.run(1) == [0.5] and gpu.log == ["flush", "event", "call", "event", "wait"]
    assert baseline.name == "torch 2 linear" and baseline.note == ""
    baseline, _ = make_gpu_baseline(gpu := fake_torch({"replay": 0.5}, can_capture=False))
    assert baseline.run(1) == [1.0] and gpu.log == ["flush", "event", "call", "event", "wait"]
    assert baseline.name == "torch 2 linear"
    assert baseline.note == "not as a CUDA graph: RuntimeError: operation failed due to a previous error during capture"


@pytest.fixture
def on_gpu(monkeypatch):
    """`on_gpu(case, times)`: the baseline on this CPU, taken for a GPU; the first key in a way's name has its time."""

    class TimedAs:
        times = {}

        def __init__(self, torch, device, name, call):
            self.name, self.note, self._call = name, "", call

        def run(self, num_calls):
            for index in range(num_calls):
                self._call(index)
            return [next((t for key, t in self.times.items() if key in self.name), 9.0)] * num_calls

    monkeypatch.setattr(kernel_baseline, "Baseline", TimedAs)
    monkeypatch.setattr(kernel_baseline, "_ROTATION_BYTES", 1 << 16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("_make", "_make_attention", "_make_fp8", "_make_choice", "_make_fused", "_make_norm"):
        make = getattr(kernel_baseline, name)
        monkeypatch.setattr(kernel_baseline, name, lambda torch, device, *more, make=make: make(torch, "cpu", *more))

    def choose(case, times):
        TimedAs.times = times
        return kernel_baseline.make_baseline(case, None, "cuda")

    return choose


def test_fp8_weights_are_multiplied_as_fp8_where_that_is_faster(on_gpu, monkeypatch):
    monkeypatch.setattr(kernel_torch, "multiply_fp8", lambda torch, x, weights: None)
    assert "linear bfloat16" in on_gpu(FP8, {"linear": 1.0, "_scaled_mm": 2.0})[0].name
    name = on_gpu(FP8, {"per row": 1.0, "_scaled_mm": 2.0})[0].name
    assert name.endswith("_scaled_mm fp8_e4m3 x fp8_e4m3, a scale per row")
    bf16 = _C.KernelCase(kernel="gemm", format="bf16", num_tokens=3, rows=64, k=128)
    assert "linear bfloat16" in on_gpu(bf16, {"_scaled_mm": 1.0})[0].name


def test_a_device_without_fp8_products_has_a_note(on_gpu, monkeypatch):
    def refuse(torch, x, weights):
        raise RuntimeError("torch._scaled_mm is only supported on CUDA devices with compute capability >= 9.0\nmore")

    monkeypatch.setattr(kernel_torch, "multiply_fp8", refuse)
    baseline, note = on_gpu(FP8, {"_scaled_mm": 1.0})
    assert "linear bfloat16" in baseline.name
    assert note.count("without FP8 products, ") == 2 and "compute capability" in note


def test_attention_is_the_faster_of_two_ways(on_gpu, monkeypatch):
    case = _C.KernelCase(**ATTENTION)
    assert "sdpa attention bfloat16" in on_gpu(case, {"sdpa": 1.0})[0].name
    assert "bmm attention bfloat16" in on_gpu(case, {"bmm": 1.0})[0].name
    monkeypatch.delattr(kernel_torch, "attend_sdpa")
    assert "without sdpa bfloat16: AttributeError" in on_gpu(case, {"sdpa": 1.0})[1]


@pytest.mark.parametrize(("kernel", "name"), [("sample_best", "argmax"), ("sample", "softmax exponential argmax"),
                                              ("sample_filtered", "topk softmax exponential argmax"),
                                              ("sample_verify", "softmax rand cumprod exponential argmax")])
def test_choices_have_a_baseline(on_gpu, kernel, name):
    case = _C.KernelCase(kernel=kernel, format="f32", num_tokens=2, vocab_size=100)
    assert on_gpu(case, {})[0].name == f"torch {torch.__version__} {name} float32"
    assert "topk sort" in on_gpu(ROUTER, {})[0].name


def test_products_with_something_around_them_have_a_baseline(on_gpu, monkeypatch):
    monkeypatch.setattr(kernel_torch_fused, "multiply_fp8", lambda torch, x, weights: torch.zeros(3, 64).bfloat16())
    fp8 = {"num_tokens": 3, "rows": 64, "k": 128, "format": "fp8_e4m3"}
    heads = {"num_kv_heads": 1, "num_q_per_kv": 1, "qk_head_dim": 24, "v_head_dim": 16}  # 64 rows
    for kernel, what in kernel_torch_fused.FUSED.items():
        case = _C.KernelCase(kernel=kernel, **fp8, **heads)
        assert f" {what} and linear bfloat16" in on_gpu(case, {"linear": 1.0})[0].name
        name = on_gpu(case, {"one scale": 1.0})[0].name
        assert f" {what} and _scaled_mm" in name and "rounded in the call" in name
    norm = _C.KernelCase(kernel="rms_norm", format="bf16", num_tokens=3, hidden_size=64)
    assert "rms_norm bfloat16" in on_gpu(norm, {})[0].name
    route = _C.KernelCase(kernel="route", format="f32", num_tokens=2, **ROUTE)
    assert "linear sigmoid topk sort" in on_gpu(route, {})[0].name
    assert kernel_baseline.make_baseline(_C.KernelCase(kernel="edge_counter"), None, "cuda") == (None, "")


def test_any_way_may_fail(on_gpu, monkeypatch):
    """No rms_norm as before PyTorch 2.4, no memory: notes, be there another way or none."""
    norm = _C.KernelCase(kernel="rms_norm", format="bf16", num_tokens=3, hidden_size=64)
    monkeypatch.delattr(torch.nn.functional, "rms_norm")
    baseline, note = on_gpu(norm, {})
    assert baseline is None and note.startswith("without rms_norm bfloat16: AttributeError: ")

    def refuse(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(torch.nn.functional, "linear", refuse)
    monkeypatch.setattr(kernel_torch, "multiply_fp8", lambda torch, x, weights: None)
    baseline, note = on_gpu(FP8, {})
    assert "_scaled_mm" in baseline.name
    assert note == "without products in bfloat16: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"


def test_attention_on_a_cpu_has_a_baseline():
    before = torch.get_num_threads()
    try:
        baseline, note = kernel_baseline.make_baseline(_C.KernelCase(**ATTENTION), None, "cpu-generic")
    finally:
        torch.set_num_threads(before)
    assert "attention" in baseline.name and min(baseline.run(3)) > 0 and note == ""
