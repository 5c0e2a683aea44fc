"""Config keys that the tasks of images share."""

from mrl_jax.config.keys import Key

PIXELS = {
    "data.image_size": Key(
        32, "image_folder, tfds: images become this many pixels high and wide", 1
    ),
    "data.eval_crop": Key(
        1.0,
        "share of the short side kept in evaluation, 0.875 = 224 of 256; and in training, in "
        "memory or where random_crop is 0",
    ),
    "data.mean": Key(
        (127.5,), "subtracted from pixels of 0 to 255; one number, or one per channel"
    ),
    "data.std": Key((127.5,), "what pixels are divided by then; one number, or one per channel"),
    "data.stream": Key(
        False,
        "False: all images are decoded once and kept in memory, as squares of image_size. True: "
        "they are read when they are needed, for sets that do not fit",
    ),
    "data.threads": Key(0, "threads that decode images; 0 = one per core", 0, resume=True),
    "data.rand_augment": Key(
        (), "stream only, training: (changes per image, strength 0 to 10) of RandAugment; () = off"
    ),
    "data.random_crop": Key(
        0.0, "training: smallest share of the area that a random part shows; 0 = off"
    ),
    "data.flip": Key(False, "training: left and right change sides in half of the images"),
    "data.random_shift": Key(0, "training: images move by up to this many pixels in x and y"),
}
MODEL = {
    "model.name": Key(
        "cnn",
        "mlp | cnn | resnet18, 34, 50, 101 | vit_ti16, vit_s16, vit_b16 and the same with 8 | "
        '"MODULE:FUNCTION", which takes the other keys of this group by name and gives a Flax '
        "module with out_dim",
    ),
    "model.embedding_dim": Key(
        64,
        "width of the embedding, at least the largest nesting dim. 0 = the network's own: 512 or "
        "2048 for resnets, 192 to 768 for vits; another number adds a linear layer there. The keys "
        "below change a network that has what they say; others refuse them",
    ),
    "model.width": Key(
        0, "mlp: hidden units; cnn, resnet: channels of the first stage; 0 = default"
    ),
    "model.depth": Key(
        0, "mlp: hidden layers; cnn: stages, each halves the resolution; 0 = default"
    ),
    "model.stem": Key("imagenet", "resnet: imagenet | small, for images of 32 or 64 pixels"),
    "model.blurpool": Key(False, "resnet: blur before strides, as the reference's recipe"),
    "model.batch_norm_groups": Key(1, "resnet: parts of the batch with statistics of their own"),
    "model.pool": Key("gap", "vit: gap, the mean of all tokens | cls"),
    "model.dtype": Key("float32", "resnet, vit: of the products, float32 | bfloat16"),
    "model.remat": Key(
        False, "resnet, vit: take less memory, as blocks are computed again backwards"
    ),
}
