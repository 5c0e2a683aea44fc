"""A cheap encoder for queries, trained into the document space of a larger one.

Documents stay indexed as the larger model embedded them, and a query costs microseconds: each
prefix of the student learns the same prefix of the teacher, whose prefixes must therefore be good
ones, as those of a nested sentence_minilm.py run are.

Teacher:    python -m mrl_jax.train --config configs/sentence_minilm.py:mrl --workdir runs/teacher \
                --config.text.encoder=MODEL_FOLDER --config.data.path=TEXT_FOLDER
            python -m mrl_jax.export --workdir runs/teacher --out TEACHER \
                --format sentence_transformers
Student:    python -m mrl_jax.train --config configs/query_encoder.py:static --workdir runs/table \
                --config.pairs.teacher=TEACHER --config.eval.documents=TEACHER \
                --config.data.path=TEXT_FOLDER --config.eval.retrieval=mine=BEIR_FOLDER
            minilm3 also needs --config.text.encoder=TEACHER, of which it keeps three layers
Arguments:  static (a table of word pieces) | minilm3; with ",fixed=M" trained at M dims alone
Hardware:   2 CPU cores
"""

from mrl_jax.config import default_config, set_method

DIMS = (16, 32, 64, 128, 256, 384)
SEEDS = (0, 1, 2)


def get_config(arg="static"):
    student, _, method = arg.partition(",")
    config = default_config("sentence_pairs")
    config.name = f"query_encoder:{arg}"
    config.text.max_length = 64
    config.pairs.loss = "distill_vectors"
    config.nesting.dims = DIMS
    set_method(config, method or "mrl")
    config.optimizer.weight_decay = 0.0
    config.checkpoint.every = 200
    config.eval.dims = DIMS
    if student == "static":
        config.text.encoder = "static"
        config.text.width = DIMS[-1]
        config.text.vocab_size = 16_000
        config.batch_size = 1024
        config.steps = 600
        config.optimizer.learning_rate = 0.05
        config.optimizer.warmup_steps = 60
        config.sharding = ((".*", "replicate"),)
        config.eval.batch_size = 1024
    elif student == "minilm3":
        config.text.encoder = ""  # the teacher's folder
        config.text.layers = (2, 4, 6)
        config.batch_size = 64
        config.steps = 120
        config.optimizer.learning_rate = 3e-4
        config.optimizer.schedule = "linear"
        config.optimizer.warmup_steps = 12
        config.optimizer.clip_norm = 1.0
        config.sharding = (("kernel|embedding", "largest:fsdp"), (".*", "replicate"))
        config.eval.batch_size = 32
    else:
        raise ValueError(f"the student must be static or minilm3, got {student!r}")
    return config


def sweep():
    """Both students, nested, and the table trained at its full width alone."""
    for seed in SEEDS:
        for arg in ("static", f"static,fixed={DIMS[-1]}", "minilm3"):
            yield arg, {"seed": seed}
