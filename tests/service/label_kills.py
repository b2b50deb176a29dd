"""Kill -9 services many times between questions, labels and cuts, and compare digests.

    python -m tests.service.label_kills --runs 50 --kills 4 [--labels sum|weighted]

Each run asks with ids and labels what was asked a while ago; some labels are sent twice, and some
with another value afterwards. Services are killed at moments that are drawn, every second time with
their log's server, and in every other run a standby takes over instead. The digest must be that of
a run without kills, and that of a plain fold of the questions in the order of their labels.

With ``--labels`` labels add up, or correct negatives. Then batches depend on the time at which
questions are learned, so the digest must be that of a plain fold of the recorded cuts, and these
must hold each question and each label once (`tests.service.label_watch`).
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from service.fold.state import State
from service.fold.step import Fold
from service.log.position import ORIGIN, Position, Progress
from service.settings import load_settings
from service.trainer.checkpoint import Checkpoint
from streams.batch import Batch, Features, Labels
from tests.service.label_watch import Watch
from tests.support.harness import RedisProcess, ServiceProcess, free_port, wait_for
from tests.support.states import CPU

QUESTIONS, ROWS, LATER = 60, 5, 3
"""Requests that ask, unless another number is given, examples of each, and requests from a question
to its labels."""
FEATURES, CLASSES, BATCH = 4, 3, 7
OPTIONS = {
    "features": FEATURES, "classes": CLASSES, "batch_size": BATCH, "max_wait_ms": 600_000,
    "lease_seconds": 1.0, "checkpoint_every_seconds": 0.3,
}  # fmt: skip
AWAY = 503
RULES = {
    "sum": {"task": "regression", "labels": "sum", "label_ttl": "4s"},
    "weighted": {"task": "binary", "classes": 2, "label_timeout": "weighted:0"},
}  # fmt: skip
TTL_MS = 4_000
"""Of questions whose labels add up."""


def asked(question: int) -> Features:
    """Return the examples of a request, float32 [ROWS, FEATURES]."""
    rng = np.random.default_rng([0, question])
    return rng.normal(size=(ROWS, FEATURES)).astype(np.float32)


def labels_of(question: int) -> Labels:
    """Return their labels, int64 [ROWS]."""
    return np.arange(question, question + ROWS) % CLASSES


def post(services: list[ServiceProcess], path: str, body: object) -> httpx.Response:
    """Send a request until a service takes it."""
    taken: list[httpx.Response] = []

    def is_taken() -> bool:
        for service in services:
            try:
                with service.client() as client:
                    answer = client.post(path, json=body)
            except httpx.TransportError:
                continue
            if answer.status_code != AWAY:
                taken.append(answer.raise_for_status())
                return True
        return False

    wait_for(is_taken)
    return taken[0]


def run(services: list[ServiceProcess], kills: int, seed: int, questions: int) -> str:
    """Ask, label what was asked a while ago, and kill in between; return the digest."""
    rng = random.Random(seed)
    moments = set(rng.sample(range(2 * questions), kills))
    for service in services:
        service.start()

    def kill_at(moment: int) -> None:
        if moment not in moments:
            return
        learner = services[0]
        learner.kill(server=len(services) == 1 and rng.random() < 0.5)
        learner.start()
        services.reverse()

    for k in range(questions + LATER):
        if k < questions:
            ids = [f"{k}-{row}" for row in range(ROWS)]
            post(services, "/predict", {"features": asked(k).tolist(), "ids": ids})
            kill_at(2 * k)
        if (question := k - LATER) >= 0:
            ids = [f"{question}-{row}" for row in range(ROWS)]
            labels = labels_of(question)
            post(services, "/labels", {"ids": ids, "labels": labels.tolist()})
            kill_at(2 * question + 1)
            if question % 5 == 0:
                others = ((labels + question // 5) % CLASSES).tolist()
                post(services, "/labels", {"ids": ids, "labels": others})
    total = questions * ROWS
    cut = total - total % BATCH
    digests: list[str] = []

    def has_learned() -> bool:
        for service in services:
            with service.client() as client:
                model = client.get("/model").json()
                if model["role"] == "learner" and model["examples_learned"] == cut:
                    digests.append(client.post("/checkpoint").json()["sha256"])
                    return True
        return False

    wait_for(has_learned)
    return digests[0]


def folded(questions: int = QUESTIONS) -> Checkpoint:
    """Return the plain fold of the questions in the order of their labels."""
    settings = load_settings({"model": "logistic"} | OPTIONS)
    state = State(settings.spec, settings.hyperparameters, CPU)
    fold = Fold(state)
    features = np.concatenate([asked(k) for k in range(questions)])
    labels = np.concatenate([labels_of(k) for k in range(questions)])
    for start in range(0, len(labels) - BATCH + 1, BATCH):
        part = slice(start, start + BATCH)
        report = fold.step(Batch(features[part], labels[part]))
        state.drift.note(report, BATCH, state.examples, Position(ORIGIN))
    return Checkpoint.of(state, Progress())


def killed(
    directory: Path, kills: int, seed: int, has_standby: bool, questions: int = QUESTIONS
) -> str:
    """Return the digest of a run on an embedded log, or with a standby on a server of its own."""
    if not has_standby:
        service = ServiceProcess(directory, dict(OPTIONS))
        try:
            return run([service], kills, seed, questions)
        finally:
            service.kill()
    redis = RedisProcess(directory / "redis").start()
    first = ServiceProcess(directory / "services", OPTIONS | {"redis_url": redis.url})
    second = ServiceProcess(first.directory, first.options, free_port())
    try:
        return run([first, second], kills, seed, questions)
    finally:
        for service in (first, second):
            service.kill(server=False)
        redis.kill()


def joined_by(
    rule: str, directory: Path, kills: int, seed: int, questions: int = QUESTIONS
) -> bool:
    """Return whether labels that add up, or correct negatives, are right in a run with kills.

    Args:
        rule: one of RULES.
        directory: of the services and the log's server.
        kills: of a service, every second time with the log's server.
        seed: of the run; odd ones have a standby.
        questions: requests that ask.
    """
    redis = RedisProcess(directory / "redis").start()
    chosen = OPTIONS | {"redis_url": redis.url, "model": "logistic", "max_wait_ms": 200}
    chosen |= RULES[rule] | {"checkpoint_every_seconds": 3.0}  # the log keeps what Watch reads
    if rule == "sum":
        del chosen["classes"]
    first = ServiceProcess(directory / "services", chosen)
    services = [first]
    if seed % 2:
        services.append(ServiceProcess(first.directory, first.options, free_port()))
    watch = Watch(redis, load_settings(chosen))  # it sees the first cut, which is trimmed soon
    for service in services:
        service.start()
    rng = random.Random(seed)
    moments = set(rng.sample(range(questions), kills))
    try:
        for k in range(questions + LATER):
            if k < questions:
                ids = [f"{k}-{row}" for row in range(ROWS)]
                post(services, "/predict", {"features": asked(k).tolist(), "ids": ids})
            if k in moments:
                services[0].kill(server=False)
                if rng.random() < 0.5:
                    redis.kill()
                    redis.start()
                services[0].start()
                services.reverse()
            for question in {k, k - LATER} & {*range(questions)}:
                ids = [f"{question}-{row}" for row in range(ROWS)]
                labels = labels_of(question + k) % 2
                if question != k or question % 4 == 0:  # some come at once, and again later
                    post(services, "/labels", {"ids": ids, "labels": labels.tolist()})
        digest = _settled(services, watch)
        watch.stop()
        if rule == "sum":
            watch.check_sums(TTL_MS)
        else:
            watch.check_weights()
        return digest == watch.folded()
    finally:
        watch.stop()
        for service in services:
            service.kill(server=False)
        redis.kill()


def _settled(services: list[ServiceProcess], watch: Watch) -> str:
    """Return the digest once every label is decided and every question that is due is learned."""
    digests: list[str] = []

    def is_settled() -> bool:
        watch.look()
        waiting = {own.hash_of(row) for own in watch.questions.values() for row in range(ROWS)}
        labels = watch.settings.labels
        cuts = watch.cuts
        if not watch.are_decided(cuts):
            return False
        results = watch.results(cuts)
        if labels == "sum":
            waiting &= {own for own, _, result, _ in results if result in ("added", "waiting")}
        right = len(waiting)
        if labels != "sum":
            right += len({own for own, label, *_ in results if label == 1})
        for service in services:
            with service.client() as client:
                model = client.get("/model").json()
                if model["role"] == "learner" and model["examples_learned"] == right:
                    digests.append(client.post("/checkpoint").json()["sha256"])
                    return True
        return False

    wait_for(is_settled)
    watch.look()
    return digests[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--kills", type=int, default=4, help="in a run")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--labels", choices=[*RULES], help="add labels up, or correct negatives")
    options = parser.parse_args()
    began, different = time.monotonic(), 0
    if options.labels:
        for seed in range(options.seed, options.seed + options.runs):
            with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
                is_right = joined_by(options.labels, Path(scratch), options.kills, seed)
            different += not is_right
            print(f"run {seed}: {'equal' if is_right else 'DIFFERENT'}", flush=True)
        seconds = time.monotonic() - began
        print(f"{options.runs} runs in {seconds:.0f} s: {different} differ from a plain fold")
        return 1 if different else 0
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        whole = killed(Path(scratch) / "whole", 0, 0, False)
    for seed in range(options.seed, options.seed + options.runs):
        with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
            digest = killed(Path(scratch) / "run", options.kills, seed, bool(seed % 2))
        different += digest != whole
        print(f"run {seed}: {'equal' if digest == whole else 'DIFFERENT'}", flush=True)
    print(
        f"{options.runs} runs with {options.kills} kills each in {time.monotonic() - began:.0f} s: "
        f"{different} differ from the run without kills"
    )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
