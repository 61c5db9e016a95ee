"""What a model card says its network was trained on, as defaults of a command's options."""

from __future__ import annotations

from typing import Any

from mfdiag.estimators import find_estimator
from mfdiag.measures.chosen import default_estimators
from mfdiag.models.cards.card_files import errors_in_field, is_card, load_card
from mfdiag.usercode import is_user_code

__all__ = ["card_record", "objective_of"]


def card_record(model: str | None) -> dict[str, Any]:
    """The whole card that --model names, for the manifest, under "card"; empty where it names none."""
    return {"card": load_card(model).model_dump(mode="json")} if model is not None and is_card(model) else {}


def objective_of(model: str | None, table: str) -> dict[str, Any]:
    """Option -> value for a command whose --model is a card; empty for any other.

    The card's estimator comes before those that are measured anyway. The closed forms of table `coefficient` take no
    weight, the plane of beta and gamma no estimator, and a density of times just one.
    """
    if model is None or not is_card(model):
        return {}
    card = load_card(model)
    told: dict[str, Any] = {"guidance": card.guidance, **card.objective.model_dump()}
    if told["estimator"] is not None:
        if not is_user_code(told["estimator"]):
            with errors_in_field(model, "objective.estimator"):
                find_estimator(told["estimator"])
        others = () if table == "times" else default_estimators(table)
        told["estimator"] = list(dict.fromkeys([told["estimator"], *others]))
    left_out = {"coefficient": ("weighting", "estimator"), "sweep": ("estimator",)}.get(table, ())
    return {name: value for name, value in told.items() if value is not None and name not in left_out}
