"""The names of the files in a run folder."""

CONFIG = "config.json"
FACTS = "facts.json"  # what the program depends on beyond the config
TOKENIZER = "tokenizer.json"  # for text: the one that the run started with
METRICS = "metrics.jsonl"
RESULTS = "results.json"
EVALUATION = "evaluation"  # folder of what results.json does not hold
EXAMPLES = "examples.npz"  # in that folder
DONE = "DONE"
CHECKPOINTS = "ckpt"
SWEEP = "sweep.json"  # in the folder that holds the runs of a sweep


def evaluation_file(kind: str, place: str, end: str = ".json") -> str:
    """The file of `kind` about a split or set: "cascade", "test" -> "test_cascade.json"."""
    return f"{place}_{kind}{end}"
