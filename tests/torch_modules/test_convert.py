"""A converted module is what it was, computes what PyTorch computes, and leaves to PyTorch what it cannot compute."""

from __future__ import annotations

import copy
import importlib
import io
import os
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import oracle
from drawn_modules import module_of, options_of_modules
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedrnn as fr

torch = oracle("torch")
ft = pytest.importorskip("fusedrnn.torch", exc_type=ImportError)
STATE = importlib.import_module("fusedrnn.torch.calls").STATE
nn = torch.nn
rnn_utils = torch.nn.utils.rnn
prune = importlib.import_module("torch.nn.utils.prune")

pytestmark = pytest.mark.filterwarnings(
    "ignore:LSTM with projections",
    "ignore:dropout option adds",
    "ignore:.*nn.utils.weight_norm",
    "ignore:torch.ao.quantization",
    "ignore:`torch.jit",
    "ignore:.*isinstance.treespec",
)

TOLERANCE = 5e-6


class Model(nn.Module):
    """Embedding, bidirectional GRU, LSTM with projection, a cell and a vanilla RNN."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.gru = nn.GRU(8, 6, bidirectional=True, batch_first=True)
        self.lstm = nn.LSTM(12, 10, 2, proj_size=4, batch_first=True, dropout=0.5)
        self.cell = nn.LSTMCell(4, 5)
        self.rnn = nn.RNN(5, 3)
        self.out = nn.Linear(3, 2)

    def forward(self, words: Any) -> Any:
        x, _ = self.gru(self.embedding(words))
        x, _ = self.lstm(x)
        h, _ = self.cell(x[:, -1])
        return self.out(self.rnn(h[None])[0])


@pytest.fixture
def model() -> Any:
    torch.manual_seed(1)
    return Model().eval()


WORDS = torch.arange(21).reshape(3, 7) % 20


@pytest.fixture(autouse=True)
def no_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


def flat(found: Any) -> list[Any]:
    """All tensors of an answer, in order."""
    if isinstance(found, rnn_utils.PackedSequence):
        return [each for each in found if each is not None]
    if isinstance(found, tuple):
        return [tensor for each in found for tensor in flat(each)]
    return [found]


def same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    mine, its = flat(found), flat(expected)
    assert len(mine) == len(its)
    for one, other in zip(mine, its, strict=True):
        assert type(one) is type(other)
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE)


def used(module: Any) -> bool:
    """Whether the kernels of this package have packed the module's weights."""
    return module.__dict__[STATE].packed is not None


# ---- the same results ------------------------------------------------------------------------------

MODULES = options_of_modules(dropout=st.sampled_from([0.0, 0.5]))


