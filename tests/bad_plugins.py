"""Wrong plug-ins and options: each change to the good scenario and what must be said."""

from __future__ import annotations

from tests.bad_scenarios import END, FLOWER, RATE, STRATEGY, Change

PLUGINS: dict[str, Change] = {
    "an unknown strategy": (
        STRATEGY,
        "  name: fedavgmm  # <-\n",
        ("there is no strategy called 'fedavgmm'", "Did you mean 'fedavgm'?", "Known: fedadagrad"),
    ),
    "an unknown client": (
        "name: sgd",
        "name: sdg  # <-",
        ("there is no client called 'sdg'", "Did you mean 'sgd'?", "or module:Class"),
    ),
    "an unknown task": (
        "{name: module}",
        "image_clasification  # <-",
        ("no task called 'image_clasification'", "Did you mean 'image_classification'?"),
    ),
    "an unknown codec in a list": (
        END,
        f"{END}codec:\n  up:\n    - name: nonne  # <-\n",
        ("there is no codec called 'nonne'", "Did you mean 'none'?"),
    ),
    "an option of a codec in a list": (
        END,
        f"{END}codec:\n  up:\n    - name: none\n      density: 3  # <-\n",
        ("unknown option 'density' of codec 'none'", "Options: none"),
    ),
    "two codecs": (
        END,
        f"{END}codec:\n  up:  # <-\n    - none\n    - none\n",
        ("a chain of several codecs cannot be built", "Give one codec"),
    ),
    "an unknown option": (
        RATE,
        "  learning_rat: 0.1  # <-\n",
        ("unknown option 'learning_rat' of client 'sgd'", "Did you mean 'learning_rate'?"),
    ),
    "an option out of range": (
        RATE,
        "  learning_rate: -0.1  # <-\n",
        ("option 'learning_rate' of client 'sgd' must be greater than 0, not -0.1",),
    ),
    "an option of the wrong type": (
        RATE,
        "  learning_rate: [1]  # <-\n",
        ("option 'learning_rate' of client 'sgd' must be a valid number, not [1]",),
    ),
    "a wrong word for an option": (
        RATE,
        "  learning_rate_schedule: cosin  # <-\n",
        ("must be 'constant', 'linear' or 'cosine', not 'cosin'",),
    ),
    "an option merged in": (
        "client:\n  name: sgd\n",
        "client:\n  <<: {name: sgd, batch_sze: 3}  # <-\n",
        ("unknown option 'batch_sze'", "Did you mean 'batch_size'?"),
    ),
    "a strategy's option": (
        STRATEGY,
        "  name: fedavgm\n  server_momentum: 1.9  # <-\n",
        ("option 'server_momentum' of strategy 'fedavgm' must be less than 1, not 1.9",),
    ),
    "an option of a stock strategy": (
        STRATEGY,
        f'  name: "{FLOWER}FedAvgM"\n  server_momentun: 0.9  # <-\n',
        ("unknown option 'server_momentun'", "Did you mean 'server_momentum'?"),
    ),
    "the sample of a stock strategy": (
        STRATEGY,
        f'  name: "{FLOWER}FedAvg"\n  fraction_train: 0.5  # <-\n',
        ("'fraction_train' is decided by the scenario's own keys", "at the top level"),
    ),
    "a stock strategy without what it needs": (
        f"strategy:\n{STRATEGY}",
        f'strategy:  # <-\n  name: "{FLOWER}QFedAvg"\n',
        ("needs the option 'client_learning_rate'", "Options: client_learning_rate, q"),
    ),
    "what a stock strategy refuses": (
        STRATEGY,
        f'  name: "{FLOWER}FedTrimmedAvg"\n  beta: 0.7  # <-\n',
        ("refuses its options", "`beta` must be in the range [0, 0.5)", "fedsim show strategy:"),
    ),
    "a typo in a wrapped strategy": (
        STRATEGY,
        f'  name: "{FLOWER}DifferentialPrivacyServerSideFixedClipping"\n  strategy: fedav  # <-\n',
        ("there is no strategy called 'fedav'", "Did you mean 'fedavg'?"),
    ),
    "a strategy for trees": (
        f"strategy:\n{STRATEGY}",
        f'strategy:  # <-\n  name: "{FLOWER}FedXgbBagging"\n',
        ("aggregates XGBoost trees", "Any other strategy"),
    ),
    "a typo in module:Class": (
        STRATEGY,
        f'  name: "{FLOWER}FedMedan"  # <-\n',
        ("module 'flwr.serverapp.strategy' has no 'FedMedan'", "Did you mean 'FedMedian'?"),
    ),
    "no such module": (
        STRATEGY,
        '  name: "no_such_module:X"  # <-\n',
        ("cannot import 'no_such_module'", "Is the module installed"),
    ),
    "a module that raises": (
        STRATEGY,
        '  name: "raises_at_import:X"  # <-\n',
        ("RuntimeError: no licence found", "raises_at_import.py:3", "Mend the module"),
    ),
    "a module that is no Python": (
        STRATEGY,
        '  name: "syntax_at_import:X"  # <-\n',
        ("SyntaxError: invalid syntax (syntax_at_import.py, line 1)", "Mend the module"),
    ),
    "a module that exits": (
        STRATEGY,
        '  name: "exits_at_import:X"  # <-\n',
        ("cannot import 'exits_at_import': SystemExit: 4",),
    ),
    "a module without a class": (
        STRATEGY,
        '  name: "math:"  # <-\n',
        ("'math:' is not of the form module:attribute",),
    ),
    "a class that is no strategy": (
        STRATEGY,
        '  name: "collections:OrderedDict"  # <-\n',
        ("'collections:OrderedDict' is no strategy", "flwr.serverapp.strategy:Strategy"),
    ),
    "a strategy for a client": (
        "name: sgd",
        'name: "fedsim.strategies.fedavg:FedAvg"  # <-',
        ("is no client", "It must be a fedsim.client:ClientMethod"),
    ),
    "options for an instance": (
        "  name: sgd\n  learning_rate",
        '  name: "tests.apps:app"\n  learning_rate: 0.1  # <-\n  other',
        ("is an instance and takes no options",),
    ),
    "a client and a strategy that do not fit": (
        f"  name: sgd\n{RATE}  batch_size: 8\nstrategy:\n",
        '  name: "sends_seeds:Sender"\nstrategy:  # <-\n',
        ("sends seeds, but strategy 'fedavg' accepts delta", "Strategies that fit: fedkseed"),
    ),
    "a mod that is not there": (
        END,
        f'{END}mods:\n  - "flwr.clientapp.mod:fixedcliping_mod"  # <-\n',
        ("has no 'fixedcliping_mod'", "Did you mean 'fixedclipping_mod'?"),
    ),
    "a mod without a module": (
        END,
        f"{END}mods: [fixedclipping_mod]  # <-\n",
        ("'fixedclipping_mod' is not of the form module:attribute", "For example flwr.clientapp"),
    ),
    "an optimizer that is not there": (
        RATE,
        "  optimizer: sgdd  # <-\n",
        ("torch.optim has no optimizer 'sgdd'", "Did you mean 'SGD'?", "Known: Adafactor"),
    ),
    "an optimizer's option": (
        RATE,
        "  optimizer_options:\n    nesterov: false\n    momentun: 0.9  # <-\n",
        ("torch.optim.SGD has no option 'momentun'", "Did you mean 'momentum'?"),
    ),
    "an optimizer's option out of range": (
        RATE,
        "  optimizer_options: {momentum: -0.9}  # <-\n",
        ("torch.optim.SGD refuses these options: Invalid momentum value: -0.9",),
    ),
}
