"""The guard against compilations after the warm-up."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from care_jax.run.compile_guard import CompileGuard


def test_armed_guard_names_the_function_that_a_new_shape_compiled():
    """Catches a guard that is deaf (the event's name changed in jax) or that trips on cached calls."""

    @jax.jit
    def train_step(x):
        return x * 2.0

    with CompileGuard() as guard:
        train_step(np.ones(3, np.float32))
        guard.check(0)  # not armed: the warm-up may compile
        guard.arm()
        for step in (1, 2, 3):
            train_step(np.full(3, step, np.float32))
            guard.check(step)
        train_step(np.ones(4, np.float32))
        with pytest.raises(RuntimeError, match=r"step 4: 1 compilation\(s\) after the warm-up: .*train_step"):
            guard.check(4)
        guard.arm()
        guard.check(5)
    train_step(np.ones(5, np.float32))
    guard.check(6)  # closed: it no longer listens


def test_guard_counts_a_program_from_the_persistent_cache(tmp_path):
    """Catches a guard that is blind on the second run of a machine, where the cache answers."""
    from jax.experimental.compilation_cache import compilation_cache

    def compile_once() -> list[str]:
        with CompileGuard() as guard:
            jax.jit(lambda x: x * 3.0 + 1.0).lower(np.ones(7, np.float32)).compile()
        return guard.compiled

    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    seen: list[str] = []

    def listen(event: str, **kwargs: str | int) -> None:
        seen.append(event)

    before = {name: jax.config.values[name] for name in settings}
    compilation_cache.reset_cache()
    jax.monitoring.register_event_listener(listen)
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        assert len(compile_once()) == 1
        assert "/jax/compilation_cache/cache_hits" not in seen
        assert len(compile_once()) == 1
        assert "/jax/compilation_cache/cache_hits" in seen
    finally:
        jax.monitoring.unregister_event_listener(listen)
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
