"""Kill -9 a service many times in mid-stream and compare digests with an uninterrupted run.

python -m tests.service.kill --kills 30 --examples 60000
python -m tests.service.kill --kills 30 --examples 60000 --redis-server
python -m tests.service.kill --kills 20 --examples 60000 --redis-server --standby
python -m tests.service.kill --kills 12 --examples 20000 --task regression
python -m tests.service.kill --kills 12 --examples 20000 --task binary --model package:factory
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from streams.sources.catalog import get
from tests.support.harness import RedisProcess, ServiceProcess, fold, relay
from tests.support.tasks import TASKS, all_of_task, settings_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--entry", type=int, default=70, help="examples a request")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--redis-server", nargs="?", const="redis-server", help="by URL on this program's server"
    )
    parser.add_argument(
        "--standby", action="store_true", help="with a standby: kill the service that learns"
    )
    parser.add_argument("--task", choices=TASKS, default=TASKS[0], help="what is learned")
    parser.add_argument("--model", default="logistic", help="built in, or package.module:factory")
    options = parser.parse_args()
    stream = get("abrupt", options.examples)
    folds = []
    for name, kills in (("uninterrupted", 0), ("killed", options.kills)):
        with tempfile.TemporaryDirectory() as scratch:
            settings = {"max_wait_ms": 600_000, "checkpoint_every_seconds": 1.0}
            settings |= {"model": options.model} | settings_of(options.task, stream.classes)
            redis = None
            if options.redis_server:
                redis = RedisProcess(Path(scratch) / "redis", options.redis_server).start()
                settings["redis_url"] = redis.url
            service = ServiceProcess(Path(scratch), settings)
            batches = all_of_task(options.task, stream.batches(options.entry))
            began = time.monotonic()
            if options.standby and kills:
                other = ServiceProcess(service.directory, service.options)
                ended = relay((service, other), batches, kills, options.seed)
                other.kill(server=False)
            else:
                ended = fold(service, batches, kills, options.seed, redis)
            seconds = time.monotonic() - began
            service.terminate()
            if redis is not None:
                redis.kill()
        print(f"{name:>13}: {kills} kills, {seconds:.1f} s, {ended}")
        folds.append(ended)
    print("equal" if folds[0] == folds[1] else "DIFFERENT")
    return 0 if folds[0] == folds[1] else 1


if __name__ == "__main__":
    sys.exit(main())
