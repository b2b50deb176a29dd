"""The places of a model: those of its checkpoints, of published snapshots, and of its archive."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from service.process import SystemClock
from service.settings import Settings, SettingsError, limits_of
from service.trainer.archive.archive import ARCHIVES, Archive, Limits
from service.trainer.disk import PassingDisk, Storage, SystemDisk
from service.trainer.store import CheckpointStore

if TYPE_CHECKING:
    from service.trainer.objects.bucket import Bucket

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

    def archive(self) -> Archive:
        """Return the archive of the model's log; raises as `checkpoints` does."""
        limits = limits_of(self._settings.archive)
        most = Limits(*limits) if limits else Limits()
        place: Path = self._settings.data_dir / ARCHIVES / self._folder.name
        disk: Storage = SystemDisk()
        if self._settings.state:
            from service.trainer.objects.shared import Objects

            place, disk = Path(self._folder.name) / ARCHIVES, Objects(self._bucket())
        return Archive(place, disk, most, SystemClock(), logger.warning)

    def _local(self) -> CheckpointStore:
        return CheckpointStore(self._folder, self._numerics, logger.error)

    def _stored(self, former: CheckpointStore | None, *names: str) -> CheckpointStore:
        from service.trainer.objects.shared import SharedStore

        own = self._bucket(), self._folder.name, self._numerics, logger.error, former, ""
        return SharedStore(*own, *names)

    def _bucket(self) -> "Bucket":
        from service.trainer.objects.bucket import AddressError, open_bucket

        try:
            return open_bucket(self._settings.state)
        except (AddressError, OSError) as error:
            raise SettingsError(f"FUNNEL_STATE: {error}") from error
