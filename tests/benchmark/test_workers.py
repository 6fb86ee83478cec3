"""Nothing is lost when a node of a Ray cluster dies, nothing is done twice when all goes well."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from maskmend.benchmark.workers import InProcess, open_pool
from maskmend.errors import UsageError

# A process of its own: Ray's threads and environment would stay with the other tests.
CLUSTER = """
    import os, sys, time
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster
    from maskmend.benchmark.workers import open_pool

    log = sys.argv[1]
    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **small})
    second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    pool = open_pool(None, cluster.address)
    assert pool.slots == 2, pool.slots

    victim = second.node_id

    def work(item):
        node = ray.get_runtime_context().get_node_id()
        with open(log, "a") as file:
            file.write(f"{item} {node}\\n")
        if node == victim:  # its run goes on until the node is killed
            time.sleep(600)
        while victim not in open(log).read():  # nor do the others end before that has begun
            time.sleep(0.1)
        time.sleep(0.2)
        return {"status": "done", "item": item}

    items = [str(n) for n in range(12)]
    done, killed = [], False
    for item, result in pool.map(work, items):
        assert result == {"status": "done", "item": item}, result
        done.append(item)
        if len(done) >= 3 and not killed:
            cluster.remove_node(second, allow_graceful=False)
            killed = True
    assert killed
    assert sorted(done) == sorted(items), done
    begun = [line.split() for line in open(log)]
    assert len({node for _, node in begun}) == 2
    for _ in range(300):  # the cluster notices in its own time
        if pool.slots == 1:
            break
        time.sleep(0.1)
    print("\\nbegun", len(begun), "slots", pool.slots)
    pool.close()
    cluster.shutdown()
"""


@pytest.mark.slow
def test_a_dead_node_loses_nothing(tmp_path) -> None:
    pytest.importorskip("ray")
    script = tmp_path / "cluster.py"
    script.write_text(textwrap.dedent(CLUSTER))
    answer = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "log")], capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    # The killed node's run was begun twice: without that the test would show nothing.
    assert "begun 13 slots 1" in answer.stdout.splitlines(), answer.stdout  # Ray writes there, too


def test_in_process_keeps_the_order() -> None:
    pool = open_pool(0, None)
    assert isinstance(pool, InProcess)
    assert [item for item, _ in pool.map(lambda n: {"n": n}, [3, 1, 2])] == [3, 1, 2]


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert isinstance(open_pool(None, None), InProcess)
    with pytest.raises(UsageError, match=r"maskmend\[benchmark\]"):
        open_pool(2, None)
    with pytest.raises(UsageError, match="not installed"):
        open_pool(None, "auto")
