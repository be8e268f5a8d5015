"""Converted modules, and this package's own ones, have PyTorch's gradients, and train as PyTorch's do."""

from __future__ import annotations

import copy
import importlib
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import FAMILY, oracle
from drawn_modules import module_of, options_of_modules, own_module
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedrnn as fr

torch = oracle("torch")
ft = pytest.importorskip("fusedrnn.torch", exc_type=ImportError)
STATE = importlib.import_module("fusedrnn.torch.calls").STATE
nn = torch.nn
rnn_utils = torch.nn.utils.rnn

pytestmark = pytest.mark.filterwarnings(
    "ignore:LSTM with projections", "ignore:dropout option adds", "ignore:dropout="
)

RELATIVE, ABSOLUTE = 1e-4, 2e-5


def used(module: Any) -> bool:
    """Whether the kernels of this package have packed the module's weights."""
    state = module.__dict__[STATE]
    return state.packed is not None or bool(state.layers)


def flat(found: Any) -> list[Any]:
    """All tensors of an answer, in order."""
    if isinstance(found, rnn_utils.PackedSequence):
        return [found.data]
    if isinstance(found, tuple):
        return [tensor for each in found for tensor in flat(each)]
    return [found]


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=RELATIVE, atol=ABSOLUTE)


def gradients(module: Any, x: Any, state: Any, seed: int) -> list[Any]:
    """The outputs of a call, and all gradients of a scalar that reads every number of the outputs."""
    leaves = [
        each for each in (*flat(x), *(() if state is None else flat(state))) if each.requires_grad
    ]
    torch.manual_seed(seed)
    outputs = flat(module(x, state))
    weights = torch.Generator().manual_seed(seed)
    total = sum((each * torch.randn(each.shape, generator=weights)).sum() for each in outputs)
    wanted = [*leaves, *(each for each in module.parameters() if each.requires_grad)]
    found = torch.autograd.grad(total, wanted) if wanted else ()
    return [*(each.detach() for each in outputs), *found]


def drawn_input(options: dict[str, Any], form: str, needs: bool) -> Any:
    steps, batch = 5, 3
    first = options["batch_first"]
    shape = (batch, steps) if first else (steps, batch)
    if form == "one":
        return torch.randn(steps, options["input_size"], requires_grad=needs)
    x = torch.randn(*shape, options["input_size"], requires_grad=needs)
    if form == "packed":
        return rnn_utils.pack_padded_sequence(
            x, torch.tensor([2, 5, 3]), first, enforce_sorted=False
        )
    return x


def drawn_state(module: Any, options: dict[str, Any], form: str, needs: bool) -> Any:
    rows = options["num_layers"] * (1 + options["bidirectional"])
    middle = () if form == "one" else (3,)
    width = getattr(module, "proj_size", 0) or options["hidden_size"]
    h = torch.randn(rows, *middle, width, requires_grad=needs)
    if options["kind"] != "LSTM":
        return h
    return h, torch.randn(rows, *middle, options["hidden_size"], requires_grad=needs)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of PyTorch that wait for each other make small tests slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- gradients ------------------------------------------------------------------------------------------


