"""Residual networks as plain torch calls on a state dict: the oracle for networks that transformers does not have."""

from torch.nn import functional

from tests.torch_parity import to_torch


def torch_cifar_resnet(state, images, depths):
    """He et al. 2015, section 4.2, from a state dict: [B, H, W, 3] -> [B, K]."""

    def convolve(hidden, conv, norm, stride):
        hidden = functional.conv2d(hidden, state[f"{conv}.weight"], stride=stride, padding=1)
        statistics = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return functional.batch_norm(hidden, *statistics, state[f"{norm}.weight"], state[f"{norm}.bias"])

    hidden = functional.relu(convolve(to_torch(images), "conv1", "bn1", 1))
    for stage, depth in enumerate(depths):
        for index in range(depth):
            block, stride = f"layer{stage + 1}.{index}", 2 if stage > 0 and index == 0 else 1
            inner = functional.relu(convolve(hidden, f"{block}.conv1", f"{block}.bn1", stride))
            inner = convolve(inner, f"{block}.conv2", f"{block}.bn2", 1)
            if stride == 2:
                margin = hidden.shape[1] // 2
                hidden = functional.pad(hidden[:, :, ::2, ::2], (0, 0, 0, 0, margin, margin))
            hidden = functional.relu(inner + hidden)
    return functional.linear(hidden.mean((2, 3)), state["linear.weight"], state["linear.bias"]).numpy()


def torch_bottleneck_resnet(state, images, depths, groups):
    """torchvision's ResNet of bottleneck blocks from a state dict, any groups: [B, H, W, 3] -> [B, K]."""

    def convolve(hidden, conv, norm, **settings):
        weight = state[f"{conv}.weight"]
        hidden = functional.conv2d(hidden, weight, padding=weight.shape[-1] // 2, **settings)
        statistics = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return functional.batch_norm(hidden, *statistics, state[f"{norm}.weight"], state[f"{norm}.bias"])

    hidden = functional.relu(convolve(to_torch(images), "conv1", "bn1", stride=2))
    hidden = functional.max_pool2d(hidden, 3, 2, 1)
    for stage, depth in enumerate(depths):
        for index in range(depth):
            block, stride = f"layer{stage + 1}.{index}", 2 if stage > 0 and index == 0 else 1
            inner = functional.relu(convolve(hidden, f"{block}.conv1", f"{block}.bn1"))
            inner = functional.relu(convolve(inner, f"{block}.conv2", f"{block}.bn2", stride=stride, groups=groups))
            inner = convolve(inner, f"{block}.conv3", f"{block}.bn3")
            if f"{block}.downsample.0.weight" in state:
                hidden = convolve(hidden, f"{block}.downsample.0", f"{block}.downsample.1", stride=stride)
            hidden = functional.relu(inner + hidden)
    return functional.linear(hidden.mean((2, 3)), state["fc.weight"], state["fc.bias"]).numpy()
