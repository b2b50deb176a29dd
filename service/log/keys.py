"""The names of a model's keys in the log's server, and of the fields of its entries.

Keys carry the model's name in literal braces, so that a Redis Cluster keeps them in one slot.
"""

from streams.batch import BATCH, log_key


class Field:
    """Fields of the entries of the streams."""

    BATCH = BATCH
    """Examples as safetensors (see `streams.batch`)."""
    JSON = "json"
    """Examples as JSON."""
    ARROW = "arrow"
    """Labelled rows as `streams.rows.entry` writes them."""
    ROWS = "rows"
    """Rows as a JSON list of objects, for producers by hand; with ``labels``."""
    ROW = "row"
    """One row as a JSON object; with ``label``."""
    LABELS = "labels"
    """Labels of ``rows``, as a JSON list; without any examples, labels of questions that were
    asked before (see `service.log.labels`)."""
    LABEL = "label"
    """Label of ``row``: JSON, or plain text."""
    WEIGHTS = "weights"
    """Weights of ``rows``, as a JSON list; may be absent."""
    WEIGHT = "weight"
    """Weight of ``row``, a JSON number; may be absent."""
    IDS = "ids"
    """Hashes of the ids of questions, 16 bytes each."""
    GIVEN = "given"
    """The answers that were given to questions (see `service.log.questions`)."""
    VERSION = "version"
    """Version of the model that gave them."""
    SOURCE = "source"
    """``http`` if the service itself appended the entry; the partition and offset of the message,
    as in ``kafka:orders/3@41``, if a source carried it there."""
    MESSAGE = "message"
    """The beginning of a message that a source could not read."""
    FAULT = "fault"
    """The reason why a source could not read it: the entry becomes a dead letter."""
    CUT = "cut"
    """A cut as JSON (see `service.log.cuts`)."""
    CRC32 = "crc32"
    """CRC-32 of the field that holds the examples or the cut, as a decimal number. Entries by other
    producers need not have it, and those of older versions do not."""


class Inputs:
    """The kinds of examples, as the key ``inputs`` and ``GET /model`` name them."""

    FEATURES = "features"
    """Dense features."""
    ROWS = "rows"
    """Rows with named columns."""
    OF_NUMBERS = ":numbers"
    """The end of either, as `Keys.inputs` holds it, where labels are numbers with fractions."""


class Keys:
    """The keys of one model.

    Args:
        model: its name.
    """

    def __init__(self, model: str) -> None:
        self._start = f"funnel:{{{model}}}:"
        self.log = log_key(model)
        """Stream of the entries, each with a field ``batch``, ``json``, ``arrow``, ``rows``,
        ``row`` or, for labels of questions, ``labels``."""
        self.asked = f"{self._start}asked"
        """Stream of the questions that wait for their labels (see `service.log.questions`)."""
        self.cuts = f"{self._start}cuts"
        """Stream of the trainer's decisions; cut k has the id ``k-0``."""
        self.dead = f"{self._start}dead"
        """Stream of the discarded entries, with ``entry`` and ``reason``, and of the skipped
        batches, with ``version``, ``begin``, ``end``, ``examples`` and ``reason``."""
        self.aside = f"{self._start}aside"
        """Version of the model after the last skipped batch that is recorded in `dead`."""
        self.uuid = f"{self._start}uuid"
        """Name of the log; it is made with the log and vanishes with it."""
        self.epoch = f"{self._start}epoch"
        """Number of trainers so far; only the newest may append cuts."""
        self.lease = f"{self._start}lease"
        """Holder of the lease, for some seconds (see `service.log.lease`)."""
        self.learner = f"{self._start}learner"
        """The last one that took the lease, and after a space what it published of itself (see
        `service.trainer.identity`)."""
        self.schema = f"{self._start}schema"
        """The schema of rows after the newest cut that changed it, as JSON."""
        self.inputs = f"{self._start}inputs"
        """Kind of the first examples of an open model (see `Inputs`), which is set only once. A
        recorded cut decides instead, once there is one."""
        self.sources = f"{self._start}sources"
        """Hash of the partitions of sources, each with the last offset that is in the log (see
        `service.log.sources.offsets`)."""
        self.newest = f"{self._start}keys"
        """Stream of the newest Idempotency-Keys, by their digests, oldest first."""

    def idempotency(self, digest: str) -> str:
        """Return the key that remembers an Idempotency-Key by its digest.

        It holds the digest of the payload and the id of the entry.
        """
        return f"{self._start}key:{digest}"