@given(
    options=options_of_modules(dropout=st.sampled_from([0.0, 0.0, 0.5])),
    form=st.sampled_from(["batch", "one", "packed"]),
    state=st.sampled_from(["none", "given", "wanted"]),
    needs=st.booleans(),
    frozen=st.sampled_from(["", "weight_hh", "bias", "weight"]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_every_configuration_has_pytorchs_gradients(
    options: dict[str, Any], form: str, state: str, needs: bool, frozen: str, seed: int
) -> None:
    torch.manual_seed(seed)
    own = module_of(options).train()
    for name, parameter in own.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(frozen)))
    converted = ft.convert(copy.deepcopy(own))
    x = drawn_input(options, form, needs)
    hx = None if state == "none" else drawn_state(own, options, form, state == "wanted")
    if not any(
        each.requires_grad
        for each in (*flat(x), *(() if hx is None else flat(hx)), *own.parameters())
    ):
        return
    expected = gradients(own, x, hx, seed)
    found = gradients(converted, x, hx, seed)
    assert used(converted)
    for one, other in zip(found, expected, strict=True):
        close(one, other)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_negative_control_other_weights_have_other_gradients(kind: str) -> None:
    own = getattr(nn, kind)(4, 5)
    converted = ft.convert(copy.deepcopy(own))
    with torch.no_grad():
        converted.weight_hh_l0.mul_(1.1)
    x = torch.randn(5, 3, 4, requires_grad=True)
    with pytest.raises(AssertionError):
        close(gradients(converted, x, None, 1)[2], gradients(own, x, None, 1)[2])


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("way", ["plain", "resets"])
def test_the_family_has_the_gradients_of_the_specification(name: str, way: str) -> None:
    torch.manual_seed(5)
    module = own_module(name, num_layers=2, bidirectional=way == "plain")
    exact = own_module(
        name, num_layers=2, bidirectional=way == "plain", backend="numpy", dtype=torch.float64
    )
    exact.load_state_dict(module.state_dict())
    resets = torch.rand(7, 2) < 0.3 if way == "resets" else None
    x = torch.randn(7, 2, 3, requires_grad=True)
    found: list[list[Any]] = []
    for each, inputs in ((module, x), (exact, x.detach().double().requires_grad_())):
        y, last = each(inputs, resets=resets)
        last = [part for part in flat(last) if part.is_floating_point()]
        total = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
        total = total + sum((part * part).sum() for part in last)
        found.append([y, *torch.autograd.grad(total, [inputs, *each.parameters()])])
    for one, other in zip(*found, strict=True):
        close(one.double(), other)


@pytest.mark.parametrize("name", ["lstm-projection-peephole-coupled", "gru-before", "clockwork"])
def test_gradcheck(name: str) -> None:
    """PyTorch's own check by differences, in float64."""
    torch.manual_seed(2)
    module = own_module(name, backend="numpy", dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: tuple(each for each in flat(module(x)) if each.is_floating_point()), (x,)
    )


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_module_of_this_package_takes_pytorchs_state_dict(kind: str) -> None:
    own = getattr(nn, kind)(4, 5, 2, batch_first=True, bidirectional=True)
    mine = getattr(ft, kind)(4, 5, 2, batch_first=True, bidirectional=True)
    assert list(mine.state_dict()) == list(own.state_dict())
    mine.load_state_dict(own.state_dict())
    x = torch.randn(3, 7, 4, requires_grad=True)
    for one, other in zip(gradients(mine, x, None, 3), gradients(own, x, None, 3), strict=True):
        close(one, other)
    packed = rnn_utils.pack_padded_sequence(x, torch.tensor([2, 7, 3]), True, False)
    for one, other in zip(
        gradients(mine, packed, None, 3), gradients(own, packed, None, 3), strict=True
    ):
        close(one, other)
    layer = mine.layer()
    np.testing.assert_array_equal(layer(x.detach().numpy())[0], mine(x)[0].detach().numpy())


def test_resets_beside_packed_sequences_are_in_the_order_of_the_batch() -> None:
    module = ft.GRU(3, 4, batch_first=True)
    x, lengths = torch.randn(3, 6, 3), torch.tensor([2, 6, 4])
    resets = torch.rand(3, 6) < 0.4
    packed = rnn_utils.pack_padded_sequence(x, lengths, True, False)
    y, last = module(packed, resets=resets)
    padded = rnn_utils.pad_packed_sequence(y, True)[0]
    for row, length in enumerate(lengths):
        alone, h = module(x[row, :length], resets=resets[row, :length])
        assert torch.equal(padded[row, :length], alone)
        assert torch.equal(last[:, row], h)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_train_by_pytorchs_own_forward(kind: str) -> None:
    own = getattr(nn, kind)(4, 5)
    converted = ft.convert(copy.deepcopy(own))
    x = torch.randn(6, 3, 4, requires_grad=True)
    results = []
    for cell in (own, converted):
        state = None
        for step in x:
            state = cell(step, state)
        (state[0] if kind == "LSTMCell" else state).square().sum().backward()
        results.append([x.grad, *(each.grad for each in cell.parameters())])
        x.grad = None
    assert all(map(torch.equal, *results))
    assert not used(converted)
    for each in (own, converted):
        each.requires_grad_(False)
    assert all(map(torch.equal, flat(converted(x[0])), flat(own(x[0]))))  # of the input alone
    assert not used(converted)
    with torch.no_grad():
        close(flat(converted(x[0]))[0], flat(own(x[0]))[0])
    assert used(converted)
    with pytest.raises(Exception) as expected:
        own([1.0])
    with pytest.raises(type(expected.value)):
        converted([1.0])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("first", [False, True])
