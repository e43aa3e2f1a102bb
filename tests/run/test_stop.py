"""A request to stop: one process leaves at once, several leave at the same place."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from care_jax.run.stop import StopFlag, Stopped


@pytest.fixture
def stop():
    """A flag whose handler is taken away afterwards."""
    handler = signal.getsignal(signal.SIGTERM)
    yield StopFlag()
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.slow
def test_a_long_computation_is_left_at_once(stop):
    """Catches a rollout of minutes that is waited for after a notice of seconds, and one that is given up unasked."""
    work = jax.jit(lambda x: jax.lax.fori_loop(0, 3000, lambda _, y: jnp.tanh(y @ y), x)).lower(jnp.eye(400)).compile()
    stop.wait(work(jnp.eye(400)))
    running = work(jnp.eye(400))
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Stopped):
        stop.wait(running)
    assert not running.is_ready()
    assert stop.is_set
    with pytest.raises(Stopped):  # nor is anything else begun
        stop.wait(jnp.zeros(3))
    running.block_until_ready()


PROGRAM = """
import os, signal, sys
import jax
from jax.experimental import multihost_utils
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from care_jax.run.stop import StopFlag, Stopped
stop = StopFlag()
for poll in range(100):
    multihost_utils.reached_preemption_sync_point(7)  # as Orbax does at every save, with the step
    multihost_utils.sync_global_devices("in step")
    if poll == 5 and sys.argv[2] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    try:
        stop.wait(jax.numpy.zeros(3))
    except Stopped:
        break
print(poll, stop.poll(), stop.is_set)
"""


def test_all_processes_stop_at_the_same_place():
    """Catches processes of which one leaves while the other waits for it, and a notice that only JAX's service sees."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"XLA_FLAGS": ""},
        )
        for number in range(2)
    ]
    limit = time.monotonic() + 120
    try:
        ended = [process.communicate(timeout=max(1, limit - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [out.splitlines()[-1:] for out, _ in ended] == [["5 True True"]] * 2, ended
