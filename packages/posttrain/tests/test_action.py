import json
import shutil

import pytest
import torch
from fakes import NextFrameWorld, PatchCodec, SmallDenoiser, SmallTokenModel, load_denoiser
from safetensors.torch import load_file
from torch import nn

import wfm_posttrain
import wfm_posttrain.interfaces
from wfm_posttrain.action import (
    ActionConfig,
    ArBackend,
    DiffusionBackend,
    evaluate,
    train,
    with_own_past,
)
from wfm_posttrain.checkpoint import kept
from wfm_posttrain.clips import ClipFolder, EncodedFrames, covered_by_objects, encode_frames
from wfm_posttrain.encoder import ActionEncoder, ActionTokens, fit_scaling
from wfm_posttrain.evaluation import EvaluationConfig
from wfm_posttrain.fit import FitConfig
from wfm_posttrain.lora import LoraConfig
from wfm_posttrain.objectives import draw_sigma, next_frame_loss

WORLD = "fakes:NextFrameWorld"
DIFFUSION = DiffusionBackend(base="fakes:load_denoiser=new", world=WORLD, codec="fakes:PatchCodec")
AR = ArBackend(base="fakes:load_token_model=new", world=WORLD, codec="fakes:TokenCodec", options={})


def config_for(recordings, backend, **fit):
    settings = {"steps": 20, "batch": 4, "warmup": 2, "checkpoint_every": 10, **fit}
    return ActionConfig(
        clips=str(recordings),
        held_out=4,
        backend=backend,
        fit=FitConfig.model_validate(settings),
        evaluation=EvaluationConfig(frames=3, clips=4),
    )


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_an_untrained_encoder_leaves_the_network_as_it_was():
    net, encoder = SmallDenoiser(), ActionEncoder(2, 12)
    noisy, sigma = torch.randn(2, 4, 3, 4, 4, generator=seeded()), torch.ones(2)
    given = {"given": torch.zeros(2, 1, 3, 4, 4)}
    actions = encoder.encode({"action": torch.randn(2, 1, 2, generator=seeded())})
    assert torch.equal(
        net.denoise(noisy, sigma, given), net.denoise(noisy, sigma, {**given, **actions})
    )


def test_after_one_step_actions_act_through_both_paths():
    torch.manual_seed(0)
    net, encoder = SmallDenoiser(), ActionEncoder(2, 12)
    model = nn.ModuleDict({"network": net, "encoder": encoder})
    window = torch.randn(4, 3, 4, 4, 4, generator=seeded())
    action = torch.randn(4, 2, generator=seeded())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    next_frame_loss(model, window, action, torch.ones(4), DIFFUSION, seeded()).backward()
    optimizer.step()
    for path in ("adaln", "adaln_shared"):
        action = action.detach().clone().requires_grad_()
        condition = encoder.encode({"action": action[:, None]})
        model.zero_grad()
        other = {"adaln", "adaln_shared"} - {path}
        condition = {k: v.detach() if k in other else v for k, v in condition.items()}
        given = torch.ones(4, 1, 3, 4, 4)
        given[:, :, -1] = 0
        noisy = window.transpose(1, 2)
        out = net.denoise(noisy, torch.ones(4), {**condition, "given": given})
        out[:, :, -1].square().sum().backward()
        assert action.grad is not None
        assert action.grad.abs().max() > 0


def test_the_loss_looks_at_the_new_frame_only():
    class Blind(SmallDenoiser):
        def denoise(self, noisy, sigma, condition, /):
            out = super().denoise(noisy, sigma, condition)
            return torch.cat([out[:, :, :-1] + 100, out[:, :, -1:]], 2)

    losses = []
    for kind in (SmallDenoiser, Blind):
        torch.manual_seed(0)
        model = nn.ModuleDict({"network": kind(), "encoder": ActionEncoder(2, 12)})
        window = torch.randn(4, 3, 4, 4, 4, generator=seeded())
        losses.append(
            next_frame_loss(model, window, torch.zeros(4, 2), torch.ones(4), DIFFUSION, seeded())
        )
    assert torch.equal(*losses)


