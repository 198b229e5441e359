"""A config's `data.name`: where that data set's ledger is, who may create it, and the table of what it holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from curriculumdp.config.config import Config
from curriculumdp.config.yaml_file import ConfigError
from curriculumdp.curriculum.plan import plan_curriculum
from curriculumdp.ledger.chain import LedgerError
from curriculumdp.ledger.dataset_ledger import DatasetLedger, NoRoom, state_folder
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.privacy.accountant import epsilon
from curriculumdp.privacy.event import AccountingError, PrivacyEvent, as_typed


def place_of(config: Config) -> Path:
    """Return the folder of the ledger of the config's data set, which must have a name."""
    assert config.data.name is not None
    return Path(config.data.ledger) if config.data.ledger else state_folder(config.data.name)


def definition_of(config: Config) -> dict[str, object]:
    """Return the options that all runs on one data set must agree on."""
    data = config.data
    return {
        "unit": data.unit,
        "units": data.units,
        "delta": config.privacy.delta,
        "budget": data.budget,
    }


def dataset_ledger(config: Config) -> DatasetLedger | None:
    """Open or create the data set's ledger for a new run; return None for a data set without a name.

    A new ledger is announced on the console. Raises LedgerError if the ledger defines the data set differently, or if
    the data set has a budget but no ledger.
    """
    if config.data.name is None:
        return None
    shared = DatasetLedger.open(place_of(config), definition_of(config))
    if shared.is_new:
        print(_created(config), flush=True)
    return shared


def attach(config: Config, ledger: Ledger, data: Sequence[NDArray[Any]] | None) -> None:
    """Attach a run to its named data set's ledger, which composes all runs on it and detects copied run folders.

    Only a run whose own ledger holds nothing but its plan may create that ledger: any other run is already in one. If
    it is missing, a sealed run, which cannot be charged any more, does without it and prints a warning. `data` is None
    for a run that can only end.
    Raises LedgerError; NoRoom if the run does not fit into `data.budget`.
    """
    if config.data.name is None:
        return
    if data is not None and len(ledger.macs) == 1:
        shared = dataset_ledger(config)
    else:
        shared = DatasetLedger.find(place_of(config), definition_of(config))
    if shared is None and ledger.sealed is None and (data is not None or ledger.events()):
        raise LedgerError(
            f"{place_of(config)}: the ledger of data set {config.data.name!r}, which lists run {ledger.run}, is "
            "missing: restore it, mount it or correct data.ledger"
        )
    warnings = (
        shared.attach(ledger, config.privacy.epsilon, data)
        if shared
        else [
            f"{place_of(config)}: the data set's ledger is missing: what this run did not use stays reserved in it"
        ]
    )
    for warning in warnings:
        print(f"warning: {warning}", flush=True)


def create(config: Config) -> str:
    """Create the ledger of the config's data set, or redefine an unused one; return a line that says which."""
    _require_name(config)
    shared = DatasetLedger.create(place_of(config), definition_of(config))
    if not shared.is_new:
        return f"{shared.folder}: the ledger already exists, with the definition of this config"
    return _created(config)


def described(config: Config) -> str:
    """Return a table of all runs on the config's data set, what they may cost together, and what is left."""
    _require_name(config)
    shared = DatasetLedger.find(place_of(config), definition_of(config))
    if shared is None:
        raise LedgerError(
            f"{place_of(config)}: no ledger of data set {config.data.name!r}: correct data.ledger, or create one "
            "with --create"
        )
    head = f"{config.data.name}: {shared.folder}, δ = {config.privacy.delta:g}"
    return "\n".join(
        [head, *(_limited(shared, config) if shared.limit else _composed(shared, config.privacy.delta))]
    )


def _limited(shared: DatasetLedger, config: Config) -> list[str]:
    """Return a line per run, with its share of the budget and its ε; the total; and whether this config still fits.

    What is left is no ε: how much a run takes depends on its rates and steps, so the config's own plan is solved.
    """
    limit, left, delta = shared.limit, shared.share_left(), config.privacy.delta
    assert limit is not None
    assert left is not None

    def line(name: str, state: str, share: float, cost: str) -> str:
        return f"{name:32}  {state:10}  {share:8.2%}  {cost}".rstrip()

    return [
        f"{'run':32}  {'state':10}  {'share':>8}  costs ε",
        *(
            line(one.run, _state(one.sealed), limit.share(one.events), _cost(one.events, delta))
            for one in shared.reservations()
        ),
        line("all runs", "", 1 - left, _cost(shared.total_events(), delta)),
        line(f"left of data.budget = {limit.budget:g}", "", max(0.0, left), ""),
        _room_for(config, shared),
    ]


def _room_for(config: Config, shared: DatasetLedger) -> str:
    """Return whether a new run of this config fits into what is left and, if not, what would: the plan is solved."""
    epsilon_set = f"a new run of this config (privacy.epsilon = {as_typed(config.privacy.epsilon)})"
    try:
        planned = plan_curriculum(config).events()
        shared.require_room(planned)
    except (NoRoom, AccountingError) as refused:
        return f"{epsilon_set} is refused: {refused}"
    assert shared.limit is not None
    return f"{epsilon_set} takes {shared.limit.share(planned):.2%} and fits"


def _composed(shared: DatasetLedger, delta: float) -> list[str]:
    """Return a line per run, and one for all of them composed; each calls the accountant, which takes a second."""
    return [
        f"{'run':32}  {'state':10}  costs ε",
        *(
            f"{one.run:32}  {_state(one.sealed):10}  {_cost(one.events, delta)}"
            for one in shared.reservations()
        ),
        f"{'all runs, composed':32}  {'':10}  {_cost(shared.total_events(), delta)}",
        "data.budget is not set: nothing limits further runs",
    ]


def _state(sealed: bool) -> str:
    return "sealed" if sealed else "unfinished"


def _cost(events: Sequence[PrivacyEvent], delta: float) -> str:
    try:
        return f"{epsilon(events, delta):.4g}"
    except AccountingError:
        return "too much to compute"


def _created(config: Config) -> str:
    budget = config.data.budget
    limit = "" if budget is None else f" with data.budget = {budget:g} at δ = {config.privacy.delta:g}"
    return f"no earlier run on {config.data.name!r} is recorded in {place_of(config)}: created a new ledger{limit}"


def _require_name(config: Config) -> None:
    if config.data.name is None:
        raise ConfigError("data.name is missing: set it to the name of the data set whose runs are composed")
