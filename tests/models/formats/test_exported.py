"""torch.export files: the same numbers as the network's own code, and nothing in them is run."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import mfdiag
from mfdiag.errors import InputError
from mfdiag.models.checkpoint import load_model
from mfdiag.models.formats.containers import read_container
from mfdiag.models.inspection import inspect_checkpoint
from mfdiag.models.networks.dit import DiT
from mfdiag.models.networks.mlp import MLP
from tests.helpers import randomised
from tests.models.formats.test_containers import rewrite


class Constants(nn.Module):
    """A constant, a persistent buffer and one that is not, several outputs and integers of the batch's length."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("persistent", torch.arange(2.0))
        self.register_buffer("transient", torch.ones(2), persistent=False)

    def forward(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        first, second = self.norm(x).split(1, dim=1)
        largest = torch.stack([first, second], 2).max(dim=2).values
        x = x.reshape(x.shape[0] * 2).reshape(-1, 2) + torch.tensor([1.0, 2.0]) + largest
        return x * self.persistent + torch.full((x.shape[0], 1), 0.5) * self.transient * (t - r).unsqueeze(1)


def exported(path: Path, net: nn.Module, shape: tuple[int, ...], labels: bool, *, decompose: bool = False) -> Path:
    inputs = arguments(shape, labels, 3)
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(net, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    torch.export.save(program.run_decompositions() if decompose else program, path)
    return path


def dit() -> nn.Module:
    return DiT(channels=1, size=4, patch=2, width=8, depth=1, heads=2, num_classes=3)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = {
    "mlp": (lambda: MLP(2, hidden=4, depth=1), (2,), False),
    "dit": (dit, (1, 4, 4), True),
    "constants": (Constants, (2,), False),
}


@pytest.fixture(scope="module", params=["mlp", "dit", "constants", "constants decomposed"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, nn.Module, Any]:
    """A network and what is read from its exported program; the shape of a sample and whether it takes labels."""
    name, _, decomposed = request.param.partition(" ")
    make, shape, labels = NETWORKS[name]
    torch.manual_seed(0)
    net = randomised(make()).double().eval()
    path = exported(tmp_path_factory.mktemp("pt2") / "net.pt2", net, shape, labels, decompose=bool(decomposed))
    return net, load_model(path).module, (shape, labels)


def arguments(shape: tuple[int, ...], labels: bool, n: int) -> tuple[Tensor, ...]:
    torch.manual_seed(n)
    x, r, t = (torch.randn(n, *size, dtype=torch.float64) for size in (shape, (), ()))
    return (x, r, t, *([torch.randint(0, 3, (n,))] if labels else []))


@pytest.mark.parametrize("n", [1, 5])
def test_values_derivatives_and_gradients_are_the_networks_own(pair: tuple[nn.Module, nn.Module, Any], n: int) -> None:
    net, program, drawn = pair
    x, r, t, *y = arguments(*drawn, n)
    direction = (torch.randn_like(x), torch.ones_like(t))

    def along(u: nn.Module) -> Tensor:
        return jvp(lambda x, t: u(x, r, t, *y), (x, t), direction)[1]

    def gradients(u: nn.Module) -> dict[str, Tensor]:
        parameters = {name: value.detach() for name, value in u.named_parameters()}

        def loss(parameters: dict[str, Tensor], *inputs: Tensor) -> Tensor:
            return functional_call(u, parameters, tuple(value[None] for value in inputs)).square().sum()

        return vmap(grad(loss), (None, *[0] * (3 + len(y))))(parameters, x, r, t, *y)

    with sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(program(x, r, t, *y), net(x, r, t, *y))
        torch.testing.assert_close(along(program), along(net))
        torch.testing.assert_close(gradients(program), gradients(net))


def test_names_and_labels_are_the_networks_own(pair: tuple[nn.Module, nn.Module, Any]) -> None:
    net, program, (_, labels) = pair
    assert list(dict(program.named_parameters())) == list(dict(net.named_parameters()))
    assert program.state_dict().keys() == net.state_dict().keys()
    assert program.num_classes == (4 if labels else 0)  # with the row of the null label


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return randomised(MLP(2, hidden=4, depth=1)).double()


@pytest.fixture(scope="module")
def template(small: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return exported(tmp_path_factory.mktemp("pt2") / "n.pt2", small, (2,), False).read_bytes()


@pytest.fixture
def saved(tmp_path: Path, template: bytes) -> Path:
    (tmp_path / "net.pt2").write_bytes(template)
    return tmp_path / "net.pt2"


def test_measured_as_the_network_itself(saved: Path, small: nn.Module) -> None:
    options: dict[str, Any] = {"tables": ["variance"], "estimators": ["meanflow"], "samples": 64, "by_layer": False}
    own, exported_table = (
        mfdiag.measure(u, "two_moons", **options, dtype=torch.float64)["variance"].query("layer == 'all'")
        for u in (small, load_model(saved).module)
    )
    assert dict(zip(exported_table.quantity, exported_table.value, strict=True)) == {
        quantity: pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True)
        for quantity, value in zip(own.quantity, own.value, strict=True)
    }


def test_inspect_reads_headers_alone(saved: Path) -> None:
    inspection = inspect_checkpoint(saved)
    assert (
        inspection.container == "torch.export"
        and inspection.weights[0].parameters == 30
        and inspection.proposal is None
    )
    assert any("a program of x [n, 2], r [n], t [n]" in note for note in inspection.notes)


def test_fixed_batches_and_other_signatures_are_refused(tmp_path: Path) -> None:
    path, net = tmp_path / "net.pt2", MLP(2, hidden=4, depth=1)
    torch.export.save(torch.export.export(net, (torch.ones(3, 2), torch.ones(3), torch.ones(3))), path)
    with pytest.raises(InputError, match=r"fixed to x \[3, 2\], r \[3\], t \[3\]; export it again with dynamic_shapes"):
        load_model(path)
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(3, 2),)), path)
    with pytest.raises(InputError, match=r"but it takes input and has 1 outputs"):
        load_model(path)
    labelled = load_model(exported(path, dit().double().eval(), (1, 4, 4), True)).module
    with pytest.raises(InputError, match="takes labels"):
        labelled(*arguments((1, 4, 4), False, 1))


