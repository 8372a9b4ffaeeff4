"""The thread pool: every item once, errors, floating point environment, forks, idle threads."""

import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from musespark import CorruptFile, Error, InvalidRequest
from musespark._core import testing

THREADS = [1, 2, 3, 8]


@pytest.mark.parametrize("threads", THREADS)
def test_every_item_is_visited_exactly_once(threads: int) -> None:
    pool = testing.ThreadPool(threads)
    assert pool.threads == threads
    for items in (0, 1, 2, 7, 64, 1000):
        for chunk in (1, 2, 3, 64, 5000):
            visits, per_worker = pool.visits(items, chunk)
            assert visits.tolist() == [1] * items, (items, chunk)
            assert sum(per_worker) == items
            assert len(per_worker) == threads


def test_no_items_is_no_work_and_a_bad_chunk_is_an_error() -> None:
    pool = testing.ThreadPool(2)
    assert pool.visits(-5)[0].size == 0
    with pytest.raises(Error, match="chunk is 0"):
        pool.visits(4, 0)


def test_a_chunk_near_the_end_of_the_type_does_not_overflow() -> None:
    pool = testing.ThreadPool(4)
    for _ in range(200):
        assert pool.visits(3, 2**63 - 1)[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_impossible_thread_counts(threads: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"threads: expected 1 to 1024, received {threads}"):
        testing.ThreadPool(threads)


def test_pools_come_and_go() -> None:
    for i in range(100):
        pool = testing.ThreadPool(1 + i % 5)
        if i % 2:
            assert pool.visits(20)[0].tolist() == [1] * 20


def test_many_small_jobs_back_to_back() -> None:
    """A worker that leaves job n late must not take part of job n + 1 twice, or sleep for ever."""
    for threads in (2, 5):
        pool = testing.ThreadPool(threads)
        pool.empty_jobs(70_000, 8)  # more jobs than the job number has values
        for _ in range(2000):
            assert pool.visits(9)[0].tolist() == [1] * 9


def test_jobs_after_sleeping_wake_the_workers() -> None:
    pool = testing.ThreadPool(3)
    for _ in range(20):
        time.sleep(0.002)  # past the spinning time: the workers are asleep
        assert pool.visits(500)[0].sum() == 500


def test_several_callers_take_turns() -> None:
    pool = testing.ThreadPool(3)
    wrong: list[object] = []

    def call() -> None:
        for _ in range(300):
            visits, _ = pool.visits(40)
            if visits.tolist() != [1] * 40:
                wrong.append(visits)

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("threads", THREADS)
def test_an_exception_reaches_the_caller_and_the_pool_lives_on(threads: int) -> None:
    pool = testing.ThreadPool(threads)
    for _ in range(50):
        with pytest.raises(CorruptFile, match=r"^item \d+$"):
            pool.failing(100, 30)
        pool.failing(100, 100)
        assert pool.visits(50)[0].tolist() == [1] * 50
    with pytest.raises(CorruptFile, match=r"^item 0$"):
        pool.failing(1, 0)


def test_a_job_inside_a_job_is_refused() -> None:
    with pytest.raises(Error, match="inside a task of the same pool"):
        testing.ThreadPool(2).nested()


@pytest.fixture
def flush_to_zero():
    """This thread flushes subnormals to zero, as a library built with -ffast-math leaves it."""
    before = testing.read_float_env()
    testing.write_float_env(before | testing.float_env_flush_to_zero)
    yield
    testing.write_float_env(before)


@pytest.mark.usefixtures("flush_to_zero")
def test_the_callers_flush_to_zero_neither_reaches_a_job_nor_is_lost() -> None:
    mine = testing.read_float_env()
    assert mine != testing.float_env_default
    tiny = float(np.float32(1e-30))
    expected = float(np.float32(1e-30) * np.float64(1e-10))  # subnormal in float32
    assert testing.multiply(tiny, 1e-10) == 0.0, "the fixture did not switch flushing on"
    for threads in (1, 3):
        pool = testing.ThreadPool(threads)
        assert testing.multiply_in_pool(pool, tiny, 1e-10) == pytest.approx(expected, rel=1e-4)
        words = pool.environments(200)
        taken = [word for word in words if word != 0xFFFFFFFF]
        assert len(taken) >= 1
        assert set(taken) == {testing.float_env_default}
        assert testing.read_float_env() == mine
        with pytest.raises(CorruptFile):
            pool.failing(10, 2)
        assert testing.read_float_env() == mine


@pytest.mark.usefixtures("flush_to_zero")
def test_workers_started_by_a_flushing_thread_compute_with_subnormals() -> None:
    """Linux threads inherit the control word of the thread that starts them."""
    pool = testing.ThreadPool(4)
    taken = {word for word in pool.environments(2000) if word != 0xFFFFFFFF}
    assert taken == {testing.float_env_default}


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_pool_after_fork_raises_and_neither_side_hangs() -> None:
    result = run_python("""
        import os, sys, warnings
        warnings.simplefilter("ignore")
        import musespark
        from musespark._core import testing
        pool = testing.ThreadPool(3)
        pool.visits(10)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                pool.visits(10)
            except musespark.Error as error:
                code = 7 if "os.fork" in str(error) else 2
            del pool                                # must not wait for threads that are not there
            fresh = testing.ThreadPool(2)           # a pool of the child's own works
            assert fresh.visits(10)[0].tolist() == [1] * 10
            del fresh
            os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
        assert pool.visits(10)[0].tolist() == [1] * 10
    """)
    assert result.returncode == 0, result.stderr


def test_idle_workers_use_no_time() -> None:
    """Process time over half a second of idling: spinning workers would use 0.5 s each."""
    result = run_python("""
        import time
        from musespark._core import testing
        pool = testing.ThreadPool(4)
        pool.visits(100)
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.5)
        print(time.process_time() - before)
    """)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 0.02
