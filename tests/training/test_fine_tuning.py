"""What a fine-tuned run trains, from when on, and at what rate; the same after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densekit.config import UserError
from densekit.models.artifact import read_artifact
from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.models.parts import stage_names
from densekit.precision import resolve
from densekit.training.fine_tuning import (
    fine_tuning_plan,
    frozen_to,
    thaw,
)
from densekit.training.optim import OptimConfig, parameter_groups
from densekit.training.recipe import load_recipe
from densekit.training.step import create_learner, train_step
from runs import Options, Runs, assert_same_run, last_step

slow = pytest.mark.slow
STAGES = ["stem", "block1", "transition1", "block2", "transition2", "block3", "norm5"]
GRADUAL: Options = {"loop.epochs": 4, "optim.head_epochs": 1, "optim.unfreeze_epochs": 1}


def test_from_the_head_to_the_stem() -> None:
    optim = OptimConfig(head_epochs=2, unfreeze_epochs=3)
    frozen = [frozen_to(optim, STAGES, epoch) for epoch in range(13)]
    assert frozen == [
        "norm5", "norm5", *["transition2"] * 3, *["transition1"] * 3, *["stem"] * 3, None, None,
    ]  # fmt: skip


def test_all_at_once_after_the_head() -> None:
    optim = OptimConfig(head_epochs=2)
    assert [frozen_to(optim, STAGES, e) for e in range(4)] == ["norm5", "norm5", None, None]


@given(st.integers(0, 4), st.integers(0, 3), st.sampled_from([None, *STAGES]))
def test_what_joins_stays_and_what_is_frozen_never_joins(
    head: int, every: int, freeze: str | None
) -> None:
    optim = OptimConfig(head_epochs=head, unfreeze_epochs=every if head else 0, freeze=freeze)
    last = -1 if freeze is None else STAGES.index(freeze)
    frozen = [frozen_to(optim, STAGES, epoch) for epoch in range(20)]
    places = [-1 if stage is None else STAGES.index(stage) for stage in frozen]
    assert places == sorted(places, reverse=True)
    assert places[-1] == last
    assert all(place >= last for place in places)


def test_the_stages_are_the_networks() -> None:
    for blocks in (1, 2, 4):
        model = DenseNet(DenseNetConfig(block_config=(1,) * blocks, growth_rate=4))
        assert list(model.stages()) == stage_names(blocks)


def test_rates_fall_from_block_to_block() -> None:
    model = DenseNet(DenseNetConfig(block_config=(1, 1, 1), growth_rate=4, num_classes=3))
    optim = OptimConfig(lr=0.2, head_lr=1.0, layer_decay=0.5, scale_lr=False)
    groups = parameter_groups(model, optim, 256)
    rate = {id(p): group["peak_lr"] for group in groups for p in group["params"]}
    named = {name: rate[id(p)] for name, p in model.named_parameters()}
    assert named["classifier.weight"] == 1.0
    assert named["features.norm5.weight"] == 0.2
    assert named["features.denseblock3.denselayer1.conv1.weight"] == 0.2
    assert named["features.transition2.conv.weight"] == pytest.approx(0.1)
    assert named["features.denseblock1.denselayer1.norm1.weight"] == pytest.approx(0.05)
    assert named["features.conv0.weight"] == pytest.approx(0.025)
    assert groups[0]["peak_lr"] == 0.2, "what is logged as the rate is the last block's"


def test_the_plan_says_what_when_and_at_what_rate() -> None:
    recipe = load_recipe(None, [
        "optim.head_epochs=2", "optim.unfreeze_epochs=3", "optim.lr=0.01", "optim.head_lr=0.1",
        "optim.layer_decay=0.5", "optim.freeze=block1", "model.name=densenet121",
    ])  # fmt: skip
    assert fine_tuning_plan(recipe) == [
        "fine-tuning, peak rates: from epoch 1 the classifier at 0.1; from epoch 3 block4 and "
        "norm5 at 0.01; from epoch 6 block3 and transition3 at 0.005; from epoch 9 block2 and "
        "transition2 at 0.0025; from epoch 12 transition1 at 0.00125; never anything up to block1",
        "optim.freeze=block1 without model.pretrained: what is never trained stays as random as it "
        "begins",
    ]
    assert fine_tuning_plan(load_recipe(None, [])) == []


def test_what_never_joins_is_refused() -> None:
    with pytest.raises(UserError, match=r"head_epochs=9: the stem would be trained from epoch 10"):
        load_recipe(None, ["loop.epochs=9", "optim.head_epochs=9", "optim.milestones=[3]"])
    with pytest.raises(UserError, match=r"unfreeze_epochs=3: the stem .* from epoch 14 on"):
        load_recipe(
            None,
            ["loop.epochs=9", "optim.head_epochs=1", "optim.unfreeze_epochs=3",
             "optim.milestones=[3]", "model.overrides.block_config=[2,2,2,2]"],
        )  # fmt: skip


def test_what_is_frozen_for_ever_need_not_join() -> None:
    options = ["loop.epochs=4", "optim.head_epochs=1", "optim.unfreeze_epochs=1",
               "optim.milestones=[3]", "model.overrides.block_config=[2,2,2,2]"]  # fmt: skip
    with pytest.raises(UserError, match="the stem would be trained from epoch 6 on"):
        load_recipe(None, options)
    recipe = load_recipe(None, [*options, "optim.freeze=transition1"])
    assert "from epoch 4 block2 and transition2" in fine_tuning_plan(recipe)[0]
    with pytest.raises(UserError, match="block2 would be trained from epoch 4 on"):
        load_recipe(None, [*options, "optim.freeze=transition1", "loop.epochs=3",
                           "optim.milestones=[2]"])  # fmt: skip


def test_random_features_that_are_never_trained_are_said() -> None:
    (_, note) = fine_tuning_plan(load_recipe(None, ["optim.freeze=block2"]))
    assert "without model.pretrained: what is never trained stays as random" in note


SMALL = [
    "model.overrides={growth_rate: 4, block_config: [2, 2], num_init_features: 8, stem: cifar}",
    "model.num_classes=3", "data.image_size=16", "model.op=reference", "optim.lr=0.1",
]  # fmt: skip


@pytest.mark.parametrize("op", ["reference", "lean"])
def test_what_is_frozen_stands_still_and_then_moves(op: str) -> None:
    """Weights and running statistics; momentum begins when a part joins."""
    recipe = load_recipe(None, [
        *SMALL, f"model.op={op}", "optim.head_epochs=1", "optim.unfreeze_epochs=1",
        "loop.epochs=5", "optim.milestones=[4]", "loop.ema=0.5",
    ])  # fmt: skip
    learner = create_learner(recipe, resolve("cpu", "fp32"))
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8, generator=draw)
    share = (images, torch.tensor([0, 1, 2, 0, 1, 2]))
    parts = {
        0: ("classifier",),
        1: ("classifier", "features.norm5", "features.denseblock2"),
        2: ("classifier", "features.norm5", "features.denseblock", "features.transition1"),
        3: ("classifier", "features"),
    }
    for epoch, moving in parts.items():
        thaw(learner, recipe, epoch)
        before = {k: v.clone() for k, v in learner.model.state_dict().items()}
        train_step(learner, [share], 6, step=epoch)
        for name, value in learner.model.state_dict().items():
            assert torch.equal(value, before[name]) != name.startswith(moving), (epoch, name)
    thaw(learner, recipe, 0)  # as a rollback does
    assert isinstance(learner.model, DenseNet)
    assert learner.model.frozen_to == "norm5"


@pytest.mark.parametrize("kills", [(7, 20), pytest.param((4, 7, 14, 20), marks=slow)])
def test_a_killed_run_ends_as_it_would_have(
    runs: Runs, tmp_path: Path, kills: tuple[int, ...]
) -> None:
    """Right after a part has joined and after all have; within each phase."""
    for step in kills:
        runs.kill(tmp_path / "run", step, GRADUAL)
    runs.train(tmp_path / "run", GRADUAL)
    assert_same_run(tmp_path / "run", runs.whole(GRADUAL))


@pytest.mark.parametrize("kills", [(9,), pytest.param((4, 9, 14), marks=slow)])
def test_two_ranks_go_on_alike(runs: Runs, tmp_path: Path, kills: tuple[int, ...]) -> None:
    for step in kills:
        runs.kill(tmp_path / "run", step, GRADUAL, ranks=2)
    runs.train(tmp_path / "run", GRADUAL, ranks=2)
    assert_same_run(tmp_path / "run", runs.whole(GRADUAL, ranks=2))


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_two_ranks_train_what_one_trains(runs: Runs, tmp_path: Path) -> None:
    """DDP reduces the gradients of the parts that joined, and each of them once."""
    exact: Options = {
        **GRADUAL, "model.sync_bn": True, "model.drop_rate": 0.0, "loop.ema": 0,
        "data.augment.crop": "none", "data.augment.flip": 0.0,
    }  # fmt: skip
    runs.train(tmp_path / "one", exact)
    runs.train(tmp_path / "two", exact, ranks=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-3)
    one, two = (read_artifact(tmp_path / n / "last").state_dict for n in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=2e-2, atol=2e-3, msg=name)


def test_a_run_from_an_artifact_is_fine_tuned(runs: Runs, tmp_path: Path) -> None:
    base = runs.whole()
    options: Options = {
        **GRADUAL, "model.pretrained": base / "best", "optim.layer_decay": 0.5, "loop.ema": 0,
    }  # fmt: skip
    started = runs.start(tmp_path / "tuned", options)
    assert started.wait() == [0], started.output
    text = " ".join(started.output.split())
    assert "fine-tuning, peak rates: from epoch 1 the classifier at 0.05; from epoch 2" in text
    assert last_step(tmp_path / "tuned") == 24


@pytest.mark.parametrize("op", ["reference", "lean"])
def test_frozen_norms_keep_their_statistics_and_train_their_scales(op: str) -> None:
    """The steps of `op` are those of torch's modules in evaluation mode."""
    recipe = load_recipe(None, [
        *SMALL, f"model.op={op}", "optim.milestones=[4]", "loop.epochs=5", "optim.head_epochs=1",
    ])  # fmt: skip
    optim = recipe.optim.model_copy(update={"freeze_norm": True})  # which asks for weights
    recipe = recipe.model_copy(update={"optim": optim})
    learner = create_learner(recipe, resolve("cpu", "fp32"))
    assert isinstance(learner.model, DenseNet)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8, generator=draw)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    before = {k: v.clone() for k, v in learner.model.state_dict().items()}
    peer = DenseNet(learner.model.config, op="reference").eval()
    for epoch in (0, 1):
        thaw(learner, recipe, epoch)
        peer.load_state_dict(learner.model.state_dict())
        peer.zero_grad()
        torch.nn.functional.cross_entropy(peer(learner.prepare(images)), labels).backward()
        train_step(learner, [(images, labels)], 6, step=epoch)
        for (name, own), theirs in zip(
            learner.model.named_parameters(), peer.parameters(), strict=True
        ):
            if own.grad is not None:
                torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)
    for name, value in learner.model.state_dict().items():
        moved = not torch.equal(value, before[name])
        assert moved != ("running" in name or "tracked" in name), name
    learner.model.unfreeze()
    assert all(m.training for m in learner.model.modules())