def test_the_tokens_loss_counts_the_last_frame_only():
    torch.manual_seed(0)
    net, encoder = SmallTokenModel(), ActionTokens(2, 8)
    model = nn.ModuleDict({"network": net, "encoder": encoder})
    window = torch.randint(16, (2, 3, 4, 4), generator=seeded())
    clean = ArBackend(past_noise=0)
    loss = next_frame_loss(model, window, torch.ones(2, 2), torch.ones(2), clean, seeded())
    scores = net.logits(
        window.flatten(1), encoder.encode({"action": torch.ones(2, 1, 2)}), grid=(3, 4, 4)
    )
    expected = nn.functional.cross_entropy(scores[:, 31:47].flatten(0, 1), window[:, 2].flatten())
    torch.testing.assert_close(loss, expected)


def test_objects_may_count_more(recordings, tmp_path):
    clips = ClipFolder(recordings)
    covered = covered_by_objects(clips, (4, 4))
    assert covered.shape == (12 * 8, 4, 4)
    square = clips[0].labels()["segmentation"] == 1
    torch.testing.assert_close(covered[:8].mean((1, 2)), square.float().mean((1, 2)))
    with pytest.raises(ValueError, match="clip 0: no segment 'gripper'"):
        covered_by_objects(clips, (4, 4), ["gripper"])
    for net, encoder, backend, window in (
        (SmallDenoiser(), ActionEncoder(2, 12), DIFFUSION, torch.randn(4, 3, 4, 4, 4)),
        (SmallTokenModel(), ActionTokens(2, 8), AR, torch.randint(16, (4, 3, 4, 4))),
    ):
        model = nn.ModuleDict({"network": net, "encoder": encoder})

        def loss(weights, model=model, window=window, backend=backend):
            action, fps = torch.ones(4, 2), torch.ones(4)
            return next_frame_loss(
                model, window, action, fps, backend, seeded(), place_weights=weights
            )

        left, right = torch.zeros(2, 4, 4, 4)
        left[..., :2] = right[..., 2:] = 1
        torch.testing.assert_close(loss(left + right), loss(None))
        torch.testing.assert_close(loss(left) + loss(right), 2 * loss(None))
        assert not torch.isclose(loss(left), loss(right))
    config = config_for(recordings, DIFFUSION, steps=3).model_copy(update={"object_weight": 5.0})
    assert train(config, tmp_path / "run").is_dir()
    nameless = shutil.copytree(recordings, tmp_path / "nameless")
    for about in nameless.glob("*.json"):
        about.write_text(json.dumps({"fps": 5.0}))
    with pytest.raises(ValueError, match="weighted_parts say what object_weight is for"):
        ActionConfig(**config.model_dump() | {"weighted_parts": ["gripper"], "object_weight": 0})
    config = config.model_copy(update={"clips": str(nameless)})
    with pytest.raises(ValueError, match="no list of `objects`"):
        train(config, tmp_path / "refused")
    assert not (tmp_path / "refused" / "clips.safetensors").exists()  # before anything is encoded


class Adds(nn.Module):
    """A denoiser that knows: the next latent is the last one plus the action, and an error."""

    sigma_data = 0.5

    def __init__(self, error):
        super().__init__()
        self.error = error

    def denoise(self, noisy, sigma, condition, /):
        step = condition["adaln"][..., None, None] + self.error
        return torch.cat([noisy[:, :, :-1], noisy[:, :, -2:-1] + 0.5 * step[:, :, None]], 2)


class Passes(nn.Module):
    def encode(self, inputs, /):
        return {"adaln": inputs["action"][:, 0]}


@pytest.mark.parametrize("error", [0, 1])
def test_a_model_can_be_trained_to_go_on_from_its_own_mistakes(error):
    action = torch.randn(20, 4, generator=seeded())
    first = torch.arange(20) // 10 * 10
    action[[0, 10]] = 0
    codes = torch.cat([part.cumsum(0) for part in action.split(10)])
    codes = codes[:, :, None, None].expand(-1, -1, 2, 2)
    frames = EncodedFrames(codes, action, first, torch.full((20,), 5.0))
    model = nn.ModuleDict({"network": Adds(error), "encoder": Passes()})
    backend = DiffusionBackend(own_past=0.5, own_past_frames=4)
    config = ActionConfig(clips="-", backend=backend, past_frames=2)
    targets = torch.tensor([1, 9, 11, 19, 18, 8])
    recorded = frames.windows(targets, 2)
    for seed in range(8):
        windows = with_own_past(model, frames, targets, config, seeded(seed))
        assert torch.equal(windows[:, -1], recorded[:, -1])
        off = (windows - recorded)[:, :2].flatten(2).mean(2)
        # As many of the windows that have a past long enough; an error adds up, frame by frame.
        own = (off[:, 1] > 0.5).nonzero()[:, 0].tolist()
        assert own == ([1, 3, 4] if error else [])
        late = off[[1, 3, 4]]
        depth = int(late[0, 1].round())
        expected = torch.tensor([max(depth - 1, 0), depth]).float().expand(3, 2)
        torch.testing.assert_close(late, expected, atol=1e-4, rtol=0)
    backend = DiffusionBackend()
    config = ActionConfig(clips="-", backend=backend, past_frames=2)
    assert torch.equal(with_own_past(model, frames, targets, config, seeded()), recorded)


