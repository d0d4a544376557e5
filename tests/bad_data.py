"""Data and models that cannot be: each change to the good scenario and what must be said."""

from __future__ import annotations

from tests.bad_scenarios import DATA, MODEL, Change

DATA_AND_MODEL: dict[str, Change] = {
    "an option of the partitioner": (
        "alpha: 1.0",
        "alfa: 1.0  # <-",
        ("unknown option 'alfa' of partitioner 'dirichlet'. Did you mean 'alpha'? Options: ",),
    ),
    "a wrong type for the partitioner": (
        "alpha: 1.0",
        "alpha: big  # <-",
        ("option 'alpha' of partitioner 'dirichlet' must be", "not 'big'"),
    ),
    "an unknown partitioner": (
        "name: dirichlet",
        "name: dirichlt  # <-",
        ("no partitioner called 'dirichlt'", "Did you mean 'dirichlet'?", "Known: continuous"),
    ),
    "a partitioner without its column": (
        "  partitioner:\n    name: dirichlet\n    alpha: 1.0\n    partition_by: label\n",
        "  partitioner: {name: dirichlet, alpha: 1.0}  # <-\n",
        ("partitioner 'dirichlet' needs the option 'partition_by'",),
    ),
    "the partitioner's number of clients": (
        "    alpha: 1.0\n",
        "    alpha: 1.0\n    num_partitions: 3  # <-\n",
        ("'num_partitions' is not set here", "Set num_clients"),
    ),
    "a column that is not there": (
        "partition_by: label",
        "partition_by: lable  # <-",
        ("the data has no column 'lable'", "Did you mean 'label'?", "Columns: features, label"),
    ),
    "more clients than rows": (
        "num_clients: 6",
        "num_clients: 600  # <-",
        ("there are 600 clients but only 120 training rows", "Lower num_clients"),
    ),
    "a file that is not there": (
        DATA,
        "  path: csv\n  how_to_get: Ask the library\n  data_files: {train: no_such.csv}  # <-\n",
        ("files that you bring are missing", "no_such.csv", "Ask the library."),
    ),
    "csv without files": (
        DATA,
        "  path: csv  # <-\n",
        ("the source 'csv' needs data_files", "For example: data_files"),
    ),
    "an embedded set that is not there": (
        DATA,
        "  path: sklearn:digit  # <-\n",
        ("no embedded set 'digit'", "Did you mean 'digits'?", "sklearn:breast_cancer"),
    ),
    "a split that is not there": (
        DATA,
        f"{DATA}  test_split: tst  # <-\n",
        ("the data has no split 'tst'", "Did you mean 'test'?", "Splits: train, test"),
    ),
    "a data function that is not there": (
        DATA,
        '  path: "tests.problems:blob"  # <-\n',
        ("module 'tests.problems' has no 'blob'", "Did you mean 'blobs'?"),
    ),
    "a data function that cannot be called": (
        DATA,
        '  path: "os:sep"  # <-\n',
        ("data function 'os:sep' cannot be called with options", "a function"),
    ),
    "an option of the data function": (
        DATA,
        f"{DATA}  options: {{rows: lots}}  # <-\n",
        ("option 'rows' of data function", "must be a valid integer, not 'lots'"),
    ),
    "a data set on the Hub, offline": (
        DATA,
        "  path: nobody-here/no-such-set  # <-\n",
        ("cannot be loaded from the Hub", "HF_HUB_OFFLINE is set"),
    ),
    "a model on the Hub, offline": (
        f"task: {{name: module}}\nmodel:\n{MODEL}data:\n{DATA}",
        "task: text_classification\nmodel:\n  name: nobody-here/no-such-model  # <-\n"
        'data:\n  path: "bring_texts:texts"\n',
        ("not in the Hugging Face cache, and the Hub cannot be reached", "name its folder"),
    ),
    "a label column that is not there": (
        "{name: module}",
        "{name: module, label_column: lable}  # <-",
        ("the data has no column 'lable'", "Did you mean 'label'?"),
    ),
    "a feature column that is not there": (
        "task: {name: module}",
        "task:\n  name: module\n  feature_columns: [features, fetures]  # <-",
        ("the data has no column 'fetures'", "Did you mean 'features'?"),
    ),
    "a task for other data": (
        "task: {name: module}",
        "task: image_classification  # <-",
        ("the data has no column 'image'", "Columns: features, label"),
    ),
    "a task's option": (
        "{name: module}",
        "{name: module, label_colum: label}  # <-",
        ("unknown option 'label_colum' of task 'module'", "Did you mean 'label_column'?"),
    ),
    "a model function that is not there": (
        MODEL,
        '  name: "tests.problems:logistik"  # <-\n',
        ("module 'tests.problems' has no 'logistik'", "Did you mean 'logistic'?"),
    ),
    "a model's option": (
        MODEL,
        f"{MODEL}  options:\n    feature: 4  # <-\n",
        ("unknown option 'feature' of model", "Did you mean 'features'?"),
    ),
    "a model that does not fit the columns": (
        f"model:\n{MODEL}",
        f"model:  # <-\n{MODEL}  options: {{features: 5}}\n",
        ("the model fails on the test rows", "shapes cannot be multiplied", "fit the columns"),
    ),
    "fewer classes than labels": (
        f"model:\n{MODEL}",
        f"model:  # <-\n{MODEL}  options: {{classes: 2}}\n",
        ("the label 2 is none of the 2 classes", "fit the columns and the labels?"),
    ),
    "an option of a configuration": (
        f"task: {{name: module}}\nmodel:\n{MODEL}data:\n{DATA}",
        "task: image_classification\nmodel:\n  config:\n    model_type: vit\n"
        "    hiden_size: 32  # <-\ndata:\n  path: sklearn:digits\n",
        ("unknown option 'hiden_size' of the model type 'vit'", "Did you mean 'hidden_size'?"),
    ),
    "a model type that is not there": (
        f"task: {{name: module}}\nmodel:\n{MODEL}data:\n{DATA}",
        "task: image_classification\nmodel:\n  config: {model_type: vitt}  # <-\n"
        "data:\n  path: sklearn:digits\n",
        ("transformers has no model type 'vitt'", "Did you mean 'vit"),
    ),
    "a pattern that matches nothing": (
        MODEL,
        f"{MODEL}  trainable:\n    - bias\n    - wight  # <-\n",
        ("the pattern 'wight' matches no parameter", "Did you mean 'weight'?", "weight, bias"),
    ),
    "an unknown adapter": (
        MODEL,
        f"{MODEL}  peft: {{peft_type: LORRA}}  # <-\n",
        ("unknown peft_type 'LORRA'", "Did you mean 'LORA'?"),
    ),
    "an adapter's option": (
        MODEL,
        f"{MODEL}  peft:\n    peft_type: LORA\n    lora_alfa: 3  # <-\n",
        ("unknown option 'lora_alfa' of LORA", "Did you mean 'lora_alpha'?"),
    ),
    "an adapter's option of the wrong type": (
        MODEL,
        f"{MODEL}  peft: {{peft_type: LORA, r: four}}  # <-\n",
        ("option 'r' of LORA", "valid integer, not 'four'"),
    ),
    "an adapter for layers that are not there": (
        MODEL,
        f"{MODEL}  peft:\n    peft_type: LORA\n    target_modules: [query]  # <-\n",
        ("['query'] match no layer of", "layers of this model:"),
    ),
    "an optimizer of the warm start": (
        MODEL,
        f"{MODEL}  warm_start: {{optimizer: AdamV}}  # <-\n",
        ("torch.optim has no optimizer 'AdamV'", "Did you mean 'Adam'?"),
    ),
}
