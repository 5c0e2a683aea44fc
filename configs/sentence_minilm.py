"""A sentence encoder, fine-tuned so that its prefixes are good embeddings: MiniLM on captions.

Starts from a folder as Hugging Face or sentence-transformers saves it, such as all-MiniLM-L6-v2,
and learns which texts belong together; what is left of the full width at its first 32 dims is the
number to look at.

One run:    python -m mrl_jax.train --config configs/sentence_minilm.py --workdir runs/minilm \
                --config.text.encoder=MODEL_FOLDER --config.data.path=TEXT_FOLDER \
                --config.eval.sts=stsb=STS_FILE.tsv --config.eval.projections=True
Arguments:  mrl | plain (the full width alone) | fixed=M, M one of the dims below
Hardware:   2 CPU cores; 60 steps and their evaluation took ten minutes while other work went on
"""

from mrl_jax.config import default_config, set_method

DIMS = (16, 32, 64, 128, 256, 384)
SEEDS = (0, 1, 2)


def get_config(arg="mrl"):
    config = default_config("sentence_pairs")
    config.name = f"sentence_minilm:{arg}"
    config.text.encoder = "minilm_l6"  # its size, fresh; give the folder to start from weights
    config.text.max_length = 64
    config.pairs.loss = "info_nce"
    config.pairs.temperature = 0.05
    config.nesting.dims = DIMS
    set_method(config, f"fixed={DIMS[-1]}" if arg == "plain" else arg)
    config.batch_size = 32
    config.steps = 800
    config.optimizer.learning_rate = 2e-5
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 80
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.checkpoint.every = 200
    config.sharding = (("kernel|embedding", "largest:fsdp"), (".*", "replicate"))
    config.eval.batch_size = 32
    config.eval.dims = DIMS
    return config


def sweep():
    """With the nested loss and without it, three seeds each."""
    for seed in SEEDS:
        for arg in ("mrl", "plain"):
            yield arg, {"seed": seed}
