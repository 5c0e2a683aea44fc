"""Config keys of the task image_text."""

from mrl_jax.config.keys import Key
from mrl_jax.tasks import image_keys, text_keys

KEYS = {
    "data.path": Key(
        "",
        "folder with train.*, val.* and test.* of .jsonl, .tsv or .parquet: a line for every photo "
        "and its caption, or for every photo and its captions; or with tar shards train*.tar or "
        "train/*.tar, in which KEY.jpg has its captions in the lines of KEY.txt or in KEY.json; or "
        "of data sets of TFDS",
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
    "data.images": Key(
        "",
        'folder that the names of photos are read from; "" = the folder of the file that names '
        "them",
        resume=True,
        path=True,
    ),
    "data.dataset": Key(
        "",
        'name of a data set of TFDS prepared as ArrayRecord, such as "coco_captions"; "" = none, '
        "or data.path is the folder of its version",
    ),
    "data.splits": Key(
        (),
        'TFDS: the examples of each split in its notation, "train=train[:90%]", '
        '"val=train[90%:]"; () = those of these names',
        items="words",
        resume=True,
    ),
    "data.cache": Key(
        "",
        "folder that captions, the places of photos in shards, token ids and what a locked tower "
        "makes of the training data are kept in, once for all runs, and mapped into memory from; "
        '"" = all in memory',
        resume=True,
    ),
    **image_keys.PIXELS,
    **image_keys.MODEL,
    "weights": Key(
        "",
        "where the image tower starts from: a .safetensors file of a PyTorch network, or "
        'model.safetensors of an export of a run of classification; "" = fresh',
        path=True,
    ),
    **text_keys.ENCODER,
    "text.pooling": Key("", 'mean | cls | last token; "" = the folder\'s, else mean'),
    "text.width": Key(0, "dims of a static table; 0 for others", 0),
    "towers.weights": Key(
        "",
        "folder of a CLIP or SigLIP, of Hugging Face or OpenCLIP, that both towers, their "
        "projections, temperature and bias start from; the keys of model and text and the size and "
        "scale of pixels are its own then",
        path=True,
    ),
    "towers.width": Key(
        0,
        "dims of the space that both towers are projected to, at least the largest nesting dim; "
        "0 = as many as that",
        0,
    ),
    "towers.locked": Key(
        "none",
        "what stays as it starts: none | image | text | both. Of a locked tower only the "
        "projection is trained; what it makes of the training data is computed once",
        legal=("none", "image", "text", "both"),
    ),
    "pairs.loss": Key(
        "info_nce",
        "the loss on every prefix: info_nce, which of the others belongs to this one (CLIP, ALIGN) "
        "| sigmoid, does this one belong to that one (SigLIP)",
        legal=("info_nce", "sigmoid"),
    ),
    "pairs.temperature": Key(
        0.0,
        "what cosines are divided by, at the start; 0 = as towers.weights were trained with, else "
        "0.07 of info_nce and 0.1 of sigmoid",
        0,
    ),
    "pairs.bias": Key(
        -10.0, "sigmoid: what is added to the logits, at the start; that of a SigLIP is its own"
    ),
    "pairs.learned": Key(True, "whether temperature and bias are learned"),
    "pairs.scales": Key(
        "shared",
        "whether all granularities have one temperature and bias: shared | separate",
        legal=("shared", "separate"),
    ),
    "pairs.micro_batch": Key(
        0,
        "pairs that go through the towers at a time; the loss still sees all of the batch, batch "
        "statistics are those of a part; 0 = all",
        0,
    ),
    "eval.zero_shot": Key(
        (),
        "folders of images whose classes are told by their names alone, each "
        '"NAME=FOLDER" with FOLDER/CLASS/*.jpg; with FOLDER/test/CLASS and FOLDER/train/CLASS also '
        "by the nearest train image; see data/class_folders.py",
        items="words",
        resume=True,
        path=True,
    ),
    "eval.templates": Key(
        ("a photo of a {}.",),
        "texts that name a class, which is their mean; {} is where its name goes",
        items="texts",
        resume=True,
        asks=True,
    ),
    "eval.projections": Key(
        False,
        "measure PCA of both towers, a rotation and random dims of the whole embedding as rivals "
        "of its prefixes",
        resume=True,
    ),
}
