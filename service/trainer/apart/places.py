"""Where the checkpoints of a model are, and where its trainer publishes snapshots."""

import logging
from pathlib import Path

from service.settings import Settings, SettingsError
from service.trainer.disk import PassingDisk
from service.trainer.store import CheckpointStore

logger = logging.getLogger("funnel")

FOLDER = "snapshots"
"""The folder of snapshots, in that of the checkpoints or of the model's objects."""


class Places:
    """Opens the places that the settings name.

    Args:
        settings: of the service.
        folder: of the model's files, in DATA_DIR; its name is that of the model's objects, too.
        numerics: recorded in every file (see `service.trainer.checkpoint.numerics`).
    """

    def __init__(self, settings: Settings, folder: Path, numerics: dict[str, str]) -> None:
        self._settings, self._folder, self._numerics = settings, folder, numerics

    def checkpoints(self) -> CheckpointStore:
        """Return where the model's checkpoints are kept.

        Raises:
            SettingsError: the address of the object storage cannot be used.
            OSError: the folder cannot.
        """
        if not self._settings.state:
            return self._local()
        former = None if self._settings.never_learns else self._local()
        return self._stored(former)

    def snapshots(self) -> CheckpointStore:
        """Return where the model's trainer publishes snapshots; raises as `checkpoints` does."""
        if self._settings.state:
            return self._stored(None, FOLDER, f"{FOLDER}.json")
        place = self._folder / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return CheckpointStore(place, self._numerics, logger.error, PassingDisk())

    def _local(self) -> CheckpointStore:
        return CheckpointStore(self._folder, self._numerics, logger.error)

    def _stored(self, former: CheckpointStore | None, *names: str) -> CheckpointStore:
        from service.trainer.objects.bucket import AddressError, open_bucket
        from service.trainer.objects.shared import SharedStore

        try:
            bucket = open_bucket(self._settings.state)
        except (AddressError, OSError) as error:
            raise SettingsError(f"FUNNEL_STATE: {error}") from error
        own = bucket, self._folder.name, self._numerics, logger.error, former, ""
        return SharedStore(*own, *names)
