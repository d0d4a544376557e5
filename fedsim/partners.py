"""Check the plug-ins of a scenario: do they exist, do their options fit, do they fit together."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedsim import registry
from fedsim.chain import FEEDBACK, build_chain, check_downlink, feedback_section
from fedsim.devices import fleet
from fedsim.errors import FedsimError, PluginError
from fedsim.lgreco import Planner

if TYPE_CHECKING:
    from fedsim.scenario import Plugin, Scenario

ENGINE_SUPPLIED = {
    "fraction_train": "Set clients_per_round or fraction_train at the top level",
    "fraction_evaluate": "Set evaluate.fraction_evaluate",
    "min_train_nodes": "Set clients_per_round at the top level",
    "min_evaluate_nodes": "Set evaluate.fraction_evaluate",
    "min_available_nodes": "Set num_clients",
}
"""Arguments of Flower strategies that the scenario's own keys decide."""
PACKED_KINDS = ("seeds", "projection")
"""Kinds of update that are packed by their method, not by the scenario's codecs."""
FLOWER = "flwr.serverapp.strategy:"
CLIPPING_MODS = {
    "DifferentialPrivacyClientSideFixedClipping": "flwr.clientapp.mod:fixedclipping_mod",
    "DifferentialPrivacyClientSideAdaptiveClipping": "flwr.clientapp.mod:adaptiveclipping_mod",
}
"""Wrappers of Flower that leave clipping to the clients, with the mod that clips."""


def check(scenario: Scenario) -> None:
    """Check every plug-in section; errors carry the key of the offending value.

    Raises:
        PluginError: An unknown plug-in, a wrong option, or partners that do not fit.
    """
    strategy = _check_section("strategies", scenario.strategy.section, ("strategy",))
    client = _check_section("clients", scenario.client.section, ("client",))
    _check_section("tasks", scenario.task.section, ("task",))
    for direction in ("up", "down"):
        _check_chain(getattr(scenario.codec, direction), ("codec", direction))
    for i, tracker in enumerate(scenario.track):
        _check_tracker(tracker, ("track", i))
    if scenario.codec.lgreco:
        Planner(
            build_chain([codec.section for codec in scenario.codec.up]),
            **scenario.codec.lgreco.model_dump(),
        )
    if scenario.devices:
        fleet.check(scenario.devices)
        section = scenario.devices.selection.section
        _check_section("selectors", section, ("devices", "selection"))
        _check_replies(scenario, scenario.devices.min_replies)
    if getattr(strategy, "by_events", False):
        _check_events(scenario)
    if getattr(strategy, "overlaps", False):
        _check_overlap(scenario)
    _check_mods(client, scenario)
    _check_clients_part(client, scenario.strategy.section, ("strategy",), scenario)
    _check_kinds(client, strategy, scenario)
    _check_told(client, strategy, scenario)
    _check_packing(client, scenario)


def _check_section(kind: str, section: Mapping[str, Any], key: tuple[str | int, ...]) -> Any:
    given = {k: v for k, v in section.items() if k != "name"}
    try:
        target = registry.find(kind, section["name"])
        for option, advice in ENGINE_SUPPLIED.items():
            if kind == "strategies" and option in given:
                what = f"'{option}' is decided by the scenario's own keys"
                raise PluginError(what, key=(option,), hint=advice)
        nested = {k: v for k, v in given.items() if isinstance(v, Mapping) and "name" in v}
        for name, inner in nested.items():
            _check_section(kind, inner, (*key, name))
        label = f"{registry.kind_label(kind)} '{section['name']}'"
        if registry.is_factory(target):
            plain = {k: v for k, v in given.items() if k not in nested}
            registry.check_options(target, plain, label, also_given={**nested, **ENGINE_SUPPLIED})
        elif given:
            what = f"{label} is an instance and takes no options"
            raise PluginError(what, key=tuple(given)[:1], hint="Name a class to give options")
        return target
    except FedsimError as error:
        if not error.key or error.key[: len(key)] != key:
            error.key = (*key, *error.key)
        raise


def _check_chain(chain: Sequence[Plugin], key: tuple[str | int, ...]) -> None:
    for i, codec in enumerate(chain):
        plain = {k: v for k, v in codec.section.items() if k != FEEDBACK}
        _check_section("codecs", plain, (*key, i))
        if codec.section.get(FEEDBACK) not in (None, "none"):
            section = feedback_section(codec.section[FEEDBACK])
            _check_section("feedback", section, (*key, i, FEEDBACK))
    built = build_chain([codec.section for codec in chain], key)
    if key[-1] == "down":
        check_downlink(built, key)


def _check_tracker(tracker: Plugin, key: tuple[str | int, ...]) -> None:
    target = _check_section("trackers", tracker.section, key)
    try:
        registry.check_installed(target)
    except PluginError as error:
        error.key = key
        raise


def _check_mods(client: Any, scenario: Scenario) -> None:
    for i, mod in enumerate(scenario.mods):
        try:
            if not callable(registry.import_object(mod)):
                raise PluginError(f"the mod '{mod}' is no function")
        except PluginError as error:
            error.key = ("mods", i)
            error.hint = error.hint or "For example flwr.clientapp.mod:fixedclipping_mod"
            raise
    if scenario.mods and not registry.is_factory(client):
        raise PluginError(
            f"mods wrap clients of fedsim, and '{scenario.client.name}' is a ClientApp",
            key=("mods",),
            hint="Give them to the ClientApp itself: ClientApp(mods=[...])",
        )


