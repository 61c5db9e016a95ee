"""How a network without a model card is called, as the names of its own parameters say."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any, NamedTuple

from mfdiag.errors import InputError

__all__ = ["DOCUMENTED_CALL", "NetworkCall", "call_of", "parameters_of", "possible_conditions", "word_of"]

DOCUMENTED = ("x", "r", "t", "y")
_NAMES = {  # word of a call -> names that tell it, without underscores and in lower case
    "x": "x z xt zt sample samples input inputs noisy noisysample noisyinput image images latent latents hiddenstates",
    "t": "t time times timestep timesteps sigma sigmas noiselevel noiselevels noiselabels tcur curt tnow",
    "r": "r rtime timer rtimestep timestepr tnext nextt timenext nexttime timestepnext nexttimestep sigmanext "
    "nextsigma targettime targettimestep",
    "h": "h dt delta deltat tdelta deltatime timedelta gap interval stepsize tminusr",
    "y": "y label labels classlabel classlabels classid classids classes",
}
_WORDS = {name: word for word, names in _NAMES.items() for name in names.split()}
_CONDITIONS = ("cond", "condition", "conditions")  # labels only where no other parameter has a name of labels
_EITHER_TIME = re.compile(  # a time, but not which one: repositories use these for both ends
    r"s|tau|(s|t|tau|time|times|timestep|sigma)\d|"
    r"(.*_)?(start|end|from|to|src|dst|prev|previous|next|cur|current|target|begin|stop)(_.*)?|"
    r"(t|time|timestep|sigma)(start|end|from|to|src|dst|prev|begin|stop)"
)
_BOTH_TIMES = "call: {arguments: [x, {cat: [r, t]}]}"
_MEANING = {"x": "x_t", "t": "t", "r": "r", "h": "t - r", "y": "labels"}
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class NetworkCall(NamedTuple):
    """How a network is called: (parameter, word) of each argument; those in `keywords` are passed by name.

    `labels_tell` is whether the parameter of the labels has a name that says so. `conditions` are parameters that
    receive the array of their own name beside the samples. `optional` are parameters with the default None that the
    call does not pass, and whose names say nothing.
    """

    arguments: tuple[tuple[str, str], ...]
    keywords: tuple[tuple[str, str], ...] = ()
    labels_tell: bool = True
    conditions: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def words(self) -> set[str]:
        """The words that the call passes."""
        return {word for _, word in (*self.arguments, *self.keywords)}

    @property
    def documented(self) -> bool:
        """Whether it is the documented call (x, r, t, labels), all of them by position."""
        return not (self.keywords or self.conditions) and tuple(word for _, word in self.arguments) == DOCUMENTED

    def parameter_of(self, word: str) -> str:
        """The parameter that receives a word."""
        return next(name for name, passed in (*self.arguments, *self.keywords) if passed == word)

    def __str__(self) -> str:
        words = [f"{name} = {_MEANING[word]}" for name, word in (*self.arguments, *self.keywords)]
        return ", ".join([*words, *(f"{name} = {name} of the data" for name in self.conditions)])


DOCUMENTED_CALL = NetworkCall(tuple((word, word) for word in DOCUMENTED), labels_tell=False)


def call_of(function: Callable[..., Any], name: str, conditions: Collection[str] | None = ()) -> NetworkCall:
    """How a network is called, by the names of its parameters.

    Names that tell are used. Where none contradicts the documented order (x, r, t, labels), that order is used.

    Args:
        function: The network's forward, or another method of it.
        name: What errors call it.
        conditions: Names of the arrays beside the samples. None if the data are not known yet: parameters without a
            default that mfdiag has nothing else for are then taken as conditions.

    Returns:
        The call.

    Raises:
        InputError: If the names contradict the call or do not decide it; the error has the lines of a card that do.
    """
    parameters = parameters_of(function)
    if parameters is None:
        return DOCUMENTED_CALL
    return _Reading(name, parameters, conditions).call()


def possible_conditions(function: Callable[..., Any]) -> tuple[str, ...]:
    """The parameters of a network's forward that may receive arrays of their names: all but the point and times."""
    named = [p.name for p in parameters_of(function) or () if p.kind in (*_POSITIONAL, Parameter.KEYWORD_ONLY)]
    words = {name: _WORDS.get(_plain(name)) for name in named}
    return tuple(name for name in named if words[name] is None or _is_second_point(name, words))


def parameters_of(function: Callable[..., Any]) -> list[Parameter] | None:
    """The parameters of a function, those of scripted and traced code among them; None if it does not say them."""
    schema = getattr(function, "schema", None)
    if schema is not None:
        return [
            Parameter(
                argument.name,
                Parameter.KEYWORD_ONLY if argument.kwarg_only else Parameter.POSITIONAL_OR_KEYWORD,
                default=argument.default_value if argument.has_default_value() else Parameter.empty,
            )
            for argument in schema.arguments
            if argument.name != "self"
        ]
    try:
        return list(signature(function).parameters.values())
    except (TypeError, ValueError):  # functions of extensions have no signature
        return None


