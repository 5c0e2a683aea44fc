"""Flickr8k: photos and captions in one nested space, on two CPU cores."""

from mrl_jax.config import default_config, set_method

DIMS = (12, 24, 48, 96, 192, 384)


def get_config(arg="mrl"):
    config = default_config("image_text")
    config.name = f"flickr8k:{arg}"
    config.data.image_size = 64
    config.data.mean = (116.0, 112.0, 103.0)
    config.data.std = (70.0, 68.0, 72.0)
    config.data.random_crop = 0.5
    config.data.flip = True
    config.model.name = "resnet18"
    config.model.embedding_dim = 0
    config.model.width = 32
    config.model.stem = "small"
    config.text.encoder = "static"
    config.text.width = 256
    config.text.vocab_size = 4000
    config.text.max_length = 32
    config.nesting.dims = DIMS
    config.sharding = ((".*", "replicate"),)
    config.batch_size = 256
    config.steps = 600
    config.eval.batch_size = 250
    set_method(config, arg)
    return config
