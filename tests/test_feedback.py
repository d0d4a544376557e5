"""Error feedback against its theory: iterates of the specifications' examples, limits, floors."""

from collections.abc import Callable

import numpy as np
import pytest

from fedsim import registry
from fedsim.arrays import Arrays
from fedsim.chain import Compensated, build_chain, memory_of
from fedsim.codec import Codec, Local, Reader, Rest, Sender, Writer
from fedsim.engine.uplink import ClientMean
from fedsim.errors import PluginError
from fedsim.feedback.econtrol import EControl
from fedsim.feedback.ef14 import EF14
from fedsim.feedback.ef21 import EF21
from fedsim.feedback.ef21plus import EF21Plus
from fedsim.feedback.ef21w import EF21W

NAMES = list(registry.available("feedback"))
Gradient = Callable[[np.ndarray], np.ndarray]


def descend(
    codec: Codec,
    gradients: list[Gradient],
    start: np.ndarray,
    gamma: float,
    steps: int,
    states: list[Arrays] | None = None,
) -> list[np.ndarray]:
    """Gradient descent through a codec: the server sees decoded payloads and its own memory."""
    x = np.asarray(start, np.float64)
    states = states or [{} for _ in gradients]
    server = ClientMean()
    like = {"x": x}
    for state in states:
        if state:
            server.add(memory_of(state, like)["estimate"], 1, 1)
    path = []
    for t in range(steps):
        total = np.zeros_like(x)
        for i, (gradient, state) in enumerate(zip(gradients, states, strict=True)):
            before = dict(state)
            local = Local({"x": x}, lambda at, gradient=gradient: {"x": gradient(at["x"])})
            sender = Sender(round=t, client=i, local=local)
            payload = codec.encode({"x": gradient(x)}, state, sender)
            message = codec.estimate(payload, like, before)
            if codec.accumulates:
                server.add(message, 1, 0 if before else 1)
            total += message["x"] / len(gradients)
        x = x - gamma * (server.result(like)["x"] if codec.accumulates else total)
        path.append(x)
    return path


def one_of(n: int, **feedback) -> Codec:
    section = {"name": "topk", "density": 1 / n}
    return build_chain([{**section, **({"error_feedback": feedback} if feedback else {})}])


def diverging() -> list[Gradient]:
    rows = np.array([[-3.0, 2, 2], [2, -3, 2], [2, 2, -3]])
    return [lambda x, a=a: 2 * a * (a @ x) + x / 2 for a in rows]


def test_naive_topk_multiplies_the_error():
    path = descend(one_of(3), diverging(), np.ones(3), 0.02, 10)
    np.testing.assert_allclose(path[0], np.full(3, 1 + 11 * 0.02 / 6), rtol=1e-12)
    assert np.linalg.norm(path[-1]) == pytest.approx(2.4828585, abs=1e-7)


ITERATES = {
    "ef14": [
        (1.0366667, 1.0366667, 1.0366667),
        (0.9144667, 0.9755667, 1.0366667),
        (0.9144667, 0.8933463, 0.8473787),
    ],
    "ef21": [
        (1.0366667, 1.0366667, 1.0366667),
        (1.0111333, 1.0422333, 1.0733333),
        (0.9856, 1.0206797, 1.043112),
    ],
}


@pytest.mark.parametrize("name", ITERATES)
def test_iterates_of_the_published_divergence_example(name):
    path = descend(one_of(3, name=name), diverging(), np.ones(3), 0.02, 300)
    np.testing.assert_allclose(path[:3], ITERATES[name], atol=5e-8)
    assert np.linalg.norm(path[-1]) < 2e-3


def warm(gradients: list[Gradient], x: np.ndarray) -> list[Arrays]:
    """States as after an uncompressed first message."""
    return [{"feedback/estimate/x": g(x), "feedback/error/x": np.zeros_like(x)} for g in gradients]


def test_econtrol_on_the_divergence_example():
    x = np.ones(3)
    codec = one_of(3, name="econtrol", eta=0.2)
    path = descend(codec, diverging(), x, 0.02, 300, warm(diverging(), x))
    expected = [
        (0.9766667, 0.9766667, 0.9766667),
        (0.9524778, 0.9524778, 0.9524778),
        (0.9314202, 0.9298546, 0.9282889),
    ]
    np.testing.assert_allclose(path[:3], expected, atol=5e-8)
    assert np.linalg.norm(path[-1]) == pytest.approx(1.47e-3, abs=5e-6)
    wild = one_of(3, name="econtrol", eta=1.0)
    assert np.linalg.norm(descend(wild, diverging(), x, 0.02, 300, warm(diverging(), x))[-1]) > 1e3