def _check_clients_part(
    client: Any, section: Mapping[str, Any], key: tuple[str | int, ...], scenario: Scenario
) -> None:
    """A strategy of Flower that does half of its method needs clients that do the other half."""
    strategy = registry.find("strategies", section["name"])
    if not inspect.isclass(strategy) or not registry.is_factory(client):
        return  # a ClientApp brings its own
    mods = [registry.import_object(mod) for mod in scenario.mods]
    for wrapper, name in CLIPPING_MODS.items():
        around = registry.import_object(f"{FLOWER}{wrapper}")
        if issubclass(strategy, around) and registry.import_object(name) not in mods:
            raise PluginError(
                f"strategy '{section['name']}' adds noise to updates that clients clip, and no mod "
                "clips them",
                key=key,
                hint=f'Add mods: ["{name}"]',
            )
    others = set(registry.available("clients")) - {"fedprox"}
    prox = registry.import_object(f"{FLOWER}FedProx")
    if issubclass(strategy, prox) and scenario.client.name in others:
        raise PluginError(
            f"strategy '{section['name']}' leaves the proximal term to the clients, and client "
            f"'{scenario.client.name}' has none",
            key=key,
            hint="Set client: {name: fedprox}, or strategy: fedavg",
        )
    for name, inner in section.items():
        if isinstance(inner, Mapping) and "name" in inner:
            _check_clients_part(client, inner, (*key, name), scenario)


ROUND_RULES = ("deadline_s", "over_selection", "min_replies", "selection", "server.round_s")
"""Keys of ``devices`` that are about rounds."""


def _check_replies(scenario: Scenario, least: int) -> None:
    """No round can count more answers than it wants."""
    known = scenario.num_clients or scenario.clients_per_round
    wanted = scenario.cohort_size(known) if known else least
    if least > wanted:
        raise PluginError(
            f"min_replies ({least}) is more than the {wanted} clients of a round, so that no round "
            "could change the model",
            key=("devices", "min_replies"),
            hint="Lower it, or ask more clients with clients_per_round",
        )


def _check_events(scenario: Scenario) -> None:
    """An asynchronous strategy needs devices, and nothing that is about rounds."""
    name = scenario.strategy.name
    if scenario.devices is None:
        raise PluginError(
            f"strategy '{name}' has no rounds, but virtual time, and the scenario has no devices",
            key=("strategy",),
            hint="Add a section devices, for example devices: {mix: [{profile: phone-mid, "
            "share: 1}]}; speed_sigma spreads the speeds",
        )
    given = scenario.devices.model_dump(exclude_defaults=True)
    given |= {f"server.{key}": value for key, value in given.get("server", {}).items()}
    for rule in ROUND_RULES:
        if rule in given:
            raise PluginError(
                f"'{rule}' is a rule of rounds, which strategy '{name}' does not have",
                key=("devices", *rule.split(".")),
                hint="Leave it out; max_staleness of the strategy drops late answers",
            )
    if scenario.devices.availability.by_round:
        raise PluginError(
            f"this availability counts rounds, which strategy '{name}' does not have",
            key=("devices", "availability"),
            hint="Give slot_s, the length of a slot in seconds of virtual time",
        )


def _check_overlap(scenario: Scenario) -> None:
    """Where a cohort's answers travel during the next round, none of them can be too late."""
    built = registry.build("strategies", scenario.strategy.section)
    if built.overlaps and scenario.devices and scenario.devices.leaves_out:
        raise PluginError(
            f"strategy '{scenario.strategy.name}' lets a cohort's answers travel during the next "
            "round, so that no round can leave answers out",
            key=("devices",),
            hint="Leave out deadline_s, over_selection, min_replies, dropout and availability "
            "within rounds, or set strategy.delay to 0",
        )


def _check_kinds(client: Any, strategy: Any, scenario: Scenario) -> None:
    sends = getattr(client, "sends", "delta")
    accepts = getattr(strategy, "accepts", ("delta",))
    if sends in accepts:
        return
    fitting = [
        name
        for name in registry.available("strategies")
        if sends in registry.find("strategies", name).accepts
    ]
    raise PluginError(
        f"client '{scenario.client.name}' sends {sends}, but strategy "
        f"'{scenario.strategy.name}' accepts {', '.join(accepts)}",
        key=("strategy",),
        allowed=f"Strategies that fit: {', '.join(fitting) or 'none'}",
    )


def _check_told(client: Any, strategy: Any, scenario: Scenario) -> None:
    """What a strategy decides for its clients must reach their method."""
    told = getattr(strategy, "tells", ())
    heeded = getattr(client, "heeds", told)  # a ClientApp does not say
    if not (ignored := [key for key in told if key not in heeded]):
        return
    fitting = [
        name
        for name in registry.available("clients")
        if set(told) <= set(getattr(registry.find("clients", name), "heeds", ()))
    ]
    raise PluginError(
        f"client '{scenario.client.name}' ignores the {ignored[0]} that strategy "
        f"'{scenario.strategy.name}' tells it",
        key=("client",),
        allowed=f"Clients that heed it: {', '.join(fitting)}",
    )


def _check_packing(client: Any, scenario: Scenario) -> None:
    """Methods that send a few numbers of their own leave nothing to codecs and mods."""
    if getattr(client, "sends", "delta") not in PACKED_KINDS:
        return
    given = {
        ("codec", "up"): scenario.codec.up,
        ("codec", "down"): scenario.codec.down,
        ("mods",): scenario.mods,
    }
    for key, chain in given.items():
        if chain:
            raise PluginError(
                f"client '{scenario.client.name}' sends {client.sends} in a form of its own",
                key=key,
                hint=f"Leave out {'.'.join(key)}: it works on arrays like the model's",
            )