def test_one_step_trains_by_pytorchs_own_forward(kind: str, first: bool) -> None:
    own = getattr(nn, kind)(4, 5, 2, batch_first=first)
    converted, two_way = (
        ft.convert(copy.deepcopy(own)),
        ft.convert(getattr(nn, kind)(4, 5, bidirectional=True)),
    )
    x = torch.randn(3, 1, 4) if first else torch.randn(1, 3, 4)
    assert all(map(torch.equal, gradients(converted, x, None, 1), gradients(own, x, None, 1)))
    assert not used(converted)
    with torch.no_grad():
        close(converted(x)[0], own(x)[0])
    assert used(converted)
    assert not used(two_way)
    two_way(torch.randn(1, 3, 4))
    assert used(two_way)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_several_steps_of_a_batch_of_one_are_trained_here(kind: str) -> None:
    """Negative control: whichever axis is the batch."""
    for first, shape in ((False, (3, 1, 4)), (True, (1, 3, 4)), (True, (3, 4))):
        module = ft.convert(getattr(nn, kind)(4, 5, batch_first=first))
        module(torch.randn(shape))
        assert used(module)


# ---- training ---------------------------------------------------------------------------------------------


class Tagger(nn.Module):
    """Embedding, GRU, head."""

    def __init__(self, units: int = 64, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, units)
        self.gru = nn.GRU(units, units, batch_first=True, **options)
        self.out = nn.Linear(units, 50)

    def forward(self, words: Any) -> Any:
        return self.out(self.gru(self.embedding(words))[0])


def losses(model: Any, steps: int, clip: float = 0.0, parts: int = 1) -> list[float]:
    """Those of an ordinary loop: each word's predecessor."""
    random = torch.Generator().manual_seed(7)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    found = []
    for _ in range(steps):
        words = torch.randint(50, (8, 12), generator=random)
        wanted = words.roll(1, 1)
        optimizer.zero_grad()
        total = 0.0
        for some, their in zip(words.chunk(parts), wanted.chunk(parts), strict=True):
            loss = nn.functional.cross_entropy(model(some).flatten(0, 1), their.flatten()) / parts
            loss.backward()
            total += loss.item()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        found.append(total)
    return found


@pytest.mark.parametrize(("kind", "units"), [("GRU", 64), ("LSTM", 16)])
def test_an_ordinary_loop_has_the_losses_of_pytorch(kind: str, units: int) -> None:
    torch.manual_seed(0)
    own = Tagger(units)
    own.gru = getattr(nn, kind)(units, units, batch_first=True)
    converted = ft.convert(copy.deepcopy(own))
    expected = losses(own, 200)
    found = losses(converted, 200)
    assert expected[-1] < 0.97 * expected[0]
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    assert used(converted.gru)


@pytest.mark.parametrize("own", [False, True])
def test_the_numba_backend_trains_with_the_bits_of_c(own: bool) -> None:
    pytest.importorskip("numba")
    weights = nn.RNN(3, 6, 2, bidirectional=True).state_dict()
    found = []
    for backend in ("c", "numba"):
        if own:
            module = ft.RNN(3, 6, 2, bidirectional=True, backend=backend)
        else:
            module = ft.convert(nn.RNN(3, 6, 2, bidirectional=True), backend=backend)
        module.load_state_dict(weights)
        x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(x)[0].square().sum().backward()
            optimizer.step()
        assert used(module)
        assert module.__dict__[STATE].backend == backend
        found.append([x.grad, *(each.detach() for each in module.parameters())])
    for of_c, of_numba in zip(*found, strict=True):
        assert torch.equal(of_c, of_numba)
    assert not torch.equal(found[1][1], weights["weight_ih_l0"])


