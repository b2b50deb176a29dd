"""The throughput of one service process on this machine, with clients and peers on the same cores.

    python -m tests.benchmarks.service [--only learn peers latency memory recovery rows]

The model is logistic regression, 784 × 10, on the stream `abrupt`, with the pool unless a row
names a single Funnel, on one thread. All contenders are measured in turn in each round, so that
noise hits all equally. Figures are median (lowest to highest), also for ratios, each of which is
of one round.

- **learn**: a client sends examples flat out for some seconds; the clock stops when the last one
  is learned, so a backlog does not count. The bare fold is the same steps in one process without
  log and HTTP. *Catching up* is learning a log that was filled before the service started.
- **peers**: other learners on the same examples, in this process, without log and HTTP. Their
  inputs are converted before the clock starts. They neither standardize nor score.
- **latency**: open loop, measured from the intended send time. *Senders pressing*: two connections
  send batches of 1,000, faster than the service learns them. *Its log*: the service learns what
  they have sent after they have stopped, so that senders and fsyncs take no core from the
  measurement. LitServe serves the same module, reads the same bytes with the same function, and
  does not learn. If fewer requests are answered than were sent, the rate exceeds what the server
  can do, and the percentiles only show how long the load lasted.
- **memory**: resident memory, with its median over each million of examples.
- **recovery**: `funnel serve` and its log are killed and started again.
- **rows**: named rows over HTTP, beside Vowpal Wabbit and beside dense features, and their memory.
- **processes**: requests of one row, to one process and to several on the same port or log.
- **checkpoints**: of a table of a million rows, of which one in a hundred changes, in this process.
- **compiled**: the compiled step of linear models against operators, in this process.
- **renewal**: of experts with a table of a million rows, in this process.
- **table**: whole steps on sparse inputs, 13 numbers and 26 categories in a table, in this process.

What bounds the figures on two cores:

- Learning batches of 100 costs the dispatch of some hundred small operators. They are traced, so
  they run without the interpreter and its lock. Linear models of classes learn by compiled steps,
  which products of matrices bound. In batches of 1,000 an example costs a third as
  much, and passes over memory bound it. During a step the next batches are read and recorded, so
  the only wait left is for a core, which HTTP, the log's server and the clients also need. The
  trainer is nevertheless a thread: snapshots are swapped by reference, and weights on a GPU stay
  there.
- Sending 1,000 rows per request is bounded by the bytes, 784 per example, which HTTP and log copy
  and parse several times. One row per request is bounded by the web server, and by a confirmation
  of the log that few requests share. JSON is bounded by parsing 784 numbers, 15 kB, per example;
  other processes do that, because the parser would hold the interpreter's lock.
- River walks dictionaries in Python. Scikit-learn and Vowpal Wabbit solve ten binary problems per
  example.
- A prediction goes through the web server and some forty small operators, about as long through the
  one as through the others. While the service learns, it also waits for a core, as do the threads
  of its client.
- Memory is the code and heap of torch. It varies with requests and log entries in flight, in one
  arena of the allocator per thread.
- A restart is bounded by the imports of torch and, for the streams, scikit-learn; by the log
  server reading its file; by the imports of torch's first optimizer; and by the replay, at the
  speed of the bare fold, of up to the time between two checkpoints.
"""

import argparse
import os
import platform
import sys

import torch

from tests.benchmarks.measure import Plan
from tests.benchmarks.parts import (
    checkpoints,
    compiled,
    latency,
    learning,
    memory,
    named,
    peers,
    processes,
    recovery,
    renewal,
    small,
    table,
)

PARTS = {
    "learn": learning.run,
    "peers": peers.run,
    "latency": latency.run,
    "memory": memory.run,
    "recovery": recovery.run,
    "table": table.run,
    "checkpoints": checkpoints.run,
    "renewal": renewal.run,
    "processes": processes.run,
    "compiled": compiled.run,
    "rows": lambda plan: f"{named.run(plan)}\n{small.small(plan)}",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts [all]")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement [5]")
    parser.add_argument("--repeats", type=int, default=3, help="rounds [3]")
    parser.add_argument(
        "--memory-examples", type=int, default=10_000_000, help="learned for memory [10,000,000]"
    )
    options = parser.parse_args()
    plan = Plan(options.seconds, options.repeats, options.memory_examples)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"torch {torch.__version__}, {plan.repeats} rounds of {plan.seconds:g} s\n"
    )
    for name in options.only:
        print(PARTS[name](plan), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
