"""The U-Net is built as asked, of known layers, and refuses what would not train."""

from pathlib import Path

import pytest
import torch
from torch import nn

from curriculumdp.diffusion.networks import NetworkError, build_unet, check_trainable, load_public_weights
from curriculumdp.release.certificate import FORMAT


def tiny(**changes: object) -> nn.Module:
    options: dict = {
        "channels": (8, 16), "size": 8, "image_channels": 1, "classes": 3, "null_class": True, "blocks": 1,
        "attention": (4,), "groups": None,
    }  # fmt: skip
    return build_unet(**(options | changes))


def test_only_layers_with_a_gradient_rule_hold_parameters() -> None:
    for name, module in tiny().named_modules():
        if list(module.parameters(recurse=False)):
            assert isinstance(module, nn.Conv2d | nn.Linear | nn.GroupNorm | nn.Embedding), name


def test_attention_stands_at_the_asked_resolutions() -> None:
    net = tiny(channels=(8, 8, 16), attention=(8, 2))
    assert net.config.down_block_types == ("AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D")
    assert net.config.up_block_types == ("AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D")


@pytest.mark.parametrize(
    ("changes", "sizes"), [({}, (1, 8)), ({"size": 28, "channels": (8, 8, 12), "attention": ()}, (1, 28)),
                           ({"image_channels": 3, "channels": (8,), "attention": (8,)}, (3, 8))],
)  # fmt: skip
def test_output_has_the_shape_of_the_input(changes: dict, sizes: tuple[int, int]) -> None:
    images = torch.randn(2, sizes[0], sizes[1], sizes[1])
    output = tiny(**changes)(images, torch.tensor([-1.5, 1.0]), class_labels=torch.tensor([0, 3])).sample
    assert output.shape == images.shape
    assert torch.isfinite(output).all()


def test_embeddings_reach_the_output() -> None:
    """With one channel a group the norm would take out what time and class add (4e-7 of effect)."""
    torch.manual_seed(0)
    net, image = tiny(attention=()), torch.randn(1, 1, 8, 8)
    outputs = [
        net(image, torch.tensor([c_noise]), class_labels=torch.tensor([label])).sample
        for c_noise, label in ((0.0, 0), (1.0, 0), (0.0, 1))
    ]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
    assert (outputs[0] - outputs[2]).abs().max() > 1e-3


def test_null_class_is_one_more_label() -> None:
    assert tiny().config.num_class_embeds == 4
    assert tiny(null_class=False).config.num_class_embeds == 3


def test_weights_follow_the_callers_seed() -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(5)
        nets.append(tiny())
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 9}, "multiple of 2"),
        ({"attention": (5,)}, r"5 pixels; choose from \[8, 4\]"),
        ({"groups": 3}, "3 groups"),
        ({"groups": 8}, "at least 2 channels"),
        ({"channels": (1, 2)}, "at least 2 channels"),
    ],
)
def test_impossible_shapes_end_in_one_clear_line(changes: dict, words: str) -> None:
    with pytest.raises(NetworkError, match=words) as raised:
        tiny(**changes)
    assert "\n" not in str(raised.value)


def test_layers_that_mix_examples_or_drop_out_are_refused_by_name() -> None:
    check_trainable(tiny())
    with pytest.raises(NetworkError, match=r"^1 is a BatchNorm2d"):
        check_trainable(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)))
    with pytest.raises(NetworkError, match="has dropout"):
        check_trainable(nn.Sequential(nn.Dropout(0.1)))


def test_public_weights_are_taken_and_misfits_named(tmp_path: Path) -> None:
    public = tiny()
    public.save_pretrained(tmp_path / "unet")
    same, other_classes = tiny(), tiny(classes=7)
    load_public_weights(same, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), public.parameters(), strict=True))
    load_public_weights(other_classes, tmp_path)
    assert torch.equal(other_classes.conv_in.weight, public.conv_in.weight)
    with pytest.raises(NetworkError, match=r"is \(8, 1, 3, 3\) there"):
        load_public_weights(tiny(image_channels=3), tmp_path)
    with pytest.raises(NetworkError, match="no diffusers UNet2DModel"):
        load_public_weights(tiny(), tmp_path / "nothing")


@pytest.mark.parametrize("given", ["release", "release/unet", "link", "with a link", "with linked files"])
@pytest.mark.parametrize("whole", [True, False])
def test_the_weights_of_a_release_are_not_public(tmp_path: Path, given: str, whole: bool) -> None:
    """They were trained on private images, perhaps these: what that cost would be missing from this run's ε."""
    unet = tmp_path / "release" / "unet"
    tiny().save_pretrained(unet)
    certificate = tmp_path / "release" / "privacy.json"
    if whole:
        certificate.write_text(f'{{"format": "{FORMAT}"}}', encoding="utf-8")
    else:
        certificate.symlink_to("nowhere")
    (tmp_path / "link").symlink_to(unet)
    (tmp_path / "with a link").mkdir()
    (tmp_path / "with a link" / "unet").symlink_to(unet)
    (tmp_path / "with linked files").mkdir()
    for file in unet.iterdir():
        (tmp_path / "with linked files" / file.name).symlink_to(file)
    with pytest.raises(NetworkError, match="release is a release with a privacy certificate"):
        load_public_weights(tiny(), tmp_path / given)


def test_a_privacy_policy_beside_a_public_model_is_no_certificate(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "unet")
    (tmp_path / "privacy.json").write_text('{"policy": "we keep nothing"}', encoding="utf-8")
    load_public_weights(tiny(), tmp_path)