def test_accumulated_and_clipped_gradients() -> None:
    torch.manual_seed(0)
    own = Tagger(16)
    converted = ft.convert(copy.deepcopy(own))
    np.testing.assert_allclose(losses(converted, 10, 0.1, 2), losses(own, 10, 0.1, 2), rtol=1e-4)


def test_dropout_has_pytorchs_random_numbers() -> None:
    torch.manual_seed(0)
    own = Tagger(16, num_layers=3, dropout=0.3)
    converted = ft.convert(copy.deepcopy(own))
    torch.manual_seed(1)
    expected = losses(own, 5)
    torch.manual_seed(1)
    np.testing.assert_allclose(losses(converted, 5), expected, rtol=1e-4)
    assert converted.gru.__dict__[STATE].layers
    words = torch.arange(12)[None]
    assert not torch.equal(converted(words), converted(words))
    converted.eval()
    close(converted(words), own.eval()(words))


class Shared(nn.Module):
    """One GRU, called twice; and another with the same parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.GRU(4, 4), nn.GRU(4, 4)
        for name, parameter in list(self.one.named_parameters()):
            setattr(self.two, name, parameter)

    def forward(self, x: Any) -> Any:
        return self.two(self.one(self.one(x)[0])[0])[0]


def test_shared_parameters() -> None:
    own = Shared()
    converted = ft.convert(copy.deepcopy(own))
    x = torch.randn(5, 3, 4)
    for model in (own, converted):
        model(x).square().sum().backward()
    for one, other in zip(converted.parameters(), own.parameters(), strict=True):
        close(one.grad, other.grad)


def test_copies_pickles_and_loaded_weights_train() -> None:
    torch.manual_seed(0)
    own = Tagger(16)
    converted = ft.convert(copy.deepcopy(own))
    start = copy.deepcopy(own.state_dict())
    losses(converted, 2)
    for again in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted)), converted):
        again.load_state_dict(start)
        fresh = copy.deepcopy(own)
        np.testing.assert_allclose(losses(again, 3), losses(fresh, 3), rtol=1e-4)


def test_no_gradient_is_recorded_where_none_is_asked_for() -> None:
    module, x = ft.convert(nn.GRU(4, 5)), torch.randn(5, 3, 4)
    with torch.no_grad():
        assert not module(x)[0].requires_grad
    with torch.inference_mode():
        module(x)
    module.requires_grad_(False)
    assert not module(x)[0].requires_grad
    assert module(x.requires_grad_())[0].requires_grad


def test_only_the_last_state_is_read() -> None:
    own = nn.LSTM(4, 5)
    converted, x = ft.convert(copy.deepcopy(own)), torch.randn(5, 3, 4)
    for each in (own, converted):
        each(x)[1][1].sum().backward()
    for one, other in zip(converted.parameters(), own.parameters(), strict=True):
        close(one.grad, other.grad)


def test_a_graph_that_is_kept_is_used_again_with_the_same_bits() -> None:
    module = ft.convert(nn.LSTM(4, 5))
    y = module(torch.randn(5, 3, 4))[0].square().sum()
    first = torch.autograd.grad(y, module.parameters(), retain_graph=True)
    second = torch.autograd.grad(y, module.parameters())
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_under_checkpoint_the_gradients_have_the_same_bits() -> None:
    checkpoint = importlib.import_module("torch.utils.checkpoint").checkpoint
    module, x = ft.convert(nn.LSTM(4, 5)), torch.randn(5, 3, 4, requires_grad=True)
    expected = torch.autograd.grad(module(x)[0].square().sum(), module.parameters())
    y = checkpoint(lambda x: module(x)[0].square().sum(), x, use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(y, module.parameters()), expected))


class Tapes:
    """Which kinds of tape calls ask for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kinds: list[str] = []
        real = fr.Layer.record

        def noted(layer: Any, *arguments: Any, **named: Any) -> Any:
            self.kinds.append(named["tape"])
            return real(layer, *arguments, **named)

        monkeypatch.setattr(fr.Layer, "record", noted)


