"""Image data for the classification experiments: CIFAR-10, an image folder, padded MNIST.

A source yields an endless, seeded sequence of training batches, and the test set once.
"""

import hashlib
import io
import os
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from streams.errors import FunnelError
from streams.sources import mnist

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR10_TEST = "test_batch.bin"
CIFAR10_RECORD = 1 + 3 * 32 * 32
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png"}

Batch = tuple[Tensor, Tensor]
"""Images, fp32 [n, 3, h, w] of about unit variance, and labels, int64 [n]."""


class DataError(FunnelError, RuntimeError):
    """Data are unavailable or damaged, or a checkpoint belongs to another run."""


class Source(Protocol):
    """An endless sequence of training batches, and the test set."""

    classes: int
    small_images: bool

    def train(self, batch_size: int, step: int, seed: int) -> Iterator[Batch]:
        """Yield the batches from step ``step`` on; a restart yields the same ones."""

    def test(self, batch_size: int) -> Iterator[Batch]:
        """Yield the test set once, in batches."""


class InMemory:
    """Small images, held as uint8 on the device and augmented there.

    Args:
        train, test: images uint8 [n, 3, 32, 32] and labels int64 [n].
        flip: whether to mirror training images at random; digits must not be mirrored.
    """

    small_images = True

    def __init__(self, train: Batch, test: Batch, flip: bool, device: torch.device) -> None:
        self._train = (train[0].to(device), train[1].to(device))
        self._test = (test[0].to(device), test[1].to(device))
        self._flip = flip
        self._device = device
        pixels = self._train[0][:10_000].float() / 255
        self._mean = pixels.mean((0, 2, 3), keepdim=True)
        self._std = pixels.std((0, 2, 3), keepdim=True)
        self.classes = int(train[1].max()) + 1

    def train(self, batch_size: int, step: int, seed: int) -> Iterator[Batch]:
        """Draw with replacement, pad by 4, crop and mirror at random, all seeded by the step."""
        images, labels = self._train
        for at in count(step):
            generator = torch.Generator().manual_seed((seed << 32) + at)
            rows = torch.randint(len(labels), (batch_size,), generator=generator)
            corner = torch.randint(9, (2, batch_size, 1), generator=generator)
            span = torch.arange(32)
            mirrored = torch.rand(batch_size, 1, generator=generator) < 0.5
            across = torch.where(mirrored & self._flip, 31 - span, span) + corner[1]
            down = span + corner[0]
            rows, down, across = (t.to(self._device) for t in (rows, down, across))
            padded = pad(images[rows], (4, 4, 4, 4))
            which = torch.arange(batch_size, device=self._device)[:, None, None]
            cropped = padded[which, :, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)
            yield self._normalized(cropped), labels[rows]

    def test(self, batch_size: int) -> Iterator[Batch]:
        """Yield the test images without augmentation."""
        for images, labels in zip(*(torch.split(t, batch_size) for t in self._test), strict=True):
            yield self._normalized(images), labels

    def _normalized(self, images: Tensor) -> Tensor:
        return (images.float() / 255 - self._mean) / self._std


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """The JPEG and PNG files ``root/<class>/<image>``, with classes in the order of their names.

    Raises:
        DataError: no class folder holds an image.
    """

    def __init__(self, root: Path, size: int, augment: bool, seed: int = 0) -> None:
        folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        self.classes = [p.name for p in folders]
        self.files = [
            (path, label)
            for label, folder in enumerate(folders)
            for path in sorted(folder.iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not self.files:
            raise DataError(
                f"no images in {root}/<class>/; train/ and val/ need one folder of images per class"
            )
        self._size, self._augment, self._seed = size, augment, seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the image, fp32 [3, size, size], and its label."""
        path, label = self.files[index % len(self)]
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        if self._augment:
            # The draw seeds the crop, not the worker, so that a resumed run sees the same crops.
            image = self._random_crop(image, np.random.default_rng((self._seed, index)))
        else:
            image = self._central_crop(image)
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
        mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        return (pixels - mean) / std, label

    def _random_crop(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Crop 8 to 100 % of the area, 3/4 to 4/3 wide [Szegedy et al. 2014]; mirror at random."""
        area = image.width * image.height * rng.uniform(0.08, 1.0)
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        width = min(image.width, max(1, round((area * aspect) ** 0.5)))
        height = min(image.height, max(1, round((area / aspect) ** 0.5)))
        left = int(rng.integers(image.width - width + 1))
        top = int(rng.integers(image.height - height + 1))
        box = (left, top, left + width, top + height)
        crop = image.resize((self._size, self._size), Image.Resampling.BILINEAR, box=box)
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop

    def _central_crop(self, image: Image.Image) -> Image.Image:
        """Crop a central square of 7/8 of the shorter side (224 of 256)."""
        side = min(image.size) * 7 / 8
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        return image.resize((self._size, self._size), Image.Resampling.BILINEAR, box=box)


class Folder:
    """ImageNet, or any folder with its layout, decoded by worker processes."""

    small_images = False

    def __init__(self, root: Path, device: torch.device, size: int = 224, workers: int = 8) -> None:
        self._root, self._size, self._workers, self._device = root, size, workers, device
        self._test = ImageFolder(root / "val", size, augment=False)
        self.classes = len(ImageFolder(root / "train", size, augment=True).classes)

    def train(self, batch_size: int, step: int, seed: int) -> Iterator[Batch]:
        """Draw with replacement, crop and mirror at random; the number of a draw seeds it."""
        data = ImageFolder(self._root / "train", self._size, augment=True, seed=seed)

        class Draws(torch.utils.data.Sampler[list[int]]):
            def __iter__(self) -> Iterator[list[int]]:
                for at in count(step):
                    generator = torch.Generator().manual_seed((seed << 32) + at)
                    rows = torch.randint(len(data), (batch_size,), generator=generator)
                    # The index also carries the draw's number, which seeds the crop in ImageFolder.
                    yield (rows + len(data) * (at * batch_size + torch.arange(batch_size))).tolist()

        yield from self._load(DataLoader(data, batch_sampler=Draws(), num_workers=self._workers))

    def test(self, batch_size: int) -> Iterator[Batch]:
        """Yield the validation set in order."""
        yield from self._load(DataLoader(self._test, batch_size, num_workers=self._workers))

    def _load(self, loader: "DataLoader[tuple[Tensor, int]]") -> Iterator[Batch]:
        for images, labels in loader:
            yield images.to(self._device), labels.to(self._device)


def open_source(name: str, device: torch.device, workers: int = 8, size: int = 224) -> Source:
    """Return ``mnist32``, ``cifar10``, or the image folder at the path ``name``.

    Raises:
        FunnelError: the data are unavailable or damaged; the message says what to do.
    """
    if name == "mnist32":
        data = mnist.load()
        train = _padded(data.train_images), torch.from_numpy(data.train_labels.astype(np.int64))
        test = _padded(data.test_images), torch.from_numpy(data.test_labels.astype(np.int64))
        return InMemory(train, test, flip=False, device=device)
    if name == "cifar10":
        folder = mnist.cache_directory().parent / "cifar10"
        return InMemory(*read_cifar10(folder), flip=True, device=device)
    return Folder(Path(name), device, size, workers)


def _padded(images: mnist.Bytes) -> Tensor:
    return pad(torch.from_numpy(images.copy())[:, None], (2, 2, 2, 2)).expand(-1, 3, -1, -1)


def read_cifar10(
    folder: Path, url: str = CIFAR10_URL, md5: str = CIFAR10_MD5
) -> tuple[Batch, Batch]:
    """Return CIFAR-10's train and test sets, uint8 [n, 3, 32, 32] and int64 [n].

    A record of the binary version (https://www.cs.toronto.edu/~kriz/cifar.html) has one byte for
    the label and 3,072 for the planes. The files are downloaded into ``folder`` if it lacks them.

    Raises:
        DataError: the download fails, its MD5 is wrong, or a file has a broken record.
    """
    names = (*CIFAR10_TRAIN, CIFAR10_TEST)
    if not all((folder / name).is_file() for name in names):
        _download_cifar10(folder, url, md5)
    parts = [_read_records(folder / name) for name in names]
    train = torch.cat([p[0] for p in parts[:-1]]), torch.cat([p[1] for p in parts[:-1]])
    return train, parts[-1]


def _read_records(path: Path) -> Batch:
    content = np.fromfile(path, dtype=np.uint8)
    if content.size == 0 or content.size % CIFAR10_RECORD:
        raise DataError(f"{path} has a broken record of {CIFAR10_RECORD} bytes; delete the file")
    records = torch.from_numpy(content.reshape(-1, CIFAR10_RECORD))
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()


def _download_cifar10(folder: Path, url: str, md5: str) -> None:
    body = io.BytesIO()
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            total = int(response.headers.get("Content-Length", 0)) or None
            with tqdm(total=total, desc="CIFAR-10", unit="B", unit_scale=True) as bar:
                while chunk := response.read(1 << 20):
                    body.write(chunk)
                    bar.update(len(chunk))
    except (urllib.error.URLError, OSError) as error:
        raise DataError(
            f"CIFAR-10 could not be downloaded from {url} ({error}); put {CIFAR10_TEST} and "
            f"{', '.join(CIFAR10_TRAIN)} of cifar-10-binary.tar.gz into {folder}"
        ) from error
    digest = hashlib.md5(body.getvalue(), usedforsecurity=False).hexdigest()
    if digest != md5:
        raise DataError(f"{url} has the MD5 {digest}, not {md5}; try again, or use another copy")
    folder.mkdir(parents=True, exist_ok=True)
    body.seek(0)
    with tarfile.open(fileobj=body) as tar:
        for name in (*CIFAR10_TRAIN, CIFAR10_TEST):
            member = tar.extractfile(f"{CIFAR10_FOLDER}/{name}")
            if member is None:
                raise DataError(f"{name} is not in {url}")
            partial = folder / f"{name}.part"
            partial.write_bytes(member.read())
            os.replace(partial, folder / name)
