"""A good scenario, and what people do to it: each change with what the message must say.

A comment ``# <-`` in the new text marks the line that the message must name.
"""

from __future__ import annotations

GOOD = """\
name: tiny
seed: 3
num_rounds: 1
num_clients: 6
task: {name: module}
model:
  name: "tests.problems:logistic"
data:
  path: "tests.problems:blobs"
  partitioner:
    name: dirichlet
    alpha: 1.0
    partition_by: label
client:
  name: sgd
  learning_rate: 0.1
  batch_size: 8
strategy:
  name: fedavg
engine: {backend: inline}
"""
END = "engine: {backend: inline}\n"
MODEL = '  name: "tests.problems:logistic"\n'
DATA = '  path: "tests.problems:blobs"\n'
RATE = "  learning_rate: 0.1\n"
STRATEGY = "  name: fedavg\n"
FLOWER = "flwr.serverapp.strategy:"

Change = tuple[str, str, tuple[str, ...]]

YAML: dict[str, Change] = {
    "a bracket left open": (
        "seed: 3",
        "seed: [3",
        ("bad.yaml:3: malformed YAML: while parsing a flow sequence", "expected ',' or ']'"),
    ),
    "a tab": (RATE, "\tlearning_rate: 0.1  # <-\n", ("malformed YAML", "spaces, not tabs")),
    "a key twice": (
        END,
        f"{END}seed: 4  # <-\n",
        ("malformed YAML", 'duplicate key "seed"', 'value "4"', 'original value: "3"'),
    ),
    "a nested key twice": (
        "  batch_size: 8\n",
        "  batch_size: 8\n  batch_size: 9  # <-\n",
        ('duplicate key "batch_size"',),
    ),
    "an unknown alias": (STRATEGY, "  name: *nope  # <-\n", ("undefined alias 'nope'",)),
    "a tag": (RATE, "  learning_rate: !rate 0.1  # <-\n", ("YAML tags such as !rate",)),
    "a tagged list": ("seed: 3", "seeds: !some [3]  # <-", ("YAML tags such as !some",)),
    "an object": (
        "name: tiny",
        "name: !!python/object/apply:os.getcwd []  # <-",
        ("YAML tags such as", "have no meaning in a scenario"),
    ),
    "a set": ("seed: 3", "seeds: !!set {3}  # <-", ("YAML tags such as",)),
    "an alias of itself": (
        "{backend: inline}",
        "&e {backend: *e}",
        ("'engine.backend' must be 'ray' or 'inline', not empty",),
    ),
    "two documents": (END, f"{END}---  # <-\n{END}", ("found another document",)),
}

KEYS: dict[str, Change] = {
    "an unknown key": (
        "num_rounds: 1",
        "num_round: 1  # <-",
        ("unknown key 'num_round'.", "Did you mean 'num_rounds'?", "Keys: name, seed, seeds"),
    ),
    "an unknown nested key": (
        "{backend: inline}",
        "{backendd: inline}  # <-",
        ("unknown key 'backendd' in 'engine'", "Did you mean 'backend'?", "Keys: backend, workers"),
    ),
    "an unknown key two levels down": (
        MODEL,
        f"{MODEL}  warm_start:\n    epochs: 3\n    fracton: 0.1  # <-\n",
        ("unknown key 'fracton' in 'model.warm_start'", "Did you mean 'fraction'?"),
    ),
    "an unknown direction of the codec": (
        END,
        f"{END}codec:\n  upp: none  # <-\n",
        ("unknown key 'upp' in 'codec'", "Did you mean 'up'?", "Keys: up, down"),
    ),
    "a key that is no text": (END, f"{END}3: 4  # <-\n", ("unknown key '3'", "Keys: name")),
    "an anchor outside the scenario": (
        "name: tiny\n",
        "common: &c {batch_size: 8}  # <-\nname: tiny\n",
        ("unknown key 'common'",),
    ),
    "no data path": (DATA, "", ("bad.yaml:8", "the key 'path' is missing in 'data'", "Hub id")),
    "no rounds": ("num_rounds: 1\n", "", ("bad.yaml: the key 'num_rounds' is missing",)),
    "a plug-in without a name": (
        "{name: module}",
        "{label_column: label}  # <-",
        ("the key 'name' is missing in 'task'", "module:Class"),
    ),
}