@pytest.mark.parametrize(
    "make",
    [
        lambda tape: ft.convert(nn.GRU(4, 5, 2), tape=tape),
        lambda tape: ft.convert(nn.LSTM(4, 5, 2, dropout=0.5), tape=tape),
        lambda tape: copy.deepcopy(ft.convert(nn.RNN(4, 5), tape=tape)),
        lambda tape: ft.LSTM(4, 5, peephole=True, tape=tape),
        lambda tape: ft.GRU(4, 5, reset="before", tape=tape),
        lambda tape: ft.RNN(4, 5, tape=tape),
        lambda tape: ft.ClockworkRNN(4, 6, periods=(1, 2), tape=tape),
    ],
)
def test_a_tape_of_segments_gives_the_same_bits(
    make: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tapes, found = Tapes(monkeypatch), []
    x = torch.randn(9, 3, 4, requires_grad=True)
    for tape in ("full", "segments"):
        torch.manual_seed(4)
        module = make(tape)
        tapes.kinds.clear()
        found.append(gradients(module, x, None, 4))
        assert set(tapes.kinds) == {tape}
    assert all(map(torch.equal, *found))


def test_a_compiled_module_has_a_tape_of_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    tapes, module = Tapes(monkeypatch), ft.GRU(4, 5, tape="segments")
    x = torch.randn(9, 3, 4, requires_grad=True)
    expected = gradients(module, x, None, 4)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    (found,) = torch.autograd.grad((compiled(x)[0] * expected[0]).sum(), x)
    (again,) = torch.autograd.grad((module(x)[0] * expected[0]).sum(), x)
    assert torch.equal(found, again)
    assert set(tapes.kinds) == {"segments"}
    torch._dynamo.reset()


@pytest.mark.parametrize("tape", ["half", True, None])
def test_a_wrong_tape_is_refused_and_nothing_converted(tape: Any) -> None:
    module = nn.GRU(4, 5)
    with pytest.raises(ValueError, match="tape"):
        ft.convert(module, tape=tape)
    assert type(module) is nn.GRU
    with pytest.raises(ValueError, match="tape"):
        ft.GRU(4, 5, tape=tape)


def test_a_graph_without_backward_pass_gives_its_memory_back() -> None:
    module, x = ft.convert(nn.LSTM(4, 5)), torch.randn(5, 3, 4)

    def memory(*outputs: Any) -> list[int]:
        """Where the tapes of these calls are."""
        tokens = [each.grad_fn.saved_tensors[-1] for each in outputs]
        tapes = importlib.import_module("fusedrnn.torch.autograd")._tapes
        return [id(tapes[int(token)]._recording._memory) for token in tokens]

    first = module(x)[0]
    (place,) = memory(first)
    second = module(x)[0]
    assert memory(second) != [place]  # negative control: the first one still has its own
    del first
    assert memory(module(x)[0]) == [place]
    second.sum().backward()


def test_autocast_trains_in_float32() -> None:
    torch.manual_seed(0)
    model = ft.convert(Tagger(16))
    words = torch.arange(12)[None]
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.gru(model.embedding(words).bfloat16())[0]
        loss = model.out(hidden).float().square().mean()
    assert hidden.dtype == torch.float32
    loss.backward()
    assert all(each.grad.dtype == torch.float32 for each in model.parameters())


def test_a_parametrised_module_trains() -> None:
    own = nn.GRU(4, 5)
    converted = ft.convert(copy.deepcopy(own))
    for each in (own, converted):
        nn.utils.parametrizations.weight_norm(each, "weight_hh_l0")
    x = torch.randn(5, 3, 4)
    for one, other in zip(
        gradients(converted, x, None, 1), gradients(own, x, None, 1), strict=True
    ):
        close(one, other)


# ---- where it runs ------------------------------------------------------------------------------------------


def test_threads_train_models_of_their_own_and_one_together() -> None:
    torch.manual_seed(0)
    model, x = ft.convert(nn.GRU(4, 5)), torch.randn(5, 3, 4)
    expected = torch.autograd.grad(model(x)[0].square().sum(), model.parameters())
    faults: list[Any] = []

    def train() -> None:
        try:
            for _ in range(20):
                found = torch.autograd.grad(model(x)[0].square().sum(), model.parameters())
                assert all(map(torch.equal, found, expected))
            losses(ft.convert(Tagger(8)), 3)
        except BaseException as error:  # noqa: BLE001  seen by the test below
            faults.append(error)

    threads = [threading.Thread(target=train) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_child_trains() -> None:
    module, x = ft.convert(nn.LSTM(4, 5)), torch.randn(5, 3, 4)
    expected = torch.autograd.grad(module(x)[0].square().sum(), module.parameters())
    child = os.fork()
    if not child:
        found = torch.autograd.grad(module(x)[0].square().sum(), module.parameters())
        os._exit(0 if all(map(torch.equal, found, expected)) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    "make", [lambda: ft.LSTM(4, 5, 2, peephole=True), lambda: ft.ClockworkRNN(4, 6, periods=(1, 2))]
)
def test_a_module_of_this_package_compiles_into_one_graph(make: Callable[[], Any]) -> None:
    torch._dynamo.reset()
    module, x = make(), torch.randn(5, 3, 4, requires_grad=True)
    state = flat(module(x)[1])
    state = tuple(each.detach().requires_grad_(each.is_floating_point()) for each in state)
    resets = torch.rand(5, 3) < 0.3

    def loss(module: Any) -> list[Any]:
        y, last = module(x, state, resets=resets)
        total = y.square().sum() + last[0].sum()
        wanted = [x, state[0], *module.parameters()]
        return [y, *torch.autograd.grad(total, wanted)]

    expected = loss(module)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        for one, other in zip(loss(compiled), expected, strict=True):
            assert torch.equal(one, other)
    torch._dynamo.reset()


def test_a_converted_model_trains_compiled() -> None:
    torch.manual_seed(0)
    own = Tagger(8)
    expected = losses(copy.deepcopy(own), 3)
    for whole in (False, True):
        torch._dynamo.reset()
        model = ft.convert(copy.deepcopy(own))
        with torch._dynamo.config.patch(allow_rnn=whole):
            compiled = torch.compile(model, backend="aot_eager", fullgraph=whole)
            np.testing.assert_allclose(losses(compiled, 3), expected, rtol=1e-4)
    torch._dynamo.reset()


def test_the_operator_of_training_is_what_it_declares() -> None:
    module = ft.LSTM(4, 5, bidirectional=True)
    weights = [each.detach().requires_grad_() for each in module.parameters()]
    names = " ".join(name for name, _ in module.named_parameters())
    arguments = (
        torch.randn(5, 3, 4),
        None,
        None,
        None,
        None,
        weights,
        names,
        "lstm 0 1 auto full {}",
    )
    torch.library.opcheck(
        torch.ops.fusedrnn.record.default,
        arguments,
        test_utils=["test_schema", "test_autograd_registration", "test_faketensor"],
    )


# ---- what it is not for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", ["x", "output"])
def test_a_change_in_place_before_the_backward_pass_is_pytorchs_error(reads: str) -> None:
    module, x = ft.convert(nn.LSTM(4, 5)), torch.randn(5, 3, 4)
    y = module(x)[0]
    total = y.square().sum()
    with torch.no_grad():
        (x if reads == "x" else y).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_a_second_gradient_is_a_named_error_and_no_zero() -> None:
    module, x = ft.convert(nn.LSTM(4, 5)), torch.randn(5, 3, 4, requires_grad=True)
    (first,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    close(first, torch.autograd.grad(module(x)[0].sum(), x)[0])
    with pytest.raises(fr.UnsupportedError, match=r"second gradients.*revert"):
        first.square().sum().backward()


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_whatever_asks_for_a_second_gradient_gets_the_error(kind: str) -> None:
    module, x = ft.convert(getattr(nn, kind)(3, 4)), torch.randn(4, 2, 3, requires_grad=True)
    parameters = list(module.parameters())

    def penalty() -> Any:
        total = module(x)[0].square().sum()
        found = torch.autograd.grad(total, [x, *parameters], create_graph=True)
        return total + sum(each.square().sum() for each in found)

    for ask in (
        lambda: torch.autograd.grad(penalty(), parameters),
        lambda: penalty().backward(inputs=parameters),
        lambda: torch.autograd.grad(penalty(), x, allow_unused=True),
        lambda: torch.autograd.functional.hessian(lambda x: module(x)[0].square().sum(), x),
        lambda: torch.autograd.functional.jvp(lambda x: module(x)[0], x, torch.ones_like(x)),
    ):
        with pytest.raises(fr.UnsupportedError, match=r"second gradients.*revert"):
            ask()


def test_resets_that_are_written_to_later_do_not_change_gradients() -> None:
    module, x = ft.GRU(4, 6), torch.randn(7, 2, 4, requires_grad=True)
    resets = torch.rand(7, 2) < 0.4
    y = module(x, resets=resets)[0].square().sum()
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    resets.zero_()
    again = [torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(2)]
    assert all(torch.equal(first, each) for each in again)


def test_a_state_of_another_height_is_pytorchs_error_with_dropout_too() -> None:
    module, x = ft.convert(nn.LSTM(4, 6, 3, dropout=0.5)), torch.randn(5, 3, 4)
    for rows in (1, 2, 6):
        with pytest.raises(RuntimeError, match="Expected hidden"):
            module(x, (torch.zeros(rows, 3, 6), torch.zeros(rows, 3, 6)))
    with pytest.raises(ValueError, match=r"must have shape \(3, \.\.\.\)"):
        ft.GRU(4, 6, 3, dropout=0.5)(x, torch.zeros(2, 3, 6))


def test_one_step_stays_float32_under_autocast() -> None:
    x = torch.randn(1, 2, 4)
    for module in (nn.LSTM(4, 5), nn.GRU(4, 5), nn.RNN(4, 5)):
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = ft.convert(module)(x)
        assert y.dtype is torch.float32 and y.requires_grad
        y.sum().backward()


def test_revert_leaves_modules_of_this_package_alone() -> None:
    model = nn.ModuleDict({"a": nn.LSTM(4, 6), "b": ft.LSTM(4, 6)})
    x = torch.randn(5, 2, 4)
    before = model["b"](x)[0]
    ft.revert(ft.convert(model))
    assert type(model["a"]) is nn.LSTM
    assert torch.equal(model["b"](x)[0], before)


def test_batched_gradients_are_a_named_error() -> None:
    module, x = ft.convert(nn.GRU(2, 3)), torch.randn(4, 1, 2, requires_grad=True)
    y = module(x)[0].flatten()
    with pytest.raises(fr.UnsupportedError, match=r"vmap.*revert"):
        torch.autograd.grad(y, x, torch.eye(len(y)), is_grads_batched=True)


def test_a_converted_module_leaves_transforms_to_pytorch() -> None:
    own = nn.GRU(2, 3)
    converted, x = ft.convert(copy.deepcopy(own)), torch.randn(4, 1, 2)
    close(
        torch.func.grad(lambda x: converted(x)[0].sum())(x),
        torch.func.grad(lambda x: own(x)[0].sum())(x),
    )
    assert not used(converted)


def by_vmap(module: Any, x: Any) -> Any:
    return torch.func.vmap(lambda x: module(x)[0])(x[None])


def by_grad(module: Any, x: Any) -> Any:
    return torch.func.grad(lambda x: module(x)[0].sum())(x)


def by_tangent(module: Any, x: Any) -> Any:
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        return module(forward_ad.make_dual(x, torch.ones_like(x)))


def by_double(module: Any, x: Any) -> Any:
    return module(x.double())


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (by_vmap, "torch.func"),
        (by_grad, "torch.func"),
        (by_tangent, "forward mode"),
        (by_double, "float64"),
    ],
)
def test_what_a_module_of_this_package_cannot_do_names_pytorchs(
    way: Callable[..., Any], said: str
) -> None:
    with pytest.raises(fr.UnsupportedError, match=f"{said}.*torch.nn.GRU"):
        way(ft.GRU(2, 3), torch.randn(4, 1, 2))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dropout": 2}, "dropout"),
        ({"dropout": True}, "dropout"),
        ({"bias": "double"}, "bias"),
        ({"peephole": "x"}, "peephole"),
        ({"proj_size": 9}, "proj_size"),
        ({"backend": "fortran"}, "backend"),
        ({"threads": 0}, "threads"),
        ({"activation": "elu"}, "activation"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        ft.LSTM(3, 4, **options)
