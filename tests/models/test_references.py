"""Each network against its drawing, written once more from its weights with torch's functions alone."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from cryoscale.models import registry

SIDES = [(16, 8, 24), (9, 20, 13)]


class Weights:
    """The layers of a network by their names in the saved weights."""

    def __init__(self, network):
        self.state, self.dimensions = network.state_dict(), network.dimensions

    def has(self, name):
        return f"{name}.weight" in self.state

    def conv(self, x, name, **keywords):
        weight = self.state[f"{name}.weight"]
        function = F.conv3d if self.dimensions == 3 else F.conv2d
        return function(x, weight, self.state[f"{name}.bias"], padding=weight.shape[-1] // 2, **keywords)

    def norm(self, x, name):
        if not self.has(name):
            return x
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self.state[f"{name}.{key}"] for key in keys))

    def relu(self, x, name, **keywords):
        return F.relu(self.norm(self.conv(x, f"{name}.conv", **keywords), f"{name}.norm"))

    def deconv(self, x, name, like):
        weight, bias = self.state[f"{name}.deconv.weight"], self.state[f"{name}.deconv.bias"]
        extra = [(side + 1) % 2 for side in like.shape[2:]]  # an even side of 2 n, an odd one of 2 n - 1
        y = F.conv_transpose3d(x, weight, bias, stride=2, padding=1, output_padding=extra)
        return F.relu(self.norm(y, f"{name}.norm"))

    def block(self, x, name):
        y = self.norm(self.conv(self.relu(x, f"{name}.first"), f"{name}.conv"), f"{name}.norm")
        return F.relu(y + (self.conv(x, f"{name}.shortcut") if self.has(f"{name}.shortcut") else x))

    def linear(self, x, name):
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])


def pool(x):
    sides = [-(-side // 2) for side in x.shape[2:]]
    padding = [n for side in x.shape[:1:-1] for n in (0, side % 2)]
    pooled = (F.max_pool3d if x.ndim == 5 else F.max_pool2d)(F.pad(x, padding, value=-torch.inf), 2)
    assert list(pooled.shape[2:]) == sides
    return pooled


def up(x, like, mode="nearest"):
    doubled = F.interpolate(x, scale_factor=2, mode=mode, align_corners=None if mode == "nearest" else False)
    return doubled[tuple(slice(0, n) for n in (*x.shape[:2], *like.shape[2:]))]


def vgg(w, x):
    pooled = []
    for level in (1, 2, 3):
        x = pool(w.relu(w.relu(x, f"encoder.conv{level}a"), f"encoder.conv{level}b"))
        pooled.append(x)
    return pooled


def ssn3d_ed(w, x, mode):
    p1, p2, p3 = vgg(w, x)
    y = up(w.relu(p3, "up1"), p2, mode) + w.conv(p2, "skip1")
    y = up(w.relu(y, "up2"), p1, mode) + w.conv(p1, "skip2")
    return w.conv(up(w.relu(y, "up3"), x, mode), "classify")


def ssn3d_fcn(w, x):
    p1, p2, p3 = vgg(w, x)
    y = w.conv(w.relu(w.relu(p3, "wide1"), "wide2"), "vote3")
    y = up(y, p2) + w.conv(p2, "vote2")
    y = up(y, p1) + w.conv(p1, "vote1")
    return up(y, x)


def dsrf3d(w, x):
    y = vgg(w, x)[-1].flatten(1)
    return w.linear(F.relu(w.linear(F.relu(w.linear(y, "dense1")), "dense2")), "classify")


def dsm_net(w, x):
    s1 = w.block(pool(w.relu(x, "backbone.conv1")), "backbone.block1")
    s2 = w.block(w.relu(s1, "backbone.conv2", stride=2), "backbone.block2")
    s3 = w.block(w.relu(s2, "backbone.conv3", stride=2), "backbone.block3")
    y = w.block(w.deconv(s3, "trunk.deconv1", s2) + s2, "trunk.block1")
    y = w.block(w.deconv(y, "trunk.deconv2", s1) + s1, "trunk.block2")
    y = w.deconv(y, "trunk.deconv3", x)
    features = F.relu(w.linear(s3.mean(dim=(2, 3, 4)), "dense"))
    return {"cls": w.linear(features, "classify"), "seg": w.conv(y, "segment"), "rec": w.conv(y, "recover")}


def unet3d(w, x, levels):
    skips = [w.block(x, "down.0")]
    for level in range(1, levels):
        skips.append(w.block(pool(skips[-1]), f"down.{level}"))
    y = skips.pop()
    for step, skip in enumerate(reversed(skips)):
        fine = w.relu(F.interpolate(y, scale_factor=2), f"up.{step}")
        y = torch.cat([skip, fine[tuple(slice(0, n) for n in (*fine.shape[:2], *skip.shape[2:]))]], dim=1)
        y = w.relu(y, f"join.{step}")
    return w.conv(y, "classify")


def unet2d(w, x):
    def double(x, name):
        for number in (1, 2):
            x = F.relu(w.norm(w.conv(x, f"{name}.conv{number}"), f"{name}.norm{number}"))
        return x

    skips = [double(x, "down.0")]
    for level in range(1, 5):
        skips.append(double(pool(skips[-1]), f"down.{level}"))
    y = skips.pop()
    for step, skip in enumerate(reversed(skips)):
        fine = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        fine = w.conv(fine, f"up.{step}")[:, :, : skip.shape[2], : skip.shape[3]]
        y = double(torch.cat([skip, fine], dim=1), f"join.{step}")
    return w.conv(y, "classify")


def cnn2d(w, x):
    scores = [torch.full_like(x, 0.8)]
    for number in itertools.count():
        name = f"networks.{number}"
        if not w.has(f"{name}.conv1"):
            return torch.cat(scores, dim=1)
        y = F.relu(pool(w.conv(x, f"{name}.conv1")))
        y = w.conv(F.relu(w.conv(y, f"{name}.conv2")), f"{name}.conv3")
        scores.append(up(y, x, "bilinear"))


CASES = [
    ({"name": "ssn3d-ed", "n_classes": 3}, lambda w, x: ssn3d_ed(w, x, "nearest")),
    ({"name": "ssn3d-ed", "upsampling": "trilinear"}, lambda w, x: ssn3d_ed(w, x, "trilinear")),
    ({"name": "ssn3d-ed", "batch_norm": True}, lambda w, x: ssn3d_ed(w, x, "nearest")),
    ({"name": "ssn3d-fcn", "n_classes": 3}, ssn3d_fcn),
    ({"name": "dsrf3d-v2", "n_classes": 3, "box": None}, dsrf3d),
    ({"name": "dsm-net", "n_classes": 4, "n_labels": 3, "features": 6}, dsm_net),
    ({"name": "dsm-net", "n_classes": 4, "features": 6, "batch_norm": True}, dsm_net),
    ({"name": "unet3d", "n_classes": 3}, lambda w, x: unet3d(w, x, 4)),
    ({"name": "unet3d", "levels": 3, "batch_norm": False}, lambda w, x: unet3d(w, x, 3)),
    ({"name": "unet2d", "n_classes": 3}, unet2d),
    ({"name": "cnn2d-chen", "n_classes": 4, "kernel": 5}, cnn2d),
]


def named(case):
    return case.__name__ if callable(case) else str(case)[:60]


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(("architecture", "reference"), CASES, ids=named)
def test_a_network_is_its_drawing(architecture, reference, sides):
    if "box" in architecture:
        architecture = architecture | {"box": list(sides)}
    network = registry.build(architecture | {"channels": 3}).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # biases and statistics of normalisations as after a training
        for key, tensor in network.state_dict().items():
            if tensor.ndim == 1:
                drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(drawn + 0.5 if "var" in key or "norm" in key else drawn - 0.5)
    x = torch.randn(2, 1, *sides[-network.dimensions :], generator=generator, dtype=torch.float64)
    network.eval()
    with torch.no_grad():
        found, wanted = network(x), reference(Weights(network), x)
    pairs = [(found[key], wanted[key]) for key in wanted] if isinstance(wanted, dict) else [(found, wanted)]
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