@given(
    options=MODULES,
    form=st.sampled_from(["batch", "one", "packed", "packed, unsorted", "strided"]),
    state=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_every_configuration_gives_what_pytorch_gives(
    options: dict[str, Any], form: str, state: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    own = module_of(options)
    converted = ft.convert(copy.deepcopy(own))
    steps, batch = 5, 3
    shape = (steps, batch) if form == "one" or not options["batch_first"] else (batch, steps)
    x: Any = torch.randn(*shape, options["input_size"])
    if form == "one":
        x = x[:, 0]
    elif form == "strided":
        x = torch.randn(*shape, 2 * options["input_size"])[..., ::2]
    elif form.startswith("packed"):
        lengths = torch.tensor([5, 3, 1] if form == "packed" else [2, 5, 3])
        x = rnn_utils.pack_padded_sequence(
            x, lengths, options["batch_first"], enforce_sorted=form == "packed"
        )
    hx = None
    if state:
        rows = options["num_layers"] * (1 + options["bidirectional"])
        middle = () if form == "one" else (batch,)
        width = getattr(own, "proj_size", 0) or options["hidden_size"]
        hx = torch.randn(rows, *middle, width)
        if options["kind"] == "LSTM":
            hx = (hx, torch.randn(rows, *middle, options["hidden_size"]))
    same(converted(x, hx), own(x, hx))
    assert used(converted)


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("given_state", [True, False])
def test_cells(kind: str, batched: bool, given_state: bool) -> None:
    own = getattr(nn, kind)(4, 5)
    converted = ft.convert(copy.deepcopy(own))
    middle = (3,) if batched else ()
    hx = None
    if given_state:
        hx = torch.randn(*middle, 5)
        hx = (hx, torch.randn(*middle, 5)) if kind == "LSTMCell" else hx
    x = torch.randn(*middle, 4)
    same(converted(x, hx), own(x, hx))
    assert used(converted)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_negative_control_other_weights_are_noticed(kind: str) -> None:
    own = getattr(nn, kind)(4, 5)
    converted = ft.convert(copy.deepcopy(own))
    blocks = converted.weight_hh_l0.data.chunk(4 if kind == "LSTM" else 3)
    converted.weight_hh_l0.data.copy_(torch.cat([blocks[1], blocks[0], *blocks[2:]]))
    x = torch.randn(5, 3, 4)
    with pytest.raises(AssertionError):
        same(converted(x), own(x))


def test_a_model_is_converted_in_place_and_back(model: Any) -> None:
    expected, before = model(WORDS), dict(model.named_parameters())
    names = list(model.state_dict())
    assert ft.convert(model) is model
    assert ft.left_alone(model) == {}
    same(model(WORDS), expected)
    for name in ("gru", "lstm", "cell", "rnn"):
        module = getattr(model, name)
        assert used(module)
        assert isinstance(module, getattr(nn, type(module).__name__))
    assert list(model.state_dict()) == names
    assert all(each is before[name] for name, each in model.named_parameters())
    assert ft.revert(model) is model
    assert type(model.lstm) is nn.LSTM
    assert STATE not in model.lstm.__dict__
    assert set(ft.left_alone(model).values()) == {"not converted"}
    assert torch.equal(model(WORDS), expected)


def test_hooks_copies_and_pickles(model: Any) -> None:
    seen: list[Any] = []
    model.lstm.register_forward_hook(lambda module, *_: seen.append(module))
    ft.convert(model)
    expected = model(WORDS)
    assert seen == [model.lstm]
    again = copy.deepcopy(model)
    assert type(again.lstm) is type(model.lstm)
    assert not used(again.lstm)
    same(again(WORDS), expected)
    model.lstm._forward_hooks.clear()
    same(pickle.loads(pickle.dumps(model))(WORDS), expected)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    same(torch.load(file, weights_only=False)(WORDS), expected)


# ---- weights that change ----------------------------------------------------------------------------


def other(module: Any) -> dict[str, Any]:
    return {name: torch.randn_like(each) for name, each in module.state_dict().items()}


def by_state_dict(module: Any) -> None:
    module.load_state_dict(other(module))


def by_hand(module: Any) -> None:
    module.weight_hh_l0.mul_(2)


def by_data(module: Any) -> None:
    module.weight_ih_l0.data.copy_(torch.randn_like(module.weight_ih_l0))


def by_other_data(module: Any) -> None:
    module.bias_ih_l0.data = torch.randn_like(module.bias_ih_l0)


def by_parameter(module: Any) -> None:
    module.weight_hh_l0 = nn.Parameter(torch.randn_like(module.weight_hh_l0))


def by_optimizer(module: Any) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(module.parameters(), 0.1).step()


def by_sharing(module: Any) -> None:
    module.share_memory()
    by_hand(module)


@pytest.mark.parametrize(
    "change",
    [by_state_dict, by_hand, by_data, by_other_data, by_parameter, by_optimizer, by_sharing],
)
def test_changed_weights_are_packed_again(change: Callable[[Any], None]) -> None:
    module, x = ft.convert(nn.LSTM(4, 5)), torch.randn(5, 3, 4)
    before = module(x)[0]
    packed = module.__dict__[STATE].packed
    module(x)
    assert module.__dict__[STATE].packed is packed
    change(module)
    found = module(x)
    assert module.__dict__[STATE].packed is not packed
    assert not torch.equal(found[0], before)
    same(found, ft.revert(module)(x))


def test_exchanged_weights_are_those_that_compute() -> None:
    module, x = ft.convert(nn.GRU(5, 7).eval()), torch.randn(4, 2, 5)
    before = module(x)[0]
    exchanged = {name: torch.randn_like(each) for name, each in module.named_parameters()}
    plain = nn.GRU(5, 7)
    plain.load_state_dict(exchanged)
    same(torch.func.functional_call(module, exchanged, (x,)), plain(x))
    assert torch.equal(module(x)[0], before)
    module._parameters["weight_hh_l0"] = nn.Parameter(torch.randn(21, 7))
    found = module(x)
    same(found, ft.revert(module)(x))


@pytest.mark.filterwarnings("ignore")
def test_a_parametrisation_after_conversion_is_followed() -> None:
    module, x = ft.convert(nn.GRU(5, 7).eval()), torch.randn(4, 2, 5)
    module(x)
    nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    before = module(x)[0]
    module.parametrizations.weight_hh_l0.original0.mul_(2)
    assert not torch.allclose(module(x)[0], before)


def test_a_gradient_of_exchanged_weights() -> None:
    module, x = ft.convert(nn.GRU(5, 7).requires_grad_(False)), torch.randn(4, 2, 5)
    wanted = {name: each.clone().requires_grad_() for name, each in module.named_parameters()}
    assert torch.func.functional_call(module, wanted, (x,))[0].requires_grad


def test_a_forward_gradient_is_pytorchs() -> None:
    forward_ad = torch.autograd.forward_ad
    module, x = ft.convert(nn.GRU(5, 7).requires_grad_(False)), torch.randn(4, 2, 5)
    with forward_ad.dual_level():
        y = module(forward_ad.make_dual(x, torch.ones_like(x)))[0]
        assert forward_ad.unpack_dual(y).tangent is not None


# ---- what PyTorch computes --------------------------------------------------------------------------


def test_a_gradient_of_the_input_alone() -> None:
    module = ft.convert(nn.GRU(4, 5).requires_grad_(False))
    x = torch.randn(5, 3, 4, requires_grad=True)
    module(x)[0].sum().backward()
    assert x.grad is not None
    assert used(module)


def test_other_types_are_left_to_pytorch() -> None:
    module = ft.convert(nn.LSTM(4, 5)).double()
    assert module(torch.randn(5, 3, 4).double())[0].dtype == torch.float64
    assert not used(module)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
def test_under_autocast_a_call_stays_float32(kind: Any) -> None:
    own = nn.GRU(4, 5)
    converted, x = ft.convert(copy.deepcopy(own)), torch.randn(5, 3, 4).to(kind)
    with torch.autocast("cpu", torch.bfloat16):
        same(converted(x), plainly(own, x.float()))
    assert used(converted)


def plainly(module: Any, *arguments: Any) -> Any:
    with torch.autocast("cpu", enabled=False):
        return module(*arguments)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_under_vmap_pytorch_computes() -> None:
    own, x = nn.RNNCell(4, 5), torch.randn(2, 3, 4)
    converted = ft.convert(copy.deepcopy(own))
    torch.testing.assert_close(torch.func.vmap(converted)(x), torch.func.vmap(own)(x))


class Subclass(nn.LSTM):
    pass


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Subclass(3, 4), "class of its own"),
        (lambda: nn.LSTM(3, 4).double(), "float64"),
        (lambda: nn.LSTM(3, 4, device="meta"), "meta"),
        (lambda: nn.utils.weight_norm(nn.LSTM(3, 4), "weight_hh_l0"), "weight_hh_l0 is computed"),
        (
            lambda: prune.random_unstructured(nn.GRU(3, 4), "weight_ih_l0", 0.5),
            "weight_ih_l0 is computed",
        ),
        (
            lambda: nn.utils.parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0"),
            "not PyTorch's own|class of its own",
        ),
        (lambda: torch.ao.nn.quantized.dynamic.LSTM(3, 4), "not PyTorch's own float module"),
    ],
)
def test_what_is_left_alone_is_said(make: Callable[[], Any], reason: str) -> None:
    model = nn.ModuleList([make()])
    kind = type(model[0])
    with pytest.warns(UserWarning, match="nothing to convert: 0: "):
        ft.convert(model)
    assert type(model[0]) is kind
    (said,) = ft.left_alone(model).values()
    assert __import__("re").search(reason, said), said


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(5, 3, 3),),
        (torch.zeros(5),),
        (torch.zeros(0, 3, 4),),
        (torch.zeros(5, 3, 4), (torch.zeros(1, 2, 5), torch.zeros(1, 3, 5))),
        (torch.zeros(5, 4), (torch.zeros(1, 3, 5), torch.zeros(1, 3, 5))),
        (torch.zeros(5, 3, 4), torch.zeros(1, 3, 5)),
        (torch.zeros(5, 3, 4).double(),),
        (torch.zeros(5, 3, 4).int(),),
    ],
)
def test_a_wrong_input_has_pytorchs_error(arguments: tuple[Any, ...]) -> None:
    own = nn.LSTM(4, 5)
    converted = ft.convert(copy.deepcopy(own))
    with pytest.raises(Exception) as expected:
        own(*arguments)
    with pytest.raises(type(expected.value)) as found:
        converted(*arguments)
    assert str(found.value) == str(expected.value)


