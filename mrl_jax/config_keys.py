"""Every key of a run, declared once, with what it means."""

from ml_collections import ConfigDict

# What these keys say changes how a run is carried out, never what it computes (beyond rounding):
# a run may be resumed with other values of them.
OPERATIONAL_KEYS = (
    "mesh",
    "sharding",
    "checkpoint",
    "log_every",
    "hang_minutes",
    "head.loss",
    "eval.every",
    "eval.batch_size",
    "eval.measures",
    "eval.hierarchy",
    "eval.ignore_identical_ids",
    "eval.layers",
    "eval.shifts",
    "eval.classification",
    "eval.clustering",
    "eval.projections",
    "eval.retrieval",
    "eval.sts",
    "data.cache",
    "data.files",
    "data.splits",
    "data.threads",
    "data.path",  # data may move; checkpoints hold a fingerprint of what it must contain
)

# Lists whose words need no quotes on the command line.
LISTS_OF_WORDS = {
    "data.columns",
    "data.drop",
    "data.files",
    "data.splits",
    "eval.classification",
    "eval.clustering",
    "eval.ignore_identical_ids",
    "eval.measures",
    "eval.retrieval",
    "eval.shifts",
    "eval.sts",
}
LISTS_OF_TEXTS = LISTS_OF_WORDS | {"sharding", "text.prompts"}  # other lists hold numbers
LISTS_OF_PAIRS = {"data.resolutions", "sharding"}  # ... of texts or of numbers

TASKS = ("classification", "sentence_pairs", "masked_lm", "adaptor")
# Groups and keys that some tasks read; the first that fits counts. All others are read by all.
TASKS_OF = {
    "text.mask_rate": ("masked_lm",),
    "text.pooling": ("sentence_pairs",),
    "text.prompts": ("sentence_pairs",),
    "text.width": ("sentence_pairs",),
    "text": ("sentence_pairs", "masked_lm"),
    "pairs": ("sentence_pairs",),
    "adaptor": ("adaptor",),
    "data.cache": ("sentence_pairs", "masked_lm"),
    "data.files": ("sentence_pairs", "masked_lm", "adaptor"),
    "data.columns": ("sentence_pairs",),
    "data.drop": ("sentence_pairs",),
    "data.path": TASKS,
    "data": ("classification",),
    "eval.sts": ("sentence_pairs", "adaptor"),
    "eval.classification": ("sentence_pairs",),
    "eval.clustering": ("sentence_pairs",),
    "eval.projections": ("sentence_pairs", "masked_lm"),
    "eval.retrieval": ("sentence_pairs",),
    "eval.ignore_identical_ids": ("sentence_pairs",),
    "eval.layers": ("sentence_pairs",),
    "eval.measures": ("classification",),
    "eval.hierarchy": ("classification",),
    "eval.shifts": ("classification",),
    "head.kind": TASKS,
    "head": ("classification",),
    "model": ("classification",),
    "weights": ("classification",),
}


