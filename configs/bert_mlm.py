"""BERT as a masked language model with a nested output layer: the paper's recipe, and a small one.

The output layer is the table of tokens, so nesting it is MRL-E by construction (arXiv 2205.13147,
section 3); FF-m reads m dims alone.

Data:       TEXT_FOLDER with train, val and test as .txt (a document per line), .jsonl or .parquet
            (a column text); or --config.data.files=train=FILE,train=FILE,val=FILE
One run:    python -m mrl_jax.train --config configs/bert_mlm.py:mrl_e --workdir runs/bert \
                --config.data.path=TEXT_FOLDER --config.text.tokenizer=BERT_FOLDER_OR_VOCAB
On a CPU:   python -m mrl_jax.sweep --config configs/bert_mlm.py --root runs/bert_small \
                --config.data.path=TEXT_FOLDER
What it costs on a pod, without one:
            python -m mrl_jax.train --config configs/bert_mlm.py:mrl_e --dry_run \
                --topology v5e:16x16
Arguments:  mrl_e | fixed=M, M one of the dims below; with ",small" the small variant
Recipe:     English Wikipedia and BookCorpus, 450,000 steps of 1,024 sequences, AdamW, linear from
            1e-4 to 0, dims 12 to 768 (paper, appendix C). It prints no length, masking, warm-up,
            decay or dropout: those are BERT's (arXiv 1810.04805, appendix A.2)
Hardware:   not printed in the paper; small: 2 CPU cores, two to four minutes a run
Expected:   accuracy on hidden tokens within 0.5 % of FF-m at every dim (paper);
            small, test accuracy at 8, 16, 32, 64, 128 dims, n = 172,885 tokens, seed 0:
            mrl_e    11.7 14.0 16.6 17.8 18.3
            fixed=M  12.2 15.1 16.7 18.1 18.7
            (captions of Flickr30k, see docs/results/bert_mlm)
"""

from mrl_jax.config import default_config, set_method
from mrl_jax.nesting import halvings

DIMS = halvings(768, 7).dims  # 12, 24, 48, 96, 192, 384, 768
SMALL_DIMS = (8, 16, 32, 64, 128)


def get_config(arg="mrl_e"):
    method, *changes = arg.split(",")
    c = default_config("masked_lm")
    c.name = f"bert_mlm:{arg}"
    c.text.encoder = "bert_base"
    c.text.max_length = 512
    c.text.dropout = 0.1
    c.nesting.dims = DIMS

    c.batch_size = 1024
    c.steps = 450_000
    c.optimizer.name = "adamw"
    c.optimizer.schedule = "linear"
    c.optimizer.learning_rate = 1e-4
    c.optimizer.warmup_steps = 10_000
    c.optimizer.weight_decay = 0.01
    c.optimizer.decay_mask = "kernel|embedding"
    c.sharding = (
        ("tokens/embedding", "first:tensor+largest:fsdp"),
        ("head/bias", "last:tensor"),
        ("kernel|embedding", "largest:fsdp"),
        (".*", "replicate"),
    )
    c.log_every = 100
    c.checkpoint.every = 5_000
    c.eval.every = 10_000
    c.eval.batch_size = 1024
    for change in changes:
        if change != "small":
            raise ValueError(f"unknown change {change!r}; legal is small")
        make_small(c)
    set_method(c, method)
    return c


def make_small(c):
    """Two layers of 128 dims, trained for minutes.

    Short sequences and many hidden tokens, 40 % as in arXiv 2202.08005, are learned in fewer steps.
    """
    c.text.encoder = "bert_tiny"
    c.text.vocab_size = 2048
    c.text.max_length = 12
    c.text.mask_rate = 0.4
    c.text.dropout = 0.0
    c.nesting.dims = SMALL_DIMS
    c.batch_size = 96
    c.steps = 800
    c.optimizer.learning_rate = 3e-3
    c.optimizer.warmup_steps = 80
    c.optimizer.clip_norm = 1.0
    c.checkpoint.every = 400
    c.eval.every = 0
    c.eval.batch_size = 192
    c.eval.dims = SMALL_DIMS


def sweep():
    """The small variant, nested and with one network per dim."""
    yield "mrl_e,small", {}
    for m in SMALL_DIMS:
        yield f"fixed={m},small", {}