def test_an_action_becomes_as_many_context_slots_as_it_has_numbers():
    encoder = ActionTokens(7, 16)
    assert encoder.encode({"action": torch.zeros(3, 2, 7)})["text"].shape == (3, 14, 16)


def test_scaling_leaves_a_constant_dimension_alone():
    encoder = ActionEncoder(2, 4)
    actions = torch.stack([torch.linspace(-3, 5, 50), torch.full((50,), 0.2)], 1)
    fit_scaling(encoder, actions)
    assert encoder.scale[1] == 1
    scaled = (actions - encoder.mean) / encoder.scale
    torch.testing.assert_close(scaled[:, 0].std(correction=0), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        ({}, ValueError, "needs controls"),
        ({"action": torch.zeros(1, 1, 3)}, ValueError, "takes b s 2"),
        ({"action": torch.zeros(1, 1, 2), "hint": torch.zeros(1)}, KeyError, "hint"),
    ],
)
def test_the_encoder_refuses_what_it_does_not_know(inputs, error, words):
    with pytest.raises(error, match=words):
        ActionEncoder(2, 4).encode(inputs)


def test_high_noise_levels_are_drawn_often_enough():
    sigma = draw_sigma(4000, DiffusionBackend(high_sigma_share=0.3), seeded())
    assert 0.1 < (sigma > 10).float().mean() < 0.25
    assert sigma.max() <= 85


MUON = {"optimizer": "muon", "precision": "bfloat16"}