def test_ef21_plus_converges_there_too():
    path = descend(one_of(3, name="ef21+"), diverging(), np.ones(3), 0.02, 300)
    assert np.linalg.norm(path[-1]) < 2e-3


DIAGONALS = [(1, 2, 3), (10, 1, 1), (0.5, 0.5, 0.5), (1, 50, 1)]
TARGETS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)]


def quadratics() -> list[Gradient]:
    pairs = zip(np.array(DIAGONALS, float), np.array(TARGETS, float), strict=True)
    return [lambda x, d=d, b=b: d * x - b for d, b in pairs]


class RoundDown(Codec):
    """Magnitudes rounded down to powers of two: not homogeneous."""

    stage = "quantise"
    contraction = True

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        exponents = {n: np.frexp(x)[1] - 1 for n, x in arrays.items()}
        return {n: np.sign(x) * 2.0 ** exponents[n] for n, x in arrays.items()}

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        return rest(like)


SMOOTHNESS = tuple(float(max(d)) for d in DIAGONALS)


def test_ef21w_is_ef21_for_homogeneous_codecs_only():
    expected = (0.87406234, 0.51019787, 0.9576125)
    for feedback in ({"name": "ef21"}, {"name": "ef21w", "smoothness": SMOOTHNESS}):
        path = descend(one_of(3, **feedback), quadratics(), np.ones(3), 0.01, 5)
        np.testing.assert_allclose(path[-1], expected, atol=2e-7)
    for feedback, expected in (
        (EF21(), (0.88251953, 0.53015625, 0.9615625)),
        (EF21W(smoothness=SMOOTHNESS), (0.89650714, 0.54903543, 0.96387365)),
    ):
        path = descend(Compensated(RoundDown(), feedback), quadratics(), np.ones(3), 0.01, 5)
        np.testing.assert_allclose(path[-1], expected, atol=2e-7)


def steps_of(alpha: float) -> tuple[float, float]:
    """The old and the new admissible step on these quadratics."""
    mean = float(np.mean(DIAGONALS, axis=0).max())
    xi = (1 + np.sqrt(1 - alpha)) / alpha - 1
    quadratic = np.sqrt(np.mean(np.square(SMOOTHNESS)))
    return 1 / (mean + quadratic * xi), 1 / (mean + np.mean(SMOOTHNESS) * xi)


@pytest.mark.slow
def test_the_larger_step_of_ef21w_needs_fewer_rounds():
    old, new = steps_of(1 / 3)
    assert (old, new) == (pytest.approx(0.0078730, abs=1e-7), pytest.approx(0.0119033, abs=1e-7))
    given = one_of(3, name="ef21w", smoothness=SMOOTHNESS)
    measured = one_of(3, name="ef21w", power_iterations=10)

    def rounds(codec: Codec, gamma: float) -> int:
        path = descend(codec, quadratics(), np.ones(3), gamma, 1500)
        norms = [np.linalg.norm(np.mean([g(x) for g in quadratics()], axis=0)) for x in path]
        return next(t for t, norm in enumerate(norms) if norm < 1e-4)

    slow, fast = rounds(one_of(3, name="ef21"), old), rounds(given, new)
    assert fast / slow == pytest.approx(old / new, abs=0.05)
    assert rounds(measured, new) == pytest.approx(fast, rel=0.02)


def test_clients_measure_their_smoothness_once_and_send_it():
    states: list[Arrays] = [{} for _ in SMOOTHNESS]
    codec = one_of(3, name="ef21w", power_iterations=10)
    descend(codec, quadratics(), np.ones(3), 0.01, 1, states)
    found = [float(state["feedback/smoothness/x"][0]) for state in states]
    np.testing.assert_allclose(found, SMOOTHNESS, rtol=1e-3)
    known = codec.encode({"x": np.ones(3)}, states[1], Sender(client=1))  # asks for no gradient
    assert known.parts["scales"] == 4
    with pytest.raises(PluginError, match="measure the smoothness only of clients"):
        codec.encode({"x": np.ones(3)}, {}, Sender(client=1))
    with pytest.raises(PluginError, match="never both"):
        EF21W(smoothness=SMOOTHNESS, power_iterations=1)


def least_squares(clients: int, dimension: int = 50) -> tuple[list[Gradient], np.ndarray]:
    rng = np.random.default_rng(0)
    a = np.linspace(1, 2, dimension)
    solution = rng.standard_normal(dimension)
    b = [a * solution + 10 * rng.standard_normal(dimension) for _ in range(clients)]
    return [lambda x, b_i=b_i: a * (a * x - b_i) for b_i in b], np.mean(b, axis=0) / a


