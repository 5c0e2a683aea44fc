"""Static sentence embeddings from scratch: a table of word pieces, trained on pairs on a CPU.

The embedding of a text is the mean of its tokens' rows, so it is computed at memory speed.

One run:    python -m mrl_jax.train --config configs/static_sentence.py --workdir runs/static \
                --config.data.path=FOLDER
            FOLDER holds train.jsonl (val.jsonl, test.jsonl), a line for each group of texts that
            say the same, {"texts": [...]}, or for each pair, {"anchor": ..., "positive": ...};
            --config.data.files=train=FILE,val=FILE names files one by one,
            --config.eval.sts=stsb=FILE.tsv adds sentence pairs with a score
Arguments:  mrl | fixed=M, M one of the dims below
Hardware:   2 CPU cores; 29,000 groups of captions took five minutes while other work went on
"""

from mrl_jax.config import default_config, set_method

DIMS = (16, 32, 64, 128, 256)
SEEDS = (0, 1, 2)


def get_config(arg="mrl"):
    config = default_config("sentence_pairs")
    config.name = f"static_sentence:{arg}"
    config.text.encoder = "static"
    config.text.width = DIMS[-1]
    config.text.vocab_size = 16_000
    config.text.max_length = 64
    config.pairs.loss = "info_nce"
    config.pairs.temperature = 0.05
    config.nesting.dims = DIMS
    set_method(config, arg)
    config.batch_size = 1024
    config.steps = 600
    config.log_every = 20
    config.checkpoint.every = 200
    # A table wants large steps: a row moves only when its token occurs.
    config.optimizer.learning_rate = 0.05
    config.optimizer.warmup_steps = 60
    config.optimizer.weight_decay = 0.0
    config.sharding = ((".*", "replicate"),)
    config.eval.batch_size = 1024
    config.eval.dims = DIMS
    return config


def sweep():
    """The nested table beside one that is trained at its full width alone."""
    for seed in SEEDS:
        for arg in ("mrl", f"fixed={DIMS[-1]}"):
            yield arg, {"seed": seed}
