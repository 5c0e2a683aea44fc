import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax.config import default_config
from mrl_jax.errors import UsageError
from mrl_jax.tasks import text_encoder


@pytest.mark.parametrize("task", ["sentence_pairs", "masked_lm", "image_text"])
def test_a_network_computes_as_the_config_says_and_its_facts_do_not(task):
    config = default_config(task)
    config.text.encoder = "bert_tiny"
    usual, _, _ = text_encoder.of_config(config)
    config.text.dtype, config.text.remat, config.text.dropout = "bfloat16", True, 0.25
    found, _, _ = text_encoder.of_config(config)
    assert found.facts() == usual.facts()
    trained = text_encoder.of_facts(found.facts(), config.text).module.backbone
    assert (trained.dtype, trained.remat, trained.dropout) == (jnp.bfloat16, True, 0.25)
    served = text_encoder.of_facts(found.facts()).module.backbone
    assert (served.dtype, served.remat, served.dropout) == (jnp.float32, False, 0)


def test_products_in_bfloat16_change_little():
    config = default_config("sentence_pairs")
    config.text.encoder, config.text.vocab_size = "bert_tiny", 40
    facts = text_encoder.of_config(config)[0].facts()
    tokens_bt, lengths_b = jnp.arange(12).reshape(2, 6), jnp.array([6, 3])
    params = text_encoder.of_facts(facts).module.init(jax.random.key(0), tokens_bt, lengths_b)
    config.text.dtype = "bfloat16"
    exact, short = (
        text_encoder.of_facts(facts, text).module.apply(params, tokens_bt, lengths_b)
        for text in (None, config.text)
    )
    assert short.dtype == jnp.float32
    np.testing.assert_allclose(short, exact, atol=0.05)
    assert (short != exact).any()


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"remat": True}, {"dropout": 0.1}])
def test_a_table_is_no_network(change):
    config = default_config("sentence_pairs")
    config.text.update(change)
    with pytest.raises(UsageError, match=r"config\.text: a static table has no dropout, dtype or"):
        text_encoder.of_config(config, width=8)