def default_config() -> ConfigDict:
    """All keys with their defaults. Locked: a config file can set keys but not invent them.

    A run folder that is older than a key is read with the key's default. So the default of a new
    key must keep what was done before the key existed, and an old key's default never changes.
    """
    c = ConfigDict()
    c.name = "run"  # what the run is called in results and reports
    c.seed = 0  # everything random follows from it: initial weights, order of data, augmentation
    # What is learned: classification (of images) | sentence_pairs | masked_lm |
    # adaptor (of vectors). Keys that only other tasks read are refused where they are set.
    c.task = "classification"
    c.steps = 1000  # optimiser steps in all
    c.batch_size = 128  # examples per step over all devices and processes
    # .safetensors file of a PyTorch network (torchvision, the reference, timm, transformers) that
    # the backbone starts from; heads start fresh. "" = all starts fresh.
    c.weights = ""
    c.log_every = 20  # steps between lines of metrics.jsonl and of the console
    # A run that finishes no step for so many minutes, and for twenty times its longest step, is
    # ended with stack traces and exit code 76; while it starts, compiles, measures or saves, it has
    # sixty times as long. 0 = no limit.
    c.hang_minutes = 4.0

    c.data = ConfigDict()
    c.data.source = "digits"  # digits | image_folder | tfds
    # image_folder: folder with train/CLASS/*; tfds: folder of data sets, or ""; tasks of text:
    # folder with train.*, val.* and test.* of .jsonl, .tsv or .parquet, for masked_lm also .txt;
    # adaptor: train.npy, val.npy, ..., train_positives.npy, ..., or .parquet, or by mrl_jax.embed
    c.data.path = ""
    c.data.files = ()  # tasks of text, adaptor: the files one by one instead, each "SPLIT=FILE"
    # sentence_pairs: the role of columns, each "anchor=premise", or "ignore=year"; names that are
    # known by themselves are in data/text_columns.py
    c.data.columns = ()
    # sentence_pairs: rows to leave out, "flag" (where it is true) or "split=dev" (where it is that)
    c.data.drop = ()
    # Tasks of text: folder that training texts, token ids and a teacher's vectors are kept in, once
    # for all runs, and mapped into memory from, for texts that do not fit; "" = all in memory
    c.data.cache = ""
    c.data.dataset = ""  # tfds: name of a data set prepared as ArrayRecord, e.g. "mnist"
    # tfds: the examples of each split, in the notation of TFDS: "train=train[:90%]",
    # "val=train[90%:]"; () = by name: train; validation, val, valid or dev; test or eval
    c.data.splits = ()
    c.data.classes = 0  # how many the data must have; 0 = as many as it has
    c.data.image_size = 32  # image_folder, tfds: images become this many pixels high and wide
    # Share of the short side kept in evaluation, 0.875 = 224 of 256; and in training, in memory
    # or where random_crop is 0.
    c.data.eval_crop = 1.0
    c.data.mean = (127.5,)  # of pixels, 0 to 255; one number or one per channel. Subtracted,
    c.data.std = (127.5,)  # then divided by this
    # False: all images are decoded once and kept in memory, as squares of image_size. True: they
    # are read when they are needed, for sets that do not fit.
    c.data.stream = False
    c.data.threads = 0  # that decode images; 0 = one per core
    # Stream only: sizes in training as (step, pixels) points, linear between them, in multiples of
    # 32; () = image_size.
    c.data.resolutions = ()
    # Stream only, training: (changes per image, strength 0 to 10) of RandAugment; () = off
    c.data.rand_augment = ()
    c.data.random_crop = 0.0  # training: smallest share of the area a random part shows; 0 = off
    c.data.flip = False  # training: left and right change sides in half of the images
    c.data.random_shift = 0  # training: images move by up to this many pixels in x and y
    c.data.mixup = 0.0  # training: images are mixed in pairs, shares from Beta(mixup, mixup)

    c.model = ConfigDict()
    # mlp | cnn | resnet18, 34, 50, 101 | vit_ti16, vit_s16, vit_b16 and the same with 8
    c.model.name = "cnn"
    # Width of the embedding, at least the largest nesting dim. 0 = the network's own: 512 or 2048
    # for resnets, 192 to 768 for vits; another number adds a linear layer there.
    c.model.embedding_dim = 64
    # The next eight keys change a network that has what they say; others refuse them.
    c.model.width = 0  # mlp: hidden units; cnn, resnet: channels of the first stage; 0 = default
    c.model.depth = 0  # mlp: hidden layers; cnn: stages, each halves the resolution; 0 = default
    c.model.stem = "imagenet"  # resnet: imagenet | small, for images of 32 or 64 pixels
    c.model.blurpool = False  # resnet: blur before strides, as the reference's recipe
    c.model.batch_norm_groups = 1  # resnet: parts of the batch with statistics of their own
    c.model.pool = "gap"  # vit: gap, the mean of all tokens | cls
    c.model.dtype = "float32"  # resnet, vit: of the products, float32 | bfloat16
    c.model.remat = False  # resnet, vit: less memory, blocks are computed again backwards

    c.text = ConfigDict()  # tasks of text: the encoder
    # Folder of a Hugging Face or sentence-transformers model, or fresh: static (a table of tokens
    # and their mean; not for masked_lm) | bert_tiny | minilm_l6 | bert_base
    c.text.encoder = "static"
    c.text.tokenizer = ""  # its file or folder; "" = the encoder's, or one made of the train texts
    c.text.vocab_size = 30522  # of a tokenizer that is made: at most so many word pieces
    c.text.width = 0  # static: dims of the table; others: a linear layer to so many; 0 = none
    c.text.pooling = ""  # mean | cls | last token; "" = the folder's, else mean
    # Tokens of a text, whose rest is cut off, or of masked_lm's sequences; 0 = as many as the
    # folder takes, 256 for a table without a limit, 128 for a fresh encoder
    c.text.max_length = 0
    # sentence_pairs: prompts, put before texts in training and evaluation and saved with the model:
    # ("query=find: ", "document=", "default="). Queries are the anchors of pairs and triplets and
    # the queries of eval.retrieval, documents are the texts to find; default is for other texts.
    # () = the folder's own prompts, ("default=",) = none
    c.text.prompts = ()
    c.text.mask_rate = 0.15  # masked_lm: share of a sequence's tokens that are to be predicted
    c.text.dropout = 0.0  # of a network that is trained from scratch, or of a folder's

    c.pairs = ConfigDict()  # sentence_pairs: the loss on every prefix
    # Of pairs and groups: info_nce, with hard negatives where there are. Of scored pairs: cosent |
    # cosine_mse | angle. Of triplets: triplet. Of texts with a teacher:
    # distill_vectors (of the same space) | distill_similarity | distill_kl.
    c.pairs.loss = "info_nce"
    c.pairs.temperature = 0.05  # info_nce, distill_kl: what cosines are divided by
    c.pairs.symmetric = True  # info_nce: the mean of both directions
    c.pairs.margin = 0.2  # triplet: on squared distances of unit vectors
    c.pairs.score_max = 1.0  # scored pairs: scores are divided by it
    # Pairs that go through the encoder at a time; the loss still sees all of the batch; 0 = all.
    c.pairs.micro_batch = 0
    # Folder of a model that embeds all texts beforehand. distill_*: what is learned from;
    # info_nce: texts that it finds nearer than the pair are no negatives.
    c.pairs.teacher = ""
    # Layers that are trained beside the last, each at every dim: last | sampled (2D Matryoshka) |
    # sizes (one layer per granularity, from small to large).
    c.pairs.layers = "last"

    c.adaptor = ConfigDict()  # adaptor: a small network on frozen vectors, and its losses
    c.adaptor.kind = "linear"  # linear | residual (one hidden layer) | rotation (keeps all cosines)
    c.adaptor.hidden = 0  # residual: hidden units; 0 = as many as vectors have dims
    # What it begins as: identity | pca (vectors are turned so that their first dims say most; their
    # cosines stay as they are, and the adaptor begins as the identity after that)
    c.adaptor.start = "identity"
    # Weights of the losses, all but the reconstruction on every prefix: of what changes in cosines
    c.adaptor.pairs = 1.0  # of all pairs of a batch
    c.adaptor.neighbours = 1.0  # of every vector and the nearest of its batch,
    c.adaptor.nearest = 10  # which are so many
    c.adaptor.reconstruction = 1.0  # and in whole vectors;
    c.adaptor.ranking = 1.0  # of what ranks before a vector's positive, where there are positives

    c.nesting = ConfigDict()
    c.nesting.dims = (8, 16, 32, 64)  # the granularities: prefixes that get a loss of their own
    c.nesting.weights = ()  # importance c_m of each granularity; () = 1 each, as in the paper

    c.head = ConfigDict()
    # separate = MRL | shared = MRL-E | fixed = FF-m, one granularity. masked_lm: shared or fixed,
    # the head is the table of tokens.
    c.head.kind = "separate"
    c.head.normalize = "none"  # none | prefix: scale every prefix to unit length first
    c.head.label_smoothing = 0.0  # in [0, 1), on the loss of every granularity

    # auto | plain | blockwise | streamed. Plain computes all logits, then the loss; blockwise and
    # streamed do both in one, without [G, B, C] logits; streamed is slower and needs least memory.
    # auto: blockwise from 2**21 logits (granularities x batch x classes) per device, else plain.
    c.head.loss = "auto"

    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"  # adamw | sgd (momentum 0.9) | adafactor
    c.optimizer.nesterov = False  # sgd: Nesterov momentum
    c.optimizer.schedule = "cosine"  # cosine | linear (the reference's): from the peak to zero
    c.optimizer.learning_rate = 1e-3  # peak, reached after warm-up
    c.optimizer.warmup_steps = 50  # linear up
    c.optimizer.weight_decay = 1e-4  # added to the gradient for sgd, decoupled from it for others
    c.optimizer.decay_mask = "kernel"  # regex: parameters whose path matches are decayed
    c.optimizer.clip_norm = 0.0  # gradients of a larger global norm are scaled to it; 0 = off
    # > 0: measure moving averages of parameters and batch statistics that keep this per step
    c.optimizer.ema_decay = 0.0
    c.optimizer.accumulate = 1  # parts of a batch that are computed one after the other

    c.mesh = ConfigDict()  # devices = data x fsdp x tensor; one of them may be -1 (what is left)
    c.mesh.data = -1  # splits the batch, replicates the parameters
    c.mesh.fsdp = 1  # splits the batch and stores parameters in pieces
    c.mesh.tensor = 1  # splits the classes of the head

    # Where parameters (and their optimiser state) live: of the rules whose regex matches, the first
    # that splits something wins; every regex must match something. replicate | first:AXIS,
    # last:AXIS (split that dimension) | largest:AXIS (split the largest dimension that divides
    # evenly), or several of them for different dimensions: last:tensor+largest:fsdp. A rule whose
    # axes have one device each, or whose largest:AXIS finds no dimension, splits nothing.
    c.sharding = (
        ("head/(kernel|bias)", "last:tensor+largest:fsdp"),
        ("kernel", "largest:fsdp"),
        (".*", "replicate"),
    )

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 200  # steps between checkpoints; the last step is always saved
    c.checkpoint.keep = 2  # newest checkpoints kept on disk

    c.eval = ConfigDict()
    c.eval.every = 0  # steps between evaluations of the val split; 0 = only at the end
    c.eval.batch_size = 256  # examples per evaluation step over all devices
    # What is measured: names of evaluators.MEASURES, or all. Most embed the train split as well.
    c.eval.measures = ("accuracy", "neighbours")
    # Files of scored pairs, each "NAME=FILE"; adaptor: .npz with vectors a and b, and score
    c.eval.sts = ()
    # sentence_pairs: folders with train.* and test.* of a text and its label, "NAME=FOLDER"
    c.eval.classification = ()
    c.eval.clustering = ()  # sentence_pairs: files of a text and its label, each "NAME=FILE"
    # Tasks of text: PCA and a rotation of the whole embedding as well, as rivals of its prefixes
    c.eval.projections = False
    c.eval.layers = ()  # sentence_pairs: measure after these layers as well, as (1, 2, 3)
    c.eval.retrieval = ()  # sentence_pairs: folders with corpus, queries and qrels, "NAME=FOLDER"
    # Sets of eval.retrieval in which no query is shown the document with its own id, as in ArguAna,
    # whose queries are documents
    c.eval.ignore_identical_ids = ()
    c.eval.hierarchy = ""  # file that says which superclass a class belongs to; "" = none
    c.eval.shifts = ()  # other test sets of these classes, each "NAME=FOLDER"
    c.eval.dims = ()  # prefixes to measure; () = the nesting and the dims between
    return c.lock()