VALUES: dict[str, Change] = {
    "an infinite value": (
        END,
        f"{END}devices:\n  mix: [{{profile: phone-mid, share: 1}}]\n  deadline_s: .nan  # <-\n",
        ("'devices.deadline_s' must be a finite number, not nan",),
    ),
    "more replies than a round has clients": (
        END,
        f"{END}devices:\n  mix: [{{profile: phone-mid, share: 1}}]\n  min_replies: 7  # <-\n",
        ("min_replies (7) is more than the 6 clients of a round", "Lower it"),
    ),
    "no time zone": (
        END,
        f"{END}devices:\n  mix: [{{profile: phone-mid, share: 1}}]\n"
        "  availability: {name: diurnal, time_zones_h: []}  # <-\n",
        ("'devices.availability.time_zones_h' is refused", "at least 1 item"),
    ),
    "speeds beyond all numbers": (
        END,
        f"{END}devices:\n  mix: [{{profile: phone-mid, share: 1}}]\n  speed_sigma: 1000  # <-\n",
        ("'devices.speed_sigma' must be less than or equal to 10, not 1000",),
    ),
    "a tracker that is no name": (
        END,
        f"{END}track: 3  # <-\n",
        ("'track' must be", "not 3. A name, or a mapping with 'name' and options"),
    ),
    "a seed twice": (END, f"{END}seeds: [0, 1, 0]  # <-\n", ("seed 0 stands twice in 'seeds'",)),
    "text for a number": (
        "num_rounds: 1",
        "num_rounds: many  # <-",
        ("'num_rounds' must be a valid integer, not 'many'",),
    ),
    "nothing for a number": (
        "num_rounds: 1",
        "num_rounds:  # <-",
        ("'num_rounds' must be a valid integer, not empty",),
    ),
    "half a round": ("num_rounds: 1", "num_rounds: 1.5  # <-", ("a valid integer, not 1.5",)),
    "no round": ("num_rounds: 1", "num_rounds: 0  # <-", ("must be greater than 0, not 0",)),
    "a date for the seed": ("seed: 3", "seed: 2020-01-01  # <-", ("integer, not '2020-01-01'",)),
    "a negative seed in a list": (
        "seed: 3",
        "seeds:\n  - 0\n  - -1  # <-",
        ("'seeds.1' must be greater than or equal to 0, not -1",),
    ),
    "more than all clients": (
        END,
        f"{END}fraction_train: 1.5  # <-\n",
        ("'fraction_train' must be less than or equal to 1, not 1.5",),
    ),
    "an unknown word": (
        "inline",
        "rai}  # <-\n#",
        ("'engine.backend' must be 'ray' or 'inline', not 'rai'",),
    ),
    "no workers": (
        "backend: inline}",
        "workers: 0}  # <-",
        ("'engine.workers' must be greater than 0 or 'auto', not 0",),
    ),
    "workers in words": (
        "backend: inline}",
        "workers: lots}  # <-",
        ("'engine.workers' must be a valid integer or 'auto', not 'lots'",),
    ),
    "text for a section": (
        "engine: {backend: inline}",
        "engine: inline  # <-",
        ("'engine' must be a mapping of keys to values, not 'inline'", "Keys: backend, workers"),
    ),
    "text for the model": (
        f"model:\n{MODEL}",
        "model: gpt2  # <-\n",
        ("'model' must be a mapping of keys to values, not 'gpt2'", "Keys: name, config"),
    ),
    "a list for a plug-in": (
        f"strategy:\n{STRATEGY}",
        "strategy: [fedavg]  # <-\n",
        ("'strategy' must be a mapping of keys to values", "['fedavg']"),
    ),
    "text for a list": (
        MODEL,
        f"{MODEL}  trainable: weight  # <-\n",
        ("'model.trainable' must be a list, not 'weight'",),
    ),
    "a number for files": (
        DATA,
        "  path: csv\n  data_files: {train: 3}  # <-\n",
        ("'data.data_files.train' must be a valid string or a valid list, not 3",),
    ),
    "two ways to choose clients": (
        END,
        f"{END}clients_per_round: 2\nfraction_train: 0.5  # <-\n",
        ("give clients_per_round or fraction_train, never both",),
    ),
    "more clients a round than there are": (
        END,
        f"{END}clients_per_round: 20  # <-\n",
        ("clients_per_round (20) is more than num_clients (6)", "Lower it"),
    ),
    "personal tests without rows": (
        END,
        f"{END}evaluate: {{personal: true}}  # <-\n",
        ("data.client_test_fraction is 0", "Set data.client_test_fraction"),
    ),
    "two models": (
        "model:\n",
        "model:  # <-\n  config: {model_type: vit}\n",
        ("give exactly one of 'name' and 'config'",),
    ),
    "an adapter without a type": (
        MODEL,
        f"{MODEL}  peft: {{r: 3}}  # <-\n",
        ("peft needs 'peft_type', for example LORA", "fedsim list peft"),
    ),
    "an adapter and patterns": (
        MODEL,
        f"{MODEL}  peft: {{peft_type: LORA}}\n  trainable: [weight]  # <-\n",
        ("'trainable' goes with 'peft: none'", "Leave it out"),
    ),
    "a warm start on everything": (
        MODEL,
        f"{MODEL}  warm_start: {{fraction: 1.5}}  # <-\n",
        ("'model.warm_start.fraction' must be less than 1, not 1.5",),
    ),
}
