"""The two image classifiers of the paper: MobileNetV1 and ResNet-50."""

from collections.abc import Sequence

from torch import Tensor, nn

# Output channels and stride of MobileNetV1's thirteen depthwise separable blocks.
MOBILENET_BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)
)  # fmt: skip
# Channels, number of blocks and first stride of ResNet-50's four stages.
RESNET50_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


def mobilenet_v1(classes: int, width: float = 1.0, small_images: bool = False) -> nn.Module:
    """Return MobileNetV1 [Howard et al. 2017, arXiv:1704.04861, Table 1].

    It maps fp32 [n, 3, h, w] to logits [n, classes] and has 4,231,976 parameters at 1,000 classes.

    Args:
        classes: number of classes.
        width: the factor α of that paper for the number of channels.
        small_images: the first convolution has stride 1 instead of 2, for 32 × 32 images.
    """
    channels = int(32 * width)
    layers = [_convolution(3, channels, 3, stride=1 if small_images else 2)]
    for planned, stride in MOBILENET_BLOCKS:
        out = int(planned * width)
        layers.append(_convolution(channels, channels, 3, stride, groups=channels))
        layers.append(_convolution(channels, out, 1))
        channels = out
    return _classifier(layers, channels, classes)


def resnet50(classes: int) -> nn.Module:
    """Return ResNet-50 [He et al. 2015, arXiv:1512.03385], with the stride in the 3 × 3 layer.

    It maps fp32 [n, 3, h, w] to logits [n, classes] and has 25,557,032 parameters at 1,000 classes.
    """
    layers: list[nn.Module] = [_convolution(3, 64, 7, stride=2), nn.MaxPool2d(3, 2, padding=1)]
    channels = 64
    for width, blocks, stride in RESNET50_STAGES:
        for block in range(blocks):
            layers.append(Bottleneck(channels, width, stride if block == 0 else 1))
            channels = 4 * width
    return _classifier(layers, channels, classes)


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3 and 1 × 1 convolutions, added to the identity or a projection of the input."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _convolution(channels, width, 1),
            _convolution(width, width, 3, stride),
            _convolution(width, 4 * width, 1, activate=False),
        )
        same = channels == 4 * width and stride == 1
        project = _convolution(channels, 4 * width, 1, stride, activate=False)
        self.shortcut = nn.Identity() if same else project

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, channels, h, w] to [n, 4 width, h / stride, w / stride]."""
        summed: Tensor = self.residual(x) + self.shortcut(x)
        return summed.relu()


def _convolution(
    channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, activate: bool = True
) -> nn.Sequential:
    convolution = nn.Conv2d(
        channels, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    layers: list[nn.Module] = [convolution, nn.BatchNorm2d(out)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if activate else nn.Sequential(*layers)


def _classifier(layers: Sequence[nn.Module], channels: int, classes: int) -> nn.Sequential:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    network = nn.Sequential(*layers, *head)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
