"""Config keys that the tasks of text share."""

from mrl_jax.config.keys import Key

DATA = {
    "data.path": Key(
        "",
        "folder with train.*, val.* and test.* of .jsonl, .tsv or .parquet, for masked_lm also "
        ".txt",
        resume=True,
        path=True,
    ),
    "data.files": Key(
        (),
        'the files one by one instead, each "SPLIT=FILE"',
        items="words",
        resume=True,
        path=True,
    ),
    "data.cache": Key(
        "",
        "folder that training texts, token ids and a teacher's vectors are kept in, once for all "
        'runs, and mapped into memory from, for texts that do not fit; "" = all in memory',
        resume=True,
    ),
}
ENCODER = {
    "text.encoder": Key(
        "static",
        "folder of a Hugging Face or sentence-transformers model, or fresh: static (a table of "
        "tokens and their mean; not for masked_lm) | bert_tiny | minilm_l6 | bert_base",
    ),
    "text.layers": Key(
        (),
        "the layers of a folder's network that are kept, the first is 1, for a student that starts "
        "as a smaller copy: (1, 3, 5); () = all",
    ),
    "text.tokenizer": Key(
        "", 'its file or folder; "" = the encoder\'s, or one made of the train texts'
    ),
    "text.vocab_size": Key(
        30522, "of a tokenizer that is made: at most so many word pieces, five of them marks", 6
    ),
    "text.max_length": Key(
        0,
        "tokens of a text, whose rest is cut off, or of masked_lm's sequences; 0 = as many as the "
        "folder takes, 256 for a table without a limit, 128 for a fresh encoder",
        0,
    ),
    "text.dropout": Key(0.0, "of a network that is trained from scratch, or of a folder's", 0, 1),
    "text.dtype": Key(
        "float32", "of the products of a network, not of a table", legal=("float32", "bfloat16")
    ),
    "text.remat": Key(
        False, "take less memory, as the layers of a network are computed again backwards"
    ),
}
PROJECTIONS = {
    "eval.projections": Key(
        False,
        "measure PCA and a rotation of the whole embedding as rivals of its prefixes",
        resume=True,
    ),
}