def edited(path: Path, place: str, change: Callable[[Any], Any]) -> None:
    """The archive again, with the JSON record `place` changed."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith(place))
        content = json.loads(archive.read(name))
    change(content)
    rewrite(path, {place: json.dumps(content).encode()})


def test_randomness_is_refused(tmp_path: Path) -> None:
    net = MLP(2, hidden=4, depth=1).double()
    net.layers.append(nn.Dropout(0.5))
    with pytest.raises(InputError, match=r"has torch\.ops\.aten\.dropout\.default; call eval\(\) before"):
        load_model(exported(tmp_path / "train.pt2", net, (2,), False))
    load_model(exported(tmp_path / "eval.pt2", net.eval(), (2,), False))


def node(content: dict[str, Any]) -> dict[str, Any]:
    return content["graph_module"]["graph"]["nodes"][0]


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.set_.source_Storage",
        "torch.ops.aten._cudnn_init_dropout_state.default",
        "torch.ops.aten.__class__.mro",
        "torch.ops.aten.unsqueeze.__init__",
        "torch.ops.higher_order.cond",
        "torch.ops.profiler._record_function_enter.default",
        "torch.load",
        "os.system",
        "_operator.attrgetter",
    ],
)
def test_other_operators_are_refused(saved: Path, target: str) -> None:
    edited(saved, "models/model.json", lambda content: node(content).update(target=target))
    with pytest.raises(InputError, match="a program of common ATen operators"):
        load_model(saved)


def test_sizes_written_as_code_are_not_evaluated(saved: Path, tmp_path: Path) -> None:
    """torch.export.load evaluates this text with sympy, and so as Python."""
    planted = tmp_path / "planted"

    def change(content: dict[str, Any]) -> None:
        sizes = content["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = f"__import__('pathlib').Path({str(planted)!r}).touch()"

    edited(saved, "models/model.json", change)
    load_model(saved).module(*arguments((2,), False, 2))
    inspect_checkpoint(saved)
    assert not planted.exists()


def test_older_formats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("version", "8.8")
    with pytest.raises(InputError, match="has an older one"):
        read_container(path, load=False)


def test_pickled_payloads_are_refused(saved: Path) -> None:
    edited(
        saved,
        "data/weights/model_weights_config.json",
        lambda content: content["config"]["layers.0.bias"].update(use_pickle=True),
    )
    for load in (False, True):
        with pytest.raises(InputError, match=r"layers\.0\.bias is a pickled object; mfdiag runs no code"):
            read_container(saved, load=load)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_descriptions_of_any_other_form_are_refused(
    data: st.DataObject, template: bytes, tmp_path_factory: Any
) -> None:
    """Cut an entry out of the description anywhere, or put something else there: it loads or is refused."""
    path = tmp_path_factory.mktemp("odd") / "net.pt2"
    path.write_bytes(template)
    place = data.draw(st.sampled_from(["models/model.json", "data/weights/model_weights_config.json"]))

    def change(content: Any) -> None:
        while True:
            keys = list(content) if isinstance(content, dict) else list(range(len(content)))
            key = data.draw(st.sampled_from(keys))
            inner = content[key]
            if not (isinstance(inner, dict | list) and inner) or data.draw(st.integers(0, 5)) == 0:
                content[key] = data.draw(st.sampled_from([None, 0, -1, 2**40, "x", [], {}, [{}], {"as_int": 3}]))
                return
            content = inner

    edited(path, place, change)
    try:
        load_model(path).module(*arguments((2,), False, 2))
    except (InputError, RuntimeError):  # operators themselves raise RuntimeError
        return
