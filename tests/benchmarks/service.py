"""What one service process learns and answers on this machine, its clients and peers beside it.

    python -m tests.benchmarks.service [--only learn peers latency memory recovery]

Logistic regression 784 × 10 on the stream `abrupt`, the pool but where it says a single Funnel, one
thread. All that is compared is measured in turn within each round, so that noise hits all alike;
given are median (lowest to highest), of ratios too, each of one round.

- **learn**: examples are sent flat out for some seconds, and then waited for until the last is
  learned: a backlog does not count as learned. The bare fold is the same steps in one process
  without log and HTTP. *Catching up* is learning a log that was filled before the service started.
- **peers**: other learners on the same examples, in this process, without log and HTTP, on inputs
  that are in their own form before the clock starts. They neither standardize nor score.
- **latency**: open loop, from the intended send time. *Senders pressing*: two connections
  send batches of 1,000, faster than they are learned. *Its log*: what these left behind is learned
  after they have gone, so that senders and fsyncs take no core from what is measured.
  LitServe serves the same module, reads the same bytes with the same function, and does not learn.
  Where fewer requests are answered than were sent, the rate is above what the server can do, and
  percentiles only say for how long it was sent.
- **memory**: resident memory, its median over each million of examples.
- **recovery**: `funnel serve` is killed with its log and started again.

What bounds the figures on two cores. A step of 100 costs its dispatch: some hundred small
operators, traced, so that they run without the interpreter and its lock; in batches of 1,000 an
example costs a third as much, and the passes over memory bound it. While it steps, the next batches
are read and recorded; what then is left to wait for is a core: the HTTP side, the log's server and
the clients share two with it. The learner is a thread all the same: snapshots are swapped by
reference, and weights on a GPU stay there. Batches of 1,000 are bounded by the bytes' way through
HTTP and log, 784 an example, which is copied and parsed several times; one example a request by the
web framework, some 0.8 ms each; JSON by the reading of 784 numbers an example, 15 kB, in processes
beside this one, as the parser would keep the interpreter's lock. River walks
dictionaries in Python; scikit-learn and Vowpal Wabbit spend theirs on ten binary problems an
example. A prediction waits 1 ms for others to share its pass, and goes through the web framework;
while learning, it also waits for a core, as do its client's threads. Memory is torch's code and
heap, and what wavers is requests and log under way, in one arena of the allocator a thread. A
restart is bounded by the imports of torch and, for the streams, scikit-learn, by the log server's
reading of its file, by what torch imports when its first optimizer is made, and by the replay, at
the bare fold's speed, of up to the time between two checkpoints.
"""

import argparse
import os
import platform
import sys

import torch

from tests.benchmarks import latency, learning, memory, peers, recovery
from tests.benchmarks.measure import Plan

PARTS = {
    "learn": learning.run,
    "peers": peers.run,
    "latency": latency.run,
    "memory": memory.run,
    "recovery": recovery.run,
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
