"""Model cards: what is refused and how it is said, one extending another, and the schema for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from mfdiag.errors import InputError
from mfdiag.models.cards.card_files import is_card, load_card, shipped_cards
from mfdiag.models.checkpoint import load_model

ROOT = Path(__file__).parents[3]
OWN = "network: {factory: 'net.py:Net', arguments: {hidden: 4}}\n"


def write(folder: Path, text: str, name: str = "own.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_card_of_one_line_is_this_projects_convention(tmp_path: Path) -> None:
    card = load_card(write(tmp_path, "network: {factory: 'net.py:Net'}"))
    assert card.call.arguments == ["x", "r", "t"] and card.weights.raw == "" and card.prediction == "u"
    assert card.axes == {"source": "gaussian", "coupling": "independent", "path": "linear", "prediction": "u"}


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("bla: 3", 2, "bla: Unknown field 'bla'. Known: about, call, "),
        (
            "convention:\n  tim_clamp: [0, 1]",
            3,
            "convention.tim_clamp: Unknown field 'tim_clamp'. Did you mean 'time_c",
        ),
        ("convention: {direction: D2}", 2, "convention.direction: It should be 'D0' or 'D1', but got 'D2'."),
        ("call:\n  arguments:\n    - x\n    - [t, s]", 5, "call.arguments.1: Unknown word 's'"),
        ("call: {keywords: {w: {each: much}}}", 2, "call.keywords.w: expected {each: number}"),
        ("call: {arguments: [x, {cat: []}]}", 2, "call.arguments.1: expected {cat: [WORD, ...]}"),
        ("call: {arguments: [x, {cat: [t, s]}]}", 2, "call.arguments.1: Unknown word 's'"),
        ("call: {arguments: [{cat: [x, t]}]}", 1, "an average needs r or h"),
        ("call: [x]", 2, "call: It should be a valid dictionary"),
        ("call: {arguments: [x, r]}", 1, "call must pass x and t"),
        ("call: {arguments: [x, t]}", 1, "set output.average: false"),
        ("call: {arguments: [x, t, r, y]}", 1, "call must pass y exactly if conditioning.kind is index or one_hot"),
        ("conditioning: {kind: index}", 2, "conditioning: kind index or one_hot needs classes"),
        (
            "conditioning: {classes: -1}",
            2,
            "conditioning.classes: It should be greater than or equal to 0, but got -1.",
        ),
        ("output: {prediction: score}", 2, "output.prediction: Unknown prediction 'score'."),
        ("objective: {times: logit}", 2, "objective.times: Unknown time sampler 'logit'."),
        ("objective: {weighting: 'adaptive:-1'}", 2, "objective.weighting: Bad weighting 'adaptive:-1'"),
        ("convention: {path: line}", 2, "convention.path: Unknown path 'line'."),
        ("convention: {time_clamp: [1, 0]}", 1, "time_clamp must be two times 0 <= low < high <= 1, but got 1, 0."),
        ("convention: {direction: D1}\noutput: {prediction: denoised}", 1, "which have no direction D1"),
        ("output: {prediction: denoised}", 1, "an infinite noise level at t = 1: set a time_clamp below 1"),
        ("weights: {raw: 3}", 2, "weights.raw: It should be a valid string, but got 3."),
        ("extends: nothing.yaml", 2, "extends: "),
        ("extends: own.yaml", 2, "extends this card in turn"),
        ("format: 2", 2, "format: It should be 1, but got 2."),
    ],
)
def test_errors_name_file_line_and_field(tmp_path: Path, text: str, line: int, problem: str) -> None:
    path = write(tmp_path, OWN + text)
    with pytest.raises(InputError) as caught:
        load_card(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}, ") and problem in message and "\n" not in message, message


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1: expected YAML, but .* Correct the file"):
        load_card(write(tmp_path, "a: [1"))
    with pytest.raises(InputError, match=r"expected a mapping with the fields of a model card: format, extends, about"):
        load_card(write(tmp_path, "3"))
    with pytest.raises(InputError, match=r"network: this field is required, but it is missing. The fields are"):
        load_card(write(tmp_path, "about: nothing"))
    with pytest.raises(InputError, match=r"expected pkg.module:callable or FILE.py:callable, but got 'Net'"):
        load_card(write(tmp_path, "network: {factory: Net}"))
    with pytest.raises(InputError, match=r"Unknown model card 'nothing.yaml'.* there is no file nothing.yaml"):
        load_card("nothing.yaml")
    assert is_card("a/b.yml") and not is_card("a.b:c") and not is_card(None)


def test_extending_merges_fields_and_errors_name_the_file_they_are_in(tmp_path: Path) -> None:
    (tmp_path / "cards").mkdir()
    write(tmp_path / "cards", OWN + "call: {arguments: [x, t, h], time_scale: 1000}\nabout: below\n", "base.yaml")
    write(tmp_path / "cards", "extends: base.yaml\nnetwork: {arguments: {depth: 2}}", "middle.yaml")
    own = write(tmp_path, "extends: cards/middle.yaml\ncall: {arguments: [t, x, r]}\nabout: above")
    card = load_card(own)
    assert card.network.arguments == {"hidden": 4, "depth": 2} and card.about == "above"
    assert card.call.arguments == ["t", "x", "r"] and card.call.time_scale == 1000
    assert card.factory == "net.py:Net"  # in the working directory, until there is one beside the card
    (tmp_path / "net.py").touch()
    assert load_card(own).factory == f"{tmp_path / 'net.py'}:Net"
    write(tmp_path / "cards", OWN + "call: {time_scale: thousand}", "base.yaml")
    with pytest.raises(InputError, match=r"base.yaml, line 2, call.time_scale: It should be a valid number"):
        load_card(own)


def test_a_file_comes_before_a_shipped_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(iter(shipped_cards()))
    write(tmp_path, OWN + "about: mine", name)
    assert load_card(name).about != "mine"
    monkeypatch.chdir(tmp_path)
    assert load_card(name).about == "mine"


@pytest.mark.parametrize("name", shipped_cards())
def test_shipped_cards_say_what_they_are(name: str) -> None:
    card = load_card(name)
    assert card.about and "\n" not in card.about and card.source.startswith("https://")
    assert card.objective.estimator and card.objective.times and card.data.shape


def test_the_schema_for_editors_is_current_and_takes_the_shipped_cards() -> None:
    from mfdiag.models.cards.docs import PAGE, SCHEMA, markdown, schema

    assert (ROOT / SCHEMA).read_text() == schema() and (ROOT / PAGE).read_text() == markdown()
    known = json.loads(schema())
    for path in shipped_cards().values():
        assert yaml.safe_load(path.read_text()).keys() <= known["properties"].keys()


class Net(nn.Module):
    """A trained layer, a frozen one, and a head that a file may lack."""

    def __init__(self, hidden: int = 2) -> None:
        super().__init__()
        self.body = nn.Linear(hidden, hidden)
        self.position = nn.Parameter(torch.ones(hidden), requires_grad=False)
        self.head = nn.Linear(hidden, 1)


def loaded(folder: Path, content: dict[str, Any], key: str = "raw", **sections: Any) -> nn.Module:
    own = {"network": {"factory": f"{__file__}:Net", **sections.pop("network", {})}, **sections}
    torch.save(content, folder / "file.pt")
    return load_model(folder / "file.pt", model=write(folder, yaml.safe_dump(own)), weights=key).module.get_submodule(
        "network"
    )


def test_names_are_stripped_and_heads_may_be_absent_and_extras_unused(tmp_path: Path) -> None:
    state = {name: value + 1 for name, value in Net().state_dict().items()}
    body = {f"module.{name}": value for name, value in state.items() if not name.startswith("head")}
    content = {"student": {**body, "other.weight": torch.ones(1)}}
    weights = {"raw": "student", "strip": ["module."], "absent": ["head.*"], "unused": ["other.*"]}
    network = loaded(tmp_path, content, weights=weights)
    assert torch.equal(network.body.weight, state["body.weight"]) and torch.equal(network.position, state["position"])
    with pytest.raises(
        InputError,
        match=r"Net, but they do not \(2 missing: head.weight, head.bias\); pass another card, or correct own",
    ):
        loaded(tmp_path, content, weights=weights | {"absent": []})
    with pytest.raises(InputError, match=r"1 unexpected: other.weight"):
        loaded(tmp_path, content, weights=weights | {"unused": []})
    with pytest.raises(InputError, match="but it has 'student'; pass one of these"):
        loaded(tmp_path, content, weights=weights | {"raw": "model"})


def test_frozen_parameters_are_buffers(tmp_path: Path) -> None:
    network = loaded(tmp_path, Net().state_dict())
    assert {"position"} == dict(network.named_buffers()).keys() and "position" not in dict(network.named_parameters())


def test_constructor_arguments_from_the_file(tmp_path: Path) -> None:
    from argparse import Namespace

    content = {"model": Net(3).state_dict(), "args": Namespace(size=24)}
    place = {"arguments": {"hidden": 2}, "arguments_from": {"hidden": "args.size / 8"}}
    assert loaded(tmp_path, content, weights={"raw": "model"}, network=place).body.in_features == 3
    content = {"model": Net(2).state_dict()}
    assert loaded(tmp_path, content, weights={"raw": "model"}, network=place).body.in_features == 2


def test_numbered_tensors_are_the_trained_parameters_in_order(tmp_path: Path) -> None:
    net = Net()
    trained = [p for p in net.parameters() if p.requires_grad]
    shadows = {f"shadow.{k}": p + k + 1 for k, p in enumerate(trained)}
    content = {"model": {**{f"net.{name}": value for name, value in net.state_dict().items()}, **shadows}}
    weights = {"raw": "model.net", "ema": "model.shadow"}
    network = loaded(tmp_path, content, "ema", weights=weights)
    for k, (parameter, value) in enumerate(zip(network.parameters(), trained, strict=True)):
        assert torch.equal(parameter, value + k + 1)
    assert torch.equal(network.position, net.position)
    del content["model"]["shadow.3"]
    with pytest.raises(InputError, match=r"each of the 4 trained parameters of Net, .* but there are 3"):
        loaded(tmp_path, content, "ema", weights=weights)