@pytest.mark.slow
def test_unlike_clients_separate_the_methods():
    """Naive top-k stays far away, EF14 at a floor; EF21 and EControl converge."""
    gradients, optimum = least_squares(5)
    distance = {}
    for name, feedback in {
        "naive": {},
        "ef14": {"name": "ef14"},
        "ef21": {"name": "ef21"},
        "econtrol": {"name": "econtrol", "eta": 0.05},
    }.items():
        path = descend(one_of(10, **feedback), gradients, np.zeros(50), 0.01, 3000)
        distance[name] = np.mean([((x - optimum) ** 2).sum() for x in path[-600:]])
    assert distance["naive"] > 20
    assert 0.2 < distance["ef14"] < 5
    assert distance["ef21"] < 1e-12
    assert distance["econtrol"] < 1e-12


def vectors(n: int) -> list[Arrays]:
    rng = np.random.default_rng(n)
    shapes = {"a": (6, 5), "b": (7,)}
    return [
        {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()} for _ in range(n)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_without_compression_every_method_hands_over_the_update(name):
    codec = build_chain([{"name": "none", "error_feedback": name}])
    state: Arrays = {}
    for update in vectors(5):
        before = dict(state)
        payload = codec.encode(update, state)
        seen = codec.estimate(payload, update, before)
        if codec.accumulates and before:
            seen = {k: memory_of(before, update)["estimate"][k] + x for k, x in seen.items()}
        for k, x in update.items():
            np.testing.assert_allclose(seen[k], x, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_server_and_client_agree_bit_by_bit(name):
    """What the server adds up from payloads alone is what the client remembers."""
    section = {"name": name} | ({} if name in ("ef14", "ef21plus") else {"server": "mirrors"})
    codec = build_chain(
        [{"name": "topk", "density": 0.2}, {"name": "int8", "error_feedback": section}]
    )
    state: Arrays = {}
    for update in vectors(8):
        before = dict(state)
        payload = codec.encode(update, state)
        seen = codec.estimate(payload, update, before)
        if codec.feedback.differences:
            for k, x in memory_of(state, update)["estimate"].items():
                assert seen[k].tobytes() == x.tobytes()
        assert sum(payload.parts.values()) == payload.num_bytes


@pytest.mark.parametrize("name", NAMES)
def test_every_method_sends_everything_in_the_end(name):
    """A constant update gets through: in the mean for EF14, in the end for the others."""
    codec = build_chain([{"name": "topk", "density": 0.1, "error_feedback": name}])
    (update,) = vectors(1)
    state: Arrays = {}
    total = {k: np.zeros_like(x) for k, x in update.items()}
    last = total
    rounds = 400
    for _ in range(rounds):
        before = dict(state)
        last = codec.estimate(codec.encode(update, state), update, before)
        total = {k: total[k] + last[k] for k in total}
    for k, x in update.items():
        seen = total[k] if codec.accumulates else total[k] / rounds if name == "ef14" else last[k]
        np.testing.assert_allclose(seen, x, atol=0.1 if name in ("ef14", "econtrol") else 1e-5)


def test_eta_zero_is_ef21_and_momentum_one_is_ef21():
    base = one_of(4, name="ef21")
    for other in (one_of(4, name="econtrol", eta=0.0), one_of(4, name="ef21", momentum=1.0)):
        states: list[Arrays] = [{}, {}]
        for update in vectors(6):
            one, two = base.encode(update, states[0]), other.encode(update, states[1])
            assert one.data[20:] == two.data[20:]


def test_momentum_averages_updates_before_they_are_compressed():
    codec = build_chain([{"name": "none", "error_feedback": {"name": "ef21", "momentum": 0.5}}])
    state: Arrays = {}
    for update in ({"x": np.float32([4.0])}, {"x": np.float32([0.0])}):
        codec.encode(update, state)
    assert memory_of(state, update)["estimate"]["x"].tolist() == [2.0]


def test_equal_smoothness_is_ef21():
    equal = one_of(4, name="ef21w", smoothness=(3.0, 3.0))
    states: list[Arrays] = [{}, {}]
    for update in vectors(4):
        one = one_of(4, name="ef21").encode(update, states[0])
        two = equal.encode(update, states[1], Sender(client=1))
        assert one.data[20:] == two.data[24:]
    with pytest.raises(PluginError, match="no smoothness of client 2"):
        equal.encode(update, {}, Sender(client=2))


def test_facts_of_the_methods():
    assert [m().differences for m in (EF14, EF21, EF21Plus, EF21W, EControl)] == [False] + [
        True
    ] * 4
    with pytest.raises(PluginError, match="Give eta"):
        build_chain([{"name": "fp16", "error_feedback": "econtrol"}]).encode(vectors(1)[0], {})