@pytest.mark.parametrize(
    ("backend", "how"),
    [(DIFFUSION.model_copy(update={"own_past": 0.5}), {}), (AR, {}), (AR, MUON)],
    ids=["diffusion", "ar", "muon"],
)
def test_a_run_that_was_stopped_ends_on_the_same_bits(recordings, tmp_path, backend, how):
    class Stop(Exception):
        pass

    def stop(step, _):
        if step == 14:
            raise Stop

    config = config_for(recordings, backend, **how)
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Stop):
        train(config, tmp_path / "stopped", progress=stop)
    resumed = train(config, tmp_path / "stopped", resume=True)
    for name in ("net/model.safetensors", "encoder.safetensors"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()
    steps = [[line["step"] for line in metrics(run.parent)] for run in (whole, resumed)]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("backend", [DIFFUSION, AR], ids=["diffusion", "ar"])
def test_the_saved_folder_loads_as_a_world_model(recordings, tmp_path, backend):
    folder = train(config_for(recordings, backend, steps=3), tmp_path / "run")
    world = wfm_posttrain.load(folder)
    past = torch.rand(2, 3, 2, 32, 32, generator=seeded()) * 2 - 1
    controls = {"action": torch.zeros(2, 3, 2)}
    assert world.rollout(past, frames=3, controls=controls).shape == (2, 3, 3, 32, 32)
    about = json.loads((folder / "net" / "world.json").read_text())
    assert about["conditions"] == ["action"]
    assert about["past_frames"] == 2


def test_training_lowers_the_loss_and_makes_actions_matter(recordings, tmp_path):
    config = config_for(recordings, AR, steps=300, batch=32, lr=0.01)
    run = train(config, tmp_path / "run").parent
    lines = metrics(run)
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert lines[-1]["held_out_loss_shuffled"] > lines[-1]["held_out_loss"]
    assert {"psnr", "gap", "psnr_repeat"} <= json.loads(
        (run / "evaluation.json").read_text()
    ).keys()


@pytest.mark.parametrize("backend", [DIFFUSION, AR], ids=["diffusion", "ar"])
def test_a_trained_model_is_gone_on_from_with_its_encoder(recordings, tmp_path, backend):
    first = train(config_for(recordings, backend, steps=3), tmp_path / "first")
    config = config_for(recordings, backend, steps=1, lr=1e-12, warmup=0)
    config = config.model_copy(update={"start": str(first)})
    second = train(config, tmp_path / "second")
    for name in ("net/model.safetensors", "encoder.safetensors"):
        before, after = load_file(first / name), load_file(second / name)
        assert all(torch.allclose(before[key], after[key], atol=1e-3) for key in before)
    other = DIFFUSION if backend is AR else AR
    with pytest.raises(ValueError, match=f"wanted {other.kind} and 2"):
        train(config.model_copy(update={"backend": other}), tmp_path / "third")


def test_adapters_train_alone_and_are_merged_into_the_saved_network(recordings, tmp_path):
    config = config_for(recordings, DIFFUSION, steps=4)
    config = config.model_copy(update={"lora": LoraConfig(targets="shared", rank=2)})
    folder = train(config, tmp_path / "run")
    saved, base = load_file(folder / "net" / "model.safetensors"), load_denoiser().state_dict()
    assert saved.keys() == base.keys()
    changed = {name for name in base if not torch.equal(saved[name], base[name].half())}
    assert changed == {"shared.weight"}
    assert (folder / "adapter" / "adapter_config.json").is_file()


def test_a_run_without_a_checkpoint_is_begun_anew(recordings, tmp_path):
    class Stop(Exception):
        pass

    def stop(step, _):
        raise Stop

    with pytest.raises(Stop):
        train(config_for(recordings, DIFFUSION, steps=3), tmp_path / "run", progress=stop)
    assert train(config_for(recordings, DIFFUSION, steps=2), tmp_path / "run").is_dir()


def test_another_codec_is_refused(recordings, tmp_path, monkeypatch):
    folder = train(config_for(recordings, DIFFUSION, steps=2), tmp_path / "run")
    other = PatchCodec()
    other.fingerprint = "another"
    with pytest.raises(ValueError, match="codec fake-codec, this one is another"):
        wfm_posttrain.load(folder, codec=other)
    monkeypatch.setattr(PatchCodec, "fingerprint", "another")
    config = config_for(recordings, DIFFUSION, steps=2).model_copy(update={"start": str(folder)})
    with pytest.raises(ValueError, match="codec fake-codec, this one is another"):
        train(config, tmp_path / "second")


def test_a_run_is_not_overwritten_and_not_mixed_up(recordings, tmp_path):
    config = config_for(recordings, DIFFUSION, steps=2)
    train(config, tmp_path / "run")
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(config, tmp_path / "run")
    with pytest.raises(ValueError, match=r"other settings \(fit.steps\)"):
        train(config_for(recordings, DIFFUSION, steps=3), tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="no run to resume"):
        train(config, tmp_path / "elsewhere", resume=True)


def test_frames_before_a_clips_start_are_its_first(recordings):
    frames = encode_frames(ClipFolder(recordings), PatchCodec())
    targets = frames.targets()
    assert len(targets) == 12 * 7
    window = frames.windows(targets[7:8], 3)[0]
    assert torch.equal(window[0], window[2])
    assert torch.equal(window[2], frames.codes[8])
    assert torch.equal(window[3], frames.codes[9])


def test_encoded_frames_are_kept_and_made_anew_for_another_codec(recordings, tmp_path):
    made = []

    def encode():
        made.append(1)
        return vars(encode_frames(ClipFolder(recordings), PatchCodec()))

    for codec in ("a", "a", "b"):
        frames = kept(tmp_path / "codes.safetensors", {"codec": codec}, encode)
    assert len(made) == 2
    assert frames["codes"].dtype == torch.float16


def test_evaluation_of_a_perfect_world_finds_its_objects(recordings):
    from fakes import SquareWorld

    result = evaluate(SquareWorld(), str(recordings), EvaluationConfig(frames=3, clips=6))
    assert result.psnr[0] > result.psnr_repeat[0] + 5
    assert result.gap[0].low > 1
    assert result.objects["centroid_error"][0].mean < 1
    assert 0.7 < result.objects["permanence"][0].mean < 1.4
    assert result.table().count("\n") == 4


def test_fake_world_is_not_told_apart_from_a_real_one():
    world = NextFrameWorld(SmallDenoiser(), codec=PatchCodec(), condition_encoder=None)
    assert isinstance(world, wfm_posttrain.interfaces.WorldModel)