def test_arguments_of_convert_are_checked() -> None:
    module = nn.LSTM(4, 5)
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        ft.convert(fr.LSTM(3, 4))
    with pytest.raises((TypeError, ValueError), match="threads"):
        ft.convert(module, threads=0)
    with pytest.raises(ValueError, match="backend"):
        ft.convert(module, backend="fortran")
    with pytest.raises(fr.UnsupportedError, match="threads must be 1"):
        ft.convert(module, threads=4, backend="numpy")
    assert type(module) is nn.LSTM
    with pytest.warns(UserWarning, match="no recurrent module"):
        ft.convert(nn.Linear(3, 4))


# ---- where it runs ------------------------------------------------------------------------------------


def test_inference_mode_and_memory_without_copies() -> None:
    own, x = nn.LSTM(4, 5), torch.randn(5, 3, 4)
    converted = ft.convert(copy.deepcopy(own))
    with torch.inference_mode():
        same(converted(x), own(x))
        created = ft.convert(nn.GRU(4, 5))
        created(x)
        assert used(created)


def test_several_threads_share_a_module() -> None:
    own, x = nn.LSTM(4, 5), torch.randn(5, 3, 4)
    converted, faults = ft.convert(copy.deepcopy(own)), []

    def run() -> None:
        with torch.no_grad():
            for _ in range(50):
                try:
                    same(converted(x), expected)
                except Exception as error:  # noqa: BLE001  seen by the test below
                    faults.append(error)

    expected = own(x)
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_child_runs_it() -> None:
    module, x = ft.convert(nn.LSTM(4, 5)), torch.randn(5, 3, 4)
    expected = module(x)[0].numpy().tobytes()
    child = os.fork()
    if not child:
        os._exit(0 if module(x)[0].numpy().tobytes() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_compiled_model_has_a_break_or_one_graph(model: Any) -> None:
    expected = model(WORDS)
    ft.convert(model)
    torch._dynamo.reset()
    same(torch.compile(model, backend="aot_eager")(WORDS), expected)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        same(torch.compile(model, fullgraph=True, backend="aot_eager")(WORDS), expected)
    torch._dynamo.reset()


def test_an_exported_model_has_the_operator(model: Any) -> None:
    expected = model(WORDS)
    exported = torch.export.export(ft.convert(model), (WORDS,))
    called = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert called.count("fusedrnn.run.default") == 4
    same(exported.module()(WORDS), expected)
    model.lstm.weight_hh_l0.data.mul_(3)
    assert not torch.equal(exported.module()(WORDS), expected)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_operator_is_what_it_declares(kind: str) -> None:
    module = getattr(nn, kind)(4, 5, bidirectional=True)
    names = " ".join(module._flat_weights_names)
    weights = [each.detach() for each in module._flat_weights]
    for x in (torch.randn(5, 3, 4), torch.randn(5, 4)):
        arguments = (
            x,
            None,
            None,
            None,
            None,
            weights,
            names,
            f"{kind.lower()} 0 1 auto full {{}}",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.library.opcheck(torch.ops.fusedrnn.run.default, arguments)


def test_numpy_is_seen_from_both_sides() -> None:
    """The output of a converted module is memory that NumPy made; it lives as long as the tensor."""
    y = ft.convert(nn.LSTM(4, 5))(torch.randn(5, 3, 4))[0]
    assert isinstance(y.numpy(), np.ndarray)
    assert y.is_contiguous()
