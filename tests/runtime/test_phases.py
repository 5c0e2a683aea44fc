from mrl_jax.runtime import phases


def test_the_speed_is_of_the_steps_alone(monkeypatch):
    now = 0.0
    monkeypatch.setattr(phases.time, "perf_counter", lambda: now)
    rate = phases.Rate(steps=100, batch_size=8, start=0)
    now = 10.0
    with rate.paused():  # something is compiled in the middle
        now = 60.0
    now = 70.0
    # 20 steps in 20 seconds; what is left also has its share of pauses.
    assert rate.read(20) == (8.0, 70 / 20 * 80)
    now = 75.0
    assert rate.read(25)[0] == 8.0
