"""Your own images: a folder with train/CLASS/* and val/CLASS/* (and test/CLASS/*, if there is one).

    python -m mrl_jax.train --config configs/image_folder.py:mrl --workdir runs/mine \
        --config.data.path=FOLDER --config.data.image_size=32

Arguments:  mrl | mrl_e | fixed=M
Hardware:   a small network for small images, decoded once and kept in memory: 10,000 images of
            32 pixels take 30 MB and about 2 minutes for 1,000 steps on 2 CPU cores
"""

from mrl_jax.config import default_config, set_method


def get_config(arg="mrl"):
    config = default_config()
    config.name = f"image_folder:{arg}"
    config.data.source = "image_folder"
    config.data.random_shift = 2
    config.model.name = "cnn"
    config.model.width = 16
    config.model.depth = 2
    config.model.embedding_dim = 128
    config.nesting.dims = (4, 8, 16, 32, 64, 128)
    set_method(config, arg)
    config.eval.every = 200
    return config
