"""Wrong plug-ins and options: each change to the good scenario and what must be said."""

from __future__ import annotations

from tests.bad_scenarios import END, FLOWER, RATE, STRATEGY, Change

PLUGINS: dict[str, Change] = {
    "an unknown strategy": (
        STRATEGY,
        "  name: fedavgmm  # <-\n",
        ("there is no strategy called 'fedavgmm'", "Did you mean 'fedavgm'?", "Known: afa_cd"),
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
    "two sparsifiers": (
        END,
        f"{END}codec:\n  up:\n    - topk\n    - name: randk  # <-\n",
        ("codecs 'topk' and 'randk' contradict each other", "transform, then sparsify"),
    ),
    "a codec that stands alone in a chain": (
        END,
        f"{END}codec:\n  up:\n    - topk\n    - name: fedzip  # <-\n",
        ("codec 'fedzip' stands alone",),
    ),
    "codecs in the wrong order": (
        END,
        f"{END}codec:\n  down:\n    - int8\n    - name: topk  # <-\n",
        ("codec 'int8' leaves nothing that 'topk' could sparsify",),
    ),
    "a density of nothing": (
        END,
        f"{END}codec:\n  up:\n    name: topk\n    density: 0.0  # <-\n",
        ("option 'density' of codec 'topk' must be greater than 0, not 0.0",),
    ),
    "a density of more than all": (
        END,
        f"{END}codec:\n  up:\n    name: topk\n    density: 1.5  # <-\n",
        ("option 'density' of codec 'topk' must be less than or equal to 1, not 1.5",),
    ),
    "error feedback on an unbiased codec": (
        END,
        f"{END}codec:\n  up:  # <-\n    name: qsgd\n    error_feedback: ef21\n",
        ("error feedback needs codecs that contract; 'qsgd'", "See its option 'rescaled'"),
    ),
    "error feedback before the end of a chain": (
        END,
        f"{END}codec:\n  up:\n    - {{name: topk, error_feedback: ef21}}  # <-\n    - sign\n",
        ("error feedback goes around the whole chain", "in the last codec"),
    ),
    "sparse weights on the way down": (
        END,
        f"{END}codec:\n  down: [topk]  # <-\n",
        ("on the way down that is weights", "Add error_feedback: ef21"),
    ),
    "error feedback for updates on the way down": (
        END,
        f"{END}codec:\n  down: [{{name: topk, error_feedback: ef14}}]  # <-\n",
        ("this error feedback is for updates", "On the way down: ef21"),
    ),
    "a plan for a codec without a parameter": (
        END,
        f"{END}codec:\n  up: sign\n  lgreco: {{every: 5}}  # <-\n",
        ("there is nothing to plan in this codec", "topk, qsgd, powersgd"),
    ),
    "unknown error feedback": (
        END,
        f"{END}codec:\n  up:\n    name: topk\n    error_feedback: ef12  # <-\n",
        ("there is no feedback called 'ef12'", "Did you mean 'ef21'?"),
    ),
    "an option of error feedback": (
        END,
        f"{END}codec:\n  up:\n    name: topk\n    error_feedback:\n      name: econtrol\n"
        "      eta: 2.0  # <-\n",
        ("option 'eta' of feedback 'econtrol' must be less than or equal to 1, not 2.0",),
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
    "an infinite option": (
        RATE,
        "  learning_rate: .inf  # <-\n",
        ("option 'learning_rate' of client 'sgd' must be a finite number, not inf",),
    ),
    "a negative rate at the end": (
        RATE,
        "  final_learning_rate: -0.1  # <-\n",
        ("option 'final_learning_rate' of client 'sgd' must be greater than or equal to 0",),
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
    "an inherited option of the wrong type": (
        f"name: sgd\n{RATE}",
        "name: fedprox\n  learning_rate: abc  # <-\n",
        ("option 'learning_rate' of client 'fedprox' must be a valid number, not 'abc'",),
    ),
    "an inherited option out of range": (
        f"name: sgd\n{RATE}",
        "name: fedprox\n  learning_rate: -0.5  # <-\n",
        ("option 'learning_rate' of client 'fedprox' must be greater than 0, not -0.5",),
    ),
    "an inherited option that is no whole number": (
        f"name: sgd\n{RATE}",
        "name: fedprox\n  local_steps: 2.7  # <-\n",
        ("option 'local_steps' of client 'fedprox' must be a valid integer",),
    ),
    "an option beside inherited ones": (
        f"name: sgd\n{RATE}",
        "name: fedprox\n  proximal_mu: -1  # <-\n",
        ("option 'proximal_mu' of client 'fedprox' must be greater than or equal to 0, not -1",),
    ),
    "an inherited option of one's own class": (
        f"name: sgd\n{RATE}",
        'name: "inherits:Child"\n  learning_rate: abc  # <-\n',
        ("option 'learning_rate' of client 'inherits:Child' must be a valid number",),
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
        (
            "sends seeds, but strategy 'fedavg' accepts delta",
            "Strategies that fit: fedbuff_kseed, fedkseed",
        ),
    ),
    "noise for updates that nobody clips": (
        STRATEGY,
        f'  name: "{FLOWER}DifferentialPrivacyClientSideFixedClipping"\n  noise_multiplier: 1.0\n'
        "  clipping_norm: 1.0\n  num_sampled_clients: 6\n  strategy: {name: fedavg}\n",
        ("bad.yaml:18: ", "no mod clips", 'mods: ["flwr.clientapp.mod:fixedclipping_mod"]'),
    ),
    "noise for updates that another mod clips": (
        STRATEGY,
        f'  name: "{FLOWER}DifferentialPrivacyClientSideAdaptiveClipping"\n'
        "  noise_multiplier: 1.0\n  num_sampled_clients: 6\n  strategy: {name: fedavg}\n"
        'mods: ["flwr.clientapp.mod:fixedclipping_mod"]\n',
        ("no mod clips", 'mods: ["flwr.clientapp.mod:adaptiveclipping_mod"]'),
    ),
    "a proximal term that no client adds": (
        STRATEGY,
        f'  name: "{FLOWER}FedProx"\n  proximal_mu: 0.1\n',
        ("leaves the proximal term to the clients", "client 'sgd' has none", "{name: fedprox}"),
    ),
    "a proximal term within a wrapper": (
        STRATEGY,
        f'  name: "{FLOWER}DifferentialPrivacyServerSideFixedClipping"\n  noise_multiplier: 1.0\n'
        f'  clipping_norm: 1.0\n  num_sampled_clients: 6\n  strategy: {{name: "{FLOWER}FedProx", '
        "proximal_mu: 0.1}\n",
        ("leaves the proximal term to the clients",),
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