def word_of(name: str) -> str | None:
    """The word of a call that the name of a parameter tells: x, r, t, h or y; None where it tells nothing."""
    return _WORDS.get(_plain(name))


def _is_second_point(name: str, words: Mapping[str, str | None]) -> bool:
    """Whether a parameter has a name of points after another one that has, as `image` in (x, r, t, image)."""
    return words[name] == "x" and next(other for other, word in words.items() if word == "x") != name


def _is_either_time(name: str) -> bool:
    """Whether a name is that of a time, but does not say which one."""
    return any(_EITHER_TIME.fullmatch(text) is not None for text in (_plain(name), name.lower()))


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


class _Reading:
    """The parameters of one function, and the word that each stands for."""

    def __init__(self, name: str, parameters: Sequence[Parameter], conditions: Collection[str] | None) -> None:
        self.name, self.known = name, conditions
        self.text = f"{name}({', '.join(str(p).split(':')[0] for p in parameters)})"
        self.variadic = any(p.kind is Parameter.VAR_POSITIONAL for p in parameters)
        self.keywords = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
        self.parameters = [p for p in parameters if p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
        self.words = {p.name: _WORDS.get(_plain(p.name)) for p in self.parameters}
        self.conditions = [p.name for p in self.parameters if self._is_condition(p)]
        self.words.update(dict.fromkeys(self.conditions))
        self.positional = [p for p in self.parameters if p.kind in _POSITIONAL and p.name not in self.conditions]
        if "y" not in self.words.values():
            for p in self.parameters:
                if _plain(p.name) in _CONDITIONS and p.name not in self.conditions:
                    self.words[p.name] = "y"
                    break
        if self.positional and self.words[self.positional[0].name] is None and "x" not in self.words.values():
            self.words[self.positional[0].name] = "x"

    def _is_condition(self, parameter: Parameter) -> bool:
        """Whether a parameter receives the array of its name. The point and times never do."""
        name = parameter.name
        return name in (self.known or ()) and (self.words[name] in (None, "y") or _is_second_point(name, self.words))

    def call(self) -> NetworkCall:
        """As `call_of`."""
        if not self._documented_order():
            return self._by_name()
        first = [p.name for p in self.positional[:4]]
        if len(first) < 4:
            labeled = self.variadic
            first += [f"argument {number}" for number in range(len(first) + 1, 5)]
        else:
            labeled = self._can_be_labels(self.positional[3])
        if not labeled and "y" in self.words.values():  # further back, or passed by name
            return self._by_name()
        if self.variadic and self.conditions:
            remedy = f"`call: {{arguments: [x, r, t], conditions: {{{self.conditions[0]}: ARRAY}}}}`"
            raise self._error("what *args are beside arrays of the data, but they can be anything", remedy)
        names = dict(zip(first, DOCUMENTED if labeled else DOCUMENTED[:3], strict=False))
        conditions = self._conditions_beside(names)
        labels_tell = self.words.get(first[3]) == "y"
        if not self.conditions:
            return NetworkCall(tuple(names.items()), (), labels_tell, conditions, self._optional(names))
        return self._in_order(names, conditions)._replace(labels_tell=labels_tell)

    def _documented_order(self) -> bool:
        """Whether no name contradicts x, r, t, in this order."""
        names = [p.name for p in self.positional[:3]]
        if len(names) < 3 and not self.variadic:
            return False
        agree = all(self.words[name] in (None, word) for name, word in zip(names, DOCUMENTED, strict=False))
        return agree and not any(self.words[n] is None and _is_either_time(n) for n in names)

    def _can_be_labels(self, parameter: Parameter) -> bool:
        word = self.words[parameter.name]
        unnamed = word is None and "y" not in self.words.values() and parameter.default in (None, Parameter.empty)
        return word == "y" or (unnamed and not self.known)  # where arrays have names, labels must have one too

    def _by_name(self) -> NetworkCall:
        chosen: dict[str, Parameter] = {}
        for p in self.parameters:
            word = self.words[p.name]
            if word is not None:
                chosen.setdefault(word, p)
        self._refuse_undecided(chosen)
        if "r" in chosen and "h" in chosen and chosen["h"].default is not Parameter.empty:
            del chosen["h"]  # r and t say it already
        names = {p.name: word for word, p in chosen.items()}
        return self._in_order(names, self._conditions_beside(names))

    def _in_order(self, names: dict[str, str], conditions: tuple[str, ...]) -> NetworkCall:
        """The call that passes `names` by position as long as no other parameter comes before."""
        arguments: list[tuple[str, str]] = []
        keywords: list[tuple[str, str]] = []
        leading = True
        for p in self.parameters:
            leading = leading and p.name in names and p.kind in _POSITIONAL
            if p.name in names:
                (arguments if leading else keywords).append((p.name, names[p.name]))
        return NetworkCall(
            tuple(arguments), tuple(keywords), conditions=conditions, optional=self._optional({*names, *conditions})
        )

    def _optional(self, passed: Collection[str]) -> tuple[str, ...]:
        """Parameters with the default None that are not passed, and whose names say nothing."""
        others = [p for p in self.parameters if p.name not in passed and self.words[p.name] is None]
        return tuple(p.name for p in others if p.default is None and p.kind is not Parameter.POSITIONAL_ONLY)

    def _conditions_beside(self, names: Collection[str]) -> tuple[str, ...]:
        """The parameters that receive arrays. Refuses others without a default, unless the data are not known yet."""
        others = [p for p in self.parameters if p.name not in names and p.name not in self.conditions]
        if self.known is None:
            return tuple(p.name for p in others if p.default is Parameter.empty)
        self._refuse_required(others)
        return tuple(self.conditions)

    def _refuse_undecided(self, chosen: dict[str, Parameter]) -> None:
        """Refuse names that do not say which parameter is x, which is t, and which is r or t - r."""
        either = [p.name for p in self.parameters if self.words[p.name] is None and _is_either_time(p.name)]
        has_interval = bool({"r", "h"} & chosen.keys())
        if {"x", "t"} <= chosen.keys() and has_interval and not self.variadic:
            return
        if either or (self.variadic and ("t" in chosen or has_interval)):
            what = f"{', '.join(either)} can be either" if either else "*args can be anything"
            problem = f"which is the time t of the point and which is r, but {what}"
            remedy = "`call: {arguments: [x, r, t]}` or `call: {arguments: [x, t, r]}`"
        elif {"x", "t"} <= chosen.keys() and self._unnamed_required(chosen):
            names = ", ".join(self._unnamed_required(chosen))
            problem = f"which is r, or t - r, but {names} does not"
            remedy = "`call: {arguments: [x, t, r]}` or `call: {arguments: [x, t, h]}`, where h = t - r"
        elif {"x", "t"} <= chosen.keys():
            problem = "that it takes an interval, but they have t and neither r nor t - r"
            remedy = "`call: {arguments: [x, t]}` and `output: {average: false}` if it predicts a velocity at t"
            remedy += f", with `{_BOTH_TIMES}` if {chosen['t'].name} is a tensor [n, 2] of both times"
        else:
            problem = "which are x, r and t, but they do not"
            remedy = self._call_by_form()
        raise self._error(problem, remedy)

    def _call_by_form(self) -> str:
        """The call of a network whose names say nothing, as far as the number of its parameters tells it."""
        if self.keywords:
            return "`call: {arguments: [x], keywords: {r: r, t: t}}`, under the names that it takes"
        if len(self.positional) == 1 and not self.variadic:
            return (
                "`call: {arguments: [{cat: [x, r, t]}]}` if it takes one tensor, with `[{x: x, r: r, t: t}]` if it "
                "takes a dictionary, in its own order and names"
            )
        if len(self.positional) == 2 and not self.variadic:
            return f"`{_BOTH_TIMES}` if it takes a tensor [n, 2] of both times, with `[x, [r, t]]` if it takes a tuple"
        return "`call: {arguments: [x, r, t]}`, in the order that it takes them"

    def _unnamed_required(self, chosen: dict[str, Parameter]) -> list[str]:
        known = {p.name for p in chosen.values()}
        return [p.name for p in self.parameters if p.name not in known and p.default is Parameter.empty]

    def _refuse_required(self, others: Sequence[Parameter]) -> None:
        """Refuse parameters without a default that mfdiag has nothing for."""
        names = [p.name for p in others if p.default is Parameter.empty]
        if names:
            value = ", ".join(f"{name}: VALUE" for name in names)
            arrays = ", ".join(f"{name}: {self._array_for(name)}" for name in names)
            raise self._error(
                f"that it needs x, r, t, labels and arrays of the data alone, but it also needs {', '.join(names)}",
                f"`call: {{arguments: [x, r, t], keywords: {{{value}}}}}` or `conditions: {{{arrays}}}`, in the order "
                f"that it takes them, add arrays of {'these names' if len(names) > 1 else 'this name'} to --data",
            )

    def _array_for(self, name: str) -> str:
        """What a card passes as a parameter: the arrays NAME.* of nested items as a dictionary, or any array."""
        parts = [array for array in sorted(self.known or ()) if array.startswith(f"{name}.")]
        inside = ", ".join(f"{array.removeprefix(f'{name}.')}: {array}" for array in parts)
        return f"{{{inside}}}" if parts else "ARRAY"

    def _error(self, problem: str, remedy: str) -> InputError:
        return InputError(
            f"Expected the parameters of {self.text} to say {problem}; pass --model a card with {remedy}, or rename "
            "the parameters."
        )
